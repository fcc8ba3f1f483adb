"""What the lives of an attempt used, by this machine's clock, where no batch system keeps the account.

usage.json   the account, renewed every minute while a life runs, and when it is found gone
clock.json   when the newest life began, and the account before it
"""

import contextlib
import time
from pathlib import Path

from consortium.canonical import Fact, decode, encode, replace
from consortium.errors import BadInput
from consortium.files import write_bytes_atomically
from site_agent.core.facts import Usage
from site_agent.launchers.base import USAGE_FILE

_CLOCK_FILE = "clock.json"
_NOTE_SECONDS = 60.0
_SIGNS = ("progress.jsonl", "log.txt")  # written to by a living job


class _Clock(Fact):
    life: int
    began: float  #: epoch seconds
    before: Usage
    ended: bool = False


def life_begins(directory: Path, life: int, now: float | None = None) -> None:
    """Start the clock of ``life``; once. ``now`` is in epoch seconds."""
    clock = _read_clock(directory)
    if clock is None or clock.life < life:
        began = time.time() if now is None else now
        before = _read_usage(directory)
        write_bytes_atomically(directory / _CLOCK_FILE, encode(_Clock(life=life, began=began, before=before)))


def life_runs(directory: Path, life: int, gpus: int, now: float | None = None) -> None:
    """It runs still: bring the account up to date if it is a minute old."""
    clock = _read_clock(directory)
    if clock is None or clock.life != life or clock.ended:
        return
    used = _used(clock, time.time() if now is None else now, gpus)
    if used.seconds - _read_usage(directory).seconds >= _NOTE_SECONDS:
        write_bytes_atomically(directory / USAGE_FILE, encode(used))


def life_ended(directory: Path, life: int, gpus: int, was_seen: bool, now: float | None = None) -> None:
    """It is gone: close the account; once.

    was_seen  whether this agent saw it end just now; else it ended when it last gave a sign
    """
    clock = _read_clock(directory)
    if clock is None or clock.life != life or clock.ended:
        return
    ended = (time.time() if now is None else now) if was_seen else _last_sign(directory)
    used = _used(clock, ended, gpus)
    if used.seconds > _read_usage(directory).seconds:
        write_bytes_atomically(directory / USAGE_FILE, encode(used))
    write_bytes_atomically(directory / _CLOCK_FILE, encode(replace(clock, ended=True)))


def _used(clock: _Clock, now: float, gpus: int) -> Usage:
    seconds = round(max(0.0, now - clock.began), 3)
    return replace(
        clock.before,
        seconds=clock.before.seconds + seconds,
        gpu_seconds=clock.before.gpu_seconds + gpus * seconds,
    )


def _last_sign(directory: Path) -> float:
    """Epoch seconds; 0 if there is none."""
    times = [0.0]
    for name in _SIGNS:
        with contextlib.suppress(FileNotFoundError):
            times.append((directory / name).stat().st_mtime)
    return max(times)


def _read_usage(directory: Path) -> Usage:
    with contextlib.suppress(FileNotFoundError, BadInput):
        return decode((directory / USAGE_FILE).read_bytes(), Usage)
    return Usage()


def _read_clock(directory: Path) -> _Clock | None:
    with contextlib.suppress(FileNotFoundError, BadInput):
        return decode((directory / _CLOCK_FILE).read_bytes(), _Clock)
    return None
