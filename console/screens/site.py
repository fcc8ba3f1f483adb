"""What a site's operator sees: how the site stands, and what its doctor found."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from console.screens.parts import ago, ahead, bar, plain, state, table, words
from site_agent.core.facts import AttemptFiles
from site_agent.doctor import Check
from site_agent.status import SiteStatus

_BAR_WIDTH = 12


def site_page(site: str, status: SiteStatus, now: float, width: int = 100) -> RenderableType:
    """The agent, the attempts in its spool, and what it could not read there."""
    parts: list[RenderableType] = [
        Text.assemble(("Site ", "bold bright_blue"), (plain(site), "bold")),
        _agent(status, now),
    ]
    if status.mode.mode != "work":
        means = {"drain": "takes nothing new", "pause": "holds everything"}[status.mode.mode]
        why = f": {status.mode.reason}" if status.mode.reason else ""
        parts.append(
            words(f"{status.mode.mode}: it {means}{why}; `sprachbund site resume` ends that", "yellow")
        )
    for one in status.agent.used_up if status.agent is not None else ():
        if one.again_at > now:
            parts.append(words(f"held back: {one.reason}; the next in {ahead(one.again_at - now)}", "yellow"))
    parts.append(Text())
    grid = table("Attempt…", "Phase", "", ">step", ">starts", "Reason…", width=width)
    for attempt in status.attempts:
        phase, reason = _phase(attempt)
        told = attempt.progress
        grid.add_row(
            words(attempt.attempt),
            state(phase),
            bar(told.step, told.steps, _BAR_WIDTH) if told else "",
            f"{told.step}/{told.steps}" if told else "",
            str(attempt.lives),
            words(reason),
        )
    if not status.attempts:
        grid.add_row(Text("no job is here", style="bright_black"))
    parts.append(grid)
    for name in status.broken:
        parts.append(
            words(f"✗ {name} could not be read; look at it in spool/broken, then delete it", "bold red")
        )
    return Group(*parts)


def doctors_page(checks: Sequence[Check], width: int = 100) -> RenderableType:
    """Every check, and below each that failed the way out."""
    grid = table("", "Check", "Finding…", width=width)
    grid.columns[-1].no_wrap = False
    for check in checks:
        sign = Text("✓", style="green") if check.is_good else Text("✗", style="bold red")
        if check.is_warning:
            sign = Text("!", style="yellow")
        grid.add_row(sign, words(check.name), words(check.detail))
        if check.way_out and (check.is_warning or not check.is_good):
            grid.add_row("", "", words(f"➜ {check.way_out}", "yellow"))
    return grid


def _agent(status: SiteStatus, now: float) -> Text:
    agent = status.agent
    if agent is None:
        return words("no agent has synced yet; start one with: sprachbund site run SITE.yaml", "yellow")
    runs = {
        True: "runs",
        False: "does not run",
        None: f"was started on {agent.host}, from here nobody can tell",
    }
    synced = ago(None if agent.synced_at is None else max(0.0, now - agent.synced_at))
    line = Text.assemble(f"agent {agent.pid} {plain(runs[agent.is_running])}; last Sync ", synced)
    return line + words(f"; {agent.trouble}", "red") if agent.trouble else line


def _phase(attempt: AttemptFiles) -> tuple[str, str]:
    """A word for how far an attempt has come, and why if it ended."""
    if attempt.ended is not None:
        return "ended", f"{attempt.ended.outcome}: {attempt.ended.reason}".removesuffix(": ")
    if attempt.failure:
        return "failed", attempt.failure
    if attempt.has_result:
        return "uploading", ""
    if attempt.lives:
        return "running", "asked to stop" if attempt.stopping_seconds is not None else ""
    return "staging", ""
