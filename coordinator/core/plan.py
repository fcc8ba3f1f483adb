"""Everything that follows from a state: which jobs exist, when a round closes, what the worker owes.

``follow`` gives the next events that a state makes due, each with its reason; the machine applies them and
asks again until nothing follows. ``owed`` gives the work that the coordinator's own worker should be doing.
Both are derived from the state each time: an obligation is never stored, never lost or done twice.
"""

import math
from collections.abc import Iterator

from consortium.canonical import Fact, replace
from consortium.ids import CampaignId, Digest, JobId, Language, SiteName, digest_of, job_named
from consortium.jobs import Evaluate, Outcome, Purpose, Subject, Tokenizer, Train
from consortium.manifests import VersionManifest
from coordinator.core import events as ev
from coordinator.core.decide import Moment, lease_until
from coordinator.core.state import CampaignState, Job, Round, RoundState, Site, State
from coordinator.core.transitions import JobState

HOUR = 3600.0


def follow(state: State, moment: Moment) -> list[ev.AnyEvent]:
    """Events that are due now, of the first rule that has any; ask again when they are applied."""
    for rule in (_lapsed_leases, _hopeless_jobs, _campaigns):
        if events := list(rule(state, moment)):
            return events
    return []


# --- leases and tries ------------------------------------------------------------------------------


def _lapsed_leases(state: State, moment: Moment) -> Iterator[ev.AnyEvent]:
    for _, job in sorted(state.jobs.items()):
        if job.state is not JobState.LEASED or job.site is None or job.attempt is None:
            continue
        site = state.sites[job.site]
        lease_seconds = state.campaigns[job.campaign].spec.lease_seconds
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
    for _, job in sorted(state.jobs.items()):
        if job.state is not JobState.PLANNED:
            continue
        limit = state.campaigns[job.campaign].spec.attempts_max
        if job.failures >= limit:
            yield ev.JobFailed(job=job.id, reason=f"{job.failures} attempts failed, the last: {job.reason}")
        elif set(job.sites) <= set(job.refused_by):
            why = f"every able site refused, the last: {job.reason}" if job.sites else "no site is able"
            yield ev.JobFailed(job=job.id, reason=why)


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
        elif last.state is RoundState.EVALUATING:
            yield from _gate_jobs(state, campaign, last, moment)
        if last.state is not RoundState.CLOSED:
            if last.number >= 1:
                yield from _rivals(state, campaign)
            return
        if last.number == 0 and last.candidate is None:
            reason = f"no model to branch from: {last.reason}"
            yield ev.CampaignEnded(campaign=spec.campaign, status="failed", reason=reason)
            return
    following = next_round(campaign)
    if following is not None:
        yield from _open_round(state, campaign, following)
    else:
        yield from _rivals(state, campaign)
        yield from _compare(state, campaign, moment)
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
        elif moment.now > job.planned_at + spec.quorum.deadline_hours * HOUR:
            reason = f"no tokenizer within {spec.quorum.deadline_hours:g} h: {job.state.value}, {job.reason}"
            yield ev.JobCancelled(job=job.id, reason=reason)
            yield ev.CampaignEnded(campaign=spec.campaign, status="failed", reason=reason)
    else:
        able = holders_of_public_text(state, campaign)
        if len(participants(state, campaign)) >= spec.sites_expected and able:
            assert spec.tokenizer.vocabulary_size is not None, "load_campaign lets no other through"
            yield _planned(
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


def participants(state: State, campaign: CampaignState) -> tuple[Site, ...]:
    """Sites that can train a specialist: enrolled, invited, holding own text of the campaign's languages."""
    spec = campaign.spec
    return tuple(
        site
        for name, site in sorted(state.sites.items())
        if site.status == "enrolled"
        and not site.draining
        and (not spec.sites or name in spec.sites)
        and own_languages(site, campaign)
    )


def own_languages(site: Site, campaign: CampaignState) -> tuple[Language, ...]:
    return tuple(x for x in site.languages("private") if x in campaign.spec.languages)


def holders_of_public_text(state: State, campaign: CampaignState) -> tuple[SiteName, ...]:
    wanted = set(campaign.spec.languages)
    return tuple(s.name for s in participants(state, campaign) if wanted <= set(s.languages("public")))


def _open_round(state: State, campaign: CampaignState, number: int) -> Iterator[ev.AnyEvent]:
    spec = campaign.spec
    assert campaign.head is not None
    able = participants(state, campaign)
    if len(able) < spec.sites_expected:
        return
    if number == 0:
        holders = holders_of_public_text(state, campaign)
        if not holders:
            return
        yield ev.RoundOpened(
            campaign=spec.campaign,
            round=0,
            base=campaign.head,
            reason=f"seed round: public text at any of {len(holders)} site(s)",
        )
        assert spec.seed_round is not None
        seed = _train(campaign, campaign.head, 0, "seed", (), spec.seed_round.steps, replay_share=1.0)
        seed = replace(seed, optimizer=spec.seed_round.optimizer, schedule_steps=seed.steps)
        reason = "the base that every specialist branches from"
        job = job_named(spec.campaign, "r0-seed")
        yield _planned(campaign, job, 0, Purpose.SEED, holders, seed, _train_inputs(campaign, seed), reason)
        return
    names = ", ".join(s.name for s in able)
    yield ev.RoundOpened(
        campaign=spec.campaign,
        round=number,
        base=campaign.head,
        reason=f"{len(able)} site(s) take part: {names}",
    )
    for site in able:
        own = own_languages(site, campaign)
        work = _train(
            campaign,
            campaign.head,
            number,
            site.name,
            own,
            spec.train.steps,
            replay_share=spec.train.replay_share,
        )
        yield _planned(
            campaign,
            job_named(spec.campaign, f"r{number}-train-{site.name}"),
            number,
            Purpose.ROUND,
            (site.name,),
            work,
            _train_inputs(campaign, work),
            f"{site.name} holds {', '.join(own)}",
        )


def _train(
    campaign: CampaignState,
    base: Digest,
    number: int,
    stream: str,
    languages: tuple[Language, ...],
    steps: int,
    *,
    replay_share: float,
) -> Train:
    """One training job. Its data order is keyed by (campaign seed, round, stream), not by attempt."""
    spec, plan = campaign.spec, campaign.spec.train
    return Train(
        base=base,
        languages=languages,
        public_languages=spec.languages,
        replay_share=replay_share,
        epochs_max=plan.epochs_max,
        steps=steps,
        batch_sequences=plan.batch_sequences,
        sequence_tokens=plan.sequence_tokens,
        optimizer=plan.optimizer,
        schedule_start=max(0, number - 1) * plan.steps,
        schedule_steps=spec.rounds * plan.steps,
        seed=_seed(spec.seed, number, stream),
        split_seed=spec.seed,
        delta_dtype="fp32" if plan.delta_dtype == "fp32" else "bf16",
        checkpoint_steps=plan.checkpoint_steps,
    )


def _seed(seed: int, number: int, stream: str) -> int:
    return int(digest_of(f"{seed}/{number}/{stream}".encode())[:12], 16)


def _train_inputs(campaign: CampaignState, work: Train) -> tuple[Digest, ...]:
    return version_inputs(work.base, campaign.versions[work.base].manifest)


def version_inputs(version: Digest, manifest: VersionManifest) -> tuple[Digest, ...]:
    """The blobs that make a version: its manifest and its files."""
    return tuple(sorted({version, *(ref.digest for ref in manifest.files.values())}))


def _planned(
    campaign: CampaignState,
    job: JobId,
    number: int,
    purpose: Purpose,
    sites: tuple[SiteName, ...],
    work: Tokenizer | Train | Evaluate,
    inputs: tuple[Digest, ...],
    reason: str,
) -> ev.JobPlanned:
    return ev.JobPlanned(
        job=job,
        campaign=campaign.spec.campaign,
        round=number,
        purpose=purpose,
        sites=sites,
        work=work,
        inputs=inputs,
        tokenizer=campaign.tokenizer,
        reason=reason,
    )


# --- closing a round -------------------------------------------------------------------------------


def _collect(state: State, campaign: CampaignState, round_: Round, moment: Moment) -> Iterator[ev.AnyEvent]:
    jobs = [state.jobs[j] for j in round_.jobs]
    reason = is_complete(campaign, round_, jobs, moment.now)
    if reason is None:
        return
    open_jobs = [j for j in jobs if not j.is_final]
    for job in open_jobs:
        yield ev.JobCancelled(job=job.id, reason=f"the round closed without it: {reason}")
    done = tuple(sorted(j.id for j in jobs if j.state is JobState.DONE))
    mergeable = tuple(j for j in done if _enough(state.jobs[j], campaign))
    needed = min(campaign.spec.quorum.minimum, len(jobs))
    if len(mergeable) < needed:
        why = "; ".join(f"{j.id}: {_lack(j)}" for j in jobs if j.id not in mergeable)
        yield ev.RoundFailed(
            campaign=campaign.spec.campaign,
            round=round_.number,
            reason=f"{len(mergeable)} of {needed} needed contributions; {reason}: {why}",
        )
        return
    yield ev.RoundCollected(
        campaign=campaign.spec.campaign, round=round_.number, jobs=mergeable, reason=reason
    )


def _enough(job: Job, campaign: CampaignState) -> bool:
    """Whether a (possibly partial) delta saw enough of its planned steps to be merged."""
    done = job.contribution
    return done is not None and done.steps >= campaign.spec.admission.tokens_share_min * done.planned_steps


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
    if quorum.share < 1.0 and done >= max(quorum.minimum, wanted):
        return f"quorum: {done} of {len(jobs)} contributions are in"
    if now > round_.opened_at + quorum.deadline_hours * HOUR:
        return f"deadline of {quorum.deadline_hours:g} h passed with {done} of {len(jobs)} contributions"
    return None


# --- evaluating a candidate ------------------------------------------------------------------------


def _gate_jobs(state: State, campaign: CampaignState, round_: Round, moment: Moment) -> Iterator[ev.AnyEvent]:
    """One evaluation per site with held-out text; at the deadline the gate decides without the late ones."""
    if not round_.gate_jobs:
        assert round_.candidate is not None
        for site, languages in judges(state, campaign):
            subjects = [round_.candidate]
            if not _scored(campaign, round_.base, site, languages) and round_.number > 0:
                subjects.append(round_.base)
            yield _evaluation(
                campaign,
                job_named(campaign.spec.campaign, f"r{round_.number}-gate-{site.name}"),
                round_.number,
                Purpose.GATE,
                site,
                tuple(Subject(name=v, version=v) for v in subjects),
                languages,
            )
    elif moment.now > round_.candidate_at + campaign.spec.quorum.deadline_hours * HOUR:
        for name in round_.gate_jobs:
            if not state.jobs[name].is_final:
                yield ev.JobCancelled(
                    job=name, reason="evaluation deadline passed; its languages count as unscored"
                )


def judges(state: State, campaign: CampaignState) -> list[tuple[Site, tuple[Language, ...]]]:
    """Sites that hold held-out text of the campaign's languages, each with those languages."""
    found = []
    for name, site in sorted(state.sites.items()):
        heldout = tuple(x for x in site.languages("private", heldout=True) if x in campaign.spec.languages)
        if site.status == "enrolled" and heldout and (not campaign.spec.sites or name in campaign.spec.sites):
            found.append((site, heldout))
    return found


def _scored(campaign: CampaignState, subject: str, site: Site, languages: tuple[Language, ...]) -> bool:
    known = campaign.scores.get(subject, {})
    return all(site.name in known.get(x, {}) for x in languages)


def _evaluation(
    campaign: CampaignState,
    job: JobId,
    number: int,
    purpose: Purpose,
    site: Site,
    subjects: tuple[Subject, ...],
    languages: tuple[Language, ...],
) -> ev.JobPlanned:
    inputs: set[Digest] = set()
    for subject in subjects:
        inputs.update(version_inputs(subject.version, campaign.versions[subject.version].manifest))
        if subject.delta is not None:
            inputs.add(subject.delta)
    work = Evaluate(
        subjects=subjects,
        languages=languages,
        sequence_tokens=campaign.spec.train.sequence_tokens,
        split_seed=campaign.spec.seed,
    )
    reason = f"{site.name} holds held-out text of {', '.join(languages)}"
    return _planned(campaign, job, number, purpose, (site.name,), work, tuple(sorted(inputs)), reason)


# --- rivals: what the campaign is compared with ----------------------------------------------------


def _rivals(state: State, campaign: CampaignState) -> Iterator[ev.AnyEvent]:
    """Planned once, when the first round proper has opened: same base, same compute, never merged."""
    spec = campaign.spec
    first = campaign.rounds.get(1)
    if first is None or campaign.rivals or not (spec.rivals.public_only or spec.rivals.specialists):
        return
    sites = [state.sites[state.jobs[j].sites[0]] for j in first.jobs]
    steps = spec.rounds * spec.train.steps
    if spec.rivals.public_only:
        work = _train(campaign, first.base, 1, "public", (), steps * len(sites), replay_share=1.0)
        work = replace(work, schedule_steps=work.steps)
        able = holders_of_public_text(state, campaign)
        reason = f"comparison: public text alone with the compute of all {len(sites)} sites"
        inputs = _train_inputs(campaign, work)
        yield _planned(
            campaign, job_named(spec.campaign, "rival-public"), 1, Purpose.RIVAL, able, work, inputs, reason
        )
    if spec.rivals.specialists:
        for site in sites:
            own = own_languages(site, campaign)
            work = _train(
                campaign, first.base, 1, site.name, own, steps, replay_share=spec.train.replay_share
            )
            job = job_named(spec.campaign, f"rival-alone-{site.name}")
            reason = f"comparison: {site.name} alone, with the compute it gives to the campaign"
            inputs = _train_inputs(campaign, work)
            yield _planned(campaign, job, 1, Purpose.RIVAL, (site.name,), work, inputs, reason)


def _compare(state: State, campaign: CampaignState, moment: Moment) -> Iterator[ev.AnyEvent]:
    """Once every rival is trained, every site scores them all in one job; nobody waits for ever."""
    rivals = [state.jobs[j] for j in campaign.rivals]
    comparisons = [state.jobs[j] for j in campaign.compare_jobs]
    since = max((j.planned_at for j in comparisons), default=_last_word(campaign))
    waiting = [j for j in (*rivals, *comparisons) if not j.is_final]
    if waiting and moment.now > since + campaign.spec.quorum.deadline_hours * HOUR:
        for late in waiting:
            yield ev.JobCancelled(
                job=late.id, reason="comparison deadline passed; the campaign ends without it"
            )
    if waiting or comparisons:
        return
    subjects = tuple(
        Subject(name=j.id, version=j.work.base, delta=j.contribution.artifacts["delta"].digest)
        for j in rivals
        if isinstance(j.work, Train) and j.contribution is not None
    )
    for site, languages in judges(state, campaign) if subjects else ():
        job = job_named(campaign.spec.campaign, f"compare-{site.name}")
        yield _evaluation(campaign, job, campaign.spec.rounds, Purpose.COMPARE, site, subjects, languages)


def _last_word(campaign: CampaignState) -> float:
    return max(max(r.opened_at, r.candidate_at) for r in campaign.rounds.values())


def is_compared(state: State, campaign: CampaignState) -> bool:
    """Whether nothing is left to do for the comparison (there may be none)."""
    if any(not state.jobs[j].is_final for j in (*campaign.rivals, *campaign.compare_jobs)):
        return False
    wanted = campaign.spec.rivals.public_only or campaign.spec.rivals.specialists
    if wanted and 1 in campaign.rounds and not campaign.rivals:
        return False
    trained = any(state.jobs[j].state is JobState.DONE for j in campaign.rivals)
    return bool(campaign.compare_jobs) or not trained or not judges(state, campaign)


# --- why nothing happens ---------------------------------------------------------------------------


class Waiting(Fact):
    """Something that would follow if only …"""

    campaign: CampaignId
    round: int
    reason: str


def waits(state: State) -> tuple[Waiting, ...]:
    """What each open campaign waits for, in sentences: the other face of ``follow``."""
    found = []
    for name, campaign in sorted(state.campaigns.items()):
        if campaign.status != "open":
            continue
        number = max(campaign.rounds, default=0)
        found.append(Waiting(campaign=name, round=number, reason=_waits_for(state, campaign)))
    return tuple(found)


def _waits_for(state: State, campaign: CampaignState) -> str:
    able = [s.name for s in participants(state, campaign)]
    if len(able) < campaign.spec.sites_expected:
        return (
            f"{len(able)} of the {campaign.spec.sites_expected} expected sites are enrolled and hold text "
            f"of its languages ({', '.join(able) or 'none'})"
        )
    if campaign.tokenizer is None:
        if campaign.tokenizer_job is None and not holders_of_public_text(state, campaign):
            return f"no site holds public text in all of {', '.join(campaign.spec.languages)}"
        return "the tokenizer is being trained"
    if campaign.head is None:
        return "the base is being made"
    if next_round(campaign) == 0 and not holders_of_public_text(state, campaign):
        return f"no site holds public text in all of {', '.join(campaign.spec.languages)}"
    open_jobs = [
        j.id for _, j in sorted(state.jobs.items()) if j.campaign == campaign.spec.campaign and not j.is_final
    ]
    if open_jobs:
        return f"{len(open_jobs)} job(s): {', '.join(open_jobs[:4])}{' …' if len(open_jobs) > 4 else ''}"
    return "the coordinator's worker: " + ", ".join(
        type(w).__name__.lower()
        for w in owed(state)
        if getattr(w, "campaign", None) == campaign.spec.campaign
    )


# --- what the coordinator's own worker owes --------------------------------------------------------


class MakeBase(Fact, tag=True):
    campaign: CampaignId


class Inspect(Fact, tag=True):
    job: JobId
    attempt: str
    envelope: Digest


class Merge(Fact, tag=True):
    campaign: CampaignId
    round: int


class Judge(Fact, tag=True):
    campaign: CampaignId
    round: int


Owed = MakeBase | Inspect | Merge | Judge


def owed(state: State) -> tuple[Owed, ...]:
    """The worker's present obligations, in a fixed order."""
    work: list[Owed] = [
        Inspect(job=job.id, attempt=job.attempt, envelope=job.envelope)
        for _, job in sorted(state.jobs.items())
        if job.state is JobState.DELIVERED and job.attempt is not None and job.envelope is not None
    ]
    for name, campaign in sorted(state.campaigns.items()):
        if campaign.status != "open":
            continue
        if campaign.tokenizer is not None and campaign.head is None:
            work.append(MakeBase(campaign=name))
        for number, round_ in sorted(campaign.rounds.items()):
            if round_.state is RoundState.MERGING:
                work.append(Merge(campaign=name, round=number))
            elif round_.state is RoundState.EVALUATING and _is_evaluated(state, campaign, round_):
                work.append(Judge(campaign=name, round=number))
    return tuple(work)


def _is_evaluated(state: State, campaign: CampaignState, round_: Round) -> bool:
    if not round_.gate_jobs:
        return not judges(state, campaign)  # nobody can judge: the gate says what that means
    return all(state.jobs[j].is_final for j in round_.gate_jobs)
