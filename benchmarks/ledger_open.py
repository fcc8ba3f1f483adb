"""How long a coordinator takes to know what happened: a ledger of many events, opened in a process of its own.

    python benchmarks/past.py FOLDER --events 1000000       (once; about a quarter of an hour)
    python benchmarks/ledger_open.py FOLDER [--runs 3] [--verify]

Opens as the coordinator does: the chain's last entry, the snapshot, the events since. Then without the snapshot,
every event anew; then what keeping a snapshot costs; with --verify the whole chain, as an auditor does. Files are in
the page cache. Linux only.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from consortium.canonical import Fact, encode
from coordinator.core.snapshot import keep
from coordinator.driver import replay
from coordinator.ledger import Ledger
from coordinator.ledger_check import verify_chain

LEDGER = Path("home") / "ledger.sqlite"


class Opened(Fact):
    """What one opening cost."""

    what: str
    events: int
    jobs: int = 0
    seconds: float
    cpu_seconds: float  #: of the whole process, with its imports: what can be compared where others work
    peak_mib: float
    detail: str = ""


def measure(folder: Path, what: str) -> Opened:
    """In this process, which should do nothing else."""
    began = time.perf_counter()
    if what == "verify":
        problems = list(verify_chain(folder / LEDGER))
        with Ledger(folder / LEDGER, read_only=True) as ledger:
            return _told(what, ledger.head.seq, 0, began, f"{len(problems)} problem(s)")
    with Ledger(folder / LEDGER, read_only=what != "snapshot") as ledger:
        state = replay(ledger, from_snapshot=what != "replay")
        state.open_jobs()  # which the first command asks for
        detail = ""
        if what == "snapshot":
            began = time.perf_counter()
            data = keep(state)
            made = time.perf_counter()
            ledger.save_snapshot(data, ledger.head)
            detail = f"{len(data) / 1e6:.0f} MB; {made - began:.1f} s to make, the rest to write"
        return _told(what, ledger.head.seq, len(state.jobs), began, detail)


def _told(what: str, events: int, jobs: int, began: float, detail: str) -> Opened:
    return Opened(
        what=what,
        events=events,
        jobs=jobs,
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time(),
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        detail=detail,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="as benchmarks/past.py made it")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--verify", action="store_true", help="also the whole chain")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(encode(measure(arguments.folder, arguments.one)).decode())
        return
    kinds = ["snapshot", *["open"] * arguments.runs, "replay", *(["verify"] if arguments.verify else [])]
    rows = []
    for kind in kinds:
        command = [sys.executable, __file__, str(arguments.folder), "--one", kind]
        rows.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
        if not arguments.json:
            row = rows[-1]
            print(
                f"{row['what']:10}{row['events']:>10,} events {row['seconds']:8.2f} s"
                f" ({row['cpu_seconds']:.2f} CPU) {row['peak_mib']:8.0f} MiB"
                f"  load {os.getloadavg()[0]:.1f}  {row['detail']}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
