"""The screen of ``sprachbund plan``: a forecast in tables."""

import datetime
import math
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from console.screens.parts import table, words
from consortium.forecasts import Forecast, PlannedJob

_HOUR = 3600.0
_QUIET = ("check", "gate", "compare")  #: purposes of which a round has one job a site; summed up


def forecast_page(found: Forecast, width: int = 100) -> RenderableType:
    """Rounds, jobs, allocations, what limits, what was assumed. Times are hours from now, and UTC."""
    hours = (found.ends_at - found.now) / _HOUR
    head = f"{found.campaign}: {_hours(hours)} from now, until {_when(found.ends_at)} UTC, "
    parts: list[RenderableType] = [
        words(head + f"{found.gpu_hours:.4g} GPU-hours; nothing was recorded", "bold bright_blue"),
        Text(),
        _rounds(found, width),
        Text(),
        _jobs(found, width),
    ]
    if found.allocations:
        parts += [Text(), _allocations(found, width)]
    for title, sentences, style in (
        ("What limits it", found.limits, "yellow"),
        ("What was assumed", found.assumptions, "bright_black"),
    ):
        if sentences:
            parts += [Text(), words(title, "bold"), *(words(f"  {one}", style) for one in sentences)]
    return Group(*parts)


def _rounds(found: Forecast, width: int) -> RenderableType:
    grid = table(">Round", ">opens", ">closes", ">judged", ">GPU-hours", "Its end waits for…", width=width)
    for one in found.rounds:
        cost = math.fsum(
            job.gpu_hours for job in found.jobs if job.round == one.round and job.purpose != "rival"
        )
        times = (one.opens_at, one.closes_at, one.ends_at)
        grid.add_row(str(one.round), *(_after(found, at) for at in times), f"{cost:.4g}", words(one.bound_by))
    return grid


def _jobs(found: Forecast, width: int) -> RenderableType:
    """A line for every site and purpose of the first two rounds; later ones are like the second."""
    shown = [job for job in found.jobs if job.round <= 1]
    grid = table(
        ">Round",
        "Job",
        "Site",
        ">steps",
        ">given",
        ">queue",
        ">work",
        ">GPU-hours",
        "Why there…",
        width=width,
    )
    grid.columns[-1].no_wrap = False
    for job in shown:
        if job.purpose in _QUIET:
            continue
        known = "" if job.is_measured or not job.site else "≈ "
        grid.add_row(
            str(job.round),
            job.purpose,
            words(job.site or "nobody", "" if job.site else "bold red"),
            str(job.steps or ""),
            _after(found, job.given_at) if job.site else "",
            _hours((job.starts_at - job.given_at) / _HOUR) if job.site else "",
            known + _hours((job.ends_at - job.starts_at) / _HOUR) if job.site else "",
            f"{job.gpu_hours:.4g}",
            words(job.reason),
        )
    quiet = [job for job in found.jobs if job.purpose in _QUIET]
    if quiet:
        grid.add_row(
            "all", "gate", "", "", "", "", "", f"{_sum(quiet):.4g}", words(f"{len(quiet)} evaluations")
        )
    if later := [job for job in found.jobs if job.round > 1 and job.purpose not in _QUIET]:
        last = max(job.round for job in later)
        grid.add_row(
            f"2-{last}",
            "round",
            "",
            "",
            "",
            "",
            "",
            f"{_sum(later):.4g}",
            words(f"{len(later)} jobs like these"),
        )
    return grid


def _allocations(found: Forecast, width: int) -> RenderableType:
    grid = table(
        "Site", "Allocation", ">granted", ">used", ">running", ">this needs", ">left", "until…", width=width
    )
    for one in found.allocations:
        style = "bold red" if one.left < 0 else "yellow" if one.left < 0.05 * one.granted else ""
        numbers = (one.granted, one.used, one.held_back, one.needed)
        grid.add_row(
            words(one.site),
            words(one.allocation),
            *(f"{number:.4g}" for number in numbers),
            Text(f"{one.left:.4g}", style=style),
            _when(one.until) if one.until is not None else "no end",
        )
    return grid


def _sum(jobs: Iterable[PlannedJob]) -> float:
    return math.fsum(job.gpu_hours for job in jobs)


def _after(found: Forecast, at: float) -> str:
    return f"+{_hours((at - found.now) / _HOUR)}"


def _hours(hours: float) -> str:
    return f"{hours / 24:.3g} d" if hours >= 48 else f"{hours:.3g} h"


def _when(at: float) -> str:
    return f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M}"
