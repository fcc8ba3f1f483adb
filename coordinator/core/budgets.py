"""How often a site may cause an entry of the ledger that nobody asked it for.

Entries stay for ever, and a site may call fifty times a second: what it says of itself, renews or gives back is taken
down as often as an honest site could need it, in a burst and over days. What is not taken down now is said again in
the next Sync, and taken down then; so an honest site loses nothing but time. Derived from the events alone.
"""

from typing import NamedTuple

from coordinator.core.state import Site
from coordinator.core.words import spoken


class Budget(NamedTuple):
    """A bucket that is full at first, and fills by one every ``seconds``."""

    burst: int  #: that may come at once
    seconds: float


#: SiteDescribed: a text is prepared, an allocation granted, slots change by the hour.
DESCRIBED = "described"
#: CertificateRenewed: twice a month; more when an agent's disk forgets its keys.
RENEWED = "renewed"
#: Attempts that ended without a result and count against nobody: a whole cluster may be preempted, and once more.
RETURNED = "returned"

BUDGETS = {
    DESCRIBED: Budget(60, 300.0),
    RENEWED: Budget(20, 3600.0),
    RETURNED: Budget(400, 30.0),
}
_WORDS = {
    DESCRIBED: "its agent described itself in other words",
    RENEWED: "its agent renewed its certificate",
    RETURNED: "it gave jobs back",
}
#: Entries of one attempt's use: they grow by a tenth each, so that a thousand years of GPU time need fewer.
USED_MAX = 200


def left(site: Site, kind: str, now: float) -> float:
    """How many entries of this kind the site may cause at ``now``; below one: none."""
    budget = BUDGETS[kind]
    had, at = site.budgets.get(kind, (float(budget.burst), now))
    return min(float(budget.burst), had + max(0.0, now - at) / budget.seconds)


def allows(site: Site, kind: str, now: float) -> bool:
    return left(site, kind, now) >= 1.0


class UsedUp(NamedTuple):
    """A budget of which nothing is left."""

    kind: str
    again_seconds: float  #: until one more entry is taken down
    reason: str  #: for people


def used_up(site: Site, now: float) -> tuple[UsedUp, ...]:
    """What the site may not cause at ``now``, in the order of ``BUDGETS``; none: it may do all."""
    return tuple(
        UsedUp(
            kind,
            again_seconds(site, kind, now),
            f"{_WORDS[kind]} more than {budget.burst} times in a short time; one more is taken every "
            f"{spoken(budget.seconds)}",
        )
        for kind, budget in BUDGETS.items()
        if not allows(site, kind, now)
    )


def again_seconds(site: Site, kind: str, now: float) -> float:
    """How long after ``now`` the site may cause an entry of this kind; 0: now."""
    return max(0.0, 1.0 - left(site, kind, now)) * BUDGETS[kind].seconds


def spend(site: Site, kind: str, now: float) -> None:
    """One entry was taken down. May fall below zero where several were in one Sync."""
    at = max(now, site.budgets.get(kind, (0.0, now))[1])  # a clock that was put back gives nothing anew
    site.budgets = {**site.budgets, kind: (left(site, kind, now) - 1.0, at)}
