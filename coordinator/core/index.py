"""Which jobs are open, and which were admitted where: else all jobs there ever were would be looked through.

Derived from the state's jobs and kept up with them, so it is neither written down nor compared.
"""

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from consortium.ids import CampaignId, JobId, SiteName
from consortium.jobs import Purpose, Train

if TYPE_CHECKING:
    from coordinator.core.state import Job


class Index:
    def __init__(self, jobs: Mapping[JobId, "Job"]) -> None:
        self._jobs = jobs
        self._open: set[JobId] = set()
        self._admitted: dict[tuple[str, ...], list[tuple[float, JobId]]] = {}
        for _, job in sorted(jobs.items()):
            self.note(job)
            if job.contribution is not None:
                self.admit(job)

    def note(self, job: "Job") -> None:
        """It is new, or has changed its state."""
        if job.is_final:
            self._open.discard(job.id)
        else:
            self._open.add(job.id)

    def admit(self, job: "Job") -> None:
        """Its result was admitted just now."""
        for key in _keys(job):
            insort(self._admitted.setdefault(key, []), (job.admitted_at, job.id))

    def open_jobs(self) -> tuple["Job", ...]:
        """Not final, by id."""
        return tuple(self._jobs[name] for name in sorted(self._open))

    def trained(self, site: SiteName, campaign: CampaignId | None = None) -> Iterator["Job"]:
        """Admitted training jobs of a site, newest first; of one campaign, or of all."""
        return self._newest((site, "trained", *([campaign] if campaign else [])))

    def of_kind(self, purpose: Purpose, site: SiteName | None = None) -> Iterator["Job"]:
        """Admitted jobs of one purpose, newest first; of one site, or of all."""
        return self._newest((purpose, *([site] if site else [])))

    def _newest(self, key: tuple[str, ...]) -> Iterator["Job"]:
        return (self._jobs[name] for _, name in reversed(self._admitted.get(key, [])))


def _keys(job: "Job") -> Iterable[tuple[str, ...]]:
    assert job.contribution is not None
    site = job.contribution.site
    yield (job.purpose,)
    yield (job.purpose, site)
    if isinstance(job.work, Train):
        yield (site, "trained")
        yield (site, "trained", job.campaign)
