"""What of the carrying is under way, what failed for good, and when the rest is tried again."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from consortium.errors import BadInput, Refused, SprachbundError, Superseded, Unavailable
from consortium.ids import AttemptId

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 15.0  # after a transfer lost patience, which takes it a minute or two
_REFUSED_SECONDS = 60.0  # the whole site is refused, until a person acts
_PAUSE_SECONDS_MAX = 3600.0  # the pause doubles with each failure that says something of the attempt itself
_REFUSALS_MAX = 3
_DEATHS_MAX = 8  # with those pauses half an hour


class Died(Unavailable):
    """A process that worked on an attempt was ended, or fell. Trying again may help, but not for ever."""


class Transfers:
    """At most one transfer an attempt, beside everything else that the agent does.

    superseded what the coordinator said, if a newer agent of this site has taken over
    problems   sentences on what trying again cannot help
    connected  whether the coordinator talks to this site at all: a refusal counts for the attempt only then;
               one of the whole site (suspended, certificate expired) will pass, and the result is kept
    """

    def __init__(self, changed: Callable[[], None], connected: Callable[[], bool]) -> None:
        self.problems: dict[AttemptId, str] = {}
        self.superseded = ""
        self._changed = changed
        self._connected = connected
        self._tasks: dict[AttemptId, asyncio.Task[None]] = {}
        self._not_before: dict[AttemptId, float] = {}
        self._refusals: dict[AttemptId, int] = {}
        self._deaths: dict[AttemptId, int] = {}  # or errors of our own

    def begin(self, attempt: AttemptId, carry: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``carry()`` unless the attempt has one under way, or has just failed."""
        now = asyncio.get_running_loop().time()
        if attempt in self._tasks or now < self._not_before.get(attempt, 0.0):
            return
        task = asyncio.create_task(self._run(attempt, carry))
        self._tasks[attempt] = task
        task.add_done_callback(lambda _: self._done(attempt, task))

    async def stop(self, attempt: AttemptId) -> None:
        """End the attempt's transfer, if there is one; returns when it does nothing any more."""
        if task := self._tasks.get(attempt):
            task.cancel()
            await asyncio.wait([task])

    async def stop_all(self) -> None:
        for attempt in sorted(self._tasks):
            await self.stop(attempt)

    @property
    def are_under_way(self) -> bool:
        return bool(self._tasks)

    async def wait(self, seconds: float | None = None) -> None:
        """Until none is under way, at most so long."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=seconds)

    def forget(self, attempt: AttemptId) -> None:
        self.problems.pop(attempt, None)
        self._not_before.pop(attempt, None)
        self._refusals.pop(attempt, None)
        self._deaths.pop(attempt, None)

    def _done(self, attempt: AttemptId, task: asyncio.Task[None]) -> None:
        if self._tasks.get(attempt) is task:
            del self._tasks[attempt]
        self._changed()

    async def _run(self, attempt: AttemptId, carry: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await carry()
        except Superseded as error:  # says nothing of the attempt: the newer agent goes on with it
            self.superseded = str(error)
        except SprachbundError as error:
            _log.warning("%s: %s", attempt, error)
            if isinstance(error, Refused) and self._connected():
                self._refusals[attempt] = self._refusals.get(attempt, 0) + 1
            if isinstance(error, BadInput) or self._refusals.get(attempt, 0) >= _REFUSALS_MAX:
                self.problems[attempt] = str(error)
            if isinstance(error, Died) and self._count_death(attempt) >= _DEATHS_MAX:
                self.problems[attempt] = f"{error}; that was the last of {_DEATHS_MAX} tries"
            whole_site = isinstance(error, Refused) and not self._connected()
            self._pause(attempt, _REFUSED_SECONDS if whole_site else _PAUSE_SECONDS)
        except Exception:
            _log.exception("%s: an error of the agent itself; it is tried again", attempt)
            self._count_death(attempt)
            self._pause(attempt)

    def _count_death(self, attempt: AttemptId) -> int:
        self._deaths[attempt] = self._deaths.get(attempt, 0) + 1
        return self._deaths[attempt]

    def _pause(self, attempt: AttemptId, seconds: float = _PAUSE_SECONDS) -> None:
        longer = 2.0 ** max(0, self._deaths.get(attempt, 0) - 1)
        seconds = min(seconds * longer, _PAUSE_SECONDS_MAX)
        self._not_before[attempt] = asyncio.get_running_loop().time() + seconds
