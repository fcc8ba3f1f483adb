"""What attempts cost, what is left of a site's allocations, and when its people are warned.

The agent counts (from the batch system's accounting where there is one); here it is entered when an attempt ends,
and before that whenever it grew by a sensible step. What attempts are still expected to use is held back until they
are known to have ended at their site, so nothing is leased beyond what is left. A site has an attempt settled only when
it has reported its end, so the last of its use is entered, too.
"""

import math
from collections.abc import Iterator

from consortium.capacity import Allocation
from consortium.ids import job_of
from consortium.jobs import Phase
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.budgets import USED_MAX
from coordinator.core.state import Site, State, Try
from coordinator.core.transitions import JobState

HOUR = 3600.0
#: An attempt that goes on is entered when it grew by so many GPU-seconds, or by a tenth of what it may cost or has cost
#: if that is more: some ten entries a job, none a heartbeat.
STEP_GPU_SECONDS = 1.0 * HOUR
_STEP_SHARE = 0.1
WARN_PERCENT = (80, 95)


def spending(state: State, site: Site, report: cm.Report, now: float) -> list[ev.AnyEvent]:
    """What a line of a Sync adds to the accounts: also for an attempt that nobody waits for any more."""
    job = state.jobs.get(job_of(report.attempt))
    known = job.tries.get(report.attempt) if job else None
    if job is None or known is None or known.site != site.name:
        return []
    events: list[ev.AnyEvent] = []
    usage = report.usage
    if report.started and not known.started:
        # who does not count tells of no queue: then everything since the lease was waiting
        queued = usage.queued_seconds if usage else max(0.0, now - job.leased_at)
        events.append(
            ev.AttemptStarted(job=job.id, attempt=report.attempt, site=site.name, queued_seconds=queued)
        )
    if usage is not None and _is_worth_an_entry(known, report):
        events.append(
            ev.AttemptUsed(
                job=job.id,
                attempt=report.attempt,
                site=site.name,
                allocation=known.allocation,
                gpu_seconds=usage.gpu_seconds,
                seconds=usage.seconds,
                joules=usage.joules,
                source=usage.source,
            )
        )
    return events


def gone(state: State, sync: cm.SyncSite) -> Iterator[ev.AnyEvent]:
    """Of what is held back at the site, the attempts that nobody waits for and that by this Sync no longer run."""
    site, reports = state.sites[sync.site], {report.attempt: report for report in sync.reports}
    for attempt, name in sorted(site.held.items()):
        job, report = state.jobs[name], reports.get(attempt)
        if job.state is JobState.LEASED and job.attempt == attempt:
            continue  # it may be on its way to the site
        if report is not None and report.phase is not Phase.ENDED:
            continue
        reason = f"{site.name} has it no more" if report is None else f"it has ended at {site.name}"
        yield ev.AttemptGone(job=name, attempt=attempt, site=site.name, reason=reason)


def _is_worth_an_entry(known: Try, report: cm.Report) -> bool:
    """Not every growth: an attempt has so many entries at most, whatever its site says of it."""
    usage = report.usage
    assert usage is not None
    if known.entries >= USED_MAX:
        return False
    if report.phase is Phase.ENDED:
        return (usage.gpu_seconds, usage.seconds, usage.joules) != (
            known.gpu_seconds,
            known.seconds,
            known.joules,
        )
    step = max(STEP_GPU_SECONDS, _STEP_SHARE * max(known.expected_gpu_seconds, known.gpu_seconds))
    return usage.gpu_seconds >= known.gpu_seconds + step


def in_force(site: Site, now: float) -> tuple[Allocation, ...]:
    """Its allocations that have not ended, the one that ends first before the others."""
    found = [a for a in site.allocations if a.until is None or now < a.until]
    return tuple(sorted(found, key=lambda a: (math.inf if a.until is None else a.until, a.name)))


def held_back(state: State, site: Site, allocation: str) -> float:
    """GPU-seconds that attempts at the site may still use of an allocation: also such as nobody waits for any more."""
    tries = (state.jobs[job].tries[attempt] for attempt, job in sorted(site.held.items()))
    return math.fsum(  # `sum` rounds otherwise from Python 3.12 on, and a ledger's numbers are the same under each
        max(0.0, one.expected_gpu_seconds - one.gpu_seconds) for one in tries if one.allocation == allocation
    )


def left(state: State, site: Site, allocation: Allocation) -> float:
    """GPU-seconds of an allocation that are neither used nor held back; below zero when it is overdrawn."""
    used = site.charged.get(allocation.name, 0.0)
    return allocation.gpu_hours * HOUR - used - held_back(state, site, allocation.name)


def warnings(state: State) -> Iterator[ev.AnyEvent]:
    """Levels that an allocation has passed since its people were last told."""
    for _, site in sorted(state.sites.items()):
        if not site.charged:
            continue
        for allocation in sorted(site.allocations, key=lambda a: a.name):
            used = site.charged.get(allocation.name, 0.0)
            if used < allocation.gpu_hours * HOUR * WARN_PERCENT[0] / 100.0:
                continue
            passed = [p for p in WARN_PERCENT if used >= allocation.gpu_hours * HOUR * p / 100.0]
            if passed and site.warned.get(allocation.name, 0) < passed[-1]:
                yield ev.AllocationWarned(
                    site=site.name,
                    allocation=allocation.name,
                    percent=passed[-1],
                    reason=f"{used / HOUR:.4g} of {allocation.gpu_hours:.4g} GPU-hours are used",
                )
