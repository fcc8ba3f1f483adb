"""The coordinator as a process: ledger, driver, worker, clock ticks and two gRPC ports."""

import asyncio
import gc
import json
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sprachbund.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    artifact_pb2,
    artifact_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    enrolment_pb2_grpc,
    flower_pb2,
    flower_pb2_grpc,
    site_pb2,
    site_pb2_grpc,
)

from consortium.channels import ENROLMENT_OPTIONS, SERVER_OPTIONS, enrolment_credentials, server_credentials
from consortium.errors import BadInput, Unavailable
from consortium.files import disk_errors, make_private_folder, write_bytes_atomically
from consortium.identity import Identity
from consortium.ids import Digest
from coordinator.artifacts import ArtifactService
from coordinator.chain import AnyLedger
from coordinator.config import CoordinatorConfig
from coordinator.core.access import may_read, may_write
from coordinator.core.commands import LetGo, Tick
from coordinator.core.keeping import why_gone
from coordinator.courier import Courier
from coordinator.driver import Driver
from coordinator.errors_on_wire import ErrorsOnWire
from coordinator.founding import PORTS_FILE, Keys, tell_people
from coordinator.guard import Guard, caller
from coordinator.health import Health
from coordinator.leading import Listen, WhileLeading, take_the_lead, until_lost
from coordinator.making import Interest
from coordinator.room import notices
from coordinator.services.admin import AdminService
from coordinator.services.audit import AuditService, ReleaseService
from coordinator.services.enrolment import EnrolmentService
from coordinator.services.flower import FlowerService
from coordinator.services.site import SiteService
from coordinator.stores import open_store, places_in
from coordinator.worker import Worker
from coordinator.workshop import Workshop
from policies.membership import load_membership

_log = logging.getLogger(__name__)
_STRANGERS_MAX = 50  # calls at once on the port that asks for no certificate; more are told to come again
_FULL_LOOKS = 1000  # of Python's middle looks for garbage until one among everything
_KEEPING_SECONDS = 3600.0  # between looks at the disk, and at what the rule of keeping lets go
_GRACE_SECONDS = 0.5  # for calls in flight when we are asked to stop: agents repeat what is cut


async def serve(config: CoordinatorConfig) -> None:
    """Run until SIGTERM or SIGINT; where several coordinators share a ledger, lead or stand by.

    Writes the ports it got to ``home/ports.json`` once it answers.
    """
    home = Path(config.home)
    with disk_errors(home):
        make_private_folder(home)
    keys = Keys.load(home, config.names, time.time())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def listen(main: grpc.aio.Server, enrolment: grpc.aio.Server) -> dict[str, int]:
        both_ways = server_credentials(keys.authority.pem, keys.server)
        return {
            "port": _listen(main, config.listen, config.port, both_ways),
            "enrolment_port": _listen(
                enrolment, config.listen, config.enrolment_port, enrolment_credentials(keys.server)
            ),
        }

    thresholds = gc.get_threshold()
    while not stop.is_set():
        ledger = await take_the_lead(places_in(config).ledger, stop, listen)
        if ledger is not None:
            with ledger:
                try:
                    await _lead(config, keys, ledger, stop, listen)
                finally:
                    gc.unfreeze()
                    gc.set_threshold(*thresholds)


def _look_for_garbage_seldom() -> None:
    """Everything waits while Python looks for garbage among all that there is: 100 ms with a thousand sites.

    So what was read at the start is left out, for it stays for good, and the rest is looked through about once an hour
    instead of every ten seconds; it held 0 to 150 objects each time (benchmarks/load.py, 1,000 agents).
    """
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _FULL_LOOKS)


async def _lead(
    config: CoordinatorConfig, keys: Keys, ledger: AnyLedger, stop: asyncio.Event, listen: Listen
) -> None:
    """Be the coordinator until ``stop`` is set, or the ledger is another's."""
    home = Path(config.home)
    driver = Driver(ledger, keys.ledger)
    if driver.state.consortium != config.consortium:
        raise BadInput(
            f"{ledger.place}: is the ledger of consortium {driver.state.consortium!r}, the config says "
            f"{config.consortium!r}; put the right one there, or the copy that was kept of it"
            if ledger.head.seq
            else f"{ledger.place}: a ledger in which nothing stands, but {home} has keys: it was lost, or never "
            "founded; put the copy there that was kept of it, with its -wal file, or begin with `sprachbund init`"
        )
    _look_for_garbage_seldom()
    workshop = Workshop.at(home, open_store(places_in(config)))
    membership = load_membership(config.membership) if config.membership else load_membership()
    sites = SiteService(driver, keys, config)
    enrolments = EnrolmentService(driver, keys, config)
    courier = Courier(driver, keys, config, workshop.store, sites, enrolments)
    admin = AdminService(driver, membership, config, courier.carry)
    main = main_server(driver, config, workshop, sites, admin, courier)
    enrolment = grpc.aio.server(
        interceptors=[ErrorsOnWire(), WhileLeading(driver.still_leads)],
        options=ENROLMENT_OPTIONS,
        maximum_concurrent_rpcs=_STRANGERS_MAX,
    )
    enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(enrolments, enrolment)
    ports = listen(main, enrolment)

    async def tick() -> None:  # a plain function would run in a thread, and the driver belongs to this one
        driver.execute(Tick())

    async def keep_to_the_rule() -> None:
        if config.keep.lets_go:
            driver.execute(LetGo(rule=config.keep))
        told, driver.notices = driver.notices, await asyncio.to_thread(notices, places_in(config))
        for notice in sorted(set(driver.notices) - set(told)):
            _log.warning("%s", notice)

    scheduler = AsyncIOScheduler(timezone="UTC")
    for job, seconds in ((tick, config.tick_seconds), (keep_to_the_rule, _KEEPING_SECONDS)):
        scheduler.add_job(job, "interval", seconds=seconds, max_instances=1, coalesce=True)
    await main.start()
    await enrolment.start()
    scheduler.start()
    stopping = asyncio.create_task(stop.wait())
    losing = asyncio.create_task(until_lost(driver.still_leads))
    work = Worker(driver, workshop)
    worker = asyncio.create_task(work.run())
    try:
        driver.execute(Tick())
        await keep_to_the_rule()
        write_bytes_atomically(home / PORTS_FILE, json.dumps(ports, sort_keys=True).encode())
        tell_people(config)
        _log.info("coordinator of %s is ready", driver.state.consortium, extra={"ports": ports})
        await asyncio.wait({stopping, losing, worker}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():  # nobody asked for an end: who leads next goes on with what is being made
            work.then = Interest.LEFT
        if worker.done():  # it never ends by itself; without it rounds would stand still, so fail aloud
            await worker
        if losing.done():  # quietly if another leads now, aloud if the ledger's file was replaced
            await losing
    except Unavailable:
        work.then = Interest.LEFT
        if not losing.done() and _leads(driver):
            raise
    finally:
        scheduler.shutdown(wait=False)
        stopping.cancel()
        losing.cancel()
        worker.cancel()
        ends = worker, main.stop(_GRACE_SECONDS), enrolment.stop(_GRACE_SECONDS)
        await asyncio.gather(*ends, return_exceptions=True)
        _log.info("stopped; the ledger ends at %d", driver.sequence)


def _leads(driver: Driver) -> bool:
    try:
        driver.still_leads()
    except Unavailable:
        return False
    return True


def main_server(
    driver: Driver,
    config: CoordinatorConfig,
    workshop: Workshop,
    sites: SiteService,
    admin: AdminService,
    courier: Courier,
    make_server: Callable[..., Any] = grpc.aio.server,
) -> Any:
    """The port for those with a certificate, everything answered that they may ask.

    make_server  takes ``interceptors`` and ``options``, as gRPC's own does; a simulation has another
    """

    def readable(who: Identity, digest: Digest) -> tuple[bool, str]:
        verdict = may_read(driver.state, who.role, who.name, digest)
        return verdict.allowed, verdict.reason

    def writable(who: Identity, digest: Digest, size: int) -> tuple[bool, str]:
        verdict = may_write(driver.state, who.role, who.name, size, config.upload_bytes_max)
        return verdict.allowed, verdict.reason

    server = make_server(
        interceptors=[
            ErrorsOnWire(),
            WhileLeading(driver.still_leads),
            Guard(driver, config.calls_per_second),
        ],
        options=SERVER_OPTIONS,
    )
    site_pb2_grpc.add_SiteServiceServicer_to_server(sites, server)
    artifacts = ArtifactService(
        workshop.store,
        caller,
        readable,
        writable,
        courier.act_for,
        courier.may_carry,
        lambda digest: why_gone(driver.state, digest),
    )
    artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(artifacts, server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    audit_pb2_grpc.add_AuditServiceServicer_to_server(AuditService(driver), server)
    flower_pb2_grpc.add_FlowerServiceServicer_to_server(FlowerService(driver, workshop.store), server)
    audit_pb2_grpc.add_ReleaseServiceServicer_to_server(ReleaseService(driver), server)
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    names = [
        module.DESCRIPTOR.services_by_name[service].full_name
        for module, service in (
            (admin_pb2, "AdminService"),
            (artifact_pb2, "ArtifactService"),
            (audit_pb2, "AuditService"),
            (flower_pb2, "FlowerService"),
            (audit_pb2, "ReleaseService"),
            (health_pb2, "Health"),
            (site_pb2, "SiteService"),
        )
    ]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    return server


def _listen(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials) -> int:
    try:
        return int(server.add_secure_port(f"{host}:{port}", credentials))
    except RuntimeError as error:
        raise Unavailable(
            f"{host}:{port} cannot be listened on ({error}); is another coordinator running? choose another port"
        ) from error
