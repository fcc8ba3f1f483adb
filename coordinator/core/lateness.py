"""Until when a job is waited for: its hours count from when it began to run, and its wait in a queue has a cap.

A job that waits for days in a batch system's queue is nobody's fault; one that runs too long is. Where nobody says
that it started (agents that do not count), the cap on the wait is what closes a round.
"""

from coordinator.core.charging import unpayable
from coordinator.core.state import CampaignState, Job, State

HOUR = 3600.0


def overdue(campaign: CampaignState, job: Job, now: float, since: float | None = None) -> str | None:
    """Why an open job is not waited for any longer; None: it is.

    since  when waiting for it began, if later than its planning: a rival waits for the rounds
    """
    quorum = campaign.spec.quorum
    if job.started_at is not None:
        began = job.started_at if since is None else max(job.started_at, since)
        if now > began + quorum.deadline_hours * HOUR:
            return f"deadline of {quorum.deadline_hours:g} h after its start passed"
        return None
    hours = hours_to_begin(campaign)
    if now > (job.planned_at if since is None else since) + hours * HOUR:
        return f"it did not start within {hours:g} h"
    return None


def hours_to_begin(campaign: CampaignState) -> float:
    """How long a job that does not begin is waited for, in hours."""
    quorum = campaign.spec.quorum
    return quorum.deadline_hours if quorum.queue_hours_max is None else quorum.queue_hours_max


def given_up(
    state: State, campaign: CampaignState, job: Job, now: float, since: float | None = None
) -> str | None:
    """Why an open job that others can do without is waited for no longer: nobody can pay for it, or it is late."""
    return unpayable(state, job, now) or overdue(campaign, job, now, since)
