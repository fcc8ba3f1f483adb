"""Which of a site's allocations pays for a job, or why none can."""

from coordinator.core.accounting import in_force, left
from coordinator.core.estimates import Cost, queue_seconds
from coordinator.core.state import Site, State
from coordinator.core.words import gpu_hours, spoken


def charge(state: State, site: Site, takes: Cost, now: float) -> tuple[str, str | None]:
    """The allocation that pays for a job begun now ("" where the site has none), or why none can."""
    if not site.allocations:
        return "", None
    why = f"{site.name}'s allocation has ended"
    for allocation in in_force(site, now):
        remaining = left(state, site, allocation)
        ends = now + queue_seconds(site).value + takes.seconds.value
        if remaining <= 0.0:
            why = f"allocation {allocation.name} of {site.name} is used up, or kept for what runs"
        elif takes.gpu_seconds > remaining:
            why = (
                f"it needs about {gpu_hours(takes.gpu_seconds)} at {site.name} ({takes.seconds.how}), "
                f"allocation {allocation.name} has {gpu_hours(remaining)} left"
            )
        elif allocation.until is not None and ends > allocation.until:
            why = (
                f"it needs about {spoken(ends - now)} at {site.name}, allocation {allocation.name} ends in "
                f"{spoken(allocation.until - now)}"
            )
        else:
            return allocation.name, None
    return "", why


def lacking(site: Site, takes: Cost, now: float) -> str | None:
    """Why the site's allocations cannot pay for a job even when everything else is done; None: they can."""
    if not site.allocations:
        return None
    for allocation in in_force(site, now):
        remaining = allocation.gpu_hours * 3600.0 - site.charged.get(allocation.name, 0.0)
        if remaining > 0.0 and takes.gpu_seconds <= remaining:
            return None
    if not in_force(site, now):
        return f"{site.name}'s allocation has ended"
    return f"{site.name} has not the {gpu_hours(takes.gpu_seconds)} left that its job needs ({takes.seconds.how})"
