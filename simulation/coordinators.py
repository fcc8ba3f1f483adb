"""The coordinator's host: its program started, killed and started again on one ledger and one store.

Driver, services, guard, worker and workshop are the product's. A crash takes all that is in memory with it; the ledger
and the store keep what was written. Crashes fall at any callback, at any write of a file, and before and after any
append to the ledger.
"""

import asyncio
import contextlib
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sprachbund.v1 import enrolment_pb2_grpc

from consortium.canonical import digest_of_fact, encode
from consortium.errors import BadInput, Refused, SprachbundError, Unavailable
from consortium.files import disk_errors, make_folder, write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.ids import Language
from consortium.manifests import Initial, VersionManifest
from consortium.merging.job import make_version
from consortium.versions import manifest_of
from coordinator import workshop as workshops
from coordinator.config import CoordinatorConfig
from coordinator.core.commands import Command, LetGo, Tick
from coordinator.core.machine import Decision
from coordinator.core.owed import Inspect, Judge, MakeBase, Merge
from coordinator.core.referenced import let_go
from coordinator.core.state import State
from coordinator.courier import Courier
from coordinator.daemon import main_server
from coordinator.driver import Driver
from coordinator.errors_on_wire import ErrorsOnWire
from coordinator.founding import Keys, found
from coordinator.ledger import Ledger, Recorded
from coordinator.making import Interest, Made
from coordinator.making_process import BaseOrder, MergeOrder
from coordinator.services.admin import AdminService
from coordinator.services.enrolment import EnrolmentService
from coordinator.services.site import SiteService
from coordinator.worker import Worker
from coordinator.workshop import Workshop
from policies.keeping import Keep
from policies.membership import Membership
from simulation.checkers import SYNC, Referee
from simulation.echoes import Echoes
from simulation.learning import base_files
from simulation.loop import Process, VirtualLoop
from simulation.machine import Host, Machine
from simulation.network import Network, Port
from simulation.outcome import Happening
from simulation.whims import Whims

MAIN, ENROLMENT = "coordinator.simulated:7443", "coordinator.simulated:7444"
_INSPECTION_SECONDS, _JUDGING_SECONDS, _BASE_SECONDS, _MERGE_SECONDS = 30.0, 20.0, 120.0, 60.0
_BYTES_PER_SECOND = 4e8


def made_here(languages: tuple[Language, ...] | None) -> Callable[..., AbstractContextManager[Made]]:
    """In place of the workshop's processes: a merge by the very function that they call, and a base of our size.

    languages  of the campaign; None: its base is the real one, made by a program of its own
    """

    @contextlib.contextmanager
    def made(
        program: str, order: MergeOrder | BaseOrder, folder: Path, interest: Callable[[], Interest]
    ) -> Iterator[Made]:
        place = folder / digest_of_fact(order.work)
        make_folder(folder)
        shutil.rmtree(place, ignore_errors=True)
        yield Made(place, _merged(order, place) if isinstance(order, MergeOrder) else _base(order, place))
        shutil.rmtree(place)

    def _base(order: BaseOrder, place: Path) -> VersionManifest:
        config = place.with_suffix(".config")
        write_bytes_atomically(config, encode(order.work.config))
        if languages is not None:
            with fresh_folder(place) as folder:
                for name, data in base_files(languages).items():
                    (folder / name).write_bytes(data)
                shutil.copyfile(order.tokenizer_json, folder / "tokenizer.json")
        else:
            options = ["--config", str(config), "--tokenizer", order.tokenizer_json, "--out", str(place)]
            options += ["--seed", str(order.work.seed), "--shard-bytes", str(order.work.shard_bytes)]
            subprocess.run([sys.executable, "-m", "consortium.models", *options], check=True)
        config.unlink()
        initial = Initial(config=digest_of_fact(order.work.config), seed=order.work.seed)
        return manifest_of(place, initial=initial)

    return made


def _merged(order: MergeOrder, place: Path) -> VersionManifest:
    try:
        return make_version(
            order.work, Path(order.base_dir), lambda digest: Path(order.blobs[digest]), place, threads=1
        )
    except Refused as error:
        raise BadInput(str(error)) from error


class CoordinatorHost:
    """driver  of the program that runs; of the last one while none does"""

    def __init__(
        self,
        config: CoordinatorConfig,
        membership: Membership,
        machine: Machine,
        host: Host,
        loop: VirtualLoop,
        network: Network,
        referee: Referee,
        model_bytes: int,
        happened: Callable[[Happening], None],
        rest_seconds: Callable[[], float],
        echoes: Echoes,
        whims: Whims,
    ) -> None:
        self._echoes, self._whims = echoes, whims
        self.driver: Driver | None = None
        self.process: Process | None = None
        self.config = config
        self.crashes = 0
        self.host = host
        self._membership, self._machine = membership, machine
        self._loop, self._network, self._referee = loop, network, referee
        self._model_bytes, self._happened, self._rest_seconds = model_bytes, happened, rest_seconds
        self._ledger: Ledger | None = None
        self.keys: Keys = found(config, host.clock())
        self.workshop = Workshop.at(Path(config.home))
        loop.seconds_of_work = self._seconds_of_work

    @property
    def home(self) -> Path:
        return Path(self.config.home)

    @property
    def true_time(self) -> float:
        return self.host.true_time

    def start(self) -> None:
        self.process = process = Process("coordinator", self.host)
        process.on_death = self._died
        process.spawn(self._watched(self._serve(process)))

    def clean(self, rule: Keep) -> bool:
        """Let go by the rule, and delete it, as far as the process lives; whether there is one to do so."""
        if self.process is None or not self.process.alive or self.driver is None:
            return False
        self.process.spawn(self._watched(self._cleaned(self.driver, rule)))
        return True

    def stop(self) -> None:
        """For good, as by a crash."""
        if self.process is not None:
            self.process.on_death = lambda: None
            self.process.kill()
        self._network.down()
        if self._ledger is not None:
            self._ledger.close()

    # ---- inside

    async def _serve(self, process: Process) -> None:
        try:
            self._ledger = ledger = Ledger(Path(self.config.ledger or self.home / "ledger.sqlite"))
            driver = Driver(ledger, self.keys.ledger, self.host.clock)
        except Unavailable as error:
            self._left(process, str(error))
            return
        if self.driver is None:
            self._referee.wrote(list(ledger.read()))
        self._watch(ledger, driver)
        self._echoes.join(driver, process)
        self._whims.join(driver, process)
        self.driver = driver
        self._referee.restarted(driver)
        workshop = Workshop.at(self.home)
        sites = SiteService(driver, self.keys, self.config)
        enrolments = EnrolmentService(driver, self.keys, self.config)
        courier = Courier(driver, self.keys, self.config, workshop.store, sites, enrolments)
        admin = AdminService(driver, self._membership, self.config, courier.carry)
        enrolment = Port([ErrorsOnWire()])
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(enrolments, enrolment)
        main = main_server(driver, self.config, workshop, sites, admin, courier, make_server=Port)
        self._network.up(process, {MAIN: main, ENROLMENT: enrolment})
        process.spawn(self._watched(self._tick(driver)))
        await Worker(driver, workshop).run()

    def _left(self, process: Process, why: str) -> None:
        """It leaves with a sentence, as on a full disk, and the service manager starts it again."""
        self._moment("coordinator left", why)
        process.kill()

    async def _tick(self, driver: Driver) -> None:
        while True:
            try:
                driver.execute(Tick())
                self._referee.ticked(self._network.waiting(SYNC))
            except SprachbundError as error:  # as the scheduler of the daemon: the next one tries again
                self._referee.hindered()
                self._moment("tick failed", str(error))
            await asyncio.sleep(self.config.tick_seconds)

    async def _cleaned(self, driver: Driver, rule: Keep) -> None:
        """Without any grace: nobody stores a blob between the look at the state and the last removal."""
        try:
            driver.execute(LetGo(rule=rule))
            for digest in sorted(let_go(driver.state)):
                self._machine.moment()
                self.workshop.store.remove(digest)
        except SprachbundError as error:
            self._moment("cleaning failed", str(error))

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._referee.blame(
                f"invariant 8: the coordinator fell: {error!r} at {where.name}:{where.lineno}"
            )

    def _watch(self, ledger: Ledger, driver: Driver) -> None:
        """Every append passes the referee, between two moments at which the process may die; so do failures."""
        append, keep_snapshot, keep_checkpoint = ledger.append, ledger.save_snapshot, ledger.save_checkpoint
        machine, referee = self._machine, self._referee

        def appended(events: Any, at: float) -> list[Recorded]:
            with disk_errors(self.home):
                machine.write()
            recorded = append(events, at)
            referee.wrote(recorded)
            machine.moment()
            return recorded

        execute = driver.execute

        def executed(command: Command) -> Decision:
            try:
                return execute(command)
            except (Refused, BadInput, Unavailable):
                raise
            except Exception as error:
                referee.blame(
                    f"invariant 8: {type(command).__name__} brings the coordinator to fall: {error!r}"
                )
                raise

        driver.execute = executed  # type: ignore[method-assign]

        def kept_snapshot(state: bytes, at: Any) -> None:
            with disk_errors(self.home):
                machine.write()
            keep_snapshot(state, at)

        def kept_checkpoint(checkpoint: Any) -> None:
            with disk_errors(self.home):
                machine.write()
            keep_checkpoint(checkpoint)

        ledger.append = appended  # type: ignore[method-assign]
        ledger.save_snapshot = kept_snapshot  # type: ignore[method-assign]
        ledger.save_checkpoint = kept_checkpoint  # type: ignore[method-assign]

    def _died(self) -> None:
        self.crashes += 1
        self._network.down()
        if self._ledger is not None:
            self._ledger.close()
        rest = self._rest_seconds()
        self._span("down", "coordinator", rest)
        self._loop.call_later(rest, self.start, context=self._loop.outside)

    def _seconds_of_work(self, function: Any, given: tuple[Any, ...]) -> float:
        """What the worker does takes its time; its result is told only then."""
        if function is not workshops.do:
            return 0.0
        owed, state = given[0], given[1]
        seconds, kind, subject = self._cost(owed, state)
        self._span(kind, subject, seconds)
        return seconds

    def _cost(self, owed: Any, state: State) -> tuple[float, str, str]:
        size = self._model_bytes
        match owed:
            case MakeBase():
                return _BASE_SECONDS + size / _BYTES_PER_SECOND, "making", owed.campaign
            case Inspect():
                return _INSPECTION_SECONDS + size / _BYTES_PER_SECOND, "inspecting", owed.attempt
            case Merge():
                parts = len(state.campaigns[owed.campaign].rounds[owed.round].collected)
                seconds = _MERGE_SECONDS + size * (parts + 2) / _BYTES_PER_SECOND
                return seconds, "merging", f"{owed.campaign}/{owed.round}"
            case Judge():
                return _JUDGING_SECONDS, "judging", f"{owed.campaign}/{owed.round}"
        raise AssertionError(f"unknown work {owed!r}")

    def _span(self, kind: str, subject: str, seconds: float) -> None:
        now = self.host.true_time
        self._happened(
            Happening(at=now, place="coordinator", kind=kind, subject=subject, until=now + seconds)
        )

    def _moment(self, kind: str, detail: str) -> None:
        self._happened(Happening(at=self.host.true_time, place="coordinator", kind=kind, detail=detail))
