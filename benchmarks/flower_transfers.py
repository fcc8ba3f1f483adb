"""How fast Flower's own deployment moves arrays between its ServerApp and a ClientApp, on one machine.

    python benchmarks/flower_transfers.py --megabytes 500 --runs 3

A SuperLink with its state in memory, one SuperNode, an app of two functions: ``down`` is a message with arrays that is
answered without, ``up`` the other way round. Flower's defaults, no TLS (it has no mutual one), nothing stored. Arrays
are random and new each time, because Flower sends no object twice; making them is not counted. Linux only.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consortium.canonical import Fact
from consortium.ports import free_port

_BIN = Path(sys.executable).parent
_PATIENCE_SECONDS = 120.0

_PROJECT = """\
[project]
name = "transfers"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "transfers.apps:server"
clientapp = "transfers.apps:client"

[tool.flwr.app.config]
megabytes = 0
runs = 0
told = ""
"""

_APPS = """\
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

NUM_ARRAYS = 20
server = ServerApp()  # a line each: Flower reads the file without running it
client = ClientApp()


def arrays(megabytes, seed):
    size = megabytes * 1_000_000 // 4 // NUM_ARRAYS
    dice = np.random.default_rng(seed)
    return ArrayRecord([dice.random(size, np.float32) for _ in range(NUM_ARRAYS)])


def peak_mib():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@server.main()
def main(grid, context):
    config = context.run_config
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    with open(config["told"], "a") as told:
        for run in range(config["runs"]):
            for way in ("up", "down"):
                order = {"way": way, "megabytes": config["megabytes"], "seed": 1000 + run}
                content = RecordDict({"order": ConfigRecord(order)})
                if way == "down":
                    content["arrays"] = arrays(config["megabytes"], run)
                message = Message(content, dst_node_id=nodes[0], message_type="query")
                began = time.perf_counter()
                [reply] = grid.send_and_receive([message])
                took = time.perf_counter() - began
                answer = reply.content["told"]
                line = {"way": way, "seconds": took - answer["seconds"], "peaks": [peak_mib(), answer["peak"]]}
                print(json.dumps(line), file=told, flush=True)
        print(json.dumps({"way": "end"}), file=told, flush=True)


@client.query()
def move(message, context):
    began, order, content = time.perf_counter(), message.content["order"], RecordDict()
    if order["way"] == "up":
        content["arrays"] = arrays(order["megabytes"], order["seed"])
    content["told"] = ConfigRecord({"seconds": time.perf_counter() - began, "peak": peak_mib()})
    return Message(content, reply_to=message)
"""


class FlowerMoved(Fact):
    """One transfer by Flower."""

    way: str
    seconds: float
    megabytes_per_second: float
    server_peak_mib: float  #: of the SuperLink and the ServerApp together
    client_peak_mib: float  #: of the SuperNode and the ClientApp together


def measure(folder: Path, megabytes: int, runs: int) -> list[FlowerMoved]:
    """Move arrays of so many megabytes up and down in turn, so many times. Raises SystemExit if Flower does not."""
    if not runs:
        return []
    app, told = folder / "app", folder / "told.jsonl"
    (app / "transfers").mkdir(parents=True)
    (app / "pyproject.toml").write_text(_PROJECT)
    (app / "LICENSE").write_text("Apache-2.0\n")
    (app / "transfers" / "__init__.py").write_text("")
    (app / "transfers" / "apps.py").write_text(_APPS)
    link, node = free_port(), free_port()
    home = folder / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
    }
    superlink = [
        "flower-superlink",
        "--insecure",
        "--port",
        str(link),
        "--disable-runtime-dependency-installation",
    ]
    supernode = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}", "--port", str(node)]
    with (
        _running(superlink, environment, folder / "superlink.log") as server,
        _running(supernode, environment, folder / "supernode.log") as client,
    ):
        _await(link)
        config = f"megabytes={megabytes} runs={runs} told='{told}'"
        subprocess.run(
            [_BIN / "flwr", "run", str(app), "here", "--run-config", config],
            env=environment, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        found = []
        for line in _lines(told, folder):
            found.append(
                FlowerMoved(
                    way=line["way"],
                    seconds=line["seconds"],
                    megabytes_per_second=megabytes / line["seconds"],
                    server_peak_mib=line["peaks"][0] + _peak_mib(server.pid),
                    client_peak_mib=line["peaks"][1] + _peak_mib(client.pid),
                )
            )
    return found


def _lines(told: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """What the ServerApp tells, until it has ended."""
    seen, heard_at = 0, time.monotonic()
    while True:
        lines = told.read_text().splitlines() if told.exists() else []
        for line in map(json.loads, lines[seen:]):
            seen, heard_at = seen + 1, time.monotonic()
            if line["way"] == "end":
                return
            yield line
        if time.monotonic() - heard_at > _PATIENCE_SECONDS * (1 if seen == 0 else 10):
            logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.log")))
            raise SystemExit(f"Flower moved nothing:\n{logs}")
        time.sleep(0.2)


@contextlib.contextmanager
def _running(
    command: list[str], environment: dict[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    with open(log, "wb") as file:
        child = subprocess.Popen(
            [_BIN / command[0], *command[1:]],
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            yield child
        finally:
            os.killpg(child.pid, 15)  # with the processes of its apps
            child.wait()


def _await(port: int) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _peak_mib(pid: int) -> float:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for one in measure(Path(folder), arguments.megabytes, arguments.runs):
            print(
                f"{one.way:5}{one.seconds:8.1f} s{one.megabytes_per_second:8.1f} MB/s  peak MiB "
                f"{one.server_peak_mib:.0f} / {one.client_peak_mib:.0f}  load {os.getloadavg()[0]:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
