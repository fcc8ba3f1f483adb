"""Which processes of this machine are which, by Linux's /proc, and how are they ended by number?"""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path


def succeeds(argv: Sequence[str], environment: dict[str, str]) -> bool:
    """Whether a command exits 0 within half a minute."""
    try:
        return not subprocess.run(argv, env=environment, capture_output=True, timeout=30).returncode
    except subprocess.TimeoutExpired:
        return False


def kill(pid: int, sign: signal.Signals) -> None:
    """Signal a process; nothing if it is gone."""
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        pass


def runs(pid: int) -> bool:
    """Whether a process is there, and more than its zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids_named(comm: str) -> list[int]:
    """Processes whose short name is ``comm``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == comm:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def open_files(pid: int) -> set[str]:
    """What a process holds open, sockets as ``socket:[inode]``; empty if it is gone."""
    found = set()
    try:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            found.add(os.readlink(path))
    except OSError:
        pass  # closed, or ended, meanwhile
    return found


def descendants(pid: int) -> list[int]:
    """Children, and theirs, as far as they still have this ancestor."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found
