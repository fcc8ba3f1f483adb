"""Which tests believe that processes are equally fast? Runs a command whose processes stand still at random.

    python tests/stutter.py --longest 1.0 --seed 1 -- python -m pytest -x tests/agent

Every few tenths of a second one process below the command is stopped (SIGSTOP) for up to so long, and goes on. The
command itself is spared, and so is whatever --spare names (a word of its command line). Whoever loses its parent, as
daemons and jobs do, stays below this process and is struck, too. It shows races that a loaded machine shows once in a
hundred runs. A process that a test has stopped stays so, unless the test stopped it during a blow. Linux only.
Exits as the command does.
"""

import argparse
import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def adopt() -> None:
    """Become the parent of all descendants that lose theirs."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def bury(child: int) -> None:
    """Let the adopted that have ended be gone; ``child`` is somebody else's to ask about."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == child:
                break
            os.waitpid(ended.si_pid, 0)


def below(pid: int) -> Iterator[int]:
    """Every living descendant of a process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            with contextlib.suppress(OSError):  # it has ended meanwhile
                yield from below(child)


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def stands_still(pid: int) -> bool:
    """Whether somebody has stopped it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def strike(child: int, die: random.Random, longest: float, spare: list[str]) -> int:
    """Let one process below this one, but not ``child``, stand still; how many were struck, 0 or 1."""
    with contextlib.suppress(OSError):
        found = sorted(set(below(os.getpid())) - {child})
        found = [pid for pid in found if not any(word in command_line(pid) for word in spare)]
        if found and not stands_still(struck := die.choice(found)):
            os.kill(struck, signal.SIGSTOP)
            try:
                time.sleep(die.uniform(0.05, longest))
            finally:
                os.kill(struck, signal.SIGCONT)
            return 1
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--longest", type=float, default=1.0, help="seconds that a process stands still, at most"
    )
    parser.add_argument("--pause", type=float, default=0.3, help="seconds between two blows, on average")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--spare", action="append", default=[], metavar="WORD")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    die, blows = random.Random(options.seed), 0
    adopt()
    running = subprocess.Popen(options.command)
    try:
        while running.poll() is None:
            time.sleep(die.expovariate(1 / options.pause))
            blows += strike(running.pid, die, options.longest, options.spare)
            bury(running.pid)
    finally:
        if running.poll() is None:
            running.terminate()
            running.wait()
    print(f"{blows} times a process stood still", file=sys.stderr)
    raise SystemExit(running.returncode)


if __name__ == "__main__":
    main()
