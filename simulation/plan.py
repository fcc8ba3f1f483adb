"""What is simulated: a campaign, the sites that take part, how long they queue, what fails there, what it costs.

``simulation.reading.load_plan`` reads the YAML file of a plan and checks the whole; what comes out holds no reference
to any file. What the seed and the weather add is not in here.
"""

import datetime
from typing import Annotated, Literal

from msgspec import Meta

from consortium.canonical import Fact, replace
from consortium.capacity import Allocation, Window
from consortium.ids import Language, SiteName
from policies.campaign import Campaign
from policies.ranges import Count, Natural, NotNegative, Positive
from site_agent.limits import Granted, OpenHours

START = "2026-01-05T00:00:00Z"  # a Monday

Moment = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
        description=f"a moment in UTC, such as {START}",
    ),
]


class Held(Fact):
    """Text of one language at one site."""

    documents: Count  #: all, held-out ones included
    heldout: Natural = 200  #: of them, for evaluation only


class Outage(Fact):
    """A site that is away for maintenance: its jobs are gone and nothing starts."""

    from_hours: NotNegative  #: since the simulation's start
    hours: Positive


class Habits(Fact):
    """How a site works: how fast it is, how long its queue is, what fails there, what it may spend."""

    country: str = "XX"  #: ISO 3166-1 alpha-2; shown, not judged
    slots: Count = 1  #: jobs at a time
    gpus: Natural = 8  #: of one job
    tokens_per_second: Positive = 50_000.0  #: of one job
    watts_per_gpu: Positive = 500.0  #: while a job runs, host and cooling included
    price_per_gpu_hour: NotNegative | None = None  #: in the plan's currency; None: the plan's
    queue_median_minutes: NotNegative = 60.0  #: a job's wait in the queue; lognormal
    queue_sigma: NotNegative = 1.0  #: of the wait's logarithm: 1 puts one wait in twenty above 5 medians
    walltime_minutes: Positive = 720.0  #: of one life of a job
    preempt_per_day: NotNegative = 0.0  #: of a running job
    node_loss_per_day: NotNegative = 0.0  #: of a running job
    agent_kill_per_day: NotNegative = 0.0
    down_mbps: Positive = 1000.0  #: megabits a second, from the coordinator
    up_mbps: Positive = 1000.0
    latency_ms: NotNegative = 20.0  #: one way
    allocation: Granted | None = None  #: None: no limit
    timezone: str = "UTC"  #: of windows, and of the allocation's last day
    windows: tuple[OpenHours, ...] = ()  #: when work may be given; empty: always
    clock_skew_seconds: float = 0.0  #: the site's clock minus the true time
    merges: bool = False  #: lends itself to merging
    outages: tuple[Outage, ...] = ()

    @property
    def granted(self) -> Allocation | None:
        return self.allocation.told(self.timezone) if self.allocation else None

    @property
    def open_hours(self) -> tuple[Window, ...]:
        return tuple(window.told(self.timezone) for window in self.windows)


class SitePlan(Habits):
    """One site, and what it holds."""

    name: SiteName
    organisation: str = ""  #: empty: the site's name
    languages: dict[Language, Held] = {}  #: text that never leaves the site
    public: dict[Language, Held] = {}  #: text that may serve as the replayed public slice; empty: the plan's


class Spread(Fact):
    """A lognormal range, cut off at its ends."""

    median: Positive
    sigma: NotNegative = 0.5  #: of the logarithm
    least: NotNegative = 0.0
    most: Positive = 1e12


class SiteFamily(Fact):
    """What ``--sites N`` multiplies: N sites named after the campaign's languages, each drawn from these ranges.

    Every language is somebody's own before one is a second site's.
    """

    like: Habits = Habits()  #: of all of them, but for what is drawn
    seed: Natural = 0  #: of the family alone: another ``--seed`` is another fate of the same sites
    languages_each: Count = 1
    documents: Spread = Spread(median=1_000_000.0, sigma=1.5, least=2_000.0)
    public_documents: Spread = Spread(median=200_000.0, sigma=1.0, least=2_000.0)
    tokens_per_second: Spread = Spread(median=50_000.0, sigma=0.7)
    queue_median_minutes: Spread = Spread(median=120.0, sigma=1.0)
    up_mbps: Spread = Spread(median=1000.0, sigma=0.8)
    down_mbps: Spread = Spread(median=2000.0, sigma=0.8)
    merging_share: Annotated[float, Meta(ge=0, le=1)] = 0.0  #: of the sites lends itself to merging


class Plan(Fact):
    """A consortium and what it is about to do."""

    schema: Literal[1] = 1
    description: str = ""
    campaign: Campaign
    sites: tuple[SitePlan, ...]  #: sorted by name
    hours_max: Positive = 2000.0  #: simulated; what has not ended by then is reported as it stands
    training: Literal["cost", "real"] = "cost"  #: a cost model, or the real tiny trainer
    model_bytes: Count  #: what a version and a delta weigh on the network and the disk
    start: Moment = START
    currency: str = "EUR"
    price_per_gpu_hour: NotNegative | None = None  #: None: the cost is not shown
    assumptions: tuple[str, ...] = ()  #: what is not known and was taken all the same; shown with the result

    @property
    def started_at(self) -> float:
        """Seconds since the epoch."""
        return datetime.datetime.fromisoformat(self.start).timestamp()

    def price_at(self, site: SitePlan) -> float | None:
        """Of a GPU-hour."""
        return self.price_per_gpu_hour if site.price_per_gpu_hour is None else site.price_per_gpu_hour


class PlanInFile(Fact):
    """A plan as its file spells it: ``campaign`` is a campaign's file, and sites are named, drawn, or both."""

    schema: Literal[1] = 1
    description: str = ""
    campaign: str  #: a campaign file; relative to the plan's
    sites: tuple[SitePlan, ...] = ()
    generate: SiteFamily | None = None
    public: dict[Language, Held] = {}  #: public text that every named site has, unless it names its own
    hours_max: Positive = 2000.0
    training: Literal["cost", "real"] = "cost"
    model_bytes: Count
    start: Moment = START
    currency: str = "EUR"
    price_per_gpu_hour: NotNegative | None = None
    assumptions: tuple[str, ...] = ()


def faster(plan: Plan, factor: float) -> Plan:
    """The same consortium with GPUs that are ``factor`` times as fast; queues and networks stay."""
    sites = tuple(replace(one, tokens_per_second=one.tokens_per_second * factor) for one in plan.sites)
    return replace(plan, sites=sites)
