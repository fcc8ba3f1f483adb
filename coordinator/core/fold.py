"""How an event changes what the coordinator knows. Nothing else changes a state."""

import math
from collections.abc import Mapping
from functools import singledispatch

from consortium.ids import AttemptId, JobId, Language
from consortium.jobs import Evaluate, Outcome, Purpose
from coordinator.core import events as ev
from coordinator.core.budgets import DESCRIBED, RENEWED, RETURNED, spend
from coordinator.core.state import (
    CampaignState,
    FlowerRunState,
    Invitation,
    Job,
    LetGo,
    Round,
    RoundState,
    Site,
    State,
    Try,
    Version,
)
from coordinator.core.transitions import step

#: Of so many newest attempts a site's queue waits are remembered: weeks, at the pace of rounds.
QUEUED_KEPT = 20


@singledispatch
def apply(event: ev.AnyEvent, state: State, at: float) -> None:
    raise AssertionError(f"no rule applies {type(event).__name__}")


@apply.register
def _(event: ev.ConsortiumFounded, state: State, at: float) -> None:
    state.consortium = event.consortium
    state.ledger_key = event.ledger_key
    state.authority = event.authority
    state.policies = dict(sorted(event.policies.items()))


@apply.register
def _(event: ev.TokenIssued, state: State, at: float) -> None:
    # A newer invitation for the same site replaces the older one.
    state.tokens = {h: t for h, t in state.tokens.items() if t.site != event.site}
    state.tokens[event.token_hash] = Invitation(
        event.site, event.organisation, event.country, event.valid_until, at
    )


@apply.register
def _(event: ev.SiteEnrolled, state: State, at: float) -> None:
    invitation = state.tokens.pop(event.token_hash)
    known = state.sites.get(event.site)
    site = known or Site(event.site, "", "", "", "", 0.0)
    site.organisation, site.country = invitation.organisation, invitation.country
    site.status, site.token_hash = "enrolled", event.token_hash
    site.since_enrolment, site.suspended_at = (), None
    state.sites[event.site] = site
    _new_certificate(site, event.certificate, event.fingerprint, event.not_after)


@apply.register
def _(event: ev.CertificateRenewed, state: State, at: float) -> None:
    _new_certificate(state.sites[event.site], event.certificate, event.fingerprint, event.not_after)
    spend(state.sites[event.site], RENEWED, at)


def _new_certificate(site: Site, certificate: str, fingerprint: str, not_after: float) -> None:
    site.certificate, site.fingerprint, site.not_after = certificate, fingerprint, not_after
    site.certificates = {**site.certificates, fingerprint: certificate}
    site.since_enrolment = (*site.since_enrolment, fingerprint)


@apply.register
def _(event: ev.SiteDescribed, state: State, at: float) -> None:
    site = state.sites[event.site]
    site.agent_version, site.slots = event.agent_version, event.slots
    site.draining, site.holdings, site.merges = event.draining, event.holdings, event.merges
    granted = {allocation.name: allocation.gpu_hours for allocation in site.allocations}
    for allocation in event.allocations:
        if granted.get(allocation.name) != allocation.gpu_hours:
            site.warned.pop(allocation.name, None)  # another grant, other warnings
    site.allocations, site.windows = event.allocations, event.windows
    site.gpus, site.launcher, site.courier = event.gpus, event.launcher, event.courier
    spend(site, DESCRIBED, at)


@apply.register
def _(event: ev.SiteStatusChanged, state: State, at: float) -> None:
    site = state.sites[event.site]
    site.status = event.status
    site.suspended_at = at if event.status == "suspended" else None


@apply.register
def _(event: ev.PersonRevoked, state: State, at: float) -> None:
    state.revoked = dict(sorted({**state.revoked, f"{event.role}/{event.name}": event.reason}.items()))


@apply.register
def _(event: ev.CampaignOpened, state: State, at: float) -> None:
    state.campaigns[event.campaign.campaign] = CampaignState(
        spec=event.campaign, opened_at=at, sender=event.sender
    )


@apply.register
def _(event: ev.CampaignEnded, state: State, at: float) -> None:
    campaign = state.campaigns[event.campaign]
    campaign.status, campaign.reason = event.status, event.reason


@apply.register
def _(event: ev.FlowerRunOpened, state: State, at: float) -> None:
    state.flower_runs[event.run.run] = FlowerRunState(spec=event.run, opened_at=at, sender=event.sender)


@apply.register
def _(event: ev.FlowerRunEnded, state: State, at: float) -> None:
    run = state.flower_runs[event.run]
    run.status, run.reason = event.status, event.reason


@apply.register
def _(event: ev.TokenizerChosen, state: State, at: float) -> None:
    state.campaigns[event.campaign].tokenizer = event.tokenizer


@apply.register
def _(event: ev.VersionMade, state: State, at: float) -> None:
    campaign = state.campaigns[event.campaign]
    version = Version(
        event.version,
        event.name,
        event.campaign,
        event.round,
        event.role,
        event.manifest,
        event.merged_by,
        reason=event.reason,
    )
    campaign.versions[event.version] = version
    if event.role == "initial":
        version.status = "promoted"
        campaign.head = event.version
    else:
        round_ = campaign.rounds[event.round]
        round_.candidate, round_.candidate_at = event.version, at
        round_.state, round_.reason = RoundState.EVALUATING, event.reason


@apply.register
def _(event: ev.RoundOpened, state: State, at: float) -> None:
    state.campaigns[event.campaign].rounds[event.round] = Round(
        event.round, event.base, at, reason=event.reason, late=event.late
    )


@apply.register
def _(event: ev.JobPlanned, state: State, at: float) -> None:
    state.jobs[event.job] = Job(
        event.job, event.campaign, event.round, event.purpose, event.sites, event.work, event.inputs,
        event.tokenizer, reason=event.reason, planned_at=at, free_since=at,
    )  # fmt: skip
    state.index.note(state.jobs[event.job])
    if event.purpose is Purpose.FLOWER:
        state.jobs[event.job].sender = state.flower_runs[event.campaign].sender
        return
    campaign = state.campaigns[event.campaign]
    if campaign.sender:  # else a release before this one opened it, and its orders said nothing of it
        state.jobs[event.job].sender = campaign.sender
        state.jobs[event.job].merged_by = campaign.mergers
    match event.purpose:
        case Purpose.TOKENIZER:
            campaign.tokenizer_job = event.job
        case Purpose.SEED | Purpose.ROUND:
            campaign.rounds[event.round].jobs += (event.job,)
        case Purpose.CHECK:
            assert isinstance(event.work, Evaluate)
            state.jobs[JobId(event.work.subjects[-1].name)].checks += (event.job,)
        case Purpose.GATE:
            campaign.rounds[event.round].gate_jobs += (event.job,)
        case Purpose.RIVAL:
            campaign.rivals += (event.job,)
        case Purpose.COMPARE:
            campaign.compare_jobs += (event.job,)
        case Purpose.MERGE:
            campaign.rounds[event.round].merge_job = event.job


def _move(state: State, job: JobId, verb: str, reason: str) -> Job:
    """The only place where a job changes its state; whoever moves it says why."""
    moved = state.jobs[job]
    moved.state = step(job, moved.state, verb)
    moved.reason = reason
    state.index.note(moved)
    return moved


@apply.register
def _(event: ev.JobLeased, state: State, at: float) -> None:
    job = _move(state, event.job, "lease", event.reason)
    job.attempts += 1
    job.attempt, job.site, job.leased_at, job.outcome = event.attempt, event.site, at, None
    state.index.note(job)  # whose it is
    job.tries[event.attempt] = Try(
        event.site, event.allocation, event.gpu_hours * 3600.0, order=event.assignment
    )
    _hold(state, job, event.attempt)


def _hold(state: State, job: Job, attempt: AttemptId) -> None:
    """From now on it may use what its site was granted, until it is known to have ended there."""
    known = job.tries[attempt]
    if known.allocation:
        state.sites[known.site].held[attempt] = job.id


def _let_go(state: State, job: Job, attempt: AttemptId) -> None:
    if attempt in job.tries:
        state.sites[job.tries[attempt].site].held.pop(attempt, None)


@apply.register
def _(event: ev.AttemptStarted, state: State, at: float) -> None:
    job, site = state.jobs[event.job], state.sites[event.site]
    job.tries[event.attempt].started = True
    if job.started_at is None and job.attempt == event.attempt and not job.is_final:
        job.started_at = at
    site.queued = (*site.queued, event.queued_seconds)[-QUEUED_KEPT:]


@apply.register
def _(event: ev.AttemptUsed, state: State, at: float) -> None:
    known, site = state.jobs[event.job].tries[event.attempt], state.sites[event.site]
    more = event.gpu_seconds - known.gpu_seconds
    site.spent.gpu_seconds += more
    site.spent.seconds += event.seconds - known.seconds
    site.spent.joules += (event.joules or 0.0) - (known.joules or 0.0)
    if event.allocation:
        site.charged[event.allocation] = site.charged.get(event.allocation, 0.0) + more
    known.gpu_seconds, known.seconds, known.joules = event.gpu_seconds, event.seconds, event.joules
    known.entries += 1


@apply.register
def _(event: ev.AttemptGone, state: State, at: float) -> None:
    _let_go(state, state.jobs[event.job], event.attempt)


@apply.register
def _(event: ev.AllocationWarned, state: State, at: float) -> None:
    state.sites[event.site].warned[event.allocation] = event.percent


@apply.register
def _(event: ev.LeaseResumed, state: State, at: float) -> None:
    job = _move(state, event.job, "resume", event.reason)
    job.leased_at, job.outcome = at, None
    if event.attempt in job.tries:
        _hold(state, job, event.attempt)


@apply.register
def _(event: ev.AttemptEnded, state: State, at: float) -> None:
    job = _move(state, event.job, "release", event.reason)
    job.outcome, job.free_since = event.outcome, at
    if event.outcome is not Outcome.EXPIRED:  # which only says that nobody has heard of it
        _let_go(state, job, event.attempt)
    if event.outcome in (Outcome.FAILED, Outcome.CORRUPT):
        job.failures += 1
    if event.outcome in (Outcome.PREEMPTED, Outcome.CANCELLED) and job.site is not None:
        spend(state.sites[job.site], RETURNED, at)
    if event.outcome is Outcome.REFUSED and job.site is not None:
        job.refused_by = tuple(sorted({*job.refused_by, job.site}))


@apply.register
def _(event: ev.ContributionReceived, state: State, at: float) -> None:
    job = _move(state, event.job, "deliver", "delivered; waits for inspection")
    job.envelope, job.delivered_at = event.envelope, at
    _let_go(state, job, event.attempt)


@apply.register
def _(event: ev.ContributionAdmitted, state: State, at: float) -> None:
    job = _move(state, event.job, "admit", event.reason)
    job.contribution, job.admitted_at, job.measures = event.contribution, at, event.measures
    state.index.admit(job)
    if job.purpose is Purpose.FLOWER:
        kept = state.flower_runs[job.campaign].kept
        kept.pop(event.contribution.site, None)
        if event.contribution.residual is not None:
            kept[event.contribution.site] = event.contribution.residual
        return
    if job.purpose is Purpose.CHECK:
        _judge(state, job, event)
        return
    scores = state.campaigns[job.campaign].scores
    for subject, languages in sorted(event.scores.items()):
        for language, score in sorted(languages.items()):
            scores.setdefault(subject, {}).setdefault(language, {})[event.contribution.site] = score


def _judge(state: State, check: Job, event: ev.ContributionAdmitted) -> None:
    assert isinstance(check.work, Evaluate)
    found, job = growth(check.work, event.scores), state.jobs[JobId(check.work.subjects[-1].name)]
    if found is not None:
        job.judged = dict(sorted({**job.judged, event.contribution.site: found}.items()))


def growth(check: Evaluate, scores: Mapping[str, Mapping[Language, ev.ScoreSummary]]) -> float | None:
    """By how much the nats of held-out text grow when the second subject takes the first one's place, relatively.

    None: nothing was held out of which both were scored.
    """
    base, subject = (scores.get(one.name, {}) for one in check.subjects)
    common = sorted(base.keys() & subject.keys())
    before = math.fsum(base[language].nats for language in common)
    return math.fsum(subject[language].nats for language in common) / before - 1.0 if before > 0.0 else None


@apply.register
def _(event: ev.ContributionRefused, state: State, at: float) -> None:
    job = _move(state, event.job, "refuse", event.reason)
    job.failures += 1
    job.outcome, job.envelope, job.free_since = Outcome.CORRUPT, None, at
    if job.purpose is Purpose.MERGE and job.site is not None:
        job.disproved = tuple(sorted({*job.disproved, job.site}))


@apply.register
def _(event: ev.JobFailed, state: State, at: float) -> None:
    _move(state, event.job, "give_up", event.reason)


@apply.register
def _(event: ev.JobCancelled, state: State, at: float) -> None:
    _move(state, event.job, "cancel", event.reason)


@apply.register
def _(event: ev.RoundCollected, state: State, at: float) -> None:
    round_ = state.campaigns[event.campaign].rounds[event.round]
    round_.state, round_.collected, round_.reason = RoundState.MERGING, event.jobs, event.reason
    round_.merged_by, round_.left = event.merged_by, event.left
    for name, why in event.left_out.items():
        state.jobs[name].reason = f"left out of the merge of round {event.round}: {why}"


@apply.register
def _(event: ev.RoundFailed, state: State, at: float) -> None:
    round_ = state.campaigns[event.campaign].rounds[event.round]
    round_.state, round_.reason = RoundState.CLOSED, event.reason
    round_.left += event.left


@apply.register
def _(event: ev.GateJudged, state: State, at: float) -> None:
    round_ = state.campaigns[event.campaign].rounds[event.round]
    round_.verdict = event.verdict
    round_.state, round_.reason = RoundState.CLOSED, event.verdict.reason


@apply.register
def _(event: ev.VersionPromoted, state: State, at: float) -> None:
    version = state.campaigns[event.campaign].versions[event.version]
    version.status, version.reason = "promoted", event.reason
    state.campaigns[event.campaign].head = event.version


@apply.register
def _(event: ev.VersionRejected, state: State, at: float) -> None:
    version = state.campaigns[event.campaign].versions[event.version]
    version.status, version.reason = "rejected", event.reason


@apply.register
def _(event: ev.RolledBack, state: State, at: float) -> None:
    state.campaigns[event.campaign].head = event.version


@apply.register
def _(event: ev.ArtifactsLetGo, state: State, at: float) -> None:
    programme, mark = state.programme(event.campaign), LetGo(at, event.rule.words)
    programme.let_go.update((job, mark) for job in event.contributions)
    if isinstance(programme, CampaignState):
        for digest in event.weights:
            programme.versions[digest].weights_let_go = mark
        for digest in event.outer_states:
            programme.versions[digest].outer_state_let_go = mark
        for digest in event.unprovable:
            programme.versions[digest].unprovable = mark
