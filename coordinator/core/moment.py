"""What the shell knows of time when something is decided: heartbeats, windows, what jobs would cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from consortium.capacity import ALWAYS, Opening
from consortium.ids import AttemptId, JobId, SiteName
from coordinator.core.estimates import Cost
from coordinator.core.state import Job, Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What the shell knows of time. Heartbeats live here, never in the ledger."""

    now: float  #: seconds since the epoch, coordinator's clock
    #: of this coordinator process: after a crash every lease gets its full length again
    started_at: float = 0.0
    renewed: Mapping[AttemptId, float] = field(default_factory=dict)  #: when a Sync last spoke of the attempt
    openings: Mapping[SiteName, Opening] = field(default_factory=dict)  #: of sites that have windows
    #: what jobs would cost, as far as it was asked for: what it follows from stays the same while leases are given
    costs: dict[tuple[SiteName, JobId], Cost] = field(default_factory=dict, compare=False, repr=False)

    def opening(self, site: Site) -> Opening:
        """Whether the site may be given work now, by its windows; one that nobody looked at is closed.

        A bundle is exchanged when somebody has the time, so at a courier's site only the agent holds to its windows.
        """
        if not site.windows or site.courier:
            return ALWAYS
        return self.openings.get(site.name, _CLOSED)


_CLOSED = Opening(is_open=False)


def lease_until(job: Job, lease_seconds: float, moment: Moment) -> float:
    """Until when the site has the right to its attempt. Every Sync that speaks of it renews."""
    last = job.leased_at if job.attempt is None else moment.renewed.get(job.attempt, job.leased_at)
    return max(last, job.leased_at, moment.started_at) + lease_seconds
