"""How fast half a gigabyte travels between a site and its coordinator, beside what the machine could do at best.

    python benchmarks/transfers.py --megabytes 500 --runs 5

Up and down, in one run and in turn, each over mutual TLS on loopback, server and client a process each:

  ours       our client functions (consortium/transfer.py) and our service over our store: resumable, sha256 at the
             receiver, file fsynced and renamed, folder fsynced
  raw TLS    a TLS socket that does the same work: 1 MiB pieces, sha256 at the receiver, file fsynced and renamed
  gRPC       a byte stream of gRPC without protobuf messages, 1 MiB pieces, the same work at the receiver
  gRPC, null the same into nothing: no digest, no disk
  Flower     arrays of as many bytes between a ServerApp and a ClientApp (benchmarks/flower_transfers.py): no TLS, no
             disk; --flower-runs times, in the same run

The file is random and in the page cache of the sender; what is received is a fresh file each time, deleted after.
Linux only.
"""

import argparse
import asyncio
import hashlib
import multiprocessing
import os
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
from flower_transfers import FlowerMoved
from flower_transfers import measure as measure_flower
from sprachbund.v1 import artifact_pb2_grpc

from consortium.allocator import keep_freed_memory
from consortium.canonical import Fact, encode
from consortium.channels import (
    CHUNK_BYTES,
    SERVER_OPTIONS,
    open_channel,
    peer_identity,
    server_credentials,
)
from consortium.files import move_into_place
from consortium.identity import Authority, Credentials, signing_request
from consortium.ids import Digest, SiteName
from consortium.manifests import FileRef
from consortium.pieces import ArtifactCalls
from consortium.signing import new_key, private_pem
from consortium.store import BlobStore, ref_of
from consortium.transfer import download, upload
from coordinator.artifacts import ArtifactService
from coordinator.errors_on_wire import ErrorsOnWire

KINDS = ("raw TLS", "ours", "gRPC", "gRPC, null")
_UP, _DOWN = b"u", b"d"


class Keys(Fact):
    """Both ends' certificates; PEM."""

    authority: bytes
    server: tuple[bytes, bytes]
    site: tuple[bytes, bytes]


class Moved(Fact):
    """One transfer."""

    kind: str
    way: str
    seconds: float
    megabytes_per_second: float
    server_cpu_seconds: float
    client_cpu_seconds: float


def make_keys() -> Keys:
    authority, key = Authority.create("bench", time.time()), new_key()
    server = authority.coordinator(["127.0.0.1"], time.time())
    site = authority.site(signing_request(SiteName("site"), key), SiteName("site"), time.time())
    return Keys(
        authority=authority.pem,
        server=(server.certificate, server.key),
        site=(site, private_pem(key)),
    )


def receive(pieces: Iterator[bytes | memoryview], place: Path | None) -> str:
    """What every receiver does but ours: hash, write, fsync, rename, fsync the folder. ``None``: nothing at all."""
    if place is None:
        for _ in pieces:
            pass
        return ""
    sha256, partial = hashlib.sha256(), place.with_suffix(".partial")
    with open(partial, "wb", buffering=0) as file:
        for piece in pieces:
            sha256.update(piece)
            file.write(piece)
        os.fsync(file.fileno())
    move_into_place(partial, place)
    return sha256.hexdigest()


def pieces_of(path: Path) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]


# --- raw TLS --------------------------------------------------------------------------------------------


def tls(keys: Keys, folder: Path, is_server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_REQUIRED
    own = folder / ("server.pem" if is_server else "site.pem")
    own.write_bytes(b"".join(keys.server if is_server else keys.site))
    context.load_cert_chain(own)
    context.load_verify_locations(cadata=keys.authority.decode())
    return context


def from_socket(connection: ssl.SSLSocket, size: int) -> Iterator[memoryview]:
    buffer, done = memoryview(bytearray(CHUNK_BYTES)), 0
    while done < size:
        filled = 0
        wanted = min(CHUNK_BYTES, size - done)
        while filled < wanted:
            filled += connection.recv_into(buffer[filled:wanted])
        done += filled
        yield buffer[:filled]


def raw_server(folder: Path, keys: Keys, file: Path, tell: Callable[[int], None]) -> None:
    context, size = tls(keys, folder, True), file.stat().st_size
    with socket.create_server(("127.0.0.1", 0)) as listening:
        tell(listening.getsockname()[1])
        while True:
            plain, _ = listening.accept()
            with context.wrap_socket(plain, server_side=True) as connection:
                if connection.recv(1) == _UP:
                    place = folder / "up"
                    connection.sendall(receive(from_socket(connection, size), place).encode())
                    place.unlink()
                else:
                    for piece in pieces_of(file):
                        connection.sendall(piece)


async def raw_client(folder: Path, keys: Keys, file: Path, port: int, way: str, digest: str) -> None:
    context, size = tls(keys, folder, False), file.stat().st_size
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as connection:
        if way == "up":
            connection.sendall(_UP)
            for piece in pieces_of(file):
                connection.sendall(piece)
            assert connection.recv(64).decode() == digest
        else:
            connection.sendall(_DOWN)
            assert receive(from_socket(connection, size), folder / "down") == digest
            (folder / "down").unlink()


# --- gRPC without messages ------------------------------------------------------------------------------


async def bare_server(folder: Path, keys: Keys, file: Path, tell: Callable[[int], None], null: bool) -> None:
    async def up(pieces: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
        got = await receive_async(pieces, None if null else folder / "up")
        (folder / "up").unlink(missing_ok=True)
        return got.encode() or b"-"

    async def down(request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        with open(file, "rb", buffering=0) as opened:
            while data := await asyncio.to_thread(opened.read, CHUNK_BYTES):
                yield data

    server = grpc.aio.server(options=SERVER_OPTIONS)
    methods = {
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Down": grpc.unary_stream_rpc_method_handler(down),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Bytes", methods),))
    tell(server.add_secure_port("127.0.0.1:0", server_credentials(keys.authority, Credentials(*keys.server))))
    await server.start()
    await server.wait_for_termination()


async def receive_async(pieces: AsyncIterator[bytes], place: Path | None) -> str:
    if place is None:
        async for _ in pieces:
            pass
        return ""
    sha256, partial = hashlib.sha256(), place.with_suffix(".partial")

    def take(piece: bytes) -> None:
        sha256.update(piece)
        file.write(piece)

    with open(partial, "wb", buffering=0) as file:
        async for piece in pieces:
            await asyncio.to_thread(take, piece)
        await asyncio.to_thread(os.fsync, file.fileno())
    move_into_place(partial, place)
    return sha256.hexdigest()


async def bare_client(
    folder: Path, keys: Keys, file: Path, port: int, way: str, digest: str, null: bool
) -> None:
    async with open_channel(f"127.0.0.1:{port}", keys.authority, Credentials(*keys.site)) as channel:
        if way == "up":

            async def sent() -> AsyncIterator[bytes]:
                with open(file, "rb", buffering=0) as opened:
                    while data := await asyncio.to_thread(opened.read, CHUNK_BYTES):
                        yield data

            answer = await channel.stream_unary("/bare.Bytes/Up")(sent())
            assert null or answer.decode() == digest
        else:
            pieces = channel.unary_stream("/bare.Bytes/Down")(b"")
            got = await receive_async(pieces, None if null else folder / "down")
            assert null or got == digest
            (folder / "down").unlink(missing_ok=True)


# --- ours -----------------------------------------------------------------------------------------------


async def our_server(folder: Path, keys: Keys, file: Path, tell: Callable[[int], None]) -> None:
    store = BlobStore(folder / "store")
    store.put_file(file)
    kept = ref_of(file).digest

    def allowed(*_: Any) -> tuple[bool, str]:
        return True, "a benchmark"

    server = grpc.aio.server(interceptors=[ErrorsOnWire()], options=SERVER_OPTIONS)
    service = ArtifactService(
        store, lambda context: peer_identity(context.auth_context(), "bench", time.time()), allowed, allowed
    )
    artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(service, server)

    async def forget(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Whether the blob is to be here: for a download, and not for an upload."""
        if request == _UP:
            store.remove(kept)
        elif not store.has(kept):
            store.put_file(file)
        return b"-"

    methods = {"Forget": grpc.unary_unary_rpc_method_handler(forget, bytes)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Test", methods),))
    tell(server.add_secure_port("127.0.0.1:0", server_credentials(keys.authority, Credentials(*keys.server))))
    await server.start()
    await server.wait_for_termination()


async def our_client(folder: Path, keys: Keys, file: Path, port: int, way: str, digest: str) -> None:
    ref = FileRef(digest=Digest(digest), size=file.stat().st_size)
    async with open_channel(f"127.0.0.1:{port}", keys.authority, Credentials(*keys.site)) as channel:
        stub = ArtifactCalls(channel)
        if way == "up":
            await upload(stub, file, ref)
        else:
            store = BlobStore(folder / "site")
            await download(stub, ref, store)
            store.remove(ref.digest)


async def prepare(keys: Keys, port: int, way: str) -> None:
    async with open_channel(f"127.0.0.1:{port}", keys.authority, Credentials(*keys.site)) as channel:
        await channel.unary_unary("/bench.Test/Forget")(_UP if way == "up" else _DOWN)


# --- both ends, each in a process of its own ------------------------------------------------------------


def serve(kind: str, folder: Path, keys: Keys, file: Path, pipe: Connection) -> None:
    keep_freed_memory()
    if kind == "raw TLS":
        raw_server(folder, keys, file, pipe.send)
    elif kind == "ours":
        asyncio.run(our_server(folder, keys, file, pipe.send))
    else:
        asyncio.run(bare_server(folder, keys, file, pipe.send, kind.endswith("null")))


def call(kind: str, folder: Path, keys: Keys, file: Path, port: int, pipe: Connection, digest: str) -> None:
    """Carry out transfers as they are ordered; tells seconds and the process's peak memory."""
    keep_freed_memory()

    async def one(way: str) -> float:
        if kind == "ours":
            await prepare(keys, port, way)
        began = time.perf_counter()
        if kind == "raw TLS":
            await raw_client(folder, keys, file, port, way, digest)
        elif kind == "ours":
            await our_client(folder, keys, file, port, way, digest)
        else:
            await bare_client(folder, keys, file, port, way, digest, kind.endswith("null"))
        return time.perf_counter() - began

    async def all_of_them() -> None:
        while (way := await asyncio.to_thread(pipe.recv)) is not None:
            seconds = await one(way)
            pipe.send((seconds, peak_mib(os.getpid())))

    asyncio.run(all_of_them())


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


class Pair:
    """A server and a client of one kind, and how to let them move the file once."""

    def __init__(self, kind: str, folder: Path, keys: Keys, file: Path, digest: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.kind, folder = kind, folder / kind.replace(", ", "-").replace(" ", "-")
        folder.mkdir()
        mine, theirs = spawn.Pipe()
        self.server = spawn.Process(target=serve, args=(kind, folder, keys, file, theirs), daemon=True)
        self.server.start()
        port = mine.recv()
        self.pipe, theirs = spawn.Pipe()
        self.client = spawn.Process(
            target=call, args=(kind, folder, keys, file, port, theirs, digest), daemon=True
        )
        self.client.start()
        self._size = file.stat().st_size
        self.peaks = (0.0, 0.0)

    def move(self, way: str) -> Moved:
        server, client = cpu_of(self.server.pid or 0), cpu_of(self.client.pid or 0)
        self.pipe.send(way)
        seconds, peak = self.pipe.recv()
        self.peaks = (peak_mib(self.server.pid or 0), peak)
        return Moved(
            kind=self.kind,
            way=way,
            seconds=seconds,
            megabytes_per_second=self._size / 1e6 / seconds,
            server_cpu_seconds=cpu_of(self.server.pid or 0) - server,
            client_cpu_seconds=cpu_of(self.client.pid or 0) - client,
        )

    def stop(self) -> None:
        self.server.kill()
        self.client.kill()


def table(moved: list[Moved], pairs: list[Pair], flower: list[FlowerMoved]) -> str:
    lines = [
        "| way | what | MB/s, median (least to most) | ours / it | server CPU s | client CPU s | peak MiB, each |",
        "|---|---|---|---|---|---|---|",
    ]
    for way in ("up", "down"):
        ours = speed(moved, "ours", way)
        for pair in pairs:
            these = [m for m in moved if (m.kind, m.way) == (pair.kind, way)]
            speeds = sorted(m.megabytes_per_second for m in these)
            cpu = [
                statistics.median(getattr(m, f"{side}_cpu_seconds") for m in these)
                for side in ("server", "client")
            ]
            lines.append(
                f"| {way} | {pair.kind} | {statistics.median(speeds):.0f} ({speeds[0]:.0f} to {speeds[-1]:.0f}) "
                f"| {ours / statistics.median(speeds):.2f} | {cpu[0]:.2f} | {cpu[1]:.2f} "
                f"| {pair.peaks[0]:.0f} / {pair.peaks[1]:.0f} |"
            )
        if by_flower := sorted(
            (one for one in flower if one.way == way), key=lambda one: one.megabytes_per_second
        ):
            middle = statistics.median(one.megabytes_per_second for one in by_flower)
            most = [
                max(getattr(one, f"{side}_peak_mib") for one in by_flower) for side in ("server", "client")
            ]
            lines.append(
                f"| {way} | Flower | {middle:.1f} ({by_flower[0].megabytes_per_second:.1f} to "
                f"{by_flower[-1].megabytes_per_second:.1f}) | {ours / middle:.1f} | | | {most[0]:.0f} / {most[1]:.0f} |"
            )
    return "\n".join(lines)


def speed(moved: list[Moved], kind: str, way: str) -> float:
    return statistics.median(m.megabytes_per_second for m in moved if (m.kind, m.way) == (kind, way))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--flower-runs", type=int, default=1, help="0: without; about a minute each")
    parser.add_argument("--workdir", type=Path, help="default: a temporary folder")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.workdir) as name:
        folder, keys = Path(name), make_keys()
        file = folder / "file"
        with open(file, "wb") as made:
            for _ in range(arguments.megabytes):
                made.write(os.urandom(1_000_000))
            os.fsync(made.fileno())
        digest = ref_of(file).digest
        pairs, moved = [Pair(kind, folder, keys, file, digest) for kind in KINDS], []
        for run in range(arguments.runs + 1):  # the first is a warm-up
            for way in ("up", "down"):
                for pair in pairs:
                    one = pair.move(way)
                    if run:
                        moved.append(one)
                    print(
                        f"{run} {one.way:4} {one.kind:10} {one.megabytes_per_second:7.0f} MB/s",
                        file=sys.stderr,
                    )
        for pair in pairs:
            pair.stop()
        (folder / "flower").mkdir()
        flower = measure_flower(folder / "flower", arguments.megabytes, arguments.flower_runs)
        text = table(moved, pairs, flower)
    print(encode({"moved": moved, "flower": flower}).decode() if arguments.json else text)
    print(f"load {os.getloadavg()[0]:.1f}", file=sys.stderr)


if __name__ == "__main__":
    main()
