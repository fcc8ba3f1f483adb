"""When the weather strikes: each kind of fault at each place has dice of its own, and a gap until the next."""

from collections.abc import Callable
from random import Random as Dice

from policies.keeping import Keep
from simulation.admins import Admins
from simulation.coordinators import CoordinatorHost
from simulation.draws import gap_seconds, lognormal, normal
from simulation.hostile import Stranger
from simulation.liars import Liar
from simulation.loop import VirtualLoop
from simulation.machine import Host, kill_soon
from simulation.network import Network
from simulation.outcome import Happening
from simulation.sites import SiteHost
from simulation.streams import stream
from simulation.weather import Weather, fault_named

_HOSTILE_PER_DAY = 100.0  # messages of each site, times the share that the weather loses


class Faults:
    """counts  how many of each kind fell
    fallen  which, by name
    """

    def __init__(
        self,
        seed: int,
        weather: Weather,
        loop: VirtualLoop,
        network: Network,
        coordinator: CoordinatorHost,
        sites: list[SiteHost],
        stranger: Stranger,
        admins: Admins,
        liar: Liar,
        happened: Callable[[Happening], None],
    ) -> None:
        self.counts: dict[str, int] = {}
        self.fallen: list[str] = []
        self._name = ""  #: of the one that falls
        self._seed, self._weather, self._loop, self._network = seed, weather, loop, network
        self._coordinator, self._happened = coordinator, happened
        self._stranger, self._admins, self._liar = stranger, admins, liar
        self._is_over = False
        self._every("crash", "coordinator", weather.crashes_per_day, self._crash)
        self._every("cleaning", "coordinator", weather.cleanings_per_day, self._clean)
        own = coordinator.host
        self._every("disk full", own.name, weather.coordinator_disk_full_per_day, self._fill_disk, own)
        self._every("clock jump", own.name, weather.coordinator_clock_jumps_per_day, self._jump, own)
        for site in sites:
            self._every("partition", site.plan.name, weather.partitions_per_day, self._partition, site)
            self._every("disk full", site.plan.name, weather.disk_full_per_day, self._fill_disk, site.host)
            self._every("torn write", site.plan.name, weather.torn_writes_per_day, self._tear, site)
            self._every("clock jump", site.plan.name, weather.clock_jumps_per_day, self._jump, site.host)
            self._every("second agent", site.plan.name, weather.second_agents_per_day, self._double, site)
            self._every("lie", site.plan.name, weather.lies_per_day, self._lie, site)
            self._every("drained", site.plan.name, weather.drains_per_day, self._drain, site)
            self._every("admin", site.plan.name, weather.meddling_per_day, self._meddle, site)
            killed = site.plan.agent_kill_per_day * weather.site_faults
            self._every("agent killed", site.plan.name, killed, self._kill, site)
            hostile = _HOSTILE_PER_DAY * weather.loss + weather.thieves_per_day
            self._every("hostile", site.plan.name, hostile, self._intrude, site)
            for cut in weather.cuts:
                if cut.site == site.plan.name:
                    self._later(cut.from_hours * 3600.0, self._cut, site, cut.hours * 3600.0)
            for outage in site.plan.outages:
                begin, length = outage.from_hours * 3600.0, outage.hours * 3600.0
                self._later(begin, self._outage, site, length)

    def stop(self) -> None:
        """It clears up: what is broken mends by itself, and nothing else breaks."""
        self._is_over = True

    def _every(
        self, kind: str, place: str, per_day: float, strike: Callable[..., None], *given: object
    ) -> None:
        gaps = stream(self._seed, "fault", kind, place)
        gap = gap_seconds(gaps, per_day)
        if gap is None:
            return

        def struck(number: int) -> None:
            if self._is_over:
                return
            self._name = fault_named(kind, place, number)
            if self._weather.lets_fall(self._name, self._loop.time() / 3600.0):
                self.counts[kind] = self.counts.get(kind, 0) + 1
                self.fallen.append(self._name)
                strike(stream(self._seed, "fault", kind, place, number), *given)
            following = gap_seconds(gaps, per_day)
            assert following is not None
            self._later(following, struck, number + 1)

        self._later(gap, struck, 1)

    def _later(self, seconds: float, what: Callable[..., None], *given: object) -> None:
        self._loop.call_later(seconds, what, *given, context=self._loop.outside)

    # ---- kinds

    def _crash(self, dice: Dice) -> None:
        process = self._coordinator.process
        if process is not None and process.alive:
            kill_soon(process, dice, dice.random() < 0.5)
            self._moment("coordinator", "crash")

    def _clean(self, dice: Dice) -> None:
        """Of rules that let go of much, so that little is left to rest upon."""
        rule = Keep(
            contributions_versions=dice.choice([None, 1, 1, 2]),
            contributions_days=dice.choice([None, None, 0.001, 0.1]),
            outer_state_versions=dice.choice([None, 1]),
            rejected_days=dice.choice([None, 0.001, 0.1]),
        )
        if self._coordinator.clean(rule):
            self._moment("coordinator", "cleaning", rule.words)

    def _partition(self, dice: Dice, site: SiteHost) -> None:
        weather = self._weather
        if not self._network.wires[site.plan.name].is_cut:
            self._cut(site, lognormal(dice, weather.partition_minutes * 60.0, weather.partition_sigma))

    def _cut(self, site: SiteHost, seconds: float) -> None:
        wire = self._network.wires[site.plan.name]
        self._network.cut(wire)
        self._span(site.plan.name, "partitioned", seconds)

        def heal() -> None:
            wire.is_cut = False

        self._later(seconds, heal)

    def _fill_disk(self, dice: Dice, host: Host) -> None:
        median = self._weather.disk_full_minutes * 60.0
        if host is self._coordinator.host:
            median /= 6.0  # somebody is called at once
        seconds = lognormal(dice, median, 1.0)
        host.disk_is_full = True
        self._span(host.name, "disk full", seconds)

        def empty() -> None:
            host.disk_is_full = False

        self._later(seconds, empty)

    def _tear(self, dice: Dice, site: SiteHost) -> None:
        if site.process is not None and site.process.alive:
            kill_soon(site.process, dice, True, tears=True)
            self._moment(site.plan.name, "torn write")

    def _kill(self, dice: Dice, site: SiteHost) -> None:
        if site.process is not None and site.process.alive:
            kill_soon(site.process, dice, dice.random() < 0.5)
            self._moment(site.plan.name, "agent killed")

    def _jump(self, dice: Dice, host: Host) -> None:
        seconds = round(self._weather.clock_jump_seconds * normal(dice), 3)
        host.skew += seconds
        self._moment(host.name, "clock jump", f"{seconds:+.0f} s")

    def _double(self, dice: Dice, site: SiteHost) -> None:
        if site.process is not None and site.process.alive:
            site.start()
            self._moment(site.plan.name, "second agent")

    def _meddle(self, dice: Dice, site: SiteHost) -> None:
        name = self._name  # the admin says later what they do

        def told(about: str, what: str) -> None:
            at = self._coordinator.true_time
            detail = f"{what} {about}"
            self._happened(Happening(at=at, place=site.plan.name, kind="admin", subject=name, detail=detail))

        self._admins.meddle(dice, site, told)

    def _lie(self, dice: Dice, site: SiteHost) -> None:
        self._moment(site.plan.name, "lie", self._liar.lie(site.plan.name, dice))

    def _drain(self, dice: Dice, site: SiteHost) -> None:
        seconds = lognormal(dice, self._weather.drain_minutes * 60.0, 1.0)
        site.set_mode("drain")
        self._span(site.plan.name, "drained", seconds)
        self._later(seconds, site.set_mode, "work")

    def _intrude(self, dice: Dice, site: SiteHost) -> None:
        self._stranger.intrude(dice, site)
        self._moment(site.plan.name, "hostile")

    def _outage(self, site: SiteHost, seconds: float) -> None:
        self._name = ""  # the plan's, not the dice's
        site.cluster.outage(True)
        self._span(site.plan.name, "outage", seconds)
        self._later(seconds, site.cluster.outage, False)

    def _moment(self, place: str, kind: str, detail: str = "") -> None:
        at = self._coordinator.true_time
        self._happened(Happening(at=at, place=place, kind=kind, subject=self._name, detail=detail))

    def _span(self, place: str, kind: str, seconds: float) -> None:
        at = self._coordinator.true_time
        self._happened(Happening(at=at, place=place, kind=kind, subject=self._name, until=at + seconds))
