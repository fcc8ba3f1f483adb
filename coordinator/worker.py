"""Sees to it that what the state owes gets done: one task per obligation, off the event loop.

Obligations are derived from the state after every change; nothing is queued that could be lost. A task that the
world stopped (a full disk, say) is tried again, later each time.
"""

import asyncio
import logging

from consortium.errors import SprachbundError, Unavailable
from coordinator.core.plan import MakeBase, Merge, Owed, owed
from coordinator.core.state import restore
from coordinator.driver import Driver
from coordinator.workshop import Workshop, do

_log = logging.getLogger(__name__)
_PATIENCE_SECONDS_MAX = 300.0


class Worker:
    def __init__(self, driver: Driver, workshop: Workshop) -> None:
        self._driver = driver
        self._workshop = workshop
        self._running: dict[Owed, asyncio.Task[None]] = {}
        self._heavy = asyncio.Semaphore(1)  # one merge or base at a time: each uses every core
        self._light = asyncio.Semaphore(2)

    async def run(self) -> None:
        """Until cancelled. Wakes at every change of the state, and once in a while without one."""
        try:
            while True:
                for obligation in owed(self._driver.state):
                    if obligation not in self._running:
                        task = asyncio.create_task(self._fulfil(obligation))
                        self._running[obligation] = task
                await self._driver.news(30.0)
        finally:
            for task in self._running.values():
                task.cancel()

    async def _fulfil(self, obligation: Owed) -> None:
        try:
            await self._persist(obligation)
        finally:
            del self._running[obligation]

    async def _persist(self, obligation: Owed) -> None:
        patience = 1.0
        while True:
            try:
                async with self._heavy if isinstance(obligation, MakeBase | Merge) else self._light:
                    # A copy: the thread reads it while the loop goes on changing the state.
                    state = restore(self._driver.state.snapshot())
                    command = await asyncio.to_thread(do, obligation, state, self._workshop)
                self._driver.execute(command)
                return
            except Unavailable as error:
                _log.warning("%s: %s; again in %.0f s", type(obligation).__name__, error, patience)
            except SprachbundError as error:
                # The state moved on meanwhile (a campaign was stopped), or our own promise is broken.
                _log.error("%s given up: %s", type(obligation).__name__, error)
                patience = _PATIENCE_SECONDS_MAX
            except Exception:
                _log.exception("%s failed", type(obligation).__name__)
                patience = _PATIENCE_SECONDS_MAX
            await asyncio.sleep(patience)
            patience = min(2 * patience, _PATIENCE_SECONDS_MAX)
            if obligation not in owed(self._driver.state):
                return
