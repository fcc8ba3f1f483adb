"""A view that a message can hold is found with few views, whatever things are like."""

import pytest

from coordinator.core.fitting import fitting


class Views:
    def __init__(self, head: int, each: int, last: int = 0) -> None:
        self.head, self.each, self.last = head, each, last
        self.made: list[int] = []

    def __call__(self, most: int) -> bytes:
        self.made.append(most)
        return bytes(self.head + self.each * most + self.last * (most % 7))


@pytest.mark.parametrize(
    ("views", "limit", "made"),
    [
        (Views(100, 10), 20_000, 1),  # as it is
        (Views(0, 30), 20_000, 2),
        (Views(100, 30), 20_000, 2),
        (Views(15_000, 30), 20_000, 3),  # much that is not over
        (Views(0, 30, 50), 20_000, 2),
    ],
)
def test_it_fits_and_few_are_made(views: Views, limit: int, made: int) -> None:
    view, many = fitting(views, 1000, limit)
    assert len(view) <= limit and len(views.made) == made and views.made[-1] == many
    assert 2 * len(view) > limit


@pytest.mark.parametrize("views", [Views(30_000, 1), Views(25_000, 0), Views(0, 30_000)])
def test_what_never_fits_is_given_as_small_as_it_gets(views: Views) -> None:
    _, many = fitting(views, 1000, 20_000)
    assert many == 1 and len(views.made) <= 4
