"""A coordinator's artifact service behind real mTLS on 127.0.0.1, and a wire that can be cut."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from sprachbund.v1 import artifact_pb2_grpc

from consortium.channels import (
    SERVER_OPTIONS,
    open_channel,
    peer_identity,
    server_credentials,
)
from consortium.identity import Authority, Credentials, Identity, Role, signing_request
from consortium.ids import Digest, SiteName
from consortium.pieces import ArtifactCalls
from consortium.signing import new_key, private_pem
from consortium.store import BlobStore
from consortium.transfer import Retries
from coordinator.artifacts import ArtifactService
from coordinator.errors_on_wire import ErrorsOnWire

QUICK = Retries(attempts=5, first_seconds=0.01, longest_seconds=0.05)
AUTHORITY = Authority.create("balkan", time.time())
SERVER = AUTHORITY.coordinator([], time.time())


def site_credentials(name: str, now: float | None = None, authority: Authority = AUTHORITY) -> Credentials:
    key, site = new_key(), SiteName(name)
    now = time.time() if now is None else now
    return Credentials(authority.site(signing_request(site, key), site, now), private_pem(key))


@dataclass
class CountingStore(BlobStore):
    """Remembers what was appended, and in which thread."""

    root: Path
    appended: list[tuple[str, int, int]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__(self.root)

    def append(self, digest: Digest, owner: str, offset: int, data: bytes) -> int:
        end = super().append(digest, owner, offset, data)
        self.appended.append((owner, offset, end))
        self.threads.add(threading.get_ident())
        return end


@dataclass
class Coordinator:
    """Its rules are plain attributes, so that a test can say them."""

    store: CountingStore
    readable: set[tuple[str, str]] = field(default_factory=set)  #: (caller, digest)
    size_max: int = 64 << 20
    trouble: Exception | None = None  #: raised instead of an answer
    port: int = 0

    def identify(self, context: grpc.aio.ServicerContext) -> Identity:
        if self.trouble:
            raise self.trouble
        return peer_identity(context.auth_context(), "balkan", time.time())

    def may_read(self, caller: Identity, digest: Digest) -> tuple[bool, str]:
        allowed = caller.role is Role.ADMIN or (caller.name, digest) in self.readable
        return allowed, "fine" if allowed else "none of your jobs needs it"

    def may_write(self, caller: Identity, digest: Digest, size: int) -> tuple[bool, str]:
        return size <= self.size_max, f"at most {self.size_max} bytes are accepted"

    @contextlib.asynccontextmanager
    async def serving(
        self, credentials: grpc.ServerCredentials | None = None
    ) -> AsyncIterator["Coordinator"]:
        server = grpc.aio.server(interceptors=[ErrorsOnWire()], options=SERVER_OPTIONS)
        service = ArtifactService(self.store, self.identify, self.may_read, self.may_write)
        artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(service, server)
        self.port = server.add_secure_port(
            "127.0.0.1:0", credentials or server_credentials(AUTHORITY.pem, SERVER)
        )
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)

    @contextlib.asynccontextmanager
    async def stub(
        self, own: Credentials | None, port: int | None = None, authority: Authority = AUTHORITY
    ) -> AsyncIterator[ArtifactCalls]:
        async with open_channel(f"127.0.0.1:{port or self.port}", authority.pem, own) as channel:
            yield ArtifactCalls(channel)


@dataclass
class Wire:
    """A TCP relay that breaks after so many bytes, once for each number in ``cuts``, then holds."""

    target: int
    cuts: list[int]
    broken: int = 0

    @contextlib.asynccontextmanager
    async def relaying(self) -> AsyncIterator[int]:
        tasks: set[asyncio.Task[None]] = set()

        async def accept(near: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
            far, onward = await asyncio.open_connection("127.0.0.1", self.target)
            budget = [self.cuts.pop(0) if self.cuts else None]
            both = [self._pump(near, onward, budget), self._pump(far, answer, budget)]
            tasks.update(asyncio.ensure_future(pump) for pump in both)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, budget: list[int | None]
    ) -> None:
        try:
            while data := await source.read(16_384):
                if budget[0] is not None:
                    budget[0] -= len(data)
                    if budget[0] < 0:
                        self.broken += 1
                        budget[0] = 1 << 60  # it breaks once
                        return
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.transport.abort()


def bytes_of(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)
