"""Which jobs are open, who holds them, what was admitted where: else all jobs there ever were would be looked through.

Derived from the state's jobs and kept up with them, so it is neither written down nor compared.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from consortium.ids import CampaignId, JobId, SiteName
from consortium.jobs import Purpose
from coordinator.core.resting import Brief, brief
from coordinator.core.transitions import JobState

if TYPE_CHECKING:
    from coordinator.core.resting import Jobs
    from coordinator.core.state import Job

_TRAINING = (Purpose.SEED, Purpose.ROUND, Purpose.RIVAL)


class Index:
    def __init__(self, jobs: "Jobs") -> None:
        self._jobs = jobs
        self._open: list[JobId] = []  # sorted
        self._holder: dict[JobId, SiteName] = {}
        self._held: dict[SiteName, list[JobId]] = {}  # leased, sorted
        self._open_jobs: tuple[Job, ...] | None = None  # asked for many times between two changes
        self._admitted: dict[tuple[str, ...], list[tuple[float, JobId]]] = {}
        for one in jobs.briefs():
            if not one.is_final:
                self.note(one)
            if one.contributor is not None:
                for key in _keys(one):
                    self._admitted.setdefault(key, []).append((one.admitted_at, one.id))
        for names in self._admitted.values():
            names.sort()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Index):
            return NotImplemented
        return (self._open, self._holder, self._held, self._admitted) == (
            other._open,
            other._holder,
            other._held,
            other._admitted,
        )

    __hash__ = None  # type: ignore[assignment]  # it changes

    def over(self, jobs: "Jobs") -> "Index":
        """The same index, of a copy of the jobs; from here on each goes its own way."""
        made = Index.__new__(Index)
        made._jobs, made._open, made._open_jobs = jobs, list(self._open), None
        made._holder = dict(self._holder)
        made._held = {site: list(names) for site, names in self._held.items()}
        made._admitted = {key: list(names) for key, names in self._admitted.items()}
        return made

    def note(self, job: "Job | Brief") -> None:
        """It is new, or has changed its state."""
        place = bisect_left(self._open, job.id)
        is_known = place < len(self._open) and self._open[place] == job.id
        if job.is_final == is_known:
            self._open_jobs = None
            if is_known:
                del self._open[place]
            else:
                self._open.insert(place, job.id)
        holder = job.site if job.state is JobState.LEASED else None
        before = self._holder.pop(job.id, None)
        if before is not None and before != holder:
            self._held[before].remove(job.id)
            if not self._held[before]:
                del self._held[before]
        if holder is not None:
            self._holder[job.id] = holder
            if before != holder:
                insort(self._held.setdefault(holder, []), job.id)

    def admit(self, job: "Job") -> None:
        """Its result was admitted just now."""
        for key in _keys(brief(job)):
            insort(self._admitted.setdefault(key, []), (job.admitted_at, job.id))

    def open_jobs(self) -> tuple["Job", ...]:
        """Not final, by id."""
        if self._open_jobs is None:
            self._open_jobs = tuple(self._jobs[name] for name in self._open)
        return self._open_jobs

    def live(self, site: SiteName) -> tuple["Job", ...]:
        """On which the site holds a lease, by id."""
        return tuple(self._jobs[name] for name in self._held.get(site, ()))

    def trained(self, site: SiteName, campaign: CampaignId | None = None) -> Iterator["Job"]:
        """Admitted training jobs of a site, newest first; of one campaign, or of all."""
        return self._newest((site, "trained", *([campaign] if campaign else [])))

    def of_kind(self, purpose: Purpose, site: SiteName | None = None) -> Iterator["Job"]:
        """Admitted jobs of one purpose, newest first; of one site, or of all."""
        return self._newest((purpose, *([site] if site else [])))

    def _newest(self, key: tuple[str, ...]) -> Iterator["Job"]:
        return (self._jobs[name] for _, name in reversed(self._admitted.get(key, [])))


def _keys(job: "Brief") -> Iterable[tuple[str, ...]]:
    assert job.contributor is not None
    yield (job.purpose,)
    yield (job.purpose, job.contributor)
    if job.purpose in _TRAINING:
        yield (job.contributor, "trained")
        yield (job.contributor, "trained", job.campaign)
