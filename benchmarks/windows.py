"""What a transfer costs in speed if less of it may be in the air: gRPC's own window beside fixed ones.

    python benchmarks/windows.py --megabytes 60 --runs 3

Our own client and service (benchmarks/transfers.py), up and down, each over mutual TLS: on loopback as it is, and
through a relay that delays each way by --delay-ms, as a line between two countries does. What is in the air when a
process dies is sent again, so a window of one chunk would bound that to one chunk. Linux only.
"""

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import transfers
from transfers import Keys, make_keys, our_client, our_server, prepare

from consortium import channels
from consortium.allocator import keep_freed_memory
from consortium.canonical import Fact, encode
from consortium.store import ref_of

GROWS = 0  #: in place of a size: gRPC's own window, which grows with the line
_PIECE_BYTES = 64 << 10
_MIB = 1 << 20


class Moved(Fact):
    """One transfer."""

    window: int  #: bytes; 0: gRPC's own
    round_trip_ms: float
    way: str
    megabytes_per_second: float


def hold(window: int) -> None:
    """No more than so many bytes of a stream in the air, at this process's end."""
    if window == GROWS:
        return
    fixed = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", window))
    channels.CHANNEL_OPTIONS = (*channels.CHANNEL_OPTIONS, *fixed)
    transfers.SERVER_OPTIONS = (*transfers.SERVER_OPTIONS, *fixed)


def serve(window: int, folder: Path, keys: Keys, file: Path, pipe: Connection) -> None:
    hold(window)
    keep_freed_memory()
    asyncio.run(our_server(folder, keys, file, pipe.send))


def call(window: int, folder: Path, keys: Keys, file: Path, ports: tuple[int, int], pipe: Connection) -> None:
    """Carry out transfers as they are ordered; tells their seconds. ``ports``: the server's, and the line to it."""
    hold(window)
    keep_freed_memory()
    digest = ref_of(file).digest

    async def one(way: str) -> float:
        await prepare(keys, ports[0], way)
        began = time.perf_counter()
        await our_client(folder, keys, file, ports[1], way, digest)
        return time.perf_counter() - began

    while (way := pipe.recv()) is not None:
        pipe.send(asyncio.run(one(way)))


def relay(port: int, delay: float, pipe: Connection) -> None:
    """A line to ``port`` on which everything takes ``delay`` seconds each way; tells where it begins."""

    async def late(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def arrive() -> None:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(max(0.0, due - clock()))
                if not data:
                    sink.close()
                    return
                sink.write(data)
                await sink.drain()

        arriving = asyncio.ensure_future(arrive())
        try:
            while data := await source.read(_PIECE_BYTES):
                under_way.put_nowait((clock() + delay, data))
        finally:
            under_way.put_nowait((clock() + delay, b""))
            await arriving

    async def accept(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, onward = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(late(near, onward), late(far, back), return_exceptions=True)

    async def run() -> None:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def measure(folder: Path, file: Path, keys: Keys, window: int, delay_ms: float, runs: int) -> list[Moved]:
    """``runs`` transfers each way, after one that does not count."""
    spawn = multiprocessing.get_context("spawn")
    folder.mkdir()
    mine, theirs = spawn.Pipe()
    processes = [spawn.Process(target=serve, args=(window, folder, keys, file, theirs), daemon=True)]
    processes[0].start()
    port = line = mine.recv()
    if delay_ms:
        mine, theirs = spawn.Pipe()
        processes.append(spawn.Process(target=relay, args=(port, delay_ms / 1000.0, theirs), daemon=True))
        processes[-1].start()
        line = mine.recv()
    mine, theirs = spawn.Pipe()
    processes.append(
        spawn.Process(target=call, args=(window, folder, keys, file, (port, line), theirs), daemon=True)
    )
    processes[-1].start()
    moved = []
    for run in range(runs + 1):
        for way in ("up", "down"):
            mine.send(way)
            speed = file.stat().st_size / 1e6 / mine.recv()
            print(f"{_named(window)}, {2 * delay_ms:g} ms, {way}: {speed:.0f} MB/s", file=sys.stderr)
            if run:
                moved.append(
                    Moved(window=window, round_trip_ms=2 * delay_ms, way=way, megabytes_per_second=speed)
                )
    for process in processes:
        process.kill()
        process.join()
    return moved


def table(moved: Sequence[Moved]) -> str:
    """Medians, up and down, a line a window and a column a line."""
    trips = sorted({one.round_trip_ms for one in moved})
    heads = [f"{trip:g} ms there and back" if trip else "loopback" for trip in trips]
    lines = [
        f"| window | {' | '.join(f'{head}, up and down, MB/s' for head in heads)} |",
        "|---" * (len(trips) + 1) + "|",
    ]
    for window in dict.fromkeys(one.window for one in moved):
        cells = []
        for trip in trips:
            these = [one for one in moved if (one.window, one.round_trip_ms) == (window, trip)]
            speeds = [
                statistics.median(one.megabytes_per_second for one in these if one.way == way)
                for way in ("up", "down")
            ]
            cells.append(f"{speeds[0]:.0f}, {speeds[1]:.0f}")
        lines.append(f"| {_named(window)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _named(window: int) -> str:
    return "gRPC's own, which grows" if window == GROWS else f"{window / _MIB:g} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--windows", type=int, nargs="+", default=[GROWS, 4 * _MIB, _MIB], help="bytes; 0: gRPC's own"
    )
    parser.add_argument("--delay-ms", type=float, nargs="+", default=[0.0, 20.0], help="each way")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, keys, moved = Path(name), make_keys(), list[Moved]()
        file = folder / "file"
        file.write_bytes(os.urandom(arguments.megabytes * 1_000_000))
        for delay in arguments.delay_ms:
            for window in arguments.windows:
                place = folder / f"{delay:g}-{window}"
                moved += measure(place, file, keys, window, delay, arguments.runs)
    print(encode(moved).decode() if arguments.json else table(moved))
    print(f"load {os.getloadavg()[0]:.1f}", file=sys.stderr)


if __name__ == "__main__":
    main()
