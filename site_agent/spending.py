"""What the consortium's jobs used at this site, and what follows: closing for good, or waiting for a window.

``home/spent.json`` outlives the spool: what an attempt used stays counted when its directory is dropped.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput, Broken
from consortium.files import disk_errors, write_bytes_atomically
from consortium.ids import AttemptId
from policies.windows import Openings
from site_agent.config import SiteConfig
from site_agent.core.closing import closing, shut
from site_agent.core.facts import AttemptFiles

_FILE = "spent.json"


class Spent(Fact):
    schema: int = 1
    gpu_seconds: dict[str, float] = {}  #: by allocation
    attempts: dict[AttemptId, float] = {}  #: GPU-seconds already counted of what the spool still holds


class Standing(Fact):
    """What limits the site now, in sentences; empty ones limit nothing."""

    closing: str = ""
    waits: str = ""
    pause_running: bool = False  #: with ``waits``: what runs is asked to stop, too


class Spending:
    """The site's own account. Raises Broken if the one on disk cannot be read: what was spent must not be forgotten."""

    def __init__(self, config: SiteConfig, clock: Callable[[], float] | None = None) -> None:
        self._path = Path(config.home) / _FILE
        self._clock = clock or time.time
        self._openings = Openings()
        self._pauses = config.outside_windows == "pause"
        self.allocation = config.granted
        self.windows = config.open_hours
        self.spent = _read(self._path)

    @property
    def gpu_hours(self) -> float:
        """Used of the present allocation."""
        return self.spent.gpu_seconds.get(self.allocation.name if self.allocation else "", 0.0) / 3600.0

    def look(self, held: Iterable[AttemptFiles]) -> Standing:
        """Count what grew, write it down, and say what follows. Raises Unavailable if the disk refuses."""
        counted = count(self.spent, held, self.allocation.name if self.allocation else "")
        if counted != self.spent:
            with disk_errors(self._path.parent):
                write_bytes_atomically(self._path, encode(counted))
            self.spent = counted
        now = self._clock()
        waits = shut(self._openings(self.windows, now))
        return Standing(
            closing=closing(self.allocation, self.gpu_hours * 3600.0, now),
            waits=waits,
            pause_running=bool(waits) and self._pauses,
        )


def count(spent: Spent, held: Iterable[AttemptFiles], allocation: str) -> Spent:
    """The account after a look at the spool: growth goes to the present allocation, and nothing is taken back."""
    used, totals = {}, dict(spent.gpu_seconds)
    for files in sorted(held, key=lambda files: files.attempt):
        before = spent.attempts.get(files.attempt, 0.0)
        now = max(before, files.usage.gpu_seconds if files.usage else 0.0)
        if now > 0.0:
            used[files.attempt] = now
        if now > before:
            totals[allocation] = totals.get(allocation, 0.0) + now - before
    return Spent(gpu_seconds=totals, attempts=used)


def _read(path: Path) -> Spent:
    try:
        return decode(path.read_bytes(), Spent, str(path))
    except FileNotFoundError:
        return Spent()
    except BadInput as error:
        raise Broken(
            f"{error}; it says what this site has spent: restore it from a backup, or delete it to count from zero"
        ) from error
