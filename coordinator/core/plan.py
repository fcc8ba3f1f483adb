"""Everything that follows from a state: leases that lapse, phases of a campaign, rounds that close.

``follow`` gives the next events that a state makes due, each with its reason; the machine applies them and
asks again until nothing follows.
"""

import math
from collections.abc import Iterator

from consortium.ids import Language, job_named
from consortium.jobs import Outcome, Purpose, Subject, Tokenizer
from coordinator.core import events as ev
from coordinator.core.able import holders_of_public_text, judges_of_candidate, participants
from coordinator.core.accounting import warnings
from coordinator.core.checks import checks_due, finding, is_checked, left_out
from coordinator.core.comparison import is_compared, models_to_compare, rivals_to_train
from coordinator.core.flower import given_up_messages
from coordinator.core.late import may_be_kept, may_go_on
from coordinator.core.lateness import given_up, overdue
from coordinator.core.merging import job_at_a_site, where_to_merge
from coordinator.core.moment import Moment, lease_until
from coordinator.core.orders import evaluation, planned
from coordinator.core.rounds import open_round
from coordinator.core.state import CampaignState, Job, Round, RoundState, Site, State
from coordinator.core.transitions import JobState


def follow(state: State, moment: Moment) -> list[ev.AnyEvent]:
    """Events that are due now, of the first rule that has any; ask again when they are applied."""
    for rule in (_lapsed_leases, _hopeless_jobs, given_up_messages, _warnings, _campaigns):
        if events := list(rule(state, moment)):
            return events
    return []


# --- leases and tries ------------------------------------------------------------------------------


def _lapsed_leases(state: State, moment: Moment) -> Iterator[ev.AnyEvent]:
    for job in state.open_jobs():
        if job.state is not JobState.LEASED or job.site is None or job.attempt is None:
            continue
        site = state.sites[job.site]
        lease_seconds = state.programme(job.campaign).lease_seconds(site)
        if site.status == "suspended":
            reason = f"{site.name} was suspended"
        elif moment.now > lease_until(job, lease_seconds, moment):
            reason = f"no word from {site.name} for {lease_seconds:.0f} s"
            if moment.now > site.not_after:
                reason += "; its certificate has expired and must be enrolled anew"
        else:
            continue
        yield ev.AttemptEnded(job=job.id, attempt=job.attempt, outcome=Outcome.EXPIRED, reason=reason)


def _hopeless_jobs(state: State, moment: Moment) -> Iterator[ev.AnyEvent]:
    for job in state.open_jobs():
        if job.state is not JobState.PLANNED:
            continue
        limit = state.programme(job.campaign).spec.attempts_max
        if job.failures >= limit:
            yield ev.JobFailed(job=job.id, reason=f"{job.failures} attempts failed, the last: {job.reason}")
        elif set(job.sites) <= {*job.refused_by, *job.disproved}:
            why = f"every able site refused, the last: {job.reason}" if job.sites else "no site is able"
            if job.disproved:
                why = f"no site is left to ask, the last was refused: {job.reason}"
            yield ev.JobFailed(job=job.id, reason=why)


def _warnings(state: State, moment: Moment) -> Iterator[ev.AnyEvent]:
    yield from warnings(state)


# --- a campaign, phase by phase --------------------------------------------------------------------


def _campaigns(state: State, moment: Moment) -> Iterator[ev.AnyEvent]:
    for _, campaign in sorted(state.campaigns.items()):
        if campaign.status == "open":
            yield from _campaign(state, campaign, moment)


def _campaign(state: State, campaign: CampaignState, moment: Moment) -> Iterator[ev.AnyEvent]:
    spec = campaign.spec
    if campaign.tokenizer is None:
        yield from _tokenizer(state, campaign, moment)
        return
    if campaign.head is None:
        return  # the worker owes the base
    if campaign.rounds:
        last = campaign.rounds[max(campaign.rounds)]
        if last.state is RoundState.TRAINING:
            yield from _collect(state, campaign, last, moment)
        elif last.state is RoundState.MERGING:
            yield from job_at_a_site(state, campaign, last, moment)
        elif last.state is RoundState.EVALUATING:
            yield from _gate_jobs(state, campaign, last, moment)
        if last.state is not RoundState.CLOSED:
            if last.number >= 1:
                yield from rivals_to_train(state, campaign)
            return
        if last.number == 0 and last.candidate is None:
            reason = f"no model to branch from: {last.reason}"
            yield ev.CampaignEnded(campaign=spec.campaign, status="failed", reason=reason)
            return
    following = next_round(campaign)
    if following is not None:
        yield from open_round(state, campaign, following, moment)
    else:
        yield from rivals_to_train(state, campaign)
        yield from models_to_compare(state, campaign, moment)
    if following is None and is_compared(state, campaign):
        yield ev.CampaignEnded(campaign=spec.campaign, status="completed", reason=_ending(campaign))


def next_round(campaign: CampaignState) -> int | None:
    """The round to open next, or None when all are done."""
    first = 0 if campaign.spec.seed_round is not None else 1
    number = max(campaign.rounds) + 1 if campaign.rounds else first
    return number if number <= campaign.spec.rounds else None


def has_rounds_ahead(campaign: CampaignState) -> bool:
    """Whether a round is open or still to be opened."""
    open_rounds = [r for r in campaign.rounds.values() if r.state is not RoundState.CLOSED]
    return bool(open_rounds) or next_round(campaign) is not None


def _ending(campaign: CampaignState) -> str:
    promoted = [v for v in campaign.versions.values() if v.status == "promoted" and v.role == "candidate"]
    return f"all {campaign.spec.rounds} rounds are closed; {len(promoted)} version(s) were promoted"


def _tokenizer(state: State, campaign: CampaignState, moment: Moment) -> Iterator[ev.AnyEvent]:
    spec = campaign.spec
    if spec.tokenizer.digest is not None:
        yield ev.TokenizerChosen(
            campaign=spec.campaign, tokenizer=spec.tokenizer.digest, reason="given with the campaign"
        )
    elif spec.model.files is not None and "tokenizer.json" in spec.model.files:
        given = spec.model.files["tokenizer.json"].digest
        yield ev.TokenizerChosen(campaign=spec.campaign, tokenizer=given, reason="the base model's own")
    elif campaign.tokenizer_job is not None:
        job = state.jobs[campaign.tokenizer_job]
        if job.state is JobState.DONE and job.contribution is not None:
            trained = job.contribution.artifacts["tokenizer"].digest
            reason = f"trained by {job.contribution.site} on public text"
            yield ev.TokenizerChosen(campaign=spec.campaign, tokenizer=trained, reason=reason)
        elif job.state is JobState.FAILED:
            reason = f"no tokenizer: {job.reason}"
            yield ev.CampaignEnded(campaign=spec.campaign, status="failed", reason=reason)
        elif (late := overdue(campaign, job, moment.now)) is not None:
            reason = f"no tokenizer in time, {late}: {job.state.value}, {job.reason}"
            yield ev.JobCancelled(job=job.id, reason=reason)
            yield ev.CampaignEnded(campaign=spec.campaign, status="failed", reason=reason)
    else:
        able = holders_of_public_text(state, campaign)
        if len(participants(state, campaign)) >= spec.sites_expected and able:
            assert spec.tokenizer.vocabulary_size is not None, "load_campaign lets no other through"
            yield planned(
                campaign,
                job_named(spec.campaign, "tokenizer"),
                0,
                Purpose.TOKENIZER,
                able,
                Tokenizer(
                    languages=spec.languages,
                    vocabulary_size=spec.tokenizer.vocabulary_size,
                    bytes_per_language=spec.tokenizer.bytes_per_language,
                    split_seed=spec.seed,
                ),
                (),
                f"any of {len(able)} site(s) with public text in all languages can train it",
            )


# --- closing a round -------------------------------------------------------------------------------


def _collect(state: State, campaign: CampaignState, round_: Round, moment: Moment) -> Iterator[ev.AnyEvent]:
    jobs = [state.jobs[j] for j in (*round_.jobs, *round_.late)]
    if checks := list(checks_due(state, campaign, round_, jobs, moment)):
        yield from checks
        return
    reason = is_complete(campaign, round_, jobs, moment.now)
    if reason is None or not all(is_checked(state, job) for job in jobs):
        return
    left = []
    for job in jobs:
        if not job.is_final and may_go_on(campaign, round_, job, moment.now):
            left.append(job.id)
        elif not job.is_final:
            yield ev.JobCancelled(job=job.id, reason=f"the round closed without it: {reason}")
    done = tuple(sorted(j.id for j in jobs if j.state is JobState.DONE))
    mergeable = tuple(
        j for j in done if _enough(state.jobs[j], campaign) and not left_out(campaign, state.jobs[j])
    )
    needed = campaign.spec.quorum.minimum if round_.number > 0 else 1  # the seed round has one job
    if len(mergeable) < needed:
        why = "; ".join(f"{j.id}: {left_out(campaign, j) or _lack(j)}" for j in jobs if j.id not in mergeable)
        kept = [name for name in mergeable if may_be_kept(campaign, round_, state.jobs[name])]
        yield ev.RoundFailed(
            campaign=campaign.spec.campaign,
            round=round_.number,
            left=tuple(sorted((*left, *kept))),
            reason=f"{len(mergeable)} of {needed} needed contributions; {reason}: {why}",
        )
        return
    reason += "".join(f"; {j.id}: {_told(campaign, j)}" for j in jobs if j.checks)
    unused = {j.id: left_out(campaign, j) or _lack(j) for j in jobs if j.id in {*done} - {*mergeable}}
    merged_by, why = where_to_merge(state, campaign)
    yield ev.RoundCollected(
        campaign=campaign.spec.campaign,
        round=round_.number,
        jobs=mergeable,
        left=tuple(sorted(left)),
        left_out=dict(sorted(unused.items())),
        merged_by=merged_by,
        reason=reason + why,
    )


def _enough(job: Job, campaign: CampaignState) -> bool:
    """Whether a (possibly partial) delta saw enough of its planned steps to be merged."""
    done = job.contribution
    return done is not None and done.steps >= campaign.spec.admission.tokens_share_min * done.planned_steps


def _told(campaign: CampaignState, job: Job) -> str:
    return left_out(campaign, job) or finding(campaign, job).reason


def _lack(job: Job) -> str:
    """Why a job of a closing round has nothing to merge."""
    if job.contribution is None:
        return job.reason
    return f"only {job.contribution.steps} of {job.contribution.planned_steps} steps"


def is_complete(campaign: CampaignState, round_: Round, jobs: list[Job], now: float) -> str | None:
    """Why the round may close now, or None while it may not: by quorum, by nobody left, or by deadline."""
    quorum = campaign.spec.quorum
    done = sum(_enough(j, campaign) for j in jobs)
    pending = sum(not j.is_final for j in jobs)
    if pending == 0:
        return f"{done} of {len(jobs)} contributions are in and no other can come"
    wanted = math.ceil(quorum.share * len(jobs) - 1e-9)  # 0.55 of 20 is 11, not 11.000000000000002
    needed = max(quorum.minimum, wanted)
    if quorum.share < 1.0 and done >= needed:
        met_at = sorted(j.admitted_at for j in jobs if _enough(j, campaign))[needed - 1]
        if now >= met_at + quorum.grace_hours * 3600.0:
            grace = f", and {quorum.grace_hours:g} h of grace are over" if quorum.grace_hours else ""
            return f"quorum: {done} of {len(jobs)} contributions are in{grace}"
    late: set[str] = set()
    for job in jobs:
        if not job.is_final:
            if (why := overdue(campaign, job, now)) is None:
                return None
            late.add(why)
    return f"deadline passed with {done} of {len(jobs)} contributions: {'; '.join(sorted(late))}"


# --- evaluating a candidate ------------------------------------------------------------------------


def _gate_jobs(state: State, campaign: CampaignState, round_: Round, moment: Moment) -> Iterator[ev.AnyEvent]:
    """One evaluation per site with held-out text; the gate decides without who is late or cannot pay for it."""
    if not round_.gate_jobs:
        assert round_.candidate is not None
        for site, languages in judges_of_candidate(state, campaign):
            subjects = [round_.candidate]
            if not _scored(campaign, round_.base, site, languages) and round_.number > 0:
                subjects.append(round_.base)
            yield evaluation(
                campaign,
                job_named(campaign.spec.campaign, f"r{round_.number}-gate-{site.name}"),
                round_.number,
                Purpose.GATE,
                site,
                tuple(Subject(name=v, version=v) for v in subjects),
                languages,
            )
    for name in round_.gate_jobs:
        job = state.jobs[name]
        if not job.is_final and (why := given_up(state, campaign, job, moment.now)) is not None:
            yield ev.JobCancelled(job=name, reason=f"{why}; its languages count as unscored")


def _scored(campaign: CampaignState, subject: str, site: Site, languages: tuple[Language, ...]) -> bool:
    known = campaign.scores.get(subject, {})
    return all(site.name in known.get(x, {}) for x in languages)
