"""Does the simulation see a broken core? ``python tests/simulation/mutation.py`` breaks it and runs fixed seeds.

Prints what was caught, by which seed and as what, and what was missed; exits with the number of those missed beyond
one in ten. ``... fence late`` tries the mistakes whose name has one of the words.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "protos"), str(HERE)]

from broken import Mistake, make  # noqa: E402
from mistakes import mistakes  # noqa: E402

#: Plan, weather, seed; the quickest first. All of them keep every promise while nothing is broken.
CASES = (
    *(("strict", "rough:3", 1), ("merging", "rough:3", 2), ("merging", "storm", 1)),
    *(("strict", "storm", 2), ("merging", "storm", 3), ("harsh", "rough:3", 2), ("harsh", "storm", 3)),
)
CLEARS_AFTER_HOURS = 40.0  # then every campaign has to end


class Verdict(NamedTuple):
    mistake: str
    case: str  #: that caught it; "": missed
    violation: str
    seconds: float


def judged(mistake: Mistake, cases: Sequence[tuple[str, str, int]]) -> Verdict:
    """In this process, which must have imported nothing of the product yet."""
    make(mistake)
    from consortium.canonical import replace
    from simulation.reading import load_plan
    from simulation.shrink import Case, run
    from simulation.weather import weather_of

    began = time.monotonic()
    for plan, weather, seed in cases:
        sky = replace(weather_of(weather), clears_after_hours=CLEARS_AFTER_HOURS)
        try:
            violation = run(
                Case(plan=load_plan(HERE / f"plans/{plan}.yaml").plan, seed=seed, weather=sky)
            ).violation
        except Exception as error:  # the world itself stumbled over what the core said
            violation = f"the simulation stopped: {error!r}"
        if violation:
            case = f"{plan} {weather} {seed}"
            return Verdict(mistake.name, case, violation, time.monotonic() - began)
    return Verdict(mistake.name, "", "", time.monotonic() - began)


def judged_apart(mistake: str, first: int, last: int, seconds: float) -> Verdict:
    """In a process of its own: the cases from ``first`` to before ``last``, until one catches it."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", mistake, "--cases", str(first), str(last)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Verdict(mistake, "time", f"no end within {seconds:g} s", seconds)
    if done.returncode:
        raise RuntimeError(f"{mistake}: {done.stderr[-2000:]}")
    return Verdict(*json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--child", metavar="NAME", help="one mistake, in this process")
    parser.add_argument("--cases", type=int, nargs=2, default=(0, len(CASES)), metavar=("FIRST", "LAST"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=600.0, help="of one mistake")
    asked = parser.parse_args()
    known = {one.name: one for one in mistakes()}
    if asked.child is not None:
        print(json.dumps(judged(known[asked.child], CASES[slice(*asked.cases)])))
        return 0
    chosen = [one for one in known.values() if not asked.words or any(w in one.name for w in asked.words)]
    missed = []
    with ThreadPoolExecutor(asked.jobs) as pool:
        for verdict in pool.map(lambda one: judged_apart(one.name, *asked.cases, asked.seconds), chosen):
            if not verdict.case:
                missed.append(verdict.mistake)
            by = f"{verdict.case}: {verdict.violation[:150]}" if verdict.case else ""
            print(f"{'caught' if verdict.case else 'MISSED'}  {verdict.mistake}  {by}", flush=True)
    print(
        f"{len(chosen) - len(missed)} of {len(chosen)} mistakes were caught; missed: {', '.join(missed) or 'none'}"
    )
    return max(0, len(missed) - len(chosen) // 10)


if __name__ == "__main__":
    sys.exit(main())
