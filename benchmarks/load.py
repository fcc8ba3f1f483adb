"""How long a Sync takes when many agents share one coordinator.

    python benchmarks/load.py --agents 200,500,1000,2000 --seconds 120

For each number: founds a consortium of so many enrolled sites with a past (benchmarks/past.py) and a campaign in the
middle of a round, starts the real coordinator as a process, and connects that many agents from a second process: real
gRPC, mutual TLS with each site's own certificate, loopback, one connection each. An agent's Sync is held for up to 30 s
and followed by the next, as the real agent's is. The campaign moves all the time: --changes agents a second tell what
a job used, are preempted and get the job again, or deliver a contribution (uploaded; it is refused, and the job given
anew).

Service time is from the agent's call to its answer, less the time for which the coordinator had nothing to say (which
it tells in the call's trailing metadata: to the moment of the news, so being woken late counts). A prober, one more
site, asks without waiting, ten times a second. Linux only.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from idle_agent import Sample, sample
from past import GPUS, HOUR, Past, live, sync
from sprachbund.v1 import site_pb2, site_pb2_grpc

from consortium.canonical import Fact, decode, encode
from consortium.channels import WAITED, open_channel, user_agent
from consortium.errors import SprachbundError
from consortium.files import write_bytes_atomically
from consortium.identity import Credentials
from consortium.ids import SiteName, digest_of
from consortium.manifests import FileRef
from consortium.pieces import ArtifactCalls
from consortium.transfer import upload
from coordinator.founding import PORTS_FILE

SPRACHBUND = (sys.executable, "-m", "console.main")
WAIT_SECONDS = 30.0
PROBE_SECONDS = 0.1
FILES_MAX = 16_384
KINDS = ("use",) * 6 + ("preempted",) * 3 + ("delivered",)
CONFIG = """\
consortium: past
home: home
listen: 127.0.0.1
names: [127.0.0.1]
port: 0
enrolment_port: 0
"""


class Figures(Fact):
    """What one number of agents cost. Milliseconds are of Sync's service time unless named otherwise."""

    agents: int
    syncs: int
    syncs_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    probe_p50_ms: float
    probe_p99_ms: float
    probe_max_ms: float
    first_p99_ms: float  #: of each agent's first Sync, with its TLS handshake
    errors: int
    events_before: int
    events_per_second: float
    coordinator_cpu_share: float  #: of one core
    clients_cpu_share: float
    coordinator_start_seconds: float
    resident_before_mib: float  #: ready, nobody connected
    resident_after_mib: float
    kib_per_agent: float
    load_average: float


# --- the agents' process --------------------------------------------------------------------------------


class Agent:
    """One site as its coordinator sees it."""

    def __init__(self, name: SiteName, port: int, authority: bytes, own: Credentials, clock: "Clock") -> None:
        self.name = name
        self._clock = clock
        program = user_agent("0.1.0", f"load-{name}")
        self._channel = open_channel(f"127.0.0.1:{port}", authority, own, program=program)
        self._sites: Any = site_pb2_grpc.SiteServiceStub(self._channel)
        self._artifacts: Any = ArtifactCalls(self._channel)
        self._description = description(name)
        self._reports: dict[str, site_pb2.AttemptReport] = {}
        self._revision = 0
        self._changed = asyncio.Event()

    async def run(self, after_seconds: float) -> None:
        await asyncio.sleep(after_seconds)
        while True:
            call = asyncio.ensure_future(self.ask(WAIT_SECONDS))
            changed = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait({call, changed}, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            if self._changed.is_set() and not call.done():
                call.cancel()
            await asyncio.wait({call})
            self._changed.clear()
            await asyncio.sleep(0.2)  # as the real one between two Syncs

    async def ask(self, wait_seconds: float) -> None:
        request = site_pb2.SyncRequest(
            site=self._description,
            attempts=list(self._reports.values()),
            wait=Duration(seconds=int(wait_seconds)),
            seen=self._revision if wait_seconds else 0,
            incarnation=f"load-{self.name}",
        )
        began = time.perf_counter()
        call = self._sites.Sync(request, timeout=wait_seconds + 30.0)
        try:
            answer = await call
            took = time.perf_counter() - began
            told = {key: value for key, value in await call.trailing_metadata()}
            self._clock.note(took - float(told[WAITED]), is_first=self._revision == 0)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not self._changed.is_set():  # else it was given up to tell what is new
                self._clock.fail(error)
            await asyncio.sleep(random.uniform(0.5, 1.5))
            return
        self._revision = answer.revision
        for attempt in answer.settled:
            self._reports.pop(attempt, None)
        for wanted in answer.wanted:
            if wanted.attempt not in self._reports:
                self._reports[wanted.attempt] = running(wanted.attempt, HOUR)

    async def change(self, kind: str) -> None:
        """Something happens to a job of it, so there is news to tell."""
        going = [name for name, one in self._reports.items() if one.phase != site_pb2.ATTEMPT_PHASE_ENDED]
        if not going:
            return
        report = self._reports[going[0]]
        if kind == "use":
            report.usage.gpu_seconds += GPUS * HOUR
            report.usage.seconds += HOUR
        elif kind == "preempted":
            report.phase, report.outcome = (
                site_pb2.ATTEMPT_PHASE_ENDED,
                site_pb2.ATTEMPT_OUTCOME_PREEMPTED,
            )
            report.reason = "the queue took the nodes back"
        else:
            data = f"no contribution, but bytes of {going[0]}".encode()
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "envelope"
                path.write_bytes(data)
                ref = FileRef(digest=digest_of(data), size=len(data))
                try:
                    await upload(self._artifacts, path, ref)
                except SprachbundError as error:
                    self._clock.fail(error)
                    return
            report.phase, report.outcome = (
                site_pb2.ATTEMPT_PHASE_ENDED,
                site_pb2.ATTEMPT_OUTCOME_SUCCEEDED,
            )
            report.contribution = ref.digest
        self._changed.set()


class Clock:
    """Service times, in seconds, while it is measuring."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.first: list[float] = []
        self.probes: list[float] = []
        self.errors: dict[str, int] = {}
        self.measuring = False

    def note(self, seconds: float, is_first: bool) -> None:
        if is_first:
            self.first.append(seconds)
        elif self.measuring:
            self.taken.append(seconds)

    def fail(self, error: Exception) -> None:
        said = str(getattr(error, "details", lambda: error)())[:200]
        self.errors[said] = self.errors.get(said, 0) + 1


def description(name: SiteName) -> site_pb2.SiteDescription:
    said = sync(name)
    return site_pb2.SiteDescription(
        agent_version=said.agent_version,
        slots=said.slots,
        holdings=[
            site_pb2.Holding(
                language=h.language,
                is_public=h.access == "public",
                documents=h.documents,
                text_bytes=h.bytes,
                heldout_documents=h.heldout_documents,
                licence=h.licence,
                digest=h.digest,
            )
            for h in said.holdings
        ],
        allocations=[site_pb2.Allocation(name=a.name, gpu_hours=a.gpu_hours) for a in said.allocations],
        gpus=said.gpus,
        launcher=said.launcher,
    )


def running(attempt: str, seconds: float) -> site_pb2.AttemptReport:
    return site_pb2.AttemptReport(
        attempt=attempt,
        phase=site_pb2.ATTEMPT_PHASE_RUNNING,
        native_id="4711",
        progress=site_pb2.Progress(step=100, steps=1000, tokens=52_428_800, loss=2.8, tokens_per_second=14e3),
        usage=site_pb2.Usage(
            gpu_seconds=seconds * GPUS, seconds=seconds, queued_seconds=1800.0, source=site_pb2.USAGE_SOURCE_SACCT
        ),
        started=True,
    )  # fmt: skip


async def clients(order: dict[str, Any]) -> dict[str, Any]:
    """Run the agents: warm-up, then so many measured seconds."""
    raise_file_limit()
    clock, die = Clock(), random.Random(7)
    authority = order["authority"].encode()
    agents = [
        Agent(SiteName(name), order["port"], authority, Credentials(c.encode(), k.encode()), clock)
        for name, (c, k) in sorted(order["credentials"].items())
    ]
    prober = agents.pop()
    tasks = [asyncio.create_task(agent.run(die.uniform(0, WAIT_SECONDS))) for agent in agents]

    async def change() -> None:
        while True:
            await asyncio.sleep(die.expovariate(order["changes"]))
            await die.choice(agents).change(die.choice(KINDS))

    async def probe() -> None:
        while True:
            began = time.perf_counter()
            await prober.ask(0.0)
            if clock.measuring:
                clock.probes.append(time.perf_counter() - began)
            await asyncio.sleep(PROBE_SECONDS)

    await asyncio.sleep(WAIT_SECONDS + 5.0)
    tasks += [asyncio.create_task(change()), asyncio.create_task(probe())]
    await asyncio.sleep(order["warm_up"])
    clock.measuring = True
    before = sample(order["coordinator"]), sample(os.getpid())
    await asyncio.sleep(order["seconds"])
    clock.measuring = False
    after = sample(order["coordinator"]), sample(os.getpid())
    for task in tasks:
        task.cancel()
    return {
        "taken": clock.taken,
        "first": clock.first,
        "probes": clock.probes,
        "errors": clock.errors,
        "cpu": [share(b, a) for b, a in zip(before, after, strict=True)],
        "resident": after[0].resident_bytes,
    }


def share(before: Sample, after: Sample) -> float:
    return (after.cpu_seconds - before.cpu_seconds) / (after.at - before.at)


# --- one measurement ------------------------------------------------------------------------------------


def measure(folder: Path, num_agents: int, arguments: argparse.Namespace) -> Figures:
    past = live(folder, num_agents + 1, arguments.events)
    past.close()
    (folder / "coordinator.yaml").write_text(CONFIG)
    began = time.perf_counter()
    log = open(folder / "coordinator.log", "w")  # the child's, as long as it runs
    child = subprocess.Popen(
        [*arguments.wrapper.split(), *SPRACHBUND, "coordinator", "run", "coordinator.yaml", "--log-level", "warning"],
        cwd=folder, stderr=log,
    )  # fmt: skip
    try:
        ports = folder / "home" / PORTS_FILE
        while not ports.exists():
            if child.poll() is not None:
                raise SystemExit((folder / "coordinator.log").read_text()[-2000:])
            time.sleep(0.05)
        started = time.perf_counter() - began
        time.sleep(2.0)
        return _with_coordinator(folder, past, child, arguments, started, num_agents)
    finally:
        child.terminate()
        child.wait()
        log.close()


def _with_coordinator(
    folder: Path,
    past: Past,
    child: "subprocess.Popen[bytes]",
    arguments: argparse.Namespace,
    started: float,
    num_agents: int,
) -> Figures:
    resident = sample(child.pid).resident_bytes
    order = {
        "port": decode((folder / "home" / PORTS_FILE).read_bytes(), dict[str, int])["port"],
        "authority": past.keys.authority.pem.decode(),
        "credentials": {
            name: (own.certificate.decode(), own.key.decode()) for name, own in past.credentials.items()
        },
        "coordinator": child.pid,
        "changes": arguments.changes,
        "warm_up": arguments.warm_up,
        "seconds": arguments.seconds,
    }
    write_bytes_atomically(folder / "order.json", json.dumps(order).encode(), mode=0o600)
    before = _events(folder)
    answer = subprocess.run(
        [sys.executable, __file__, "--clients", str(folder / "order.json")],
        stdout=subprocess.PIPE,
        check=True,
    )
    told = json.loads(answer.stdout)
    for what, times in sorted(told["errors"].items()):
        print(f"  {times} x {what}", file=sys.stderr)
    seconds = arguments.seconds + arguments.warm_up
    taken, probes, first = (sorted(told[kind]) for kind in ("taken", "probes", "first"))
    return Figures(
        agents=num_agents,
        syncs=len(taken),
        syncs_per_second=len(taken) / arguments.seconds,
        p50_ms=at(taken, 0.5),
        p90_ms=at(taken, 0.9),
        p99_ms=at(taken, 0.99),
        max_ms=at(taken, 1.0),
        probe_p50_ms=at(probes, 0.5),
        probe_p99_ms=at(probes, 0.99),
        probe_max_ms=at(probes, 1.0),
        first_p99_ms=at(first, 0.99),
        errors=sum(told["errors"].values()),
        events_before=before,
        events_per_second=(_events(folder) - before) / seconds,
        coordinator_cpu_share=told["cpu"][0],
        clients_cpu_share=told["cpu"][1],
        coordinator_start_seconds=started,
        resident_before_mib=resident / 2**20,
        resident_after_mib=told["resident"] / 2**20,
        kib_per_agent=(told["resident"] - resident) / 1024 / num_agents,
        load_average=os.getloadavg()[0],
    )


def _events(folder: Path) -> int:
    from coordinator.ledger import Ledger

    with Ledger(folder / "home" / "ledger.sqlite", read_only=True) as ledger:
        return ledger.head.seq


def at(ordered: Sequence[float], share: float) -> float:
    """The percentile, in milliseconds; of nothing: 0."""
    return 1000.0 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES_MAX, hard), hard))


COLUMNS = (
    ("agents", "{0.agents}"),
    ("Syncs/s", "{0.syncs_per_second:.0f}"),
    ("p50 ms", "{0.p50_ms:.1f}"),
    ("p99 ms", "{0.p99_ms:.1f}"),
    ("max ms", "{0.max_ms:.0f}"),
    ("probe p50 / p99 / max ms", "{0.probe_p50_ms:.1f} / {0.probe_p99_ms:.1f} / {0.probe_max_ms:.0f}"),
    ("events/s", "{0.events_per_second:.1f}"),
    ("coordinator's CPU", "{0.coordinator_cpu_share:.2f}"),
    ("agents' CPU", "{0.clients_cpu_share:.2f}"),
    ("KiB an agent", "{0.kib_per_agent:.0f}"),
    ("load", "{0.load_average:.1f}"),
)


def table(rows: Sequence[Figures]) -> str:
    lines = [[name for name, _ in COLUMNS], ["---"] * len(COLUMNS)]
    lines += [[form.format(row) for _, form in COLUMNS] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", default="200,500,1000,2000")
    parser.add_argument("--events", type=int, default=100_000, help="in the ledger at the start")
    parser.add_argument("--changes", type=float, default=2.0, help="happenings at sites, a second")
    parser.add_argument("--warm-up", type=float, default=20.0, help="seconds after everybody has connected")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument(
        "--wrapper", default="", help="a profiler's command line, to run the coordinator under"
    )
    parser.add_argument("--workdir", type=Path, help="default: a temporary folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clients", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clients:
        print(json.dumps(asyncio.run(clients(json.loads(arguments.clients.read_text())))))
        return
    raise_file_limit()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.workdir) as folder:
        for number in (int(text) for text in arguments.agents.split(",")):
            rows.append(measure(Path(folder) / str(number), number, arguments))
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr)
    print(encode(rows).decode() if arguments.json else table(rows))


if __name__ == "__main__":
    main()
