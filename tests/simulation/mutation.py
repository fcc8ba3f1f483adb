"""Does the simulation see a broken product? ``python tests/simulation/mutation.py`` breaks it and runs fixed cases.

Breaks it in one place at a time (``mistakes.py``) and runs the cases of ``cases.py`` until one shows it. Exits with 0
if at least nine of ten were caught, 1 if fewer were, 2 if a case fails while nothing is broken or a mistake's text is
no longer there. ``... fence late`` tries mistakes whose name has one of the words, ``--only NAME`` those of these
names; ``--json FILE`` keeps each verdict as a line, and goes on where that file ends. ``--seeds 30`` breaks nothing:
each case must hold with thirty seeds, or what the referee says of a mistake means little.
"""

import argparse
import importlib
import json
import operator
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "protos"), str(HERE)]

from broken import Mistake, make, missing, swap  # noqa: E402
from mistakes import NOTHING, mistakes  # noqa: E402

SEEN_BY = HERE / "seen_by.json"  #: which case saw a mistake the last time: it is tried first, for speed alone
_CPU_SECONDS = 90  # of one case: thirty times what the longest takes while nothing is broken


class Verdict(NamedTuple):
    mistake: str
    case: str  #: that caught it; "": missed
    violation: str
    cases: int  #: that were run
    cpu_seconds: float


class _Endless(Exception):
    """A case did not come to an end."""


def judged(mistake: Mistake, names: Sequence[str], shift: int = 0) -> Verdict:
    """In this process, which must have imported nothing of the product yet.

    names  of cases, in their order
    shift  added to each case's seed
    """
    make(mistake)
    return _tried(mistake.name, names, shift)


def _tried(mistake: str, names: Sequence[str], shift: int = 0) -> Verdict:
    """Where it is made."""
    from cases import cases

    from consortium.canonical import replace
    from simulation.shrink import run

    def endless(signum: int, frame: object) -> None:
        raise _Endless(f"no end within {_CPU_SECONDS} s of a processor")

    signal.signal(signal.SIGXCPU, endless)
    known, tried = cases(), 0
    for name in names or list(known):
        used = int(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + _CPU_SECONDS, resource.RLIM_INFINITY))
        tried += 1
        try:
            violation = run(replace(known[name], seed=known[name].seed + shift)).violation
        except Exception as error:  # the world itself stumbled over what the core said
            violation = f"the simulation stopped: {error!r}"
        if violation:
            return Verdict(mistake, name, violation, tried, time.process_time())
    return Verdict(mistake, "", "", tried, time.process_time())


def judged_apart(mistake: str, names: Sequence[str] = (), shift: int = 0) -> Verdict:
    """In a process of its own; ``names``: of cases, all of them if none."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", mistake]
    command += ["--shift", str(shift), "--cases", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{mistake}: {done.stderr[-2000:]}")
    return Verdict(*json.loads(done.stdout.splitlines()[-1]))


def _forked(given: tuple[Mistake, Sequence[str]]) -> Verdict:
    """In a process that was forked, which spares it the imports; the few that reach beyond functions, apart."""
    mistake, names = given
    return _tried(mistake.name, names) if swap(mistake) else judged_apart(mistake.name, names)


def verdicts(chosen: Iterable[Mistake], jobs: int) -> Iterator[Verdict]:
    """As they come."""
    from cases import cases

    known = list(cases())
    first = json.loads(SEEN_BY.read_text()) if SEEN_BY.exists() else {}
    given = []
    for one in chosen:
        importlib.import_module(one.module)
        given.append((one, sorted(known, key=partial(operator.ne, first.get(one.name)))))
    with get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(_forked, given, chunksize=1)


def sound(jobs: int, shift: int = 0) -> list[str]:
    """The cases that fail though nothing is broken."""
    from cases import cases

    names = list(cases())
    parts = [names[n::jobs] for n in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda part: judged_apart(NOTHING.name, part, shift), parts)
    return [f"{one.case}, seed +{shift}: {one.violation}" for one in found if one.case]


def steady(jobs: int, seeds: int) -> int:
    """How many seeds there are with which a case fails though nothing is broken; tells of each."""
    failed = 0
    for shift in range(seeds):
        found = sound(jobs, shift)
        failed += bool(found)
        print(f"{shift + 1:3} of {seeds} seeds  {'; '.join(found) or 'all cases hold'}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this mistake")
    parser.add_argument("--child", metavar="NAME", help="one mistake, in this process")
    parser.add_argument("--cases", nargs="*", default=[], metavar="CASE")
    parser.add_argument("--shift", type=int, default=0, help="added to the seeds of that one's cases")
    parser.add_argument("--seeds", type=int, default=0, metavar="N", help="break nothing, N times")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="a line for each verdict; what is there is done"
    )
    parser.add_argument("--note", action="store_true", help="keep which case saw what, to be tried first")
    parser.add_argument("--unchecked", action="store_true", help="believe that the cases hold")
    asked = parser.parse_args()
    known = {one.name: one for one in (NOTHING, *mistakes())}
    if asked.child is not None:
        print(json.dumps(judged(known.pop(asked.child), asked.cases, asked.shift)))
        return 0
    if asked.seeds:
        return 2 if steady(asked.jobs, asked.seeds) else 0
    del known[NOTHING.name]
    if gone := [sentence for one in known.values() if (sentence := missing(one))]:
        print("\n".join(gone), file=sys.stderr)
        return 2
    if not asked.unchecked and (failed := sound(asked.jobs)):
        print("\n".join(f"though nothing is broken, {one}" for one in failed), file=sys.stderr)
        return 2
    done = _kept(asked.json)
    chosen = [
        name
        for name in known
        if (not asked.only or name in asked.only) and (not asked.words or any(w in name for w in asked.words))
    ]
    left = [known[name] for name in chosen if name not in done]
    for number, verdict in enumerate(verdicts(left, asked.jobs), 1):
        done[verdict.mistake] = verdict
        if asked.json:
            with asked.json.open("a") as file:
                file.write(json.dumps(verdict._asdict()) + "\n")
        by = f"{verdict.case}: {verdict.violation[:150]}" if verdict.case else ""
        print(f"{number:3} {'caught' if by else 'MISSED'}  {verdict.mistake}  {by}", flush=True)
    found = [done[name] for name in chosen]
    if asked.note:
        seen = {one.mistake: one.case for one in found if one.case}
        before = json.loads(SEEN_BY.read_text()) if SEEN_BY.exists() else {}
        kept = {name: case for name, case in {**before, **seen}.items() if name in known}
        SEEN_BY.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    missed = [one.mistake for one in found if not one.case]
    seconds = sum(one.cpu_seconds for one in found)
    print(
        f"{len(found) - len(missed)} of {len(found)} mistakes were caught, in {seconds:.0f} s of a processor"
    )
    print(f"missed: {'; '.join(missed) or 'none'}")
    return int(10 * len(missed) > len(found))


def _kept(path: Path | None) -> dict[str, Verdict]:
    if path is None or not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return {line["mistake"]: Verdict(**line) for line in lines}


if __name__ == "__main__":
    sys.exit(main())
