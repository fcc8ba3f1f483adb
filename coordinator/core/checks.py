"""Does a contribution make its own languages better: other sites score it before it is merged.

Norms and cosines cannot tell a poisoned delta from one that only its site could have trained: the lone low-resource
language is always the outlier. What it claims can be tested, though: base + delta must be no worse than the base on
text held out of the claimed languages. Every site that holds such text scores both; the contributor is asked only
where nobody else could be, and then its word is all there is: such a delta is bounded by norms and by the gate, which
protects all other languages. More than half of the judges must find it worse, so one that lies is outvoted where
there are others. The idea, to score by loss, is that of the "Gauntlet" of Covenant-72B.
"""

from collections.abc import Iterator

from consortium.canonical import Fact
from consortium.ids import Language, job_named
from consortium.jobs import Purpose, Subject, Train
from coordinator.core import events as ev
from coordinator.core.able import judges
from coordinator.core.lateness import given_up
from coordinator.core.moment import Moment
from coordinator.core.orders import evaluation
from coordinator.core.state import CampaignState, Job, Round, Site, State
from coordinator.core.transitions import JobState


class Finding(Fact):
    """What was found of one contribution."""

    harms: bool
    reason: str


def checks_due(
    state: State, campaign: CampaignState, round_: Round, jobs: list[Job], moment: Moment
) -> Iterator[ev.AnyEvent]:
    """Evaluations to be planned for what was admitted, and the end of those that nobody waits for any longer."""
    if campaign.spec.admission.loss_check == "off" or round_.number < 1:
        return
    for job in jobs:
        if job.state is not JobState.DONE or not isinstance(job.work, Train):
            continue
        for name in job.checks:
            check = state.jobs[name]
            if not check.is_final and (why := given_up(state, campaign, check, moment.now)) is not None:
                yield ev.JobCancelled(job=name, reason=f"{why}; {job.id} is judged without it")
        if not job.checks:
            for site, languages in _judges_of(state, campaign, job):
                yield _check(campaign, job, site, languages)


def is_checked(state: State, job: Job) -> bool:
    """Whether nothing more is to be heard of the contribution's worth."""
    return all(state.jobs[name].is_final for name in job.checks)


def finding(campaign: CampaignState, job: Job) -> Finding:
    """What the scores that came say of an admitted contribution."""
    limit = campaign.spec.admission.loss_growth_max
    if not job.judged:
        return Finding(harms=False, reason="nobody could score it; norms and the gate bound it")
    worse = sorted(site for site, growth in job.judged.items() if growth > limit)
    told = ", ".join(f"{growth:+.2%} at {site}" for site, growth in sorted(job.judged.items()))
    reason = f"loss of its own languages with it: {told}; at most {limit:+.2%} is let in"
    if set(job.judged) == {job.site}:
        reason += "; only its own held-out text could say so"
    return Finding(harms=2 * len(worse) > len(job.judged), reason=reason)


def left_out(campaign: CampaignState, job: Job) -> str | None:
    """Why an admitted contribution is not merged; None: it is."""
    found = finding(campaign, job)
    if campaign.spec.admission.loss_check == "decide" and job.judged and found.harms:
        return f"left out, {found.reason}"
    return None


def _judges_of(state: State, campaign: CampaignState, job: Job) -> list[tuple[Site, tuple[Language, ...]]]:
    """Sites that hold held-out text of the languages that the job trained, each with those of them that it holds."""
    able = [
        (site, tuple(x for x in languages if x in job.work.languages))
        for site, languages in judges(state, campaign)
    ]
    able = [(site, languages) for site, languages in able if languages]
    others = [(site, languages) for site, languages in able if site.name != job.site]
    return others or able


def _check(campaign: CampaignState, job: Job, site: Site, languages: tuple[Language, ...]) -> ev.JobPlanned:
    assert isinstance(job.work, Train) and job.contribution is not None and job.site is not None
    base = job.work.base
    subjects = (
        Subject(name=base, version=base),
        Subject(name=job.id, version=base, delta=job.contribution.artifacts["delta"].digest),
    )
    name = job_named(campaign.spec.campaign, f"r{job.round}-check-{job.site}-by-{site.name}")
    return evaluation(campaign, name, job.round, Purpose.CHECK, site, subjects, languages)
