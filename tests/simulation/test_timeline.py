"""The picture of a simulated run: all of it is there, nothing covers anything else, everybody can read it."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented_outcome import BEGAN, invented

from console.screens.drawing import number, shortened, width_of
from console.screens.lanes import LANES_MAX, Bar, in_lanes, joined
from console.screens.time_axis import ticks
from console.screens.timeline import timeline
from console.screens.timeline_looks import MARKS, WORK
from consortium.canonical import replace
from consortium.ids import SiteName
from simulation.outcome import Cost, Ending, Happening, Outcome

SVG = "{http://www.w3.org/2000/svg}"


def boxes_of_words(picture: str) -> list[tuple[float, float, float, float, str]]:
    """Where each text stands: left, top, right, bottom, its words."""
    found = []
    for one in ElementTree.fromstring(picture).iter(f"{SVG}text"):
        look = (one.get("class") or "").split()
        size = (
            15.0 * 1.12
            if "title" in look
            else 12.0 * 1.12
            if "bad" in look
            else 11.0
            if "small" in look
            else 12.0
        )
        words = one.text or ""
        width = width_of(words, size)
        x = float(one.get("x", "")) - (width if "end" in look else width / 2 if "middle" in look else 0)
        y = float(one.get("y", ""))
        found.append((x, y - 0.8 * size, x + width, y + 0.2 * size, words))
    return found


def check_words(picture: str) -> None:
    """No two overlap, and none leaves the picture."""
    root = ElementTree.fromstring(picture)
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    boxes = boxes_of_words(picture)
    for left, top, right, bottom, words in boxes:
        assert left >= 0 and right <= width and top >= 0 and bottom <= height, words
    for one, other in itertools.combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


@pytest.mark.parametrize(
    ("num_sites", "hours", "rounds", "faults"),
    [(1, 0.4, 1, 0), (6, 10.0, 4, 1), (20, 1000.0, 12, 3), (40, 300.0, 60, 5), (3, 20000.0, 200, 3)],
)
def test_words_never_cover_each_other(num_sites: int, hours: float, rounds: int, faults: int) -> None:
    picture = timeline(invented(num_sites, hours, rounds, faults))
    assert picture == timeline(invented(num_sites, hours, rounds, faults))
    check_words(picture)


def test_the_check_sees_words_that_do() -> None:
    picture = timeline(invented()).replace(
        ">round 1<", ">round 1, about which somebody had a lot to say, and then some more to add to that<"
    )
    with pytest.raises(AssertionError):
        check_words(picture)


def test_everything_that_happened_is_told_to_who_points_at_it() -> None:
    found = invented(6, 100.0, 4, 2)
    picture = timeline(found)
    told = [one.text or "" for one in ElementTree.fromstring(picture).iter(f"{SVG}title")]
    assert told[0] == "tiny-1: 6 sites, rough weather, seed 7"
    assert any(
        re.match(r"tiny-1_r2-train-lumi\.a1: running for [0-9.]+ h, after [0-9.]+ h", one) for one in told
    )
    assert any(one.startswith("round 3: for 20 h, after 60 h") for one in told)
    assert any(one.startswith("tiny-1/v2 rejected after 60 h: fi got worse") for one in told)
    assert any(one.startswith("outage for 5 h, after 55 h: maintenance") for one in told)
    told_faults = sum(1 + int((re.search("; ([0-9]+) more here", one) or [0, "0"])[1]) for one in told
                      if one.split(" after ")[0] in MARKS)  # fmt: skip
    assert told_faults == sum(one.kind in MARKS for one in found.happenings)


def test_the_legend_has_what_occurs_and_nothing_else() -> None:
    words = [one[4] for one in boxes_of_words(timeline(invented(6, 100.0, 4, 2)))]
    assert {
        "queued",
        "running",
        "cut off",
        "site down",
        "agent down",
        "window closed",
        "coordinator crashed",
        "promoted",
    } <= set(words)
    assert not {"making", "disk full", "clock jump"} & set(words)


def test_a_run_in_which_nothing_happened_has_a_picture_too() -> None:
    found = Outcome(
        seed=0, plan="0" * 64, weather="calm", began_at=BEGAN, hours=0.0, head="", events=0, steps=0, costs={}
    )  # type: ignore[arg-type]
    check_words(timeline(found))


def test_words_of_other_parties_are_only_words() -> None:
    hostile = SiteName("<script>alert(1)</script>\x1b[31m & more and more and more and more")
    found = invented(2)
    ended = (
        Ending(campaign=found.ended[0].campaign, status="failed", reason="<b>'\"", rounds=0, promoted=0),
    )
    happening = Happening(
        at=BEGAN, place=hostile, kind="running", subject="<x>", detail="</title>", until=BEGAN + 9e4
    )
    picture = timeline(
        replace(
            found,
            costs={**found.costs, hostile: Cost()},
            ended=ended,
            happenings=(*found.happenings, happening),
            violations=("<i>", "x" * 1000, "y", "z"),
        )
    )
    assert not {"script", "b", "i", "x"} & {
        one.tag.removeprefix(SVG) for one in ElementTree.fromstring(picture).iter()
    }
    assert "\x1b" not in picture
    check_words(picture)


@given(st.floats(min_value=0.01, max_value=50_000.0), st.floats(min_value=300.0, max_value=2000.0))
def test_an_axis_has_some_labels_apart_from_each_other(hours: float, width: float) -> None:
    found = ticks(hours, width)
    assert 1 <= len(found) <= 40
    assert len({tick.label for tick in found}) == len(found)
    assert all(0 <= tick.hour <= hours * (1 + 1e-9) for tick in found)
    for one, other in itertools.pairwise(found):
        room = (other.hour - one.hour) * width / hours
        assert room >= width_of(one.label, 11.0) / 2 + width_of(other.label, 11.0) / 2


@pytest.mark.parametrize(
    ("hours", "labels"),
    [
        (10.0, ["0 h", "1 h", "2 h"]),
        (1.0, ["0 min", "5 min", "10 min"]),
        (72.0, ["0 h", "6 h", "12 h"]),
        (1000.0, ["0 d", "5 d", "10 d"]),
        (8760.0, ["0 d", "50 d", "100 d"]),
    ],
)
def test_an_axis_speaks_of_minutes_hours_or_days(hours: float, labels: list[str]) -> None:
    assert [tick.label for tick in ticks(hours, 1000.0)][:3] == labels


BARS = st.lists(
    st.builds(
        lambda begin, length, subject: Bar(begin, begin + length, subject, subject, subject),
        st.floats(0, 900),
        st.floats(0, 90),
        st.sampled_from("abcdefgh"),
    ),
    max_size=30,
)


@given(BARS)
def test_a_subject_stays_in_one_lane_and_shares_it_with_nobody_at_a_time(bars: list[Bar]) -> None:
    lanes = in_lanes(bars)
    assert len(lanes) <= LANES_MAX
    homes = {
        subject: [n for n, lane in enumerate(lanes) if subject in {one.kind for one in lane}]
        for subject in "abcdefgh"
    }
    for bar in bars:
        (lane,) = homes[bar.subject]
        assert any(
            one.begin <= bar.begin and bar.end <= one.end for one in lanes[lane] if one.kind == bar.kind
        )
    for lane in lanes[: LANES_MAX - 1]:
        for one, other in itertools.pairwise(lane):
            assert one.kind == other.kind or one.end <= other.begin + 0.4


def test_two_jobs_at_a_time_take_two_lanes_and_three_in_a_row_take_one() -> None:
    both = [Bar(0, 10, "running", "a", "a"), Bar(5, 15, "running", "b", "b")]
    assert [[bar.subject for bar in lane] for lane in in_lanes(both)] == [["a"], ["b"]]
    row = [Bar(n * 10, n * 10 + 9, "running", f"{n}", "") for n in range(3)]
    assert len(in_lanes(row)) == 1


def test_bars_too_close_to_tell_apart_are_one_and_say_so() -> None:
    close = [Bar(n * 0.3, n * 0.3 + 0.2, "running", f"{n}", f"job {n}") for n in range(4)]
    assert joined(close) == [
        Bar(0, pytest.approx(1.1), "running", "0", "job 0; 3 more until the end of this bar")
    ]
    assert len(joined([close[0], close[1]._replace(kind="queued")])) == 2


@given(st.floats(min_value=-1e5, max_value=1e5))
def test_a_coordinate_is_short_and_never_minus_nothing(value: float) -> None:
    assert number(value) != "-0"
    assert float(number(value)) == pytest.approx(value, abs=0.0501)


@given(st.text(max_size=60), st.floats(min_value=0, max_value=300))
def test_shortened_words_fit(words: str, room: float) -> None:
    assert width_of(shortened(words, room, 12.0), 12.0) <= room


# Viénot, Brettel and Mollon 1999, "Digital video colourmaps for checking the legibility of displays by dichromats"
_DICHROMATS = {
    "protan": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    "deutan": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
    "none": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
}


def lab(colour: str, sight: str) -> tuple[float, float, float]:
    """CIE L*a*b* of an sRGB colour, D65, as seen with that sight."""
    values = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    seen = [sum(a * b for a, b in zip(row, linear, strict=True)) for row in _DICHROMATS[sight]]
    matrix = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(a * b for a, b in zip(row, seen, strict=True)) for row in matrix]
    x, y, z = (
        t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116
        for t in (value / white for value, white in zip(xyz, (0.9505, 1.0, 1.089), strict=True))
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("sight", sorted(_DICHROMATS))
@pytest.mark.parametrize("page", [0, 1], ids=["light", "dark"])
def test_what_is_equally_thick_differs_in_colour_for_everybody(sight: str, page: int) -> None:
    together = (("queued", "staging", "running", "uploading"), ("making", "inspecting", "merging", "judging"))
    for kinds in together:
        for one, other in itertools.combinations(kinds, 2):
            if WORK[one][2] == WORK[other][2]:
                seen = [lab(WORK[kind][page], sight) for kind in (one, other)]
                distance = sum((a - b) ** 2 for a, b in zip(*seen, strict=True)) ** 0.5
                assert distance > 15, (one, other, distance)
