"""State and presence -> a frozen picture for people and scripts."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from consortium import views as vw
from consortium.capacity import Opening
from consortium.ids import AttemptId, CampaignId, SiteName
from consortium.jobs import Train
from consortium.metrics import bits_per_byte
from coordinator.core.accounting import held_back
from coordinator.core.budgets import used_up
from coordinator.core.estimates import HOUR, queue_seconds
from coordinator.core.keeping import in_words
from coordinator.core.moment import Moment
from coordinator.core.place import best_prospect, waiting
from coordinator.core.state import CampaignState, Job, Round, RoundState, Site, State, Version
from coordinator.core.transitions import FINAL, JobState
from coordinator.core.waits import Waiting, waits

SHOWN_MAX = 1000  #: of what is over: a screen shows fewer, and a year's would be more than a message may hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What the last Sync said of one attempt; lost in a restart, and no harm done."""

    phase: str
    step: int = 0
    steps: int = 0
    tokens: int = 0
    loss: float | None = None
    tokens_per_second: float = 0.0


def view(
    state: State,
    *,
    sequence: int,
    head: str,
    now: float,
    seen: Mapping[SiteName, float],
    sights: Mapping[AttemptId, Sight],
    openings: Mapping[SiteName, Opening] | None = None,
    most: int = SHOWN_MAX,
    notices: tuple[str, ...] = (),
) -> vw.ConsortiumView:
    """The whole consortium at ``now``; ``seen`` is when each site last synced, ``sights`` what it said.

    most  of jobs that are over, and of a campaign's rounds, models and versions: the newest so many
    """
    moment = Moment(now=now, openings=openings or {})
    reasons = waits(state, moment)
    jobs = sorted([*state.open_jobs(), *state.jobs.newest_over(most)], key=lambda job: job.id)
    return vw.ConsortiumView(
        consortium=state.consortium,
        sequence=sequence,
        head=head,
        now=now,
        sites=tuple(_site(state, s, moment, seen) for _, s in sorted(state.sites.items())),
        campaigns=tuple(_campaign(state, c, reasons, most) for _, c in sorted(state.campaigns.items())),
        jobs=tuple(_job(state, job, moment) for job in jobs),
        attempts=tuple(
            _attempt(job, sights.get(job.attempt))
            for job in jobs
            if job.state is JobState.LEASED and job.attempt is not None
        ),
        flower_runs=_flower_runs(state),
        jobs_left_out=len(state.jobs) - len(jobs),
        notices=notices,
    )


def releases(state: State, *, sequence: int, head: str) -> vw.Releases:
    """What everybody may know: the promoted versions, and how well each does."""
    return vw.Releases(
        consortium=state.consortium,
        sequence=sequence,
        head=head,
        releases=tuple(
            vw.ReleaseView(
                name=version.name,
                digest=version.digest,
                campaign=version.campaign,
                round=version.round,
                is_head=version.digest == campaign.head,
                languages=campaign.spec.languages,
                results=_results(campaign, version.digest),
            )
            for _, campaign in sorted(state.campaigns.items())
            for version in _in_order(campaign)
            if version.status == "promoted"
        ),
    )


def _site(state: State, site: Site, moment: Moment, seen: Mapping[SiteName, float]) -> vw.SiteView:
    last, now = seen.get(site.name), moment.now
    opening, queue = moment.opening(site), queue_seconds(site)
    return vw.SiteView(
        site=site.name,
        organisation=site.organisation,
        status="draining" if site.status == "enrolled" and site.draining else site.status,
        languages=site.languages("private"),
        slots=site.slots,
        busy=len(state.live(site.name)),
        seen_seconds_ago=None if last is None else max(0.0, now - last),
        agent_version=site.agent_version,
        gpus=site.gpus,
        gpu_hours=site.spent.gpu_seconds / HOUR,
        joules=site.spent.joules,
        allocations=tuple(
            vw.AllocationView(
                name=allocation.name,
                granted=allocation.gpu_hours,
                used=site.charged.get(allocation.name, 0.0) / HOUR,
                held_back=held_back(state, site, allocation.name) / HOUR,
                until=allocation.until,
            )
            for allocation in site.allocations
        ),
        has_windows=bool(site.windows),
        is_open=opening.is_open,
        changes_at=opening.until,
        queue_seconds=queue.value if queue.is_measured else None,
        held_back=tuple(one.reason for one in used_up(site, now)),
    )


def _flower_runs(state: State) -> tuple[vw.FlowerRunView, ...]:
    states: dict[CampaignId, Counter[JobState]] = {name: Counter() for name in state.flower_runs}
    for one in state.jobs.briefs() if states else ():
        if one.campaign in states:
            states[one.campaign][one.state] += 1
    return tuple(
        vw.FlowerRunView(
            run=name,
            app=run.spec.app,
            status=run.status,
            reason=run.reason,
            sites=run.spec.sites,
            messages=states[name].total(),
            answered=states[name][JobState.DONE],
            given_up=sum(states[name][over] for over in FINAL if over is not JobState.DONE),
        )
        for name, run in sorted(state.flower_runs.items())
    )


def _job(state: State, job: Job, moment: Moment) -> vw.JobView:
    reason = waiting(state, job, moment) if job.state is JobState.PLANNED else job.reason
    let_go = state.programme(job.campaign).let_go.get(job.id)
    return vw.JobView(
        job=job.id,
        campaign=job.campaign,
        round=job.round,
        purpose=job.purpose.value,
        site=job.site or (job.sites[0] if len(job.sites) == 1 else None),
        state=job.state.value,
        reason=reason,
        attempts=job.attempts,
        let_go="" if let_go is None else in_words(let_go),
        expected_start=_expected_start(state, job, moment),
    )


def _expected_start(state: State, job: Job, moment: Moment) -> float | None:
    """When a job is expected to begin to run: by its site's queue, its windows, and what runs there."""
    if job.state is JobState.LEASED and job.site is not None and job.attempt in job.tries:
        started = job.tries[job.attempt].started
        queue = queue_seconds(state.sites[job.site])
        return None if started or not queue.value else job.leased_at + queue.value
    if job.state is not JobState.PLANNED:
        return None
    best = best_prospect(state, job, moment)
    return None if best is None else moment.now + best.wait_seconds + best.queue


def _attempt(job: Job, sight: Sight | None) -> vw.AttemptView:
    planned = job.work.steps if isinstance(job.work, Train) else 0
    sight = sight or Sight(phase="leased")
    return vw.AttemptView(
        attempt=job.attempt or "",
        job=job.id,
        site=job.site or "",
        phase=sight.phase,
        step=sight.step,
        steps=sight.steps or planned,
        tokens=sight.tokens,
        loss=sight.loss,
        tokens_per_second=sight.tokens_per_second,
    )


def _campaign(
    state: State, campaign: CampaignState, reasons: tuple[Waiting, ...], most: int
) -> vw.CampaignView:
    name = campaign.spec.campaign
    waiting_for = [w.reason for w in reasons if w.campaign == name]
    versions, models = _in_order(campaign), _models(state, campaign, most)
    return vw.CampaignView(
        campaign=name,
        status=campaign.status,
        reason=campaign.reason or "; ".join(waiting_for),
        languages=campaign.spec.languages,
        rounds_planned=campaign.spec.rounds,
        tokenizer=campaign.tokenizer,
        head=campaign.head,
        rounds=tuple(_round(state, r) for _, r in sorted(campaign.rounds.items())[-most:]),
        versions=tuple(
            vw.VersionView(
                name=v.name,
                digest=v.digest,
                status=v.status,
                round=v.round,
                base=v.manifest.base,
                contributions=len(v.manifest.ingredients),
                reason=v.reason,
                merged_by=v.merged_by,
                let_go=_let_go(v),
            )
            for v in versions[-most:]
        ),
        models=models,
        rounds_left_out=max(0, len(campaign.rounds) - most),
        versions_left_out=max(0, len(versions) - most),
    )


def _let_go(version: Version) -> str:
    """In words: whether it can be made again is what people ask first."""
    found = (
        (version.weights_let_go, "its weights were"),
        (version.unprovable, "cannot be made again: its contributions were"),
        (version.outer_state_let_go, "its outer optimizer's state was"),
    )
    return "; ".join(f"{what} {in_words(mark)}" for mark, what in found if mark is not None)


def _in_order(campaign: CampaignState) -> list[Version]:
    """Versions as they were made; a state that was read from a snapshot has them by digest."""
    return sorted(campaign.versions.values(), key=lambda version: version.number)


def _round(state: State, round_: Round) -> vw.RoundView:
    jobs = round_.gate_jobs if round_.state is RoundState.EVALUATING else (*round_.jobs, *round_.late)
    return vw.RoundView(
        round=round_.number,
        state=round_.state.value,
        reason=round_.reason,
        base=round_.base,
        candidate=round_.candidate,
        jobs_done=sum(map(state.jobs.is_over, jobs)),
        jobs=len(jobs),
    )


def _models(state: State, campaign: CampaignState, most: int) -> tuple[vw.ModelView, ...]:
    """Scored models, the newest so many: versions in the order they were made, then rivals by name."""
    found = []
    for version in _in_order(campaign)[-most:]:
        if version.digest in campaign.scores:
            found.append(_model(campaign, version.digest, version.name, "version", version.digest, None))
    for name in campaign.rivals[-most:]:
        job = state.jobs.glance(name)
        if name in campaign.scores and job.contribution is not None and isinstance(job.work, Train):
            role = "specialist" if job.work.languages else "rival"
            delta = job.contribution.artifacts["delta"].digest
            label = job.contribution.site if role == "specialist" else "public text only"
            found.append(_model(campaign, name, label, role, job.work.base, delta))
    return tuple(found)


def _model(
    campaign: CampaignState, subject: str, name: str, role: str, version: str, delta: str | None
) -> vw.ModelView:
    results = _results(campaign, subject)
    complete = {r.language for r in results} >= set(campaign.spec.languages)
    mean = math.fsum(r.bits_per_byte for r in results) / len(results) if results and complete else None
    return vw.ModelView(name=name, role=role, version=version, delta=delta, results=results, mean=mean)


def _results(campaign: CampaignState, subject: str) -> tuple[vw.LanguageResult, ...]:
    return tuple(
        vw.LanguageResult(
            language=language,
            bits_per_byte=bits_per_byte(
                math.fsum(s.nats for _, s in sorted(sites.items())), sum(s.bytes for s in sites.values())
            ),
            documents=sum(s.documents for s in sites.values()),
        )
        for language, sites in sorted(campaign.scores.get(subject, {}).items())
    )
