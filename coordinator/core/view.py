"""State and presence -> a frozen picture for people and scripts."""

from collections.abc import Mapping
from dataclasses import dataclass

from consortium import views as vw
from consortium.capacity import Opening
from consortium.ids import AttemptId, SiteName
from consortium.jobs import Train
from consortium.metrics import bits_per_byte
from coordinator.core.accounting import held_back
from coordinator.core.decide import Moment
from coordinator.core.estimates import HOUR, queue_seconds
from coordinator.core.place import best_prospect, waiting
from coordinator.core.state import CampaignState, FlowerRunState, Job, Round, RoundState, Site, State, Version
from coordinator.core.transitions import JobState
from coordinator.core.waits import Waiting, waits


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
) -> vw.ConsortiumView:
    """The whole consortium at ``now``; ``seen`` is when each site last synced, ``sights`` what it said."""
    moment = Moment(now=now, openings=openings or {})
    reasons = waits(state, moment)
    return vw.ConsortiumView(
        consortium=state.consortium,
        sequence=sequence,
        head=head,
        now=now,
        sites=tuple(_site(state, s, moment, seen) for _, s in sorted(state.sites.items())),
        campaigns=tuple(_campaign(state, c, reasons) for _, c in sorted(state.campaigns.items())),
        jobs=tuple(_job(state, j, moment) for _, j in sorted(state.jobs.items())),
        attempts=tuple(
            _attempt(job, sights.get(job.attempt))
            for _, job in sorted(state.jobs.items())
            if job.state is JobState.LEASED and job.attempt is not None
        ),
        flower_runs=tuple(_flower_run(state, run) for _, run in sorted(state.flower_runs.items())),
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
    )


def _flower_run(state: State, run: FlowerRunState) -> vw.FlowerRunView:
    jobs = [job for job in state.jobs.values() if job.campaign == run.spec.run]
    answered = sum(job.state is JobState.DONE for job in jobs)
    return vw.FlowerRunView(
        run=run.spec.run,
        app=run.spec.app,
        status=run.status,
        reason=run.reason,
        sites=run.spec.sites,
        messages=len(jobs),
        answered=answered,
        given_up=sum(job.is_final for job in jobs) - answered,
    )


def _job(state: State, job: Job, moment: Moment) -> vw.JobView:
    reason = waiting(state, job, moment) if job.state is JobState.PLANNED else job.reason
    return vw.JobView(
        job=job.id,
        campaign=job.campaign,
        round=job.round,
        purpose=job.purpose.value,
        site=job.site or (job.sites[0] if len(job.sites) == 1 else None),
        state=job.state.value,
        reason=reason,
        attempts=job.attempts,
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


def _campaign(state: State, campaign: CampaignState, reasons: tuple[Waiting, ...]) -> vw.CampaignView:
    name = campaign.spec.campaign
    waiting_for = [w.reason for w in reasons if w.campaign == name]
    return vw.CampaignView(
        campaign=name,
        status=campaign.status,
        reason=campaign.reason or "; ".join(waiting_for),
        languages=campaign.spec.languages,
        rounds_planned=campaign.spec.rounds,
        tokenizer=campaign.tokenizer,
        head=campaign.head,
        rounds=tuple(_round(state, r) for _, r in sorted(campaign.rounds.items())),
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
            )
            for v in _in_order(campaign)
        ),
        models=_models(state, campaign),
    )


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
        jobs_done=sum(state.jobs[j].is_final for j in jobs),
        jobs=len(jobs),
    )


def _models(state: State, campaign: CampaignState) -> tuple[vw.ModelView, ...]:
    """Every scored model: versions in the order they were made, then rivals by name."""
    found = []
    for version in _in_order(campaign):
        if version.digest in campaign.scores:
            found.append(_model(campaign, version.digest, version.name, "version", version.digest, None))
    for name in campaign.rivals:
        job = state.jobs[name]
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
    mean = sum(r.bits_per_byte for r in results) / len(results) if results and complete else None
    return vw.ModelView(name=name, role=role, version=version, delta=delta, results=results, mean=mean)


def _results(campaign: CampaignState, subject: str) -> tuple[vw.LanguageResult, ...]:
    return tuple(
        vw.LanguageResult(
            language=language,
            bits_per_byte=bits_per_byte(
                sum(s.nats for _, s in sorted(sites.items())), sum(s.bytes for s in sites.values())
            ),
            documents=sum(s.documents for s in sites.values()),
        )
        for language, sites in sorted(campaign.scores.get(subject, {}).items())
    )
