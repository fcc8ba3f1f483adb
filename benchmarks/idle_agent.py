"""What a site's agent costs while nothing is to be done: processor, memory, writes, wake-ups.

    python benchmarks/idle_agent.py --minutes 60

Founds a consortium below a temporary folder, starts a real coordinator and a real agent as processes on
127.0.0.1, and reads /proc once at the beginning, after the agent has settled, and at the end. Linux only.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

SPRACHBUND = (sys.executable, "-m", "console.main")
SETTLE_SECONDS = 15.0  # start, first reading of the text, first Syncs
_TICKS = os.sysconf("SC_CLK_TCK")

COORDINATOR = "consortium: idle\nhome: coordinator\nlisten: 127.0.0.1\nport: 0\nenrolment_port: 0\n"
SITE = """\
site: north
coordinator: 127.0.0.1:{port}
enrolment: 127.0.0.1:{enrolment_port}
home: north
text:
  - {{language: fi, path: fi.txt, access: private, licence: CC0-1.0}}
"""


class Sample(NamedTuple):
    """One reading of a process."""

    at: float
    cpu_seconds: float
    resident_bytes: int
    proportional_bytes: int  #: what it shares with others counted in part
    written_bytes: int
    wakeups: int  #: voluntary context switches of all threads
    threads: int


def sample(pid: int) -> Sample:
    place = Path(f"/proc/{pid}")
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    status = _numbers((place / "status").read_text())
    tasks = list((place / "task").iterdir())
    return Sample(
        at=time.monotonic(),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        resident_bytes=status["VmRSS"] * 1024,
        proportional_bytes=_numbers((place / "smaps_rollup").read_text())["Pss"] * 1024,
        written_bytes=_numbers((place / "io").read_text())["write_bytes"],
        wakeups=sum(_numbers((task / "status").read_text())["voluntary_ctxt_switches"] for task in tasks),
        threads=len(tasks),
    )


def _numbers(text: str) -> dict[str, int]:
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {
        name.strip(): int(value.split()[0])
        for name, value in pairs
        if value.split()[:1] and value.split()[0].isdigit()
    }


def measure(folder: Path, minutes: float) -> tuple[Sample, Sample]:
    """The agent after it has settled, and so much later."""
    (folder / "coordinator.yaml").write_text(COORDINATOR)
    (folder / "fi.txt").write_text("\n\n".join(f"Kappale numero {number}." for number in range(1000)))
    _run(folder, "init", "coordinator.yaml")
    coordinator = _begin(folder, "coordinator", "run", "coordinator.yaml")
    try:
        ports = folder / "coordinator" / "ports.json"
        while not ports.exists():
            time.sleep(0.1)
        (folder / "site.yaml").write_text(SITE.format(**json.loads(ports.read_text())))
        names = ("--organisation", "Institute", "--country", "FI", "--out", "north.invitation")
        _run(folder, "invite", "north", *names)
        _run(folder, "site", "enrol", "site.yaml", "--invitation", "north.invitation")
        agent = _begin(folder, "site", "run", "site.yaml")
        try:
            time.sleep(SETTLE_SECONDS)
            first = sample(agent.pid)
            _wait(minutes * 60.0, agent)
            return first, sample(agent.pid)
        finally:
            _end(agent)
    finally:
        _end(coordinator)


def _wait(seconds: float, agent: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if agent.poll() is not None:
            raise SystemExit(f"the agent left with exit code {agent.returncode}")
        if sys.stderr.isatty():
            print(f"\r{left / 60:.1f} minutes left ", end="", file=sys.stderr, flush=True)
        time.sleep(min(left, 10.0))


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "SPRACHBUND_ADMIN": str(folder / "coordinator" / "admin")}


def _run(folder: Path, *words: str) -> None:
    subprocess.run(
        [*SPRACHBUND, *words], cwd=folder, env=_environment(folder), check=True, stdout=subprocess.DEVNULL
    )


def _begin(folder: Path, *words: str) -> "subprocess.Popen[bytes]":
    with open(folder / f"{words[0]}.log", "wb") as log:
        return subprocess.Popen([*SPRACHBUND, *words], cwd=folder, env=_environment(folder), stderr=log)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def table(first: Sample, last: Sample) -> str:
    hours = (last.at - first.at) / 3600.0
    cpu = last.cpu_seconds - first.cpu_seconds
    rows = [
        ("observed", f"{hours * 60:.0f} min"),
        ("processor, an hour", f"{cpu / hours:.1f} s ({100 * cpu / hours / 3600:.3f} % of one core)"),
        ("processor, to start and settle", f"{first.cpu_seconds:.1f} s"),
        ("hours until 10 CPU-minutes are used", f"{600 / max(cpu / hours, 1e-9):.0f}"),
        ("resident memory", f"{last.resident_bytes / 1e6:.0f} MB"),
        ("of it its own (PSS)", f"{last.proportional_bytes / 1e6:.0f} MB"),
        ("grown meanwhile", f"{(last.resident_bytes - first.resident_bytes) / 1e6:+.1f} MB"),
        ("written, an hour", f"{(last.written_bytes - first.written_bytes) / hours / 1e6:.2f} MB"),
        ("wake-ups, a second", f"{(last.wakeups - first.wakeups) / hours / 3600:.1f}"),
        ("threads", str(last.threads)),
    ]
    return "\n".join(["| idle agent | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--json", action="store_true", help="the two readings instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idle-agent-") as folder:
        first, last = measure(Path(folder), options.minutes)
    print(json.dumps([first._asdict(), last._asdict()]) if options.json else table(first, last))


if __name__ == "__main__":
    main()
