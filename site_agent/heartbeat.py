"""How a long step of the agent's loop stays audible, and when its silence is meant.

A Slurm that does not answer takes 90 s for each question, a transfer over SSH longer: leases and a watchdog must
not end for it. Nor may a file system that hangs look alive for ever.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_BEAT_SECONDS = 1.0
_CALL_SECONDS_MAX = 1800.0  # one look or act beyond this hangs: however many jobs, no question takes so long

Found = TypeVar("Found")


class Heartbeat:
    """To be used within one running event loop.

    beat  what is to be done every second while something goes on; must not block
    note  the same, in a thread: it touches the disk, which may be what is slow
    """

    def __init__(self, beat: Callable[[], None], note: Callable[[], None]) -> None:
        self._beat = beat
        self._note = note
        self._moved_at = -math.inf
        self._noting: asyncio.Task[None] | None = None

    def moved(self) -> None:
        """What goes on has made a step; not to be told by a timer."""
        self._moved_at = asyncio.get_running_loop().time()

    async def during(self, work: Coroutine[Any, Any, Found]) -> Found:
        """What ``work`` returns or raises. Beats meanwhile, as long as it moves."""
        self.moved()
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait([task], timeout=_BEAT_SECONDS))[0]:
                self.pulse()
            if self._noting is not None:
                await self._noting
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise
        return task.result()

    def pulse(self) -> None:
        """One beat, unless nothing has moved for too long."""
        if asyncio.get_running_loop().time() - self._moved_at > _CALL_SECONDS_MAX:
            return
        self._beat()
        if self._noting is None or self._noting.done():
            self._noting = asyncio.create_task(asyncio.to_thread(self._note))

    async def until(self, is_over: Callable[[], bool]) -> None:
        """Beat until then."""
        while not is_over():
            self.moved()
            self.pulse()
            await asyncio.sleep(_BEAT_SECONDS / 5)
