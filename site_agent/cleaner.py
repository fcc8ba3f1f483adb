"""When the agent cleans its home: on a slow timer, in a thread beside its loop, never two at once."""

import asyncio
import logging
import time
from pathlib import Path

from consortium.errors import SprachbundError
from site_agent.cleaning import Cleaned, clean, last_cleaning
from site_agent.config import SiteConfig

_log = logging.getLogger(__name__)


class Cleaner:
    """To be asked at each turn of the loop; an agent that a cron job starts finds in the home when it was cleaned."""

    def __init__(self, config: SiteConfig) -> None:
        self._config = config
        self._task: asyncio.Task[None] | None = None
        self._is_leaving = False
        last = last_cleaning(Path(config.home))
        self._cleaned_at = last.at if last is not None else float("-inf")
        self._said = ""

    def turned(self) -> None:
        """Begin with it, if it is time."""
        every = self._config.cleaning.every_hours
        now = time.time()
        # a clock that was set back must not put it off for years
        if every is None or 0.0 <= now - self._cleaned_at < every * 3600.0 or self._is_leaving:
            return
        if self._task is None or self._task.done():
            self._cleaned_at = now
            self._task = asyncio.create_task(self._clean(now))

    async def close(self) -> None:
        """Leave the rest to the next cleaning."""
        self._is_leaving = True
        await self.wait()

    async def wait(self) -> None:
        """Until what is under way has ended."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _clean(self, now: float) -> None:
        try:
            done = await asyncio.to_thread(clean, self._config, now, goes_on=lambda: not self._is_leaving)
        except SprachbundError as error:
            _log.warning("the home is not cleaned: %s", error)
            return
        except Exception:
            _log.exception("an error of the agent's own while the home was cleaned; it is tried again")
            return
        for going in done.gone:
            _log.info("%s is deleted: %s", going.name, going.reason)
        self._say(done)

    def _say(self, done: Cleaned) -> None:
        trouble = "; ".join(said for said in (done.over, done.trouble) if said)
        if trouble and trouble != self._said:
            _log.warning("cleaning %s: %s", self._config.home, trouble)
        self._said = trouble
