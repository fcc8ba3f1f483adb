"""The screen of ``sprachbund simulate``: how a run that never was ended, what it cost, what it waited for."""

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from console.screens.parts import bar, count, length, state, table, words
from simulation.report import Report, SiteBill
from simulation.waiting import RoundWait

_ROUNDS_SHOWN = 12  # of many, the first ones and the last
_VIOLATIONS_SHOWN = 5


def simulation_page(found: Report, width: int = 100) -> RenderableType:
    """Campaigns, rounds, sites, tokens, faults; what was assumed."""
    outcome = found.outcome
    head = (
        f"{length(outcome.hours)} simulated, {outcome.weather} weather, seed {outcome.seed}: "
        f"{len(outcome.costs)} sites, {outcome.events} events in the ledger; nothing real was done"
    )
    parts: list[RenderableType] = [words(head, "bold bright_blue")]
    for title, block in (
        ("", _campaigns(found, width)),
        ("", _rounds(found.rounds, width)),
        ("", _sites(found, width)),
        ("", _tokens(found, width)),
        ("", _faults(found)),
        ("Every number here rests on the plan's own numbers", _sentences(found.assumptions)),
        ("Notes", _sentences(found.notes)),
    ):
        if block is not None:
            parts += [Text(), *([words(title, "bold")] if title else []), block]
    if outcome.violations:
        said = [words(f"  {one}", "red") for one in outcome.violations[:_VIOLATIONS_SHOWN]]
        more = len(outcome.violations) - len(said)
        said += [words(f"  and {more} more", "red")] if more else []
        parts += [
            Text(),
            words("Invariants that did not hold: a bug of ours, please report it", "bold red"),
            *said,
        ]
    return Group(*parts)


def _campaigns(found: Report, width: int) -> RenderableType:
    grid = table("Campaign", "ended", ">rounds", ">promoted", ">rejected", "Why…", width=width)
    grid.columns[-1].no_wrap = False
    for one in found.outcome.ended:
        rejected = sum(
            made.status == "rejected" and made.name.startswith(f"{one.campaign}/")
            for made in found.outcome.versions
        )
        numbers = (one.rounds, one.promoted, rejected)
        grid.add_row(words(one.campaign), state(one.status), *(str(n) for n in numbers), words(one.reason))
    return grid


def _rounds(rounds: Sequence[RoundWait], width: int) -> RenderableType | None:
    if not rounds:
        return None
    names = (">took", ">queue", ">training", ">network", ">idle", ">merge", ">gate", "Waited for…")
    grid = table("Round", *names, width=width)
    cut = len(rounds) > _ROUNDS_SHOWN
    shown = [*rounds[: _ROUNDS_SHOWN - 2], *rounds[-1:]] if cut else rounds
    for number, one in enumerate(shown):
        if cut and number == len(shown) - 1:
            left = len(rounds) - len(shown)
            grid.add_row("…", *[""] * 7, words(f"{left} rounds more", "bright_black"))
        parts = (
            one.hours,
            one.queued_hours,
            one.running_hours,
            one.sending_hours,
            one.idle_hours,
        )
        ending = (one.after_hours - one.scoring_hours, one.scoring_hours)
        grid.add_row(words(one.round), *(length(hours) for hours in (*parts, *ending)), words(one.waited_for))
    return grid


def _sites(found: Report, width: int) -> RenderableType:
    priced = any(bill.price is not None for bill in found.sites)
    names = [">GPU-hours", ">queued", ">running", ">tokens", ">sent", ">received", ">kWh"]
    grid = table("Site…", *names, *([f">{found.currency}"] if priced else []), width=width)
    rows = [(words(bill.site), bill) for bill in found.sites]
    if len(rows) > 1:
        rows.append((words("all", "bold"), _together(found.sites)))
    for name, bill in rows:
        cells = [
            _amount(bill.gpu_hours),
            length(bill.queued_hours),
            length(bill.running_hours),
            count(bill.tokens),
            _bytes(bill.uploaded_bytes),
            _bytes(bill.downloaded_bytes),
            _amount(bill.kilowatt_hours),
        ]
        if priced:
            cells.append("" if bill.price is None else _amount(bill.price))
        grid.add_row(name, *cells)
    return grid


def _together(bills: Sequence[SiteBill]) -> SiteBill:
    """Sums in the order of names, so that they are the same everywhere."""
    prices = [bill.price for bill in bills if bill.price is not None]
    return SiteBill(
        site=bills[0].site,
        gpu_hours=math.fsum(bill.gpu_hours for bill in bills),
        queued_hours=math.fsum(bill.queued_hours for bill in bills),
        running_hours=math.fsum(bill.running_hours for bill in bills),
        kilowatt_hours=math.fsum(bill.kilowatt_hours for bill in bills),
        price=math.fsum(prices) if prices else None,
        uploaded_bytes=sum(bill.uploaded_bytes for bill in bills),
        downloaded_bytes=sum(bill.downloaded_bytes for bill in bills),
        attempts=sum(bill.attempts for bill in bills),
        tokens=sum(bill.tokens for bill in bills),
    )


def _tokens(found: Report, width: int) -> RenderableType | None:
    if not found.outcome.tokens:
        return None
    most = max(found.outcome.tokens.values())
    grid = table("Language", ">tokens", "merged…", width=width)
    for language, tokens in sorted(found.outcome.tokens.items(), key=lambda item: (-item[1], item[0])):
        grid.add_row(words(language), count(tokens), bar(tokens, most, max(10, width - 30)))
    return grid


def _faults(found: Report) -> RenderableType | None:
    if not found.outcome.faults:
        return None
    said = ", ".join(f"{kind} {number}" for kind, number in sorted(found.outcome.faults.items()))
    return Text.assemble(("Faults  ", "bold bright_blue"), words(said))


def _sentences(said: Sequence[str]) -> RenderableType | None:
    return Group(*(words(f"  {one}", "bright_black") for one in said)) if said else None


def _amount(number: float) -> str:
    return count(number) if number >= 100 else f"{number:.3g}"


def _bytes(size: float) -> str:
    for step, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= step:
            return f"{size / step:.3g} {unit}"
    return f"{size:.0f} B"
