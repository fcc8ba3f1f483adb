"""How hostile a simulated world is: what its network, its disks, its clocks and its coordinator do wrong, how often.

Presets from ``calm``, in which only the sites' own rates count, to ``storm``. The rates are chosen to reach every way
of recovering within a few hundred simulated hours; nobody measured them at real sites.
"""

from typing import Literal

from consortium.canonical import Fact, replace
from consortium.checking import nearest, shown
from consortium.errors import BadInput
from consortium.ids import SiteName
from policies.ranges import Count, NotNegative, Positive, Share

Preset = Literal["calm", "fair", "rough", "storm"]


class Cut(Fact):
    """A line that is cut at a moment that somebody chose, not the dice."""

    site: SiteName
    from_hours: NotNegative  #: since the simulation's start
    hours: Positive


class Weather(Fact):
    """Rates are of a day; of the network and the disks, for each site."""

    name: str
    loss: Share = 0.0  #: of messages: the caller hears nothing; half of them were carried out all the same
    repeat: Share = 0.0  #: of messages: carried out twice
    reorder: Share = 0.0  #: of messages: overtaken by a later one
    delay_seconds: NotNegative = 0.0  #: median, on top of the link's latency; lognormal
    delay_sigma: NotNegative = 1.0  #: of the delay's logarithm
    partitions_per_day: NotNegative = 0.0  #: nothing passes between a site and the coordinator
    partition_minutes: Positive = 30.0  #: median; lognormal
    partition_sigma: NotNegative = 1.0
    cuts: tuple[Cut, ...] = ()  #: the same, beside those of the dice
    crashes_per_day: NotNegative = 0.0  #: of the coordinator, at any write or wait
    restart_minutes: Positive = 2.0  #: median until the coordinator is back; lognormal
    restart_sigma: NotNegative = 1.0
    disk_full_per_day: NotNegative = 0.0  #: a site's spool takes no more bytes
    disk_full_minutes: Positive = 60.0  #: median; lognormal with sigma 1
    torn_writes_per_day: NotNegative = 0.0  #: a write of an agent is cut, and its process with it
    clock_jumps_per_day: NotNegative = 0.0  #: of a site's clock
    clock_jump_seconds: NotNegative = 300.0  #: standard deviation of a jump, forwards and backwards
    coordinator_disk_full_per_day: NotNegative = 0.0  #: nothing can be written down; for a sixth of a site's
    coordinator_clock_jumps_per_day: NotNegative = 0.0  #: as far as a site's
    second_agents_per_day: NotNegative = 0.0  #: started beside a site's agent, on the same home
    #: an admin drains, suspends, promotes, rolls back or stops; for each site
    meddling_per_day: NotNegative = 0.0
    #: a rule of keeping, another each time, lets go of what it may, and `gc` deletes it at once
    cleanings_per_day: NotNegative = 0.0
    homes_cleaned_per_day: NotNegative = (
        0.0  #: by each site's agent, which then keeps nothing that no job needs
    )
    lies_per_day: NotNegative = 0.0  #: of each site's agent, see simulation/liars.py
    lent: Share = 0.0  #: of a site's uploads: they come under another's name
    lies_told: tuple[str, ...] = ()  #: which; (): the usual ones
    harms: Share = 0.0  #: of training results: the model got worse by them, within every norm
    replays: Share = 0.0  #: of a site's rounds after its first: it delivers that one's delta again
    falsehoods: Share = 0.0  #: of results: they claim what is not so, and their site signs it
    thieves_per_day: NotNegative = (
        0.0  #: messages by who stole a site's certificate, beside those of bad weather
    )
    failures: Share = 0.0  #: of lives: their trainer says that it cannot go on, beside those of bad weather
    refusals: Share = 0.0  #: of attempts: a site's batch system will not take them, for reasons of its own
    echoes: Share = 0.0  #: of the reports of the coordinator's worker: they come again, late
    whims: Share = 0.0  #: of rounds in which an admin drains all sites, or moves the head, before the verdict
    drains_per_day: NotNegative = 0.0  #: of each site, by its operator
    drain_minutes: Positive = 60.0  #: median; lognormal with sigma 1
    #: factor on the rates of a site's plan: preempted, node lost, agent killed
    site_faults: NotNegative = 1.0
    certificate_days: Count = 30  #: that a site's certificate is good for
    begins_after_hours: NotNegative = 0.0  #: until then nothing goes wrong but what the plan says
    clears_after_hours: Positive | None = None  #: when all this is over; None: never
    #: the faults that fall, by name, of those that the dice say; None: all
    only: tuple[str, ...] | None = None

    def lets_fall(self, name: str, hours: float) -> bool:
        """Whether the fault of that name (see ``fault_named``), which the dice say, falls at that hour."""
        if self.clears_after_hours is not None and hours >= self.clears_after_hours:
            return False
        return hours >= self.begins_after_hours and (self.only is None or name in self.only)


def fault_named(kind: str, place: str, number: int) -> str:
    """How one fault is called: ``crash coordinator 3`` is the third that the dice said there, fallen or not."""
    return f"{kind} {place} {number}"


#: Sorted from quiet to wild.
PRESETS: dict[str, Weather] = {
    "calm": Weather(name="calm"),
    "fair": Weather(
        name="fair",
        loss=0.001,
        repeat=0.001,
        reorder=0.001,
        delay_seconds=0.05,
        partitions_per_day=0.02,
        crashes_per_day=0.05,
        disk_full_per_day=0.005,
        torn_writes_per_day=0.005,
        clock_jumps_per_day=0.01,
        clock_jump_seconds=30.0,
    ),
    "rough": Weather(
        name="rough",
        loss=0.02,
        repeat=0.02,
        reorder=0.02,
        delay_seconds=0.5,
        partitions_per_day=0.3,
        partition_minutes=45.0,
        crashes_per_day=1.0,
        disk_full_per_day=0.1,
        torn_writes_per_day=0.1,
        clock_jumps_per_day=0.1,
        site_faults=2.0,
    ),
    "storm": Weather(
        name="storm",
        loss=0.1,
        repeat=0.1,
        reorder=0.1,
        delay_seconds=3.0,
        delay_sigma=1.5,
        partitions_per_day=2.0,
        partition_minutes=60.0,
        partition_sigma=1.5,
        crashes_per_day=12.0,
        restart_minutes=5.0,
        disk_full_per_day=1.0,
        torn_writes_per_day=1.0,
        clock_jumps_per_day=1.0,
        clock_jump_seconds=1800.0,
        site_faults=5.0,
    ),
}
_SHARES = (
    "loss",
    "repeat",
    "reorder",
    "falsehoods",
    "refusals",
    "failures",
    "echoes",
    "whims",
    "harms",
    "replays",
    "lent",
)
_RATES = (
    *("partitions_per_day", "crashes_per_day", "disk_full_per_day", "torn_writes_per_day"),
    *("clock_jumps_per_day", "site_faults", "coordinator_disk_full_per_day"),
    *("coordinator_clock_jumps_per_day", "second_agents_per_day", "meddling_per_day"),
    *("lies_per_day", "drains_per_day", "cleanings_per_day", "homes_cleaned_per_day"),
)


def scaled(weather: Weather, factor: float) -> Weather:
    """Everything that goes wrong, so many times as often; how long and how far it goes wrong stays."""
    shares = {name: min(0.5, getattr(weather, name) * factor) for name in _SHARES}
    rates = {name: getattr(weather, name) * factor for name in _RATES}
    return replace(weather, name=f"{weather.name}:{factor:g}", **shares, **rates)


def weather_of(text: str) -> Weather:
    """What ``--weather`` means: a preset, or ``rough:1.5``, half again as often. Raises BadInput."""
    name, colon, written = text.partition(":")
    if name not in PRESETS:
        raise BadInput(f"weather {shown(name)} is not known; {nearest(name, PRESETS)}")
    if not colon:
        return PRESETS[name]
    try:
        factor = float(written)
    except ValueError:
        factor = -1.0
    if not 0 <= factor <= 1000:
        raise BadInput(f"weather {shown(text)}: the factor is a number from 0 to 1000, such as {name}:1.5")
    return scaled(PRESETS[name], factor)
