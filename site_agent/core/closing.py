"""Whether the site may still spend, and whether something may start now, each in a sentence."""

from consortium.capacity import Allocation, Opening


def closing(allocation: Allocation | None, spent_gpu_seconds: float, now: float) -> str:
    """Why no life may start any more, by the site's allocation; "" while some may.

    spent_gpu_seconds  what the consortium's jobs used of it here so far
    """
    if allocation is None:
        return ""
    if allocation.until is not None and now >= allocation.until:
        return f"allocation {allocation.name} has ended"
    used, granted = spent_gpu_seconds / 3600.0, allocation.gpu_hours
    if used >= granted:
        return f"allocation {allocation.name} is used up: {used:.4g} of {granted:.4g} GPU-hours"
    return ""


def shut(opening: Opening) -> str:
    """Why nothing may start now, by the site's windows; "" while they are open."""
    return "" if opening.is_open else "it is outside the site's windows"
