"""Every screen is a string: golden ones for the usual picture, stories for what must never be shown wrongly.

After a wanted change renew the golden files, ``python tests/console/test_screens.py``, and read the diff.
"""

import io
import random
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import consortium_in_views as given
import pytest
from rich.console import Console, RenderableType

from console.screens import compare, live, results_table, status, story, to_svg, versions
from consortium.canonical import Fact, replace
from consortium.views import CampaignView, ConsortiumView

GOLDEN = Path(__file__).parent / "golden"
F = TypeVar("F", bound=Fact)

STORY = [
    SimpleNamespace(at=1_795_000_000.0, sequence=20, text="demo_r2-train-south planned: south holds bg, el"),
    SimpleNamespace(
        at=1_795_000_002.0, sequence=24, text="demo_r2-train-south.a1 leased to south: it has a free slot"
    ),
    SimpleNamespace(
        at=1_795_000_305.5, sequence=31, text="demo_r2-train-south.a1 preempted: by the site; not counted"
    ),
    SimpleNamespace(at=1_795_000_305.5, sequence=31, text="now: planned: waits for south, which is draining"),
]

SCREENS: dict[str, Callable[[ConsortiumView], RenderableType]] = {
    "live_100": lambda view: live(view, 100),
    "live_80x24": lambda view: live(view, 80, 24),
    "status_100": lambda view: status(view, 100),
    "versions_100": lambda view: versions(view.campaigns[0], 100),
    "results_100": lambda view: results_table(shuffled(given.DONE)),
    "story_100": lambda view: story("demo_r2-train-south", STORY, 100),
}


def render(screen: RenderableType, width: int = 100) -> str:
    """The screen as plain text: fixed width, no colour, nothing from the environment."""
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, legacy_windows=False, _environ={}).print(screen)
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())


def shuffled(view: F) -> F:
    """The same facts with every row in another order; languages keep theirs, which has a meaning."""
    rows = {
        field: tuple(random.Random(7).sample(value, len(value)))
        for field in view.__struct_fields__
        if field != "languages" and isinstance(value := getattr(view, field), tuple)
    }
    return replace(view, **rows)


@pytest.mark.parametrize("name", SCREENS)
def test_screens_look_as_agreed_whatever_the_order_of_rows(name: str) -> None:
    expected = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    width = 80 if "80" in name else 100
    view = shuffled(replace(given.IN_ROUND_TWO, campaigns=(shuffled(given.RUNNING),)))
    assert render(SCREENS[name](given.IN_ROUND_TWO), width) == expected
    assert render(SCREENS[name](view), width) == expected


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (160, 50)])
def test_a_crowded_consortium_still_fits_the_screen(width: int, height: int) -> None:
    view = replace(
        given.IN_ROUND_TWO,
        sites=tuple(replace(given.SITES[0], site=f"site-{number:02}") for number in range(20)),
        attempts=tuple(
            replace(given.ATTEMPTS[0], attempt=f"demo_r2-train-site-{number:02}.a1") for number in range(20)
        ),
        campaigns=(
            replace(
                given.RUNNING, rounds=tuple(replace(given.ROUNDS[1], round=number) for number in range(1, 9))
            ),
            replace(given.DONE, campaign="older"),
        ),
    )
    lines = render(live(view, width, height), width).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "8 of 2" in text, "the newest round is shown"
    assert text.count(" more") >= 3, "what is left out is counted"


def test_an_empty_consortium_says_so() -> None:
    view = ConsortiumView(
        consortium="new", sequence=1, head="0" * 64, now=0.0, sites=(), campaigns=(), jobs=(), attempts=()
    )
    text = render(status(view))
    assert "No campaign has been submitted" in text
    assert "nothing runs" in text
    assert "no site has enrolled yet" in text
    assert len(render(live(view)).splitlines()) <= 30


def test_names_and_reasons_cannot_steer_the_terminal_or_the_markup() -> None:
    evil = "[bold]\x1b[2J\x1b]0;title\x07gone\nnew line[/nope]"
    view = replace(
        given.IN_ROUND_TWO,
        consortium=evil,
        sites=(replace(given.SITES[0], site=evil, status=evil, languages=(evil,)),),
        jobs=(replace(given.JOBS[3], job=evil, reason=evil),),
        campaigns=(
            replace(given.DONE, campaign=evil, reason=evil, models=(replace(given.BASE, name=evil),)),
        ),
    )
    campaign = view.campaigns[0]
    screens = [live(view), status(view), versions(campaign), results_table(campaign), story(evil, [])]
    text = "".join(render(screen) for screen in screens)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]" in text


def with_models(*models: object) -> CampaignView:
    return replace(given.DONE, models=models)


def flat(screen: RenderableType) -> str:
    return " ".join(render(screen).split())


def test_the_sentence_says_so_when_the_rival_or_a_site_alone_is_better() -> None:
    strong = given.model("public text only", "rival", given.V0, (1.0,) * 8)
    alone = given.model("west", "specialist", given.V0, (1.5,) * 8)
    text = flat(results_table(with_models(given.BASE, given.SECOND, strong, alone, *given.SPECIALISTS)))
    assert "same total compute, is as good or better on the mean: 1.000 against 1.958." in text
    assert "Its mean does not beat a site alone: west." in text


def test_a_language_that_lost_is_named() -> None:
    worse = given.model(
        "demo/v2", "version", given.V2, (1.5, 2.262, 2.127, 1.198, 2.166, 2.224, 2.279, 2.181)
    )
    text = flat(results_table(with_models(given.BASE, worse)))
    assert "demo/v2 beats its base demo/v0 in 7 of 8 languages, but not in bg." in text
    assert "+7.0%" in text


def test_without_a_promotion_nothing_is_claimed() -> None:
    rejected = replace(given.DONE, head=given.V0, models=(given.BASE, given.FIRST, *given.SPECIALISTS))
    text = flat(results_table(rejected))
    assert "No round's model has been promoted and scored yet." in text
    assert "promoted demo" not in text
    nothing = flat(results_table(replace(given.RUNNING, models=())))
    assert nothing == "demo: no model has been scored on every language yet"


def test_models_scored_on_some_languages_only_are_not_compared() -> None:
    partial = replace(given.SPECIALISTS[1], results=given.SPECIALISTS[1].results[:2], mean=None)
    found = compare(with_models(given.BASE, given.SECOND, partial, given.SPECIALISTS[0], given.RIVAL))
    assert [one.name for one in found.specialists] == ["north"]
    assert (found.base, found.rival, found.promoted) == (given.BASE, given.RIVAL, given.SECOND)


def test_a_story_the_ledger_does_not_know_points_to_a_way_out() -> None:
    assert (
        render(story("demo-r9", [])) == "demo-r9: the ledger does not speak of it; see: sprachbund status\n"
    )


def test_the_svg_is_well_formed_the_same_each_time_and_calls_nobody() -> None:
    pictures = [to_svg(live(given.IN_ROUND_TWO), "sprachbund watch") for _ in range(2)]
    assert pictures[0] == pictures[1]
    assert xml.etree.ElementTree.fromstring(pictures[0]).tag.endswith("svg")
    assert "url(" not in pictures[0].replace("url(#", "")
    assert "r2-train-north.a1" in pictures[0]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, screen in SCREENS.items():
        text = render(screen(given.IN_ROUND_TWO), 80 if "80" in name else 100)
        (GOLDEN / f"{name}.txt").write_text(text, encoding="utf-8")
