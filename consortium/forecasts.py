"""What a campaign would do and cost: the forecast that ``sprachbund plan`` shows, and what it may be told to assume."""

from typing import Annotated

from msgspec import Meta

from consortium.canonical import Fact
from consortium.capacity import Window
from consortium.ids import Language, SiteName

_Positive = Annotated[float, Meta(gt=0)]
_NotNegative = Annotated[float, Meta(ge=0)]


class SiteAssumption(Fact):
    """What to take for a site instead of what is known; what is left out stays as it is known."""

    site: SiteName
    languages: tuple[Language, ...] | None = None  #: own text; public text is then taken to be there in all
    gpus: Annotated[int, Meta(ge=0, le=100_000)] | None = None  #: of one job
    slots: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    tokens_per_second: _Positive | None = None
    queue_hours: _NotNegative | None = None
    gpu_hours: _Positive | None = None  #: of an allocation
    until: float | None = None  #: end of that allocation, seconds since the epoch
    windows: Annotated[tuple[Window, ...], Meta(max_length=20)] | None = None


class Assumptions(Fact):
    sites: Annotated[tuple[SiteAssumption, ...], Meta(max_length=1000)] = ()


class PlannedJob(Fact):
    """One job of the forecast; times in seconds since the epoch."""

    round: int
    purpose: str
    site: str  #: "" if no site can do it
    steps: int = 0
    given_at: float = 0.0  #: when the site could be given it: a free slot, an open window
    starts_at: float = 0.0  #: after the wait in its queue
    ends_at: float = 0.0
    gpu_hours: float = 0.0
    allocation: str = ""
    is_measured: bool = False  #: its length; else it is assumed
    reason: str = ""


class PlannedRound(Fact):
    round: int
    opens_at: float
    closes_at: float  #: training over
    ends_at: float  #: merged and judged
    bound_by: str  #: what its end waits for


class AllocationForecast(Fact):
    site: str
    allocation: str
    granted: float  #: GPU-hours
    used: float
    held_back: float  #: for jobs that run now
    needed: float  #: by this campaign
    until: float | None

    @property
    def left(self) -> float:
        return self.granted - self.used - self.held_back - self.needed


class Forecast(Fact):
    campaign: str
    now: float
    ends_at: float
    gpu_hours: float  #: of all jobs, whether charged to an allocation or not
    rounds: tuple[PlannedRound, ...] = ()
    jobs: tuple[PlannedJob, ...] = ()
    allocations: tuple[AllocationForecast, ...] = ()
    limits: tuple[str, ...] = ()  #: what binds, a sentence each
    assumptions: tuple[str, ...] = ()  #: what was taken without a measurement, a sentence each
