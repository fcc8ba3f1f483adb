"""Screens that are printed once: ``status``, ``versions`` and the story that ``why`` tells."""

import datetime
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from rich.console import Group, RenderableType
from rich.text import Text

from console.screens.live import attempts_table, campaign_lines, heading, reasons_table, sites_table
from console.screens.parts import state, table, words
from consortium.ids import short
from consortium.views import CampaignView, ConsortiumView

_ALL = 1_000_000  # rows


class StoryLine(Protocol):
    """A line of a story, as the core tells it and as the wire carries it."""

    @property
    def at(self) -> float: ...

    @property
    def sequence(self) -> int: ...

    @property
    def text(self) -> str: ...


def status(view: ConsortiumView, width: int = 100) -> RenderableType:
    """Everything at once, as long as it takes: all campaigns with their rounds, jobs, sites, reasons."""
    parts: list[RenderableType] = [heading(view, width)]
    parts += [words(notice, "bold yellow") for notice in view.notices]
    for campaign in sorted(view.campaigns, key=lambda one: one.campaign):
        parts += [Text(), *campaign_lines(campaign, view, width, _ALL)]
        states = Counter(job.state for job in view.jobs if job.campaign == campaign.campaign)
        if states:
            parts.append(
                words(
                    "jobs: " + ", ".join(f"{states[word]} {word}" for word in sorted(states)), "bright_black"
                )
            )
    if view.jobs_left_out:
        left_out = (
            f"{view.jobs_left_out} older jobs are over and not shown; `sprachbund why JOB` tells of each"
        )
        parts.append(words(left_out, "bright_black"))
    for run in view.flower_runs:
        given_up = f", {run.given_up} without a reply" if run.given_up else ""
        said = f"Flower run {run.run} of {run.app}: {run.status}, {run.answered} of {run.messages} messages answered"
        parts += [Text(), Text(said + given_up, overflow="fold")]
    if not view.campaigns and not view.flower_runs:
        parts += [
            Text(),
            Text("No campaign has been submitted; try: sprachbund submit examples/…", style="yellow"),
        ]
    parts += [Text(), attempts_table(view, width, _ALL), Text(), sites_table(view, width, _ALL)]
    if reasons := reasons_table(view, width, _ALL):
        for column in reasons.columns:
            column.no_wrap = False
        parts += [Text(), reasons]
    return Group(*parts)


def versions(campaign: CampaignView, width: int = 100) -> RenderableType:
    """The campaign's models, oldest first; the head is marked."""
    if not campaign.versions:
        return words(f"{campaign.campaign} has made no version yet", "yellow")
    names = {version.digest: version.name for version in campaign.versions}
    sited = any(version.merged_by for version in campaign.versions)
    grid = table(
        "",
        "Version",
        "Digest",
        "Status",
        ">round",
        "Base",
        ">deltas",
        *["Merged by"] * sited,
        "Reason…",
        width=width,
    )
    grid.columns[-1].no_wrap = False
    for version in sorted(campaign.versions, key=lambda one: (one.round, one.name, one.digest)):
        is_head = version.digest == campaign.head
        grid.add_row(
            Text("➜" if is_head else "", style="bold green"),
            words(version.name, "bold" if is_head else ""),
            Text(short(version.digest), style="bright_black"),
            state(version.status),
            str(version.round),
            words(names.get(version.base, short(version.base)) if version.base else "none"),
            str(version.contributions),
            *(
                [words(version.merged_by or ("coordinator" if version.contributions else ""))]
                if sited
                else []
            ),
            words("; ".join(said for said in (version.reason, version.let_go) if said)),
        )
    return grid


def story(subject: str, lines: Iterable[StoryLine], width: int = 100) -> RenderableType:
    """What happened to one subject, in ledger order; times are UTC."""
    told = sorted(lines, key=lambda line: line.sequence)
    if not told:
        return words(f"{subject}: the ledger does not speak of it; see: sprachbund status", "yellow")
    grid = table("When (UTC)", ">event", "What and why…", width=width)
    grid.columns[-1].no_wrap = False
    for line in told:
        when = datetime.datetime.fromtimestamp(line.at, datetime.UTC)
        is_now = line.text.startswith("now: ")
        grid.add_row(
            Text("" if is_now else f"{when:%Y-%m-%d %H:%M:%S}", style="bright_black"),
            Text("" if is_now else f"{line.sequence}", style="bright_black"),
            words(line.text, "bold" if is_now else ""),
        )
    return Group(words(subject, "bold bright_blue"), grid)
