"""What a simulated run tells a consortium: the outcome, what it would have cost, what its rounds waited for."""

from consortium.canonical import Fact, replace
from consortium.ids import SiteName
from simulation.closures import closures
from simulation.outcome import Happening, Outcome
from simulation.plan import Plan
from simulation.waiting import RoundWait, round_waits


class SiteBill(Fact):
    """What one site did and gave."""

    site: SiteName
    gpu_hours: float
    queued_hours: float  #: of all its jobs together
    running_hours: float
    kilowatt_hours: float
    price: float | None = None  #: in the plan's currency; None: no price is known
    uploaded_bytes: int
    downloaded_bytes: int
    attempts: int
    tokens: int  #: in contributions that were merged


class Report(Fact):
    """The same plan, seed and weather make the same bytes of this."""

    outcome: Outcome
    sites: tuple[SiteBill, ...]  #: sorted by name
    rounds: tuple[RoundWait, ...]
    currency: str
    assumptions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def report(plan: Plan, outcome: Outcome, notes: tuple[str, ...] = ()) -> Report:
    """``notes``: of the plan's reading. The outcome is told with the times at which the plan's windows were closed."""
    happenings = (*outcome.happenings, *closures(plan, outcome.hours))
    ordered = sorted(happenings, key=lambda one: (one.at, one.place, one.kind, one.subject))
    outcome = replace(outcome, happenings=tuple(ordered))
    prices = {site.name: plan.price_at(site) for site in plan.sites}
    waited: dict[tuple[str, str], float] = {}
    for one in outcome.happenings:
        key = (one.place, one.kind)
        waited[key] = waited.get(key, 0.0) + _hours(one)
    bills = []
    for name, cost in sorted(outcome.costs.items()):
        price = prices.get(name)
        bills.append(
            SiteBill(
                site=name,
                gpu_hours=cost.gpu_hours,
                queued_hours=waited.get((name, "queued"), 0.0),
                running_hours=waited.get((name, "running"), 0.0),
                kilowatt_hours=cost.joules / 3.6e6,
                price=None if price is None else price * cost.gpu_hours,
                uploaded_bytes=cost.uploaded_bytes,
                downloaded_bytes=cost.downloaded_bytes,
                attempts=cost.attempts,
                tokens=sum(tokens for _, tokens in sorted(cost.trained_tokens.items())),
            )
        )
    return Report(
        outcome=outcome,
        sites=tuple(bills),
        rounds=round_waits(outcome),
        currency=plan.currency,
        assumptions=plan.assumptions,
        notes=notes,
    )


def _hours(one: Happening) -> float:
    return 0.0 if one.until is None else (one.until - one.at) / 3600.0
