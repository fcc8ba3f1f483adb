"""What a campaign is compared with: rivals of the same base and compute, trained at the sites, never merged."""

from collections.abc import Iterator

from consortium.canonical import replace
from consortium.ids import job_named
from consortium.jobs import Purpose, Subject, Train
from coordinator.core import events as ev
from coordinator.core.able import holders_of_public_text, judges, own_languages
from coordinator.core.lateness import given_up
from coordinator.core.moment import Moment
from coordinator.core.orders import evaluation, planned, train_inputs, train_order
from coordinator.core.state import CampaignState, State
from coordinator.core.transitions import JobState


def rivals_to_train(state: State, campaign: CampaignState) -> Iterator[ev.AnyEvent]:
    """Planned once, when the first round proper has opened: same base, same compute, never merged."""
    spec = campaign.spec
    first = campaign.rounds.get(1)
    if first is None or campaign.rivals or not (spec.rivals.public_only or spec.rivals.specialists):
        return
    sites = [state.sites[state.jobs[j].sites[0]] for j in first.jobs]
    steps = spec.rounds * spec.train.steps
    if spec.rivals.public_only:
        work = train_order(campaign, first.base, 1, "public", (), steps * len(sites), replay_share=1.0)
        work = replace(work, schedule_steps=work.steps)
        able = holders_of_public_text(state, campaign)
        reason = f"comparison: public text alone with the compute of all {len(sites)} sites"
        inputs = train_inputs(campaign, work)
        yield planned(
            campaign, job_named(spec.campaign, "rival-public"), 1, Purpose.RIVAL, able, work, inputs, reason
        )
    if spec.rivals.specialists:
        for site in sites:
            own = own_languages(site, campaign)
            work = train_order(
                campaign, first.base, 1, site.name, own, steps, replay_share=spec.train.replay_share
            )
            job = job_named(spec.campaign, f"rival-alone-{site.name}")
            reason = f"comparison: {site.name} alone, with the compute it gives to the campaign"
            inputs = train_inputs(campaign, work)
            yield planned(campaign, job, 1, Purpose.RIVAL, (site.name,), work, inputs, reason)


def models_to_compare(state: State, campaign: CampaignState, moment: Moment) -> Iterator[ev.AnyEvent]:
    """Once every rival is trained, every site scores them all in one job; nobody waits for ever."""
    rivals = [state.jobs[j] for j in campaign.rivals]
    comparisons = [state.jobs[j] for j in campaign.compare_jobs]
    since = max((j.planned_at for j in comparisons), default=_last_word(campaign))
    waiting = [j for j in (*rivals, *comparisons) if not j.is_final]
    for job_ in waiting:
        if (why := given_up(state, campaign, job_, moment.now, since)) is not None:
            yield ev.JobCancelled(job=job_.id, reason=f"{why}; the campaign ends without it")
    if waiting or comparisons:
        return
    subjects = tuple(
        Subject(name=j.id, version=j.work.base, delta=j.contribution.artifacts["delta"].digest)
        for j in rivals
        if isinstance(j.work, Train) and j.contribution is not None
    )
    for site, languages in judges(state, campaign) if subjects else ():
        job = job_named(campaign.spec.campaign, f"compare-{site.name}")
        yield evaluation(campaign, job, campaign.spec.rounds, Purpose.COMPARE, site, subjects, languages)


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
