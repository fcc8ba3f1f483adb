"""When a plan's sites are closed by their windows: nobody's event, so nobody in the simulation tells it."""

from consortium.capacity import Opening
from policies.windows import opening
from simulation.outcome import Happening
from simulation.plan import Plan, SitePlan


def closures(plan: Plan, hours: float) -> tuple[Happening, ...]:
    """The spans in which a site may not be given work, in the first ``hours``."""
    end = plan.started_at + hours * 3600.0
    return tuple(one for site in plan.sites if site.windows for one in _of(site, plan.started_at, end))


def _of(site: SitePlan, begin: float, end: float) -> list[Happening]:
    found, at = [], begin
    windows = site.open_hours
    while at < end:
        now: Opening = opening(windows, at)
        until = end if now.until is None else min(end, now.until)
        if not now.is_open and until > at:
            found.append(Happening(at=at, place=site.name, kind="window closed", until=until))
        if now.until is None or now.until <= at:
            break
        at = now.until
    return found
