"""Several coordinators as processes, on one ledger in PostgreSQL and one bucket, each with a home of its own."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import yaml
from free_ports import free_port
from grpc_health.v1 import health_pb2, health_pb2_grpc
from real_coordinator import Admin, Consortium

from consortium.canonical import replace
from consortium.channels import open_channel
from consortium.errors import Unavailable
from consortium.identity import Credentials
from coordinator.moving import move_blobs, move_ledger
from coordinator.stores import open_store, places_in

PATIENCE_SECONDS = 200.0


class Replicas(Consortium):
    """A consortium at rest becomes one of ``number`` coordinators; the sites know all of them."""

    def __init__(self, folder: Path, number: int, ledger: str, bucket: str, endpoint: str) -> None:
        super().__init__(folder)
        self.ports = [(free_port(), free_port()) for _ in range(number)]
        before = places_in(self.config)
        self.config = replace(
            self.config,
            ledger=ledger,
            store=bucket,
            s3_endpoint=endpoint,
            addresses=tuple(f"127.0.0.1:{port}" for port, _ in self.ports),
            enrolment_addresses=tuple(f"127.0.0.1:{port}" for _, port in self.ports),
        )
        self.moved = move_ledger(before.ledger, ledger)
        move_blobs(open_store(before), open_store(places_in(self.config)))
        Path(before.ledger).unlink()
        shutil.rmtree(self.home / "store")  # what is left of it lies in the bucket
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * number
        for place, (port, enrolment_port) in enumerate(self.ports):
            home = folder / f"home-{place}"
            shutil.copytree(self.home, home)
            config = {
                "consortium": self.config.consortium,
                "home": str(home),
                "ledger": ledger,
                "store": bucket,
                "s3_endpoint": endpoint,
                "listen": "127.0.0.1",
                "port": port,
                "enrolment_port": enrolment_port,
                "addresses": list(self.config.addresses),
                "enrolment_addresses": list(self.config.enrolment_addresses),
                "tick_seconds": 0.1,
            }
            (folder / f"coordinator-{place}.yaml").write_text(yaml.safe_dump(config))

    def start(self, place: int) -> None:
        command = [sys.executable, "-m", "console.main", "coordinator", "run"]
        with open(self.log(place), "ab") as log:
            self.processes[place] = subprocess.Popen(
                [*command, str(self.folder / f"coordinator-{place}.yaml")], stdout=log, stderr=log
            )

    def log(self, place: int) -> Path:
        return self.folder / f"coordinator-{place}.log"

    def signal(self, place: int, number: int) -> None:
        process = self.processes[place]
        assert process is not None
        os.kill(process.pid, number)
        if number == signal.SIGKILL:
            process.wait()

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        try:
            for place in range(len(self.ports)):
                self.start(place)
            yield
        finally:
            for process in filter(None, self.processes):
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process.wait()

    def channel(self, own: Credentials | None) -> grpc.aio.Channel:
        addresses = self.config.addresses if own else self.config.enrolment_addresses
        return open_channel(",".join(addresses), self.keys.authority.pem, own)

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator[Admin]:
        """Once one answers who leads: it is looked for among all, and each is given few seconds to say so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            async with super().admin() as admin:
                try:
                    await admin.view()
                except Unavailable:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.1)
                    continue
                yield admin
                return

    async def health(self, place: int) -> str:
        """SERVING, NOT_SERVING, or "" if nobody answers."""
        target = self.config.addresses[place]
        async with open_channel(target, self.keys.authority.pem, self.person("admin", "admin")) as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=5.0
                )
            except grpc.RpcError:
                return ""
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    async def says(self, place: int) -> str:
        """SERVING or NOT_SERVING, once it answers: it may still be starting, or slow."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (word := await self.health(place)):
                await asyncio.sleep(0.1)
        return word

    async def leader(self, other_than: int | None = None) -> int:
        """Who serves, once somebody does; never two."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            found = await asyncio.gather(*(self.health(place) for place in range(len(self.ports))))
            serving = [place for place, word in enumerate(found) if word == "SERVING" and place != other_than]
            if len(serving) > 1:  # one may have led until the other did; then it says so no more
                serving = [place for place in serving if await self.health(place) == "SERVING"]
            assert len(serving) <= 1, found
            if serving:
                return serving[0]
            await asyncio.sleep(0.1)
        raise AssertionError(
            "nobody leads: " + "".join(self.log(n).read_text() for n in range(len(self.ports)))
        )

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator[int]:
        """All of them run; who leads."""
        with self.started():
            yield await self.leader()
