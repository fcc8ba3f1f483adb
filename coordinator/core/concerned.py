"""Which of the sites that wait for an answer have one coming: all others may sleep on.

Waking everybody at every event costs the square of their number: each event concerns one site, and a thousand wait.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from consortium.ids import AttemptId, SiteName
from coordinator.core.moment import Moment
from coordinator.core.place import Prospects, unable
from coordinator.core.state import State
from coordinator.core.transitions import JobState


@dataclass(frozen=True, slots=True)
class Standing:
    """What a site's answer depends on, less the jobs that it could be given."""

    attempts: tuple[AttemptId, ...]  #: that it should be running
    status: str
    fingerprint: str  #: of its certificate: whoever shows another may not wait


def standing(state: State, name: SiteName) -> Standing:
    site = state.sites[name]
    attempts = tuple(job.attempt for job in state.live(name) if job.attempt is not None)
    return Standing(attempts, site.status, site.fingerprint)


def concerned(state: State, moment: Moment, waiting: Mapping[SiteName, Standing]) -> set[SiteName]:
    """Sites that stand otherwise than when they began to wait, or could be given a job.

    waiting  by site, how it stood then
    """
    found = {name for name, before in waiting.items() if standing(state, name) != before}
    for job in state.open_jobs():
        if job.state is not JobState.PLANNED:
            continue
        prospects = Prospects(state, job, moment)
        for name in job.sites:
            if name not in waiting or name in found:
                continue
            site = state.sites[name]
            free = site.slots - len(state.live(name))
            if free > 0 and unable(state, site, job, free, moment, prospects) is None:
                found.add(name)
    return found
