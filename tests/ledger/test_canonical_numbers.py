"""Which numbers a fact may hold: JSON has no word for those that are not finite, however deep they lie."""

import math
from typing import Any

import pytest

from consortium.canonical import decode, encode
from consortium.errors import BadInput


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("place", "around"),
    [
        (r"\$", lambda number: number),
        (r"\$\[1\]", lambda number: [None, number]),
        (r"\$\.b\[0\]\.c", lambda number: {"a": None, "b": ({"c": number},)}),
        (r"\$\.null", lambda number: {"null": number}),
    ],
)
def test_a_number_that_is_not_finite_is_refused_with_its_place(
    number: float, place: str, around: Any
) -> None:
    with pytest.raises(BadInput, match=rf"^{place}: -?(nan|inf) cannot be written down"):
        encode(around(number))


@pytest.mark.parametrize(
    "fact", [None, [None, 1.5], {"null": None}, {"said": "null"}, {"a": {"b": [0.1, None]}}]
)
def test_what_is_not_there_and_the_word_for_it_are_written_down(fact: Any) -> None:
    assert decode(encode(fact), type(fact) if fact is not None else type(None)) == fact
