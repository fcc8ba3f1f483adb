"""What a site's word on one of its attempts establishes: an end, a contribution, a lease that goes on, or nothing."""

from consortium.ids import job_of
from consortium.jobs import Outcome
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.state import Site, State
from coordinator.core.transitions import JobState


def reported(state: State, site: Site, report: cm.Report) -> list[ev.AnyEvent]:
    """What one line of a Sync establishes. Late, repeated and foreign lines establish nothing."""
    job = state.jobs.get(job_of(report.attempt))
    if job is None or job.attempt != report.attempt or job.site != site.name or job.is_final:
        return []
    events: list[ev.AnyEvent] = []
    if job.state is JobState.PLANNED and job.outcome is Outcome.EXPIRED and site.name not in job.refused_by:
        events.append(
            ev.LeaseResumed(
                job=job.id,
                attempt=report.attempt,
                reason=f"{site.name} came back with the attempt before anybody else was asked",
            )
        )
    elif job.state is not JobState.LEASED:
        return []
    if report.outcome is None:
        return events
    if report.outcome is Outcome.SUCCEEDED and report.envelope is not None:
        events.append(
            ev.ContributionReceived(
                job=job.id, attempt=report.attempt, site=site.name, envelope=report.envelope
            )
        )
    elif report.outcome is Outcome.SUCCEEDED:
        reason = "reported as succeeded without a contribution; the agent must upload it first"
        events.append(
            ev.AttemptEnded(job=job.id, attempt=report.attempt, outcome=Outcome.CORRUPT, reason=reason)
        )
    else:
        # Only the coordinator says "expired": such an attempt could come back for ever.
        outcome = Outcome.PREEMPTED if report.outcome is Outcome.EXPIRED else report.outcome
        reason = report.reason or f"{site.name} gave no reason"
        events.append(ev.AttemptEnded(job=job.id, attempt=report.attempt, outcome=outcome, reason=reason))
    return events
