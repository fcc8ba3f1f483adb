"""How long the coordinator's one thread is busy with each thing that it does: CPU time, with many sites and open jobs.

    python benchmarks/loop_work.py --sites 1000 --events 30000 --runs 20

Makes a past (benchmarks/past.py; minutes) that ends while every site trains, and lets a driver do each thing so
often: median, least and most. Nobody else is answered meanwhile, so the most is what everybody may wait for.
"""

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from past import HOUR, live, sync

from consortium.canonical import Fact, encode
from consortium.ids import SiteName
from coordinator.core import commands as cm
from coordinator.core.concerned import concerned, standing
from coordinator.core.draft import draft
from coordinator.core.snapshot import keep
from coordinator.driver import Driver


class Busy(Fact):
    """One thing's CPU milliseconds."""

    what: str
    median_ms: float
    least_ms: float
    most_ms: float


class Work(Fact):
    sites: int
    jobs: int
    open_jobs: int
    events: int
    rows: tuple[Busy, ...]


def measure(folder: Path, num_sites: int, num_events: int, runs: int) -> Work:
    past = live(folder, num_sites, num_events, say=lambda text: print(text, file=sys.stderr))
    past.close()
    past.ledger = type(past.ledger)(Path(past.config.home) / "ledger.sqlite")
    driver = Driver(past.ledger, past.keys.ledger, clock=lambda: past.now)
    names, number = past.sites, iter(range(10**9))
    gc.collect()
    gc.freeze()  # as the coordinator does after its start

    def a_site() -> SiteName:
        return names[next(number) % len(names)]

    def tells_use() -> None:
        name = a_site()
        driver.execute(sync(name, *(past.running(job) for job in driver.state.live(name))))

    def whom() -> None:
        waiting = {name: standing(driver.state, name) for name in names}
        concerned(driver.state, driver._moment(driver.state, past.now), waiting)

    view = driver.view()
    past.now += HOUR / 60
    things: dict[str, Callable[[], object]] = {
        "a Sync without news": lambda: driver.execute(sync(a_site())),
        "a Sync that enters what a job used, with its append": tells_use,
        "a tick": lambda: driver.execute(cm.Tick()),
        "a look at whom an event concerns": whom,
        "a copy for a decision after a full disk": lambda: draft(driver.state),
        "a snapshot to be kept": lambda: keep(driver.state),
        "a console's view": driver.view,
        "the view's JSON": lambda: encode(view),
    }
    rows = tuple(_busy(what, do, runs) for what, do in things.items())
    state = driver.state
    work = Work(
        sites=len(state.sites),
        jobs=len(state.jobs),
        open_jobs=len(state.open_jobs()),
        events=driver.sequence,
        rows=rows,
    )
    past.ledger.close()
    return work


def _busy(what: str, do: Callable[[], object], runs: int) -> Busy:
    do()  # what is looked up once is not counted
    spent = []
    for _ in range(runs):
        began = time.process_time()
        do()
        spent.append(1000.0 * (time.process_time() - began))
    return Busy(what=what, median_ms=statistics.median(spent), least_ms=min(spent), most_ms=max(spent))


def table(work: Work) -> str:
    head = f"{work.sites:,} sites, {work.open_jobs:,} open jobs of {work.jobs:,}, {work.events:,} events"
    lines = [f"| {head} | CPU ms, median (least to most) |", "|---|---|"]
    lines += [
        f"| {one.what} | {one.median_ms:.3g} ({one.least_ms:.3g} to {one.most_ms:.3g}) |" for one in work.rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--events", type=int, default=30_000)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = measure(Path(name), arguments.sites, arguments.events, arguments.runs)
    print(encode(work).decode() if arguments.json else table(work))
    print(f"load {os.getloadavg()[0]:.1f}", file=sys.stderr)


if __name__ == "__main__":
    main()
