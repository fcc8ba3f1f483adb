"""Which of a site's allocations pays for a job, or why none can."""

import math

from consortium.capacity import Allocation
from consortium.jobs import Outcome
from coordinator.core.accounting import HOUR, in_force, left
from coordinator.core.estimates import Cost, cost, queue_seconds
from coordinator.core.state import Job, Site, State
from coordinator.core.transitions import JobState
from coordinator.core.words import gpu_hours, spoken


def charge(state: State, site: Site, takes: Cost, now: float) -> tuple[str, str | None]:
    """The allocation that pays for a job begun now ("" where the site has none), or why none can."""
    if not site.allocations:
        return "", None
    why = f"{site.name}'s allocation has ended"
    for allocation in in_force(site, now):
        remaining = left(state, site, allocation)
        if remaining <= 0.0:
            why = f"allocation {allocation.name} of {site.name} is used up, or kept for what runs"
        elif takes.gpu_seconds > remaining:
            why = (
                f"it needs about {gpu_hours(takes.gpu_seconds)} at {site.name} ({takes.seconds.how}), "
                f"allocation {allocation.name} has {gpu_hours(remaining)} left"
            )
        elif (too_late := _too_late(site, allocation, takes, now)) is not None:
            why = too_late
        else:
            return allocation.name, None
    return "", why


def lacking(site: Site, takes: Cost, now: float) -> str | None:
    """Why the site's allocations cannot pay for a job even when everything else is done; None: they can."""
    if not site.allocations:
        return None
    why = f"{site.name}'s allocation has ended"
    for allocation in in_force(site, now):
        remaining = _granted(site, allocation)
        if remaining <= 0.0 or takes.gpu_seconds > remaining:
            why = (
                f"{site.name} has not the {gpu_hours(takes.gpu_seconds)} left that its job needs "
                f"({takes.seconds.how})"
            )
        elif (too_late := _too_late(site, allocation, takes, now)) is not None:
            why = too_late
        else:
            return None
    return why


def payable_seconds(state: State, site: Site, now: float) -> float:
    """The longest that a job given now may take at the site, by its allocations; infinite where it has none."""
    if not site.allocations:
        return math.inf
    longest = 0.0
    for allocation in in_force(site, now):
        seconds = max(0.0, left(state, site, allocation)) / site.gpus if site.gpus else math.inf
        if allocation.until is not None:
            seconds = min(seconds, allocation.until - now - queue_seconds(site).value)
        longest = max(longest, seconds)
    return longest


def unpayable(state: State, job: Job, now: float) -> str | None:
    """Why no site of a job that waits can ever pay for it; None: one can, or it is under way."""
    if job.state is not JobState.PLANNED or job.outcome is Outcome.EXPIRED or not job.sites:
        return None  # an expired attempt may come back with a result that is paid for
    reasons = []
    for site in (state.sites[name] for name in job.sites):
        lacks = lacking(site, cost(state, site, job), now) if site.allocations else None
        if lacks is None:
            return None
        reasons.append(lacks)
    return "; ".join(reasons)


def _granted(site: Site, allocation: Allocation) -> float:
    """GPU-seconds of an allocation that are not used, held back or not."""
    return allocation.gpu_hours * HOUR - site.charged.get(allocation.name, 0.0)


def _too_late(site: Site, allocation: Allocation, takes: Cost, now: float) -> str | None:
    """Why a job that is given now would not end before the allocation does; None: it would."""
    ends = now + queue_seconds(site).value + takes.seconds.value
    if allocation.until is None or ends <= allocation.until:
        return None
    return (
        f"it needs about {spoken(ends - now)} at {site.name}, allocation {allocation.name} ends in "
        f"{spoken(allocation.until - now)}"
    )
