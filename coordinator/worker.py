"""Sees to it that what the state owes gets done: one task per obligation, off the event loop.

Obligations are derived from the state after every change; nothing is queued that could be lost. A task that the
world stopped (a full disk, say) is tried again, later each time.
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from consortium.errors import SprachbundError, Unavailable
from consortium.jobs import Purpose
from coordinator.core.excerpt import excerpt
from coordinator.core.owed import Inspect, MakeBase, Merge, Owed, owed
from coordinator.driver import Driver
from coordinator.making import Interest
from coordinator.workshop import Workshop, do

_log = logging.getLogger(__name__)
_PATIENCE_SECONDS_MAX = 300.0
_LOOK_SECONDS = 30.0  # at what is owed, though nothing changed
_LIGHT = 2  # inspections and verdicts at a time


class Worker:
    """then  what it thinks, once it is cancelled, of versions that are being made: leave them, or end them?"""

    def __init__(self, driver: Driver, workshop: Workshop) -> None:
        self.then = Interest.NONE
        self._is_over = False
        self._driver = driver
        self._workshop = workshop
        self._owed: tuple[Owed, ...] = ()
        self._running: dict[Owed, asyncio.Task[None]] = {}
        self._heavy = asyncio.Semaphore(1)  # one merge or base at a time: each uses every core
        self._light = asyncio.Semaphore(_LIGHT)
        self._threads = ThreadPoolExecutor(1 + _LIGHT, "worker")

    async def run(self) -> None:
        """Until cancelled; then none of its threads goes on. Wakes at every change of the state, or now and then."""
        try:
            while True:
                try:
                    self._owed = owed(self._driver.state)
                    for obligation in self._owed:
                        if obligation not in self._running:
                            self._running[obligation] = asyncio.create_task(self._fulfil(obligation))
                except SprachbundError as error:  # the ledger cannot be read just now
                    _log.error("the worker cannot see what it owes: %s", error)
                await self._driver.news(_LOOK_SECONDS)
        finally:
            self._is_over = True
            for task in self._running.values():
                task.cancel()
            # the next coordinator works in the same folders: leave none of our threads in them
            await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    async def _fulfil(self, obligation: Owed) -> None:
        try:
            await self._persist(obligation)
        finally:
            del self._running[obligation]

    async def _persist(self, obligation: Owed) -> None:
        patience = 1.0
        while True:
            try:
                async with self._heavy if self._is_heavy(obligation) else self._light:
                    # A copy: the thread reads it while the loop goes on changing the state.
                    state = excerpt(self._driver.state, obligation)
                    loop = asyncio.get_running_loop()
                    interest = partial(self._interest, obligation)
                    command = await loop.run_in_executor(
                        self._threads, do, obligation, state, self._workshop, interest
                    )
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

    def _interest(self, obligation: Owed) -> Interest:
        """Asked by the thread that does it."""
        if self._is_over:
            return self.then
        return Interest.WANTED if obligation in self._owed else Interest.NONE

    def _is_heavy(self, obligation: Owed) -> bool:
        """Whether it uses every core; a merge that a site delivered is repeated to be believed."""
        if isinstance(obligation, Inspect):
            return self._driver.state.jobs[obligation.job].purpose is Purpose.MERGE
        return isinstance(obligation, MakeBase | Merge)
