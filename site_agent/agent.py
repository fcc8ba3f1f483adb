"""The site's resident program: hear what is wanted, look at what is there, do what is missing, for ever.

One task talks (Sync, long-polled), one each carries bytes, and the loop between them looks and decides; no
one waits for another. Nothing is remembered that is not on disk, except what the coordinator says anew: so
the agent can be killed at any instruction and started again, and jobs never notice.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from importlib.metadata import version
from pathlib import Path

from sprachbund.v1 import site_pb2

from consortium.errors import Refused, SprachbundError, Unavailable
from consortium.ids import AttemptId
from consortium.store import BlobStore
from site_agent.config import SiteConfig
from site_agent.conversation import Conversation
from site_agent.core.facts import Act, Action, AttemptFiles, Limits, Observation, Plan, Sighting
from site_agent.core.reconcile import reconcile
from site_agent.deeds import Deeds
from site_agent.description import Description
from site_agent.identity import SiteIdentity
from site_agent.launchers import make_launcher
from site_agent.launchers.base import Launcher
from site_agent.link import Link
from site_agent.residuals import Residuals
from site_agent.spending import Spending
from site_agent.spool import Spool
from site_agent.status import AgentStatus, write_status
from site_agent.transfers import Transfers
from site_agent.wire import description_message

_log = logging.getLogger(__name__)

_STEPS_MAX = 5  # an action may make the next one due at once; after so many, the rest waits for the next look


def run_agent(config: SiteConfig, once: bool = False, launcher: Launcher | None = None) -> int:
    """Be the site's agent until SIGTERM or SIGINT (jobs go on); with ``once``, one Sync and what follows.

    Returns the exit code. Raises Unavailable if the site has not enrolled, Refused if it has to again.
    """
    identity = SiteIdentity.load(Path(config.home))
    if identity.trust.site != config.site:
        raise Refused(
            f"{config.home}: enrolled as site {identity.trust.site}, the config says {config.site}; "
            f"use that site's config, or another home"
        )
    if identity.seconds_left(time.time()) <= 0:
        raise Refused("this site's certificate has expired; ask for a new invitation and enrol again")

    async def run() -> int:
        agent = Agent(config, identity, launcher or make_launcher(config))
        return await (agent.run_once() if once else agent.run())

    return asyncio.run(run())


class Agent:
    """To be made within a running event loop."""

    def __init__(self, config: SiteConfig, identity: SiteIdentity, launcher: Launcher) -> None:
        home = Path(config.home)
        self._config = config
        self._launcher = launcher
        self._limits = Limits(slots=config.slots, lives_max=config.lives_max)
        self._spool = Spool(home / "spool")
        self._incarnation = secrets.token_hex(8)
        self._link = Link(config.site, config.coordinator, home, identity, self._incarnation)
        self._wake = asyncio.Event()
        self._talk = Conversation(self._link, config.sync_seconds, self._wake.set)
        self._transfers = Transfers(self._wake.set, lambda: self._talk.connected)
        self._deeds = Deeds(
            config, self._spool, BlobStore(home), Residuals(home / "residuals"), launcher, self._transfers
        )
        self._description = Description(config)
        self._spending = Spending(config)
        self._started_at = time.time()
        self._said: dict[str, str] = {}

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()

        def stop() -> None:
            stopping.set()
            self._wake.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        self._description.keep_fresh(self._wake.set)
        _log.info("agent %s of site %s starts", self._incarnation, self._config.site)
        try:
            while not stopping.is_set():
                plan = await self._step()
                if plan is not None and self._description.manifest is not None:
                    self._talk.say(self._describe(), plan.reports)
                with contextlib.suppress(TimeoutError):
                    pause = min(self._launcher.poll_seconds, self._talk.seconds_until_due())
                    async with asyncio.timeout(pause):  # wait_for of Python 3.11 may swallow a cancellation
                        await self._wake.wait()
                self._wake.clear()
                if self._talk.listen():
                    self._note()
        finally:
            await self._close()
        _log.info("agent %s stops; jobs go on", self._incarnation)
        return 0

    async def run_once(self) -> int:
        """Sync, do all that follows, Sync again to tell it; for sites where nothing may stay resident."""
        self._talk.wait_seconds = 0.0
        try:
            await asyncio.to_thread(self._description.refresh)
            for _ in range(2):
                plan = await self._step()
                if plan is None:
                    return Unavailable.exit_code
                self._talk.say(self._describe(), plan.reports)
                while self._talk.is_under_way:
                    await self._wake.wait()
                    self._wake.clear()
                    self._talk.listen()
                self._note()
                await self._step()
                await self._transfers.wait()
                await self._step()
        finally:
            await self._close()
        return Unavailable.exit_code if self._talk.trouble else 0

    # ---- inside

    async def _step(self) -> Plan | None:
        """Look, decide and do, until nothing more can be done at once. None: the spool cannot be read now."""
        for _ in range(_STEPS_MAX):
            try:
                held, sightings = await asyncio.to_thread(self._look)
                standing = await asyncio.to_thread(self._spending.look, held)
            except Unavailable as error:
                self._say("spool", logging.ERROR, str(error))
                return None
            self._said.pop("spool", None)
            news = self._talk.news
            observed = Observation(
                wanted=news.offers if news else None,
                answered=news.answered if news else frozenset(),
                settled=news.settled if news else frozenset(),
                held=held,
                sightings=sightings,
                problems=self._transfers.problems,
                closing=standing.closing,
                waits=standing.waits,
                pause_running=standing.pause_running,
            )
            plan = reconcile(observed, self._limits, self._config.consent)
            changed = [await self._act(action) for action in plan.actions]
            if not any(changed):
                break
        return plan

    def _look(self) -> tuple[tuple[AttemptFiles, ...], dict[AttemptId, Sighting]]:
        held, complaints = self._spool.look()
        for complaint in complaints:
            _log.error("%s", complaint)
        begun = {self._spool.directory(files.attempt): files.attempt for files in held if files.lives}
        seen = self._launcher.poll(list(begun)) if begun else {}
        return held, {begun[directory]: sighting for directory, sighting in seen.items()}

    async def _act(self, action: Action) -> bool:
        """Carry out one action; whether it leaves something to be decided at once."""
        attempt = action.attempt
        self._say(attempt, logging.INFO, f"{attempt}: {action.act}: {action.reason}")
        try:
            is_news = await self._deeds.do(action, self._link, self._talk.news)
        except SprachbundError as error:
            self._say(attempt, logging.WARNING, f"{attempt}: {action.act} failed: {error}")
            return False
        if action.act is Act.DROP:
            self._said.pop(attempt, None)
        return is_news

    def _describe(self) -> site_pb2.SiteDescription:
        config = self._config
        return description_message(
            self._description.manifest,
            config.slots,
            version("sprachbund"),
            config.consent.merges,
            allocation=self._spending.allocation,
            windows=self._spending.windows,
            gpus=config.gpus_of_job,
            launcher=config.launcher,
        )

    def _say(self, subject: str, level: int, sentence: str) -> None:
        """One line when something changes, not one a look."""
        if self._said.get(subject) != sentence:
            self._said[subject] = sentence
            _log.log(level, "%s", sentence)

    def _note(self) -> None:
        """For ``site status``, which must not speak to the coordinator in this agent's place."""
        news = self._talk.news
        status = AgentStatus(
            site=self._config.site,
            pid=os.getpid(),
            host=socket.gethostname(),
            incarnation=self._incarnation,
            started_at=self._started_at,
            synced_at=self._talk.synced_at,
            trouble=self._talk.trouble,
            clock_ahead_seconds=news.clock_ahead_seconds if news else 0.0,
        )
        try:
            write_status(Path(self._config.home), status)
        except Unavailable as error:
            self._say("status", logging.ERROR, str(error))

    async def _close(self) -> None:
        self._description.stop()
        await self._talk.stop()
        await self._transfers.stop_all()
        await self._link.close()
