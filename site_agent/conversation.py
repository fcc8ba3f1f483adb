"""When the agent speaks to its coordinator: at once if it has news, else when the last answer lets it."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from typing import Any

from sprachbund.v1 import site_pb2

from consortium.errors import Broken, Refused, SprachbundError, Superseded, TooOften
from site_agent.core.facts import Report
from site_agent.link import Link, News

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.2  # at least, between two Syncs that tell the same: the answer may come at once each time
_BACKOFF_SECONDS = 0.5  # doubled with each failure in a row, with jitter, lest all sites come back at once
# with jitter 15: after a long outage, too, all sites are back within half a minute
_BACKOFF_SECONDS_MAX = 10.0
# it does answer, and will say the same until a person acts: suspended for a month, say
_REFUSED_SECONDS_MAX = 60.0
_HELD_SECONDS_MAX = 6 * 3600.0  # the longest that a coordinator can make wait for one more of anything


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
        self._told: tuple[bytes, Any] = (b"", None)  # what the newest Sync says of the site, and of attempts
        self._not_before = 0.0
        self._failures = 0
        self._not_described_before = 0.0  # until then another description is no reason to speak
        self._not_renewed_before = 0.0
        self._used_up = ""

    @property
    def connected(self) -> bool:
        return self.news is not None and not self.trouble

    def say(self, description: site_pb2.SiteDescription, reports: tuple[Report, ...]) -> None:
        """Begin a Sync if one is due."""
        now = asyncio.get_running_loop().time()
        told = description.SerializeToString(deterministic=True), _substance(reports)
        is_new = told[1] != self._told[1] or (told[0] != self._told[0] and now >= self._not_described_before)
        if now < self._not_before and (self._failures or not is_new):
            return
        if self._task is not None:
            if not is_new:
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
            self._heed(self.news, now)
            if self._failures:
                _log.info("the coordinator answers again, after %d failures", self._failures)
            self._failures, self.trouble, self.synced_at = 0, "", time.time()
        return True

    def _heed(self, news: News, now: float) -> None:
        """Wait with what the coordinator does not take down; each Sync that comes anyway says it again."""
        until = {one.budget: now + _held_seconds(one.again_at - time.time()) for one in news.used_up}
        self._not_described_before = until.get("described", 0.0)
        self._not_renewed_before = max(self._not_renewed_before, until.get("renewed", 0.0))
        said = "; ".join(one.reason for one in news.used_up)
        if said and said != self._used_up:
            _log.warning("the coordinator takes no more of this for a while: %s", said)
        self._used_up = said

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _talk(self, description: site_pb2.SiteDescription, reports: tuple[Report, ...]) -> News:
        clock = asyncio.get_running_loop().time
        if self._link.is_due(time.time()) and clock() >= self._not_renewed_before:
            try:
                await self._link.renew()
                _log.info("the certificate was renewed")
            except SprachbundError as error:
                if isinstance(error, TooOften):
                    self._not_renewed_before = clock() + _held_seconds(error.again_seconds)
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


def _held_seconds(seconds: float) -> float:
    """At most as long as is sensible to believe."""
    return min(max(0.0, seconds), _HELD_SECONDS_MAX)


def _substance(reports: tuple[Report, ...]) -> Any:
    """What of the reports is worth a Sync of its own; progress is not, and use only once it has ended."""
    return tuple(
        (report.attempt, report.phase, report.ended, report.native_id, report.usage if report.ended else None)
        for report in reports
    )
