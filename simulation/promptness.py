"""Is anything waited for longer than the campaign's rules promise? Liveness, looked at whenever something was decided.

Every duration is reckoned here anew, from the events' times; ``slack`` is allowed on top: ticks, and a coordinator
that was down. What nobody can do any more must be given up within the very decision that made it so.
"""

from collections.abc import Iterator

from consortium.ids import JobId, SiteName
from consortium.jobs import Outcome, Purpose
from coordinator.core.state import CampaignState, Job, Round, RoundState, State
from coordinator.core.transitions import JobState
from simulation.orders import has_means
from simulation.shadow import Shadow

HOUR = 3600.0
WARNED_PERCENT = (80, 95)
# slacks that an inspection, a verdict or a merge may take: others come first, a crash repeats it
_INSPECTIONS = 4.0


class Promptness:
    def __init__(self, shadow: Shadow) -> None:
        self._shadow = shadow
        self._askable: dict[JobId, float] = {}  #: since when its only site could have been given it

    def complaints(
        self, state: State, at: float, started: float, asked: dict[SiteName, float]
    ) -> Iterator[str]:
        """Sentences. ``started``: of the coordinator; ``asked``: when each site was last heard."""
        for job in state.open_jobs():
            if job.campaign in state.campaigns:
                yield from self._job(state, state.campaigns[job.campaign], job, at, started, asked)
        for _, site in sorted(state.sites.items()):
            for one in site.allocations:
                used = site.charged.get(one.name, 0.0) / 36.0 / one.gpu_hours if one.gpu_hours else 0.0
                told = site.warned.get(one.name, 0)
                if max((level for level in WARNED_PERCENT if used >= level + 1e-9), default=0) > told:
                    yield f"{used:.0f} percent of {one.name} of {site.name} are used, and nobody is warned"
        for _, campaign in sorted(state.campaigns.items()):
            if campaign.status == "open" and campaign.rounds:
                yield from self._round(state, campaign, at, started)

    def _job(
        self,
        state: State,
        campaign: CampaignState,
        job: Job,
        at: float,
        started: float,
        asked: dict[SiteName, float],
    ) -> Iterator[str]:
        slack = campaign.spec.lease_seconds
        if job.state is JobState.PLANNED:
            if self._shadow.failures.get(job.id, 0) >= campaign.spec.attempts_max:
                yield f"{job.id} failed {self._shadow.failures[job.id]} times and is still open"
            if not self._shadow.unasked(job):
                yield f"{job.id} waits though nobody is left to ask"
            if job.purpose in (Purpose.GATE, Purpose.COMPARE) and job.outcome is not Outcome.EXPIRED:
                sites = [state.sites[name] for name in job.sites]
                if all(site.allocations and not has_means(site, at) for site in sites):
                    yield f"{job.id} waits for sites that have nothing left to spend"
            yield from self._unasked(state, job, at, started, slack, asked)
        if job.state is JobState.DELIVERED:
            since = max(self._shadow.since[job.id], started)
            if at > since + _INSPECTIONS * slack:
                yield f"{job.id} has waited for its inspection for {at - since:.0f} s"
        elif job.purpose in (Purpose.TOKENIZER, Purpose.MERGE, Purpose.GATE):
            if is_over(campaign, job, at, started, slack):
                yield f"{job.id} is waited for beyond its deadline"
        if job.purpose is Purpose.MERGE and campaign.spec.merge_at == "any" and job.state is JobState.PLANNED:
            if at > max(self._shadow.since[job.id], started) + campaign.spec.lease_seconds + slack:
                yield f"{job.id} waits for a site, and the coordinator could merge"

    def _unasked(
        self, state: State, job: Job, at: float, started: float, slack: float, asked: dict[SiteName, float]
    ) -> Iterator[str]:
        """One whose sites are all there, with slots free, no windows and no allocations, and that one asks for."""
        fit = [
            site
            for site in (state.sites[name] for name in sorted(self._shadow.unasked(job)))
            if site.status == "enrolled" and not site.draining
        ]
        idle = all(
            not site.windows and not site.allocations and len(state.live(site.name)) < site.slots
            for site in fit
        )
        if not fit or not idle or job.purpose is Purpose.RIVAL:
            self._askable.pop(job.id, None)
            return
        since = max(self._askable.get(job.id, at), self._shadow.since[job.id], started)
        self._askable[job.id] = since
        for site in fit:
            if asked.get(site.name, 0.0) > since + 2.0 * slack:
                yield f"{job.id} is not given to {site.name}, which asks for work"

    def _round(self, state: State, campaign: CampaignState, at: float, started: float) -> Iterator[str]:
        round_ = campaign.rounds[max(campaign.rounds)]
        slack = campaign.spec.lease_seconds
        name = f"{campaign.spec.campaign}/{round_.number}"
        jobs = [state.jobs[job] for job in (*round_.jobs, *round_.late)]
        if round_.state is RoundState.TRAINING:
            if any(not state.jobs[check].is_final for job in jobs for check in job.checks):
                return
            if may_close(campaign, round_, jobs, at - slack) and started < at - slack:
                yield f"round {name} could have closed {slack:.0f} s ago"
            elif jobs and all(job.is_final for job in jobs):
                yield f"round {name} waits for nobody"
        elif round_.state is RoundState.MERGING and self._is_coordinators(state, campaign, round_):
            since = max(started, *(self._shadow.since[job.id] for job in jobs))
            if round_.merge_job is not None:
                since = max(since, self._shadow.since[round_.merge_job])
            if at > since + _INSPECTIONS * slack + 3.0 * HOUR:
                yield f"round {name} is not merged for {at - since:.0f} s"
        elif round_.state is RoundState.EVALUATING and round_.gate_jobs:
            since = max(started, *(self._shadow.since[job] for job in round_.gate_jobs))
            done = all(state.jobs[job].is_final for job in round_.gate_jobs)
            if done and at > since + _INSPECTIONS * slack:
                yield f"round {name} is not judged for {at - since:.0f} s"

    def _is_coordinators(self, state: State, campaign: CampaignState, round_: Round) -> bool:
        """Whether its own worker has to merge: from the start, or because no site did."""
        if round_.merge_job is None:
            return round_.merged_by == "coordinator"
        return campaign.spec.merge_at == "any" and state.jobs[round_.merge_job].is_final


def may_close(campaign: CampaignState, round_: Round, jobs: list[Job], at: float) -> bool:
    """Whether a round in training may end: nobody is left, its quorum and grace are over, or who is left is late."""
    quorum = campaign.spec.quorum
    pending = [job for job in jobs if not job.is_final]
    if not pending:
        return True
    enough = sorted(job.admitted_at for job in jobs if is_enough(campaign, job))
    share = quorum.share * len(jobs)
    needed = max(quorum.minimum, int(share) + (share - int(share) > 1e-9))
    if quorum.share < 1.0 and len(enough) >= needed and at >= enough[needed - 1] + quorum.grace_hours * HOUR:
        return True
    return all(is_over(campaign, job, at) for job in pending)


def is_enough(campaign: CampaignState, job: Job) -> bool:
    """Whether what came of a job may be merged, partial or not."""
    done = job.contribution
    if done is None:
        return False
    return done.steps >= campaign.spec.admission.tokens_share_min * done.planned_steps


def is_over(campaign: CampaignState, job: Job, at: float, started: float = 0.0, slack: float = 0.0) -> bool:
    """Whether a job need not be waited for any longer: it runs, or has not begun, for too long."""
    quorum = campaign.spec.quorum
    if job.started_at is not None:
        end = job.started_at + quorum.deadline_hours * HOUR
    else:
        waits = quorum.deadline_hours if quorum.queue_hours_max is None else quorum.queue_hours_max
        end = job.planned_at + waits * HOUR
    return at > max(end, started) + slack
