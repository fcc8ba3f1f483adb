"""When the agent speaks to its coordinator: at once if it has news, else when the last answer lets it."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from typing import Any

from sprachbund.v1 import site_pb2

from consortium.errors import Broken, Refused, SprachbundError, Superseded
from site_agent.core.facts import Report
from site_agent.link import Link, News

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.2  # at least, between two Syncs that tell the same: the answer may come at once each time
_BACKOFF_SECONDS = 0.5  # doubled with each failure in a row, with jitter, lest all sites come back at once
# with jitter 15: after a long outage, too, all sites are back within half a minute
_BACKOFF_SECONDS_MAX = 10.0
# it does answer, and will say the same until a person acts: suspended for a month, say
_REFUSED_SECONDS_MAX = 60.0


class Conversation:
    """One Sync at a time, for ever; one that tells old news is given up for one that tells the new.

    news     the newest answer; None: not heard since the agent started
    trouble  why the last Sync failed; "" if it did not
    superseded    the coordinator's word that a newer agent has taken over; "" if none has
    wait_seconds  how long the coordinator may wait for something to say
    """

    def __init__(self, link: Link, wait_seconds: float, changed: Callable[[], None]) -> None:
        self.news: News | None = None
        self.trouble = ""
        self.superseded = ""
        self.synced_at: float | None = None
        self._link = link
        self.wait_seconds = wait_seconds
        self._changed = changed
        self._task: asyncio.Task[News] | None = None
        self._told: object = None
        self._not_before = 0.0
        self._failures = 0

    @property
    def connected(self) -> bool:
        return self.news is not None and not self.trouble

    def say(self, description: site_pb2.SiteDescription, reports: tuple[Report, ...]) -> None:
        """Begin a Sync if one is due."""
        told = description.SerializeToString(deterministic=True), _substance(reports)
        is_early = asyncio.get_running_loop().time() < self._not_before
        if is_early and (self._failures or told == self._told):
            return
        if self._task is not None:
            if told == self._told:
                return
            self._task.cancel()
        self._told = told
        self._task = asyncio.create_task(self._talk(description, reports))
        self._task.add_done_callback(lambda _: self._changed())

    @property
    def is_under_way(self) -> bool:
        return self._task is not None

    def seconds_until_due(self) -> float:
        """Until ``say`` would begin the same again; infinite while a Sync is under way."""
        if self.is_under_way:
            return math.inf
        return max(0.0, self._not_before - asyncio.get_running_loop().time())

    def listen(self) -> bool:
        """Take the answer, or the failure, if there is one by now; whether there was."""
        task = self._task
        if task is None or not task.done():
            return False
        self._task = None
        now = asyncio.get_running_loop().time()
        try:
            self.news = task.result()
        except SprachbundError as error:
            if isinstance(error, Superseded):
                self.superseded = str(error)
            self._failures += 1
            most = _REFUSED_SECONDS_MAX if isinstance(error, Refused) else _BACKOFF_SECONDS_MAX
            pause = min(most, _BACKOFF_SECONDS * 2.0 ** min(self._failures - 1, 10))
            self._not_before = now + pause * random.uniform(0.5, 1.5)
            self._complain(error)
        else:
            self._not_before = now + max(_PAUSE_SECONDS, self.news.next_seconds)
            if self._failures:
                _log.info("the coordinator answers again, after %d failures", self._failures)
            self._failures, self.trouble, self.synced_at = 0, "", time.time()
        return True

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _talk(self, description: site_pb2.SiteDescription, reports: tuple[Report, ...]) -> News:
        if self._link.is_due(time.time()):
            try:
                await self._link.renew()
                _log.info("the certificate was renewed")
            except SprachbundError as error:
                _log.warning("the certificate is due for renewal, which failed: %s", error)
        return await self._link.sync(description, reports, self.wait_seconds)

    def _complain(self, error: SprachbundError) -> None:
        trouble = str(error)
        if self._link.identity.seconds_left(time.time()) <= 0:
            trouble += (
                "; this site's certificate has expired: ask for a new invitation, enrol, restart the agent"
            )
        if trouble != self.trouble:
            level = logging.ERROR if isinstance(error, Broken) else logging.WARNING
            _log.log(level, "Sync failed: %s; jobs go on, it is tried again", trouble)
        self.trouble = trouble


def _substance(reports: tuple[Report, ...]) -> Any:
    """What of the reports is worth a Sync of its own; progress is not, and use only once it has ended."""
    return tuple(
        (report.attempt, report.phase, report.ended, report.native_id, report.usage if report.ended else None)
        for report in reports
    )
