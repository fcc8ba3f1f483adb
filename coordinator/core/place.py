"""Which planned job a site gets when it has a slot free, and why the others wait."""

from consortium.canonical import digest_of_fact
from consortium.ids import SiteName, attempt_of
from consortium.jobs import Purpose, Train
from coordinator.core import events as ev
from coordinator.core.plan import has_rounds_ahead
from coordinator.core.state import Job, Site, State
from coordinator.core.transitions import JobState

#: What a free slot is used for first: what others wait for comes before comparisons.
URGENCY = (
    Purpose.MERGE,
    Purpose.GATE,
    Purpose.TOKENIZER,
    Purpose.SEED,
    Purpose.ROUND,
    Purpose.COMPARE,
    Purpose.RIVAL,
)


def leases(state: State, name: SiteName) -> list[ev.AnyEvent]:
    """Leases for the site that is asking now, as many as it has free slots."""
    site = state.sites[name]
    free = site.slots - len(state.live(name))
    given: list[ev.AnyEvent] = []
    for job in sorted(state.jobs.values(), key=_turn):
        if job.state is not JobState.PLANNED or unable(state, site, job, free - len(given)) is not None:
            continue
        attempt = attempt_of(job.id, job.attempts + 1)
        given.append(
            ev.JobLeased(
                job=job.id,
                attempt=attempt,
                site=name,
                lease_seconds=state.campaigns[job.campaign].lease_seconds(site),
                assignment=digest_of_fact(job.assignment(attempt, name)),
                reason=f"{name} asked with {free - len(given)} free slot(s)",
            )
        )
    return given


def _turn(job: Job) -> tuple[int, int, str]:
    """Urgent ones first, then the longest, so that no long one is left to run alone at the end."""
    steps = job.work.steps if isinstance(job.work, Train) else 0
    return URGENCY.index(job.purpose), -steps, job.id


def unable(state: State, site: Site, job: Job, free: int) -> str | None:
    """Why this site may not have this job now; None: it may."""
    if site.name not in job.sites:
        return f"{site.name} is not among its sites"
    if site.status != "enrolled":
        return f"{site.name} is {site.status}"
    if site.draining:
        return f"{site.name} is draining"
    if site.name in job.refused_by:
        return f"{site.name} refused it"
    if job.purpose is Purpose.MERGE and not site.merges:
        return f"{site.name} no longer offers to merge"
    if site.name in job.disproved:
        return f"{site.name} delivered a wrong result"
    if free < 1:
        return f"{site.name} has no free slot"
    campaign = state.campaigns[job.campaign]
    if job.purpose is Purpose.RIVAL and free < 2 and has_rounds_ahead(campaign):
        return f"{site.name}'s last free slot is kept for the rounds"
    return None


def waiting(state: State, job: Job) -> str:
    """Why a planned job is not leased, in a sentence."""
    reasons = []
    for name in job.sites:
        site = state.sites[name]
        why = unable(state, site, job, site.slots - len(state.live(name)))
        reasons.append(why or f"{name} has not asked since")
    return "; ".join(reasons)
