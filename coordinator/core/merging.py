"""Where a round is merged: by the coordinator's worker, or as a job at a site that lends its disk and time.

The campaign says which: ``merge_at``. It is decided when the round is collected and stands in the ledger; a site
that fails is replaced by another, and with ``any`` in the end by the coordinator.
"""

from collections.abc import Iterator
from typing import Literal

from consortium.ids import job_named
from consortium.jobs import Purpose
from coordinator.core import events as ev
from coordinator.core.able import mergers, names_of
from coordinator.core.lateness import overdue
from coordinator.core.moment import Moment
from coordinator.core.orders import merge_inputs, merge_order, planned
from coordinator.core.state import CampaignState, Job, Round, State
from coordinator.core.transitions import JobState


def where_to_merge(state: State, campaign: CampaignState) -> tuple[Literal["coordinator", "site"], str]:
    """Who merges a round that is collected now, and what that adds to the reason."""
    where = campaign.spec.merge_at
    if where != "any":
        return where, ""
    if any(site.slots > len(state.live(site.name)) for site in mergers(state, campaign)):
        return "site", ""
    return "coordinator", "; no site that merges has a free slot, so the coordinator does it"


def job_at_a_site(
    state: State, campaign: CampaignState, round_: Round, moment: Moment
) -> Iterator[ev.AnyEvent]:
    """For a round that is merged at a site: the job, its end if it takes too long, the round's if nobody can."""
    if round_.merged_by != "site":
        return
    spec = campaign.spec
    if round_.merge_job is None:
        able = mergers(state, campaign)
        if able:
            job = job_named(spec.campaign, f"r{round_.number}-merge")
            reason = f"any of {names_of(able)} can merge {len(round_.collected)} contribution(s)"
            yield planned(
                campaign,
                job,
                round_.number,
                Purpose.MERGE,
                tuple(site.name for site in able),
                merge_order(state, campaign, round_),
                merge_inputs(state, campaign, round_),
                reason,
            )
        return
    job_ = state.jobs[round_.merge_job]
    if not job_.is_final and (why := _overdue(campaign, job_, moment)) is not None:
        yield ev.JobCancelled(job=job_.id, reason=why)
    elif job_.is_final and spec.merge_at == "site":
        reason = (
            f"no site could merge it: {job_.reason}; merge_at: any lets the coordinator do what sites cannot"
        )
        yield ev.RoundFailed(campaign=spec.campaign, round=round_.number, reason=reason)


def _overdue(campaign: CampaignState, job: Job, moment: Moment) -> str | None:
    """Why a merge job is not waited for any longer. One that is delivered ends with its inspection."""
    spec = campaign.spec
    if job.state is JobState.DELIVERED:
        return None
    if (late := overdue(campaign, job, moment.now)) is not None:
        return f"no merge in time, {late}: {job.state.value}, {job.reason}"
    asked_since = max(job.free_since, moment.started_at)
    if spec.merge_at == "any" and job.state is JobState.PLANNED:
        if moment.now > asked_since + spec.lease_seconds:
            return f"no site took it within {spec.lease_seconds:g} s; the coordinator merges"
    return None
