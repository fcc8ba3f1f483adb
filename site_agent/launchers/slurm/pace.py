"""When may Slurm be asked again: never in step with other agents, ever more seldom while it does not answer."""

import math
import random
import time
from pathlib import Path

from consortium.errors import Unavailable

BACK_OFF_MAX = 600.0  #: seconds between questions to a controller that does not answer
_JITTER = 0.2  # of poll_seconds: agents of many sites, and cron, must not ask in step
_ALL = Path()  # every directory


class Pace:
    """Of one launcher, in memory: a new agent asks at once. Times are the monotonic clock's.

    pause  seconds from one look to the next
    """

    def __init__(self, poll_seconds: float) -> None:
        self.pause = 0.0
        self._poll_seconds = poll_seconds
        self._asked_at = -math.inf
        self._failures = 0
        #: sbatch did not work a moment ago, for one directory or for all: until when, and why
        self._refrain: dict[Path, tuple[float, str]] = {}

    # ---- looks

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._asked_at >= self.pause

    def looked(self, well: bool) -> None:
        self._asked_at = time.monotonic()
        self._failures = 0 if well else self._failures + 1
        self.pause = self._back_off()

    def hurry(self) -> None:
        """Somebody waits to see what becomes of what was just done."""
        self.pause = min(self.pause, 1.0)

    # ---- submissions

    def check(self, directory: Path) -> None:
        """Raises Unavailable while ``sbatch`` is to be spared, for this directory or for all."""
        for until, why in (self._refrain.get(one, (-math.inf, "")) for one in (_ALL, directory)):
            if time.monotonic() < until:
                raise Unavailable(f"sbatch is not tried again yet: {why}")

    def failed(self, why: str) -> None:
        """The controller did not take, or not answer, a submission: all are held back for a while."""
        self._failures += 1
        self._refrain[_ALL] = (time.monotonic() + self._back_off(), why)

    def refrain(self, directory: Path, seconds: float, why: str) -> None:
        """Of this directory alone: what ``sbatch`` says of one job holds up no other."""
        pause = min(max(seconds, self._poll_seconds), BACK_OFF_MAX)
        self._refrain[directory] = (time.monotonic() + pause, why)

    def worked(self, directory: Path) -> None:
        self._refrain.pop(_ALL, None)
        self._refrain.pop(directory, None)

    def forget(self, directory: Path) -> None:
        self._refrain.pop(directory, None)

    def _back_off(self) -> float:
        most = max(BACK_OFF_MAX, self._poll_seconds)
        base = min(self._poll_seconds * 2.0 ** min(self._failures, 20), most)
        return base * random.uniform(1 - _JITTER, 1 + _JITTER)
