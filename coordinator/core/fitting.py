"""How much of a view a message holds, found with as few views as can be: each is made of everything."""

from collections.abc import Callable


def fitting(make: Callable[[int], bytes], most: int, limit: int) -> tuple[bytes, int]:
    """The view of at most ``most`` things that has at most ``limit`` bytes, and of how many it is.

    make  the view of so many; its bytes grow by about the same with each of them
    Most often one view is made, or a second one if the first is too large. A view of one thing is given as it is.
    """
    view, many = make(most), most
    known: list[tuple[int, int]] = []
    while len(view) > limit and many > 1:
        known = [*known, (many, len(view))][-2:]
        # the line through the two last ones, or through nothing; a twentieth less, for things are not alike
        (few, least), (more, size) = known if known[1:] else [(0, 0), *known]
        each = abs(size - least) / abs(more - few)
        fits = (limit - size) / each + more if each else 0.0
        many = max(1, min(int(0.95 * fits), many // 2 if known[1:] else many - 1))
        view = make(many)
    return view, many
