"""Which bar of a row stands in which lane, and which bars are too close to be told apart."""

from collections.abc import Iterable
from typing import NamedTuple

LANES_MAX = 4  # of one row; a site that does more at once shows the rest in its last lane
_APART = 0.4  # pixels below which a gap between two bars of one kind is not worth drawing


class Bar(NamedTuple):
    """In pixels from the axis' beginning."""

    begin: float
    end: float
    kind: str
    subject: str  #: bars of one subject share a lane
    said: str  #: for who points at it


def in_lanes(bars: Iterable[Bar]) -> list[list[Bar]]:
    """The bars of one row: each subject in the first lane that is free from its first bar to its last."""
    subjects: dict[str, list[Bar]] = {}
    for bar in bars:
        subjects.setdefault(bar.subject, []).append(bar)
    ordered = sorted(subjects.items(), key=lambda item: (min(bar.begin for bar in item[1]), item[0]))
    lanes: list[list[Bar]] = []
    free_from: list[float] = []
    for _, theirs in ordered:
        begin, end = min(bar.begin for bar in theirs), max(bar.end for bar in theirs)
        number = next((n for n, free in enumerate(free_from) if free <= begin + _APART), len(lanes))
        if number == len(lanes) and number < LANES_MAX:
            lanes.append([])
            free_from.append(0.0)
        number = min(number, LANES_MAX - 1)
        lanes[number] += theirs
        free_from[number] = max(free_from[number], end)
    return [joined(lane) for lane in lanes]


def joined(bars: Iterable[Bar]) -> list[Bar]:
    """The bars in order of time; neighbours of one kind without a visible gap are one, which says so."""
    found: list[Bar] = []
    count = 0
    first = ""
    for bar in sorted(bars, key=lambda bar: (bar.begin, bar.end, bar.kind, bar.subject)):
        last = found[-1] if found else None
        if last is None or last.kind != bar.kind or bar.begin > last.end + _APART:
            found.append(bar)
            first, count = bar.said, 1
        else:
            count += 1
            said = f"{first}; {count - 1} more until the end of this bar"
            found[-1] = last._replace(end=max(last.end, bar.end), said=said)
    return found
