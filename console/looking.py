"""Commands that look and change nothing: how it stands, how it goes on, what came out, and why."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.app import LOOK, As, Home, Json, command
from console.output import answer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from consortium.views import CampaignView, ConsortiumView


@command("status", "sprachbund status", LOOK)
def status(as_json: Json = False, who: As = None, home: Home = None) -> None:
    """How everything stands: campaigns, rounds, running jobs, sites, and why things wait."""
    from console.screens import status as page

    view = _view(who, home)
    answer(as_json, view, page(view, _width()))


@command("watch", "sprachbund watch", LOOK)
def watch(
    seconds: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between looks.")] = 1.0,
    as_json: Json = False,
    who: As = None,
) -> None:
    """See it happen, live, until Ctrl-C.

    Without a terminal: a line for every change; with --json: a line with everything, whenever something changed.
    """
    from console.client import ask
    from console.watching import Watcher

    with Watcher(as_json) as watcher:
        ask(who, lambda coordinator: watcher.follow(coordinator, seconds))


@command("versions", "sprachbund versions balkan-1", LOOK)
def versions(
    campaign: Annotated[
        str | None, typer.Argument(metavar="CAMPAIGN", help="Only of this one; default: all.")
    ] = None,
    as_json: Json = False,
    who: As = None,
    home: Home = None,
) -> None:
    """Which models there are, what became of them, and how good they are in each language."""
    from consortium.errors import BadInput

    view = _view(who, home)
    found = [one for one in view.campaigns if campaign in (None, one.campaign)]
    if campaign is not None and not found:
        known = ", ".join(one.campaign for one in view.campaigns) or "none"
        raise BadInput(f"there is no campaign {campaign!r}; known: {known}")
    fact = {one.campaign: {"head": one.head, "models": one.models, "versions": one.versions} for one in found}
    answer(as_json, fact, _models(found))


@command("why", "sprachbund why balkan-1_r2-train-sofia", LOOK)
def why(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT",
            help="A campaign, a round (balkan-1/r2), a job, an attempt, a version (balkan-1/v3 or its digest), "
            "or a site.",
        ),
    ],
    as_json: Json = False,
    who: As = None,
    home: Home = None,
) -> None:
    """One subject's story, told from the ledger: what happened to it, why, and what it waits for."""
    from console.client import Story, StoryLine, ask
    from console.screens import story

    if home is None:
        told = ask(who, lambda coordinator: coordinator.why(subject))
    else:
        from coordinator.reading import story_of

        lines = story_of(home, subject)
        told = Story(
            subject=subject, lines=tuple(StoryLine(at=x.at, sequence=x.sequence, text=x.text) for x in lines)
        )
    answer(as_json, told, story(told.subject, told.lines, _width()))


def _view(who: Path | None, home: Path | None) -> "ConsortiumView":
    """How things stand: asked of the coordinator, or read from a home without one."""
    if home is not None:
        from coordinator.reading import view_of

        return view_of(home)
    from console.client import ask

    return ask(who, lambda coordinator: coordinator.view())


def _models(campaigns: "list[CampaignView]") -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    from console.screens import results_table
    from console.screens import versions as page

    if not campaigns:
        return "No campaign has been submitted; try: sprachbund submit CAMPAIGN.yaml"
    parts: list[RenderableType] = []
    for campaign in campaigns:
        parts += [page(campaign, _width()), Text()]
        if any(model.mean is not None for model in campaign.models):
            parts += [results_table(campaign), Text()]
    return Group(*parts[:-1])


def _width() -> int:
    from console.output import screen

    return screen().width
