"""Do the invariants hold, seed after seed? ``python -m simulation.seeds 0 2000`` tells of those in which they do not.

Each seed is a consortium of its own (``simulation.drawn``) in bad weather. A failing seed is replayed by its number;
``--hours`` goes on with ever new ones until the time is up. Exits with 0 if all held, 1 otherwise.
"""

import argparse
import contextlib
import ctypes
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path

from consortium.canonical import Fact
from simulation.drawn import drawn_plan, drawn_weather
from simulation.run import simulate

#: niceness: a thirtieth of what another process gets; at 19 a share of seeds could take half an hour
_ASIDE = 15
_AHEAD = 20  # seeds that are given out: one may take as long as ten others
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Fate(Fact):
    """What became of one seed."""

    seed: int
    head: str
    status: str  #: of its campaign
    hours: float  #: simulated
    events: int
    faults: dict[str, int]
    violations: tuple[str, ...]


def fate_of(seed: int, weather: str = "rough") -> Fate:
    """Simulate one seed; what falls over is a violation, too."""
    try:
        found = simulate(drawn_plan(seed), seed, drawn_weather(weather, seed))
    except Exception as error:
        fell = f"the simulation fell over: {type(error).__name__}: {error}"
        return Fate(seed=seed, head="", status="", hours=0.0, events=0, faults={}, violations=(fell,))
    return Fate(
        seed=seed,
        head=found.head,
        status=found.ended[0].status if found.ended else "never opened",
        hours=found.hours,
        events=found.events,
        faults=found.faults,
        violations=found.violations,
    )


def crew(processes: int, aside: bool = False) -> ProcessPoolExecutor:
    """Processes that simulate; each needs a second to begin, so whoever asks often keeps them.

    aside  they take only what everybody else leaves of the processors
    """
    start = step_aside if aside else None
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=start)


def step_aside() -> None:
    """Let everybody else go first: by priority, and by a session of its own, which Linux may weigh first (sched(7)).

    No signal for a terminal's processes reaches it there, so it ends with who began it.
    """
    began = parent_process()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if began is None or began.pid != os.getppid():
        os._exit(1)  # it has gone already
    os.setsid()
    os.nice(_ASIDE)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(_ASIDE))


def fates(seeds: Iterable[int], weather: str, crew: ProcessPoolExecutor) -> Iterator[Fate]:
    """Of many seeds, in their order, by several processes."""
    seeds, ahead = iter(seeds), []
    for seed in itertools.islice(seeds, _AHEAD):
        ahead.append(crew.submit(fate_of, seed, weather))
    while ahead:
        found = ahead.pop(0).result()
        for seed in itertools.islice(seeds, 1):
            ahead.append(crew.submit(fate_of, seed, weather))
        yield found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation.seeds", description=__doc__.splitlines()[0])
    parser.add_argument("first", type=int, nargs="?", default=0)
    parser.add_argument("last", type=int, nargs="?", help="one beyond the last")
    parser.add_argument(
        "--weather", default="rough", help="calm, fair, rough, storm; rough:2 is twice as often"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--hours", type=float, help="go on from the first seed until so many hours are over")
    asked = parser.parse_args()
    seeds: Iterable[int] = itertools.count(asked.first)
    if asked.hours is None:
        seeds = range(asked.first, asked.last if asked.last is not None else asked.first + 1)
    began, done, failed = time.monotonic(), 0, 0
    hours, faults, statuses = 0.0, 0, dict[str, int]()
    with crew(asked.processes) as workers:
        for fate in fates(_until(seeds, asked.hours, began), asked.weather, workers):
            done, hours, faults = done + 1, hours + fate.hours, faults + sum(fate.faults.values())
            statuses[fate.status] = statuses.get(fate.status, 0) + 1
            if fate.violations:
                failed += 1
                print(f"seed {fate.seed}: {fate.violations[0]}", flush=True)
            if sys.stderr.isatty() and done % 20 == 0:
                print(
                    f"\r{done} seeds, {failed} failed, {hours:.0f} simulated hours", end="", file=sys.stderr
                )
    seconds = time.monotonic() - began
    ended = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    print(
        f"{done} seeds, {failed} failed; {hours:.0f} simulated hours, {faults} faults; {ended}; {seconds:.0f} s"
    )
    return 1 if failed else 0


def _until(seeds: Iterable[int], hours: float | None, began: float) -> Iterator[int]:
    for seed in seeds:
        if hours is not None and time.monotonic() - began > hours * 3600.0:
            return
        yield seed


if __name__ == "__main__":
    sys.exit(main())
