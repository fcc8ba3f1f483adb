"""One simulated consortium, from its founding to its last campaign's end."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from consortium.canonical import digest_of_fact
from consortium.channels import CHUNK_BYTES
from consortium.ids import SiteName
from coordinator.config import CoordinatorConfig
from coordinator.core import events as ev
from coordinator.core.moment import Moment
from coordinator.core.waits import waits
from policies.membership import Group, Membership
from simulation.admins import Admins
from simulation.checkers import SYNC, Referee
from simulation.cluster import Cluster
from simulation.conduct import Conduct
from simulation.coordinators import CoordinatorHost, made_here
from simulation.diary import Diary, endings, merged_tokens, versions_of
from simulation.draws import lognormal
from simulation.echoes import Echoes
from simulation.faults import Faults
from simulation.hostile import Stranger
from simulation.lazy import Lazy
from simulation.learning import Pupil, Trainer
from simulation.lenders import Lenders
from simulation.liars import Liar
from simulation.loop import VirtualLoop
from simulation.machine import Host, Machine, inhabited
from simulation.network import Channel, Network
from simulation.outcome import Cost, Happening, Outcome
from simulation.plan import Plan, SitePlan
from simulation.real import RealTrainer, at_work
from simulation.sites import SiteHost, Told, config_of, manifest_of_site
from simulation.streams import stream
from simulation.weather import PRESETS, Weather
from simulation.weights import Weighed, Weights
from simulation.whims import Whims
from simulation.wires import Wire
from site_agent.config import SiteConfig
from site_agent.describing import Describing

_CHUNK_BYTES = 512  # of the real ones, so that even a tiny file goes in pieces and can be cut in between
_REST_SECONDS, _REST_SIGMA = 60.0, 1.0  # until a service manager has an agent running again
_SETTLING_SECONDS = 3600.0  # after the last campaign's end: agents tell, are settled, tidy up
_TELL_SECONDS = 3600.0  # simulated, between two calls of ``progress``

Progress = Callable[[float, float], None]  #: hours simulated, and at most


class World:
    """real: configs of sites whose text is really there; then their jobs are done by the real trainer"""

    def __init__(
        self,
        plan: Plan,
        seed: int,
        weather: Weather,
        home: Path,
        real: Mapping[SiteName, SiteConfig] | None = None,
    ) -> None:
        self._real = real or {}
        self.plan, self.seed, self.weather = plan, seed, weather
        self.loop = VirtualLoop()
        self._home = home
        self._machine = Machine(self._host("ground", 0.0), seed)
        self.referee = Referee(lambda: self.loop.steps, lambda: self.coordinator.host.clock(), self.loop.time)
        self.diary = Diary()
        self._weights = Weights(plan.model_bytes)
        self._conducts: dict[str, Conduct] = {}
        self._over = False
        self._ended = asyncio.Event()

    # ---- the whole story

    def run(self, rebuild: bool = True, progress: Progress | None = None) -> Outcome:
        """Everything, from founding to the verdict of the referee."""
        asyncio.set_event_loop(self.loop)
        try:
            with inhabited(self._machine, *self._stand_ins()), _silence():
                return self.loop.run_until_complete(self._story(rebuild, progress))
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    async def _story(self, rebuild: bool, progress: Progress | None) -> Outcome:
        if not self._real:  # else everything has the size that it has
            self.network.weight = self._weights.of
        self._begin()
        self._open()
        await self._wait(progress)
        self._close()
        if rebuild:
            self.referee.rebuilt(self.coordinator.home)
        return self._outcome()

    def _stand_ins(self) -> list[tuple[str, str, Any]]:
        self.network = Network(self.loop)
        release = version("sprachbund")  # once: reading it costs as much as a Sync
        manifests = {str(site.name): manifest_of_site(site) for site in self.plan.sites}
        manifests |= {str(name): Describing(config).run() for name, config in sorted(self._real.items())}
        made = made_here(None if self._real else self.plan.campaign.languages)
        chunks = ("coordinator.artifacts", "consortium.transfer", "site_agent.carry")
        return [
            ("coordinator.making", "made", made),
            *((module, "CHUNK_BYTES", CHUNK_BYTES if self._real else _CHUNK_BYTES) for module in chunks),
            ("coordinator.services.site", "_WAIT_SECONDS_MAX", 1e9),
            ("coordinator.worker", "_LOOK_SECONDS", 3600.0),
            ("site_agent.carry", "salvage", self._salvage),
            ("tempfile", "tempdir", str(self._home)),  # in memory, as everything else
            ("site_agent.presence", "SEEN_SECONDS", 86400.0),  # a file that nobody reads here
            *(
                (module, "version", lambda name: release)
                for module in ("site_agent.agent", "site_agent.link")
            ),
            ("site_agent.agent", "Description", lambda config: Told(manifests, config)),
            ("site_agent.link", "open_channel", self.network.open_channel),
            ("site_agent.enrol", "open_channel", self.network.open_channel),
        ]

    # ---- what there is

    def _host(self, name: str, skew: float) -> Host:
        return Host(name, self.seed, self.plan.started_at, skew)

    def _begin(self) -> None:
        """Found the consortium and build its sites; nothing runs yet."""
        plan, weather = self.plan, self.weather
        lease = plan.campaign.lease_seconds
        self.diary.note(
            Happening(at=plan.started_at, place="coordinator", kind="seed", subject=str(self.seed))
        )
        group = Group(
            name="simulated",
            title="a site of the plan",
            may_join=True,
            countries=tuple(sorted({site.country for site in plan.sites})),
        )
        config = CoordinatorConfig(
            consortium="simulated",
            home=str(self._home / "coordinator"),
            ledger=str(self._home / "coordinator" / "ledger.sqlite"),
            tick_seconds=min(600.0, lease / 5.0),
            certificate_days=weather.certificate_days,
        )
        rests = stream(self.seed, "rests", "coordinator")
        host = self._host("coordinator", 0.0)
        self.coordinator = CoordinatorHost(
            config,
            Membership(groups=(group,), otherwise="it is not in the plan"),
            self._machine,
            host,
            self.loop,
            self.network,
            self.referee,
            plan.model_bytes,
            self.diary.note,
            lambda: lognormal(rests, weather.restart_minutes * 60.0, weather.restart_sigma),
            Echoes(self.seed, weather.echoes),
            Whims(self.seed, weather.whims),
        )
        self.referee.look_into(self.coordinator.workshop.store)
        self.network.heard = self._heard
        self.network.spoke = self._spoke
        self.network.reached = self._reached
        self.network.served = self._served
        self.network.gave = self._gave
        self.network.took = self._took
        self.referee.events += [self.diary.event, self._notice]
        self.sites = [self._site(site, lease / 3.0) for site in plan.sites]
        self.network.lent = Lenders(self.network, self.sites, weather.lent, self.seed).lend

    def _site(self, plan: SitePlan, sync_seconds: float) -> SiteHost:
        host = self._host(plan.name, plan.clock_skew_seconds)
        self.network.wires[plan.name] = Wire(
            plan.name, self.seed, self.weather, plan.latency_ms, plan.up_mbps, plan.down_mbps
        )
        often = self.weather.homes_cleaned_per_day
        cleaned = 24.0 / often if often else None
        host.dates_files = bool(often)  # else all of its files are of another time
        config = config_of(plan, self._home / plan.name, sync_seconds, cleaned)
        pupil: Trainer = Pupil(plan, self.seed, self.plan.campaign.languages, self.weather.harms)
        pupil = Weighed(Lazy(pupil, self.weather.replays, self.seed, plan.name), self._weights)
        if plan.name in self._real:
            config, pupil = at_work(self._real[plan.name], config), RealTrainer()
        conduct = self._conducts[plan.name] = Conduct(
            plan, Path(config.home), sync_seconds, host, self.loop.time, self.referee.blame
        )
        cluster = Cluster(
            plan,
            self.weather,
            self.seed,
            host,
            self.loop,
            pupil,
            self.plan.model_bytes,
            self.diary.note,
            conduct,
        )
        rests = stream(self.seed, "rests", plan.name)
        return SiteHost(
            plan,
            config,
            host,
            self.loop,
            self.network,
            cluster,
            self.referee,
            self.diary.note,
            lambda: lognormal(rests, _REST_SECONDS, _REST_SIGMA),
        )

    def _open(self) -> None:
        self.coordinator.start()
        stranger = Stranger(self.network, self.coordinator, self.referee.blame)
        self.network.wires["admin"] = Wire("admin", self.seed, PRESETS["calm"], 10.0, 1000.0, 1000.0)
        host = self._host("admin", 0.0)
        liar = Liar(lambda: self.referee.state, self.weather.lies_told)
        self.network.said = liar.tell
        admins = Admins(host, self.network, self.coordinator, self.referee.blame)
        self.faults = Faults(
            self.seed,
            self.weather,
            self.loop,
            self.network,
            self.coordinator,
            self.sites,
            stranger,
            admins,
            liar,
            self.diary.note,
        )
        admins.begin(self.sites, self.plan.campaign, self.give_up)
        clears = self.weather.clears_after_hours
        if clears is not None:
            self.loop.call_later(clears * 3600.0, self._clear_up, context=self.loop.outside)

    def _clear_up(self) -> None:
        """The weather turns calm; what was broken is mended."""
        self.faults.stop()
        for wire in self.network.wires.values():
            wire.is_cut, wire.weather = False, PRESETS["calm"]
        self.coordinator.host.disk_is_full = False
        for site in self.sites:
            site.host.disk_is_full = False
            site.set_mode("work")
            site.cluster.weather = PRESETS["calm"]

    def give_up(self) -> None:
        """There is nothing more to wait for."""
        self._over = True
        self._ended.set()

    # ---- while it runs

    async def _wait(self, progress: Progress | None) -> None:
        """Until every campaign has ended and everybody has settled, or the plan's time is over."""
        hours_max = self.plan.hours_max
        end = hours_max * 3600.0
        while self.loop.time() < end and not self._over:
            left = min(_TELL_SECONDS, end - self.loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._ended.wait()
            if progress is not None:
                progress(self.loop.time() / 3600.0, hours_max)
            if len(self.referee.violations) and self.loop.time() > end / 2:
                break
        self.hours = self.loop.time() / 3600.0
        if self._over:
            await asyncio.sleep(_SETTLING_SECONDS)

    def _notice(self, event: ev.AnyEvent, at: float) -> None:
        match event:
            case ev.VersionMade():
                self._weights.version(event.manifest)
            case ev.CampaignEnded():
                if all(campaign.status != "open" for campaign in self.referee.state.campaigns.values()):
                    self.give_up()
            case _:
                pass

    def _heard(self, place: str, method: str, request: bytes, response: bytes) -> None:
        if place != "admin":
            self.referee.answered(place, method, request, response)

    def _spoke(self, channel: Channel, method: str, request: Any) -> None:
        if method == SYNC and (conduct := self._conducts.get(channel.wire.place)) is not None:
            conduct.speaks(channel.process, request)

    def _reached(self, channel: Channel, method: str, request: Any, answer: Any) -> None:
        if method == SYNC and (conduct := self._conducts.get(channel.wire.place)) is not None:
            conduct.hears(channel.process, request, answer)

    def _served(self, place: str, method: str, request: Any) -> None:
        self.referee.served(place, method, request)
        self.diary.reported(place, method, request, self.coordinator.true_time)

    def _gave(self, place: str, digest: str) -> None:
        self.referee.read(place, digest)

    def _took(self, place: str, digest: str) -> None:
        self.referee.took(place, digest)

    async def _salvage(self, directory: Path) -> None:
        self.cluster_of(directory).salvage(directory)

    def cluster_of(self, directory: Path) -> Cluster:
        name = directory.relative_to(self._home).parts[0]
        return next(site.cluster for site in self.sites if site.plan.name == name)

    # ---- the end

    def _close(self) -> None:
        driver = self.coordinator.driver
        if driver is not None and self.coordinator.process is not None and self.coordinator.process.alive:
            self.referee.settled(driver)
        if self.weather.clears_after_hours is not None:
            moment = Moment(now=self.coordinator.true_time)
            self.referee.ended(lambda: [wait.reason for wait in waits(self.referee.state, moment)])
        for site in self.sites:
            site.stop()
        self.coordinator.stop()
        if (trouble := self.loop.trouble) is not None:
            self.referee.blame(f"{type(trouble).__name__} in a callback that no task answers for: {trouble}")

    def _outcome(self) -> Outcome:
        state, plan = self.referee.state, self.plan
        merged = merged_tokens(state)
        tokens: dict[Any, int] = {}
        for mine in merged.values():
            for language, count in mine.items():
                tokens[language] = tokens.get(language, 0) + count
        faults = dict(self.faults.counts)
        for _, wire in sorted(self.network.wires.items()):
            for kind, count in sorted(wire.faults.items()):
                faults[kind] = faults.get(kind, 0) + count
        return Outcome(
            seed=self.seed,
            plan=digest_of_fact(plan),
            weather=self.weather.name,
            began_at=plan.started_at,
            hours=round(self.hours, 6),
            head=self.referee.head,
            events=self.referee.sequence,
            steps=self.loop.steps,
            versions=versions_of(state),
            happenings=self.diary.told(),
            tokens=dict(sorted(tokens.items())),
            costs={
                site.plan.name: Cost(
                    gpu_hours=round(site.cluster.gpu_hours, 6),
                    joules=round(site.cluster.joules, 3),
                    uploaded_bytes=self.network.wires[site.plan.name].sent_bytes,
                    downloaded_bytes=self.network.wires[site.plan.name].received_bytes,
                    attempts=self.diary.attempts.get(site.plan.name, 0),
                    trained_tokens=merged.get(site.plan.name, {}),
                )
                for site in self.sites
            },
            faults=dict(sorted(faults.items())),
            ended=endings(state),
            violations=tuple(self.referee.violations),
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What the programs log is what the weather makes them say; it would cost a fifth of the time."""
    loggers = [logging.getLogger(name) for name in ("consortium", "coordinator", "site_agent", "policies")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
