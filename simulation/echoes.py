"""A worker that tells what it did more than once: a second one that was slower, or one that was thought dead.

What it says again it says at the worst of moments: right after, and whenever the same job is delivered anew.
"""

import asyncio
import contextlib
from typing import Any

from consortium.errors import SprachbundError
from consortium.ids import JobId
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.driver import Driver
from simulation.loop import Process
from simulation.streams import stream

_REPORTS = cm.ReportBase | cm.ReportInspection | cm.ReportMerge | cm.ReportVerdict
_SECONDS = (2.0, 400.0)  # until it is said again: while its consequences begin, and when they are under way
_DELIVERED_SECONDS = 5.0  # after the delivery of another attempt at the job of an old inspection


class Echoes:
    """share: of the reports that are said again"""

    def __init__(self, seed: int, share: float) -> None:
        self._share, self._dice = share, stream(seed, "echoes")
        self._inspections: dict[JobId, list[cm.ReportInspection]] = {}

    def join(self, driver: Driver, process: Process) -> None:
        """Hear what the worker of this coordinator reports."""
        if not self._share:
            return
        execute = driver.execute

        def executed(command: Any) -> Any:
            decision = execute(command)
            if isinstance(command, _REPORTS) and self._dice.random() < self._share:
                if isinstance(command, cm.ReportInspection):
                    self._inspections.setdefault(command.job, []).append(command)
                for seconds in _SECONDS:
                    process.spawn(_again(execute, command, seconds))
            for event in decision.events:
                if isinstance(event, ev.ContributionReceived):
                    for old in self._inspections.get(event.job, []):
                        process.spawn(_again(execute, old, _DELIVERED_SECONDS))
            return decision

        driver.execute = executed  # type: ignore[method-assign]


async def _again(execute: Any, command: Any, seconds: float) -> None:
    await asyncio.sleep(seconds)
    with contextlib.suppress(SprachbundError):  # its campaign is over, or the disk is full
        execute(command)
