"""Which planned job a site gets when it has a slot free, and why the others wait.

A job for one site waits for that site. One that several could do goes to the site expected to finish first; if that
one could ask and does not within a grace, to whoever asks. Nothing is leased outside a site's windows or beyond what
is left of its allocations. docs/placement.md has the formulas.
"""

from dataclasses import dataclass

from consortium.canonical import digest_of_fact
from consortium.capacity import Opening
from consortium.ids import SiteName, attempt_of
from consortium.jobs import Purpose, Train
from coordinator.core import events as ev
from coordinator.core.budgets import BUDGETS, RETURNED, allows
from coordinator.core.charging import charge
from coordinator.core.estimates import Cost, cost, queue_seconds
from coordinator.core.moment import Moment
from coordinator.core.plan import has_rounds_ahead
from coordinator.core.state import Job, Site, State
from coordinator.core.transitions import JobState
from coordinator.core.words import gpu_hours, spoken

#: What a free slot is used for first: what others wait for comes before comparisons.
URGENCY = (
    Purpose.MERGE,
    Purpose.CHECK,
    Purpose.GATE,
    Purpose.TOKENIZER,
    Purpose.SEED,
    Purpose.ROUND,
    Purpose.FLOWER,
    Purpose.COMPARE,
    Purpose.RIVAL,
)
#: Of a lease's length: so long the best site may take to ask. Below one, so that it comes before the coordinator
#: merges by itself.
GRACE_SHARE = 0.5
#: Who would finish within this share of the best site's time is as good: estimates are not exacter.
_AS_GOOD = 1.1


def next_lease(state: State, name: SiteName, moment: Moment) -> ev.JobLeased | None:
    """The next lease for the site that is asking now; None: it gets no more."""
    site = state.sites[name]
    free = site.slots - len(state.live(name))
    if free < 1:
        return None
    planned = [job for job in state.open_jobs() if job.state is JobState.PLANNED and name in job.sites]
    for job in sorted(planned, key=_turn):
        prospects = Prospects(state, job, moment)
        if unable(state, site, job, free, moment, prospects) is not None:
            continue
        attempt = attempt_of(job.id, job.attempts + 1)
        takes = _cost(state, site, job, moment)
        allocation, _ = charge(state, site, takes, moment.now)
        return ev.JobLeased(
            job=job.id,
            attempt=attempt,
            site=name,
            lease_seconds=state.programme(job.campaign).lease_seconds(site),
            assignment=digest_of_fact(job.assignment(attempt, name)),
            allocation=allocation,
            gpu_hours=takes.gpu_seconds / 3600.0,
            reason=f"{name} asked with {free} free slot(s)"
            + _why_here(site, job, allocation, takes, prospects),
        )
    return None


def _turn(job: Job) -> tuple[int, int, str]:
    """Urgent ones first, then the longest, so that no long one is left to run alone at the end."""
    steps = job.work.steps if isinstance(job.work, Train) else 0
    return URGENCY.index(job.purpose), -steps, job.id


def unable(
    state: State, site: Site, job: Job, free: int, moment: Moment, prospects: "Prospects"
) -> str | None:
    """Why this site may not have this job now; None: it may."""
    if (never := _unfit(site, job)) is not None:
        return never
    if free < 1:
        return f"{site.name} has no free slot"
    if not allows(site, RETURNED, moment.now):
        return (
            f"{site.name} gave back {BUDGETS[RETURNED].burst} jobs or more in a short time; it gets one every "
            f"{spoken(BUDGETS[RETURNED].seconds)}"
        )
    if job.purpose is Purpose.RIVAL and free < 2 and has_rounds_ahead(state.campaigns[job.campaign]):
        return f"{site.name}'s last free slot is kept for the rounds"
    takes = _cost(state, site, job, moment)
    if (closed := _outside(site, takes, moment)) is not None:
        return closed
    _, unaffordable = charge(state, site, takes, moment.now)
    if unaffordable is not None:
        return unaffordable
    return _better_elsewhere(state, site, job, moment, prospects)


def _unfit(site: Site, job: Job) -> str | None:
    """Why the site is not one for this job, however long one waits."""
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
    return None


def waiting(state: State, job: Job, moment: Moment) -> str:
    """Why a planned job is not leased, in a sentence."""
    reasons, prospects = [], Prospects(state, job, moment)
    for name in job.sites:
        site = state.sites[name]
        why = unable(state, site, job, site.slots - len(state.live(name)), moment, prospects)
        reasons.append(why or f"{name} has not asked since")
    return "; ".join(reasons)


# --- windows and allocations -----------------------------------------------------------------------


def _outside(site: Site, takes: Cost, moment: Moment) -> str | None:
    """Why the site's windows do not allow the job now.

    A job of known length begins only if it can end before the window closes; one that is longer than the whole
    window only in its first half, because it will need several anyway. Of unknown length: in any open window.
    """
    opening = moment.opening(site)
    if opening.trouble:
        return f"{site.name}'s windows cannot be read here: {opening.trouble}"
    if not opening.is_open:
        opens = "" if opening.until is None else f"; they open in {spoken(opening.until - moment.now)}"
        return f"it is outside {site.name}'s windows{opens}"
    if opening.until is None or not takes.seconds.is_measured:
        return None
    needs = queue_seconds(site).value + takes.seconds.value
    if moment.now + needs <= opening.until:
        return None
    length = _length(opening, moment.now)
    if needs <= length:
        return (
            f"it needs about {spoken(needs)} at {site.name}, whose window closes in "
            f"{spoken(opening.until - moment.now)}; it waits for the next"
        )
    if moment.now > opening.until - length / 2.0:
        return (
            f"it needs about {spoken(needs)} at {site.name}, more than a whole window of {spoken(length)}; "
            "it waits for the first half of one"
        )
    return None


def _length(opening: Opening, now: float) -> float:
    assert opening.until is not None
    return opening.until - (now if opening.since is None else opening.since)


# --- who finishes first ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Prospect:
    """What one site could do about a job from now on; the earliest finish is the best."""

    finish_seconds: float  #: from now
    site: SiteName
    wait_seconds: float  #: until it could be given the job: a window, a free slot
    queue: float
    work: float

    @property
    def words(self) -> str:
        parts = [("queue", self.queue), ("work", self.work)]
        if self.wait_seconds > 0.0:
            parts.insert(0, ("busy or closed", self.wait_seconds))
        told = ", ".join(f"{what} {spoken(seconds)}" for what, seconds in parts if seconds > 0.0)
        return f"in {spoken(self.finish_seconds)}" + (f" ({told})" if told else "")


def prospect(state: State, site: Site, job: Job, moment: Moment) -> Prospect | None:
    """When the site would finish the job; None if it cannot have it, or nobody can say when."""
    takes = _cost(state, site, job, moment)
    if _unfit(site, job) is not None or charge(state, site, takes, moment.now)[1] is not None:
        return None
    opening = moment.opening(site)
    wait = 0.0
    if not opening.is_open:
        if opening.until is None:
            return None
        wait = opening.until - moment.now
    wait = max(wait, _until_free(state, site, moment))
    queue, work = queue_seconds(site).value, takes.seconds.value
    return Prospect(wait + queue + work, site.name, wait, queue, work)


def _until_free(state: State, site: Site, moment: Moment) -> float:
    """Seconds until the site has a free slot, by what its jobs were expected to take."""
    live = state.live(site.name)
    if len(live) < site.slots:
        return 0.0
    queue = queue_seconds(site).value
    ends = sorted(
        (job.leased_at + queue if job.started_at is None else job.started_at)
        + _cost(state, site, job, moment).seconds.value
        for job in live
    )
    over = len(live) - site.slots  # more than slots, if the site lowered them
    return max(0.0, ends[over] - moment.now) if over < len(ends) else 0.0


class Prospects:
    """Of all sites that could have a job: looked at when they are asked for, and once."""

    def __init__(self, state: State, job: Job, moment: Moment) -> None:
        self._state, self._job, self._moment = state, job, moment
        self._found: list[Prospect] | None = None

    def all(self) -> list[Prospect]:
        """The best first."""
        if self._found is None:
            sites = (self._state.sites[name] for name in self._job.sites)
            found = (prospect(self._state, site, self._job, self._moment) for site in sites)
            self._found = sorted(one for one in found if one is not None)
        return self._found


def best_prospect(state: State, job: Job, moment: Moment) -> Prospect | None:
    """Of the site that would finish a job first; None: no site could have it, or nobody can say when."""
    return next(iter(Prospects(state, job, moment).all()), None)


def _better_elsewhere(state: State, site: Site, job: Job, moment: Moment, prospects: Prospects) -> str | None:
    """Why a job that several sites could do waits for another one than the site that asks."""
    if len(job.sites) < 2:
        return None
    found = prospects.all()
    mine = next((p for p in found if p.site == site.name), None)
    if mine is None or len(found) < 2:
        return None
    best = found[0]
    if mine.finish_seconds <= best.finish_seconds * _AS_GOOD:
        return None
    asked_since = max(job.free_since, moment.started_at)
    grace = GRACE_SHARE * state.programme(job.campaign).spec.lease_seconds
    if best.wait_seconds <= 0.0 and moment.now > asked_since + grace:
        return None  # the best one could have asked, and did not
    return f"{best.site} is expected to finish it {best.words}, {site.name} {mine.words}"


def _why_here(site: Site, job: Job, allocation: str, takes: Cost, prospects: Prospects) -> str:
    """What made the choice, for the ledger: the other sites, and the price."""
    said = []
    if len(job.sites) > 1:
        found = prospects.all()
        mine = next((p for p in found if p.site == site.name), None)
        others = [p for p in found if p.site != site.name]
        if mine is not None and others:
            other = others[0]
            first = mine.finish_seconds <= other.finish_seconds * _AS_GOOD
            verb = "expected to finish" if first else f"{other.site} did not ask; expected to finish"
            said.append(f"{verb} {mine.words}, {other.site} {other.words}")
    if allocation:
        said.append(f"about {gpu_hours(takes.gpu_seconds)} of allocation {allocation} ({takes.seconds.how})")
    return "".join(f"; {sentence}" for sentence in said)


def _cost(state: State, site: Site, job: Job, moment: Moment) -> Cost:
    """Reckoned once in a moment."""
    found = moment.costs.get((site.name, job.id))
    if found is None:
        found = moment.costs[site.name, job.id] = cost(state, site, job)
    return found
