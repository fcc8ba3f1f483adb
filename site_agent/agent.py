"""The site's resident program: hear what is wanted, look at what is there, do what is missing, for ever.

One task talks (Sync, long-polled), one each carries bytes, and the loop between them looks and decides; no
one waits for another. Nothing is remembered that is not on disk, except what the coordinator says anew: so
the agent can be killed at any instruction and started again, and jobs never notice.
"""

import asyncio
import contextlib
import logging
import math
import os
import secrets
import signal
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from sprachbund.v1 import site_pb2

from consortium.errors import SprachbundError, Superseded, Unavailable
from consortium.jobs import Phase
from consortium.manifests import DataManifest
from consortium.store import BlobStore
from site_agent.cleaner import Cleaner
from site_agent.config import SiteConfig
from site_agent.conversation import Conversation
from site_agent.core.consent import slots
from site_agent.core.facts import Act, Action, Limits, Observation, Plan
from site_agent.core.reconcile import reconcile
from site_agent.courier.link import make_link
from site_agent.deeds import Deeds
from site_agent.description import Description
from site_agent.heartbeat import Heartbeat
from site_agent.identity import SiteIdentity
from site_agent.launchers.base import Launcher
from site_agent.link import News
from site_agent.presence import Presence
from site_agent.residuals import Residuals
from site_agent.sight import Seen, Sight
from site_agent.spending import Spending
from site_agent.spool import Spool
from site_agent.ssh.remote import remote_site
from site_agent.status import SEEN_SECONDS
from site_agent.supervision import Supervisor
from site_agent.told import Told, free_bytes, in_words, make_health
from site_agent.transfers import Transfers
from site_agent.wire import description_message

_log = logging.getLogger(__name__)

_IDLE_SECONDS = 10.0  # without a job only the operator's wish can change unheard
_SAVE_SECONDS = 600.0  # for a training checkpoint, at least; a profile's signal_seconds may know better
_SLOW_SECONDS = 45.0  # a launcher that failed after that is not asked a second time in the same step
_OF_THE_LAUNCHER = (Act.LAUNCH, Act.KILL)
_ONCE_MAX = 10  # looks of one run for what goes on beside it
_STEPS_MAX = 5  # an action may make the next one due at once; after so many, the rest waits for the next look


class Agent:
    """To be made within a running event loop."""

    def __init__(self, config: SiteConfig, identity: SiteIdentity, launcher: Launcher) -> None:
        self._home = home = Path(config.home)
        self._config = config
        self._launcher = launcher
        self._limits = limits(config)
        self._spool = Spool(home / "spool")
        self._incarnation = secrets.token_hex(8)
        self._link = make_link(config, identity, self._incarnation)
        self._wake = asyncio.Event()
        self._talk = Conversation(self._link, config.sync_seconds, self._wake.set)
        self._transfers = Transfers(self._wake.set, lambda: self._talk.connected)
        self._deeds = Deeds(
            config, self._spool, BlobStore(home), Residuals(home / "residuals"), launcher, self._transfers
        )
        self._site = remote_site(config)  # None: the agent is at its site
        self._cleaner = Cleaner(config)
        self._description = Description(config)
        self._spending = Spending(config)
        self._sight = Sight(home, self._spool, launcher, self._spending, self._site)
        self._supervisor = Supervisor(os.environ)
        self._presence = Presence(home, config.site, self._incarnation)
        self._release = version("sprachbund")
        self._seen = Seen()
        self._plan: Plan | None = None  # None: none yet, or the spool could not be read
        self._health = make_health(config.metrics_port, self._standing)
        self._described: tuple[DataManifest | None, bool, site_pb2.SiteDescription] | None = None
        self._said: dict[str, str] = {}
        self._told_at = float("-inf")  # of what is carried over SSH, in the log
        self._heartbeat = Heartbeat(self._speak, self._note)

    async def run(self) -> int:
        stopping = asyncio.Event()

        def stop() -> None:
            stopping.set()
            self._wake.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        self._description.keep_fresh(self._wake.set)
        _log.info("agent %s of site %s starts", self._incarnation, self._config.site)
        self._note()
        try:
            self._supervisor.is_ready()
            while not stopping.is_set() and not self._superseded:
                self._plan = await self._heartbeat.during(self._step())
                self._speak()
                self._cleaner.turned()
                await self._rest()
                self._wake.clear()
                self._talk.listen()
                self._note()
        finally:
            await self._close()
        if self._superseded:
            _log.error("%s; this one leaves, jobs go on", self._superseded)
            return Superseded.exit_code
        _log.info("agent %s stops; jobs go on", self._incarnation)
        return 0

    async def run_once(self) -> int:
        """Sync, do all that follows, Sync again to tell it; for sites where nothing may stay resident."""
        self._talk.wait_seconds = 0.0
        self._note()
        try:
            await asyncio.to_thread(self._description.refresh)
            for _ in range(2):
                self._plan = await self._step()
                if self._plan is None:
                    return Unavailable.exit_code
                self._talk.say(self._describe(), self._plan.reports)
                while self._talk.is_under_way:
                    await self._wake.wait()
                    self._wake.clear()
                    self._talk.listen()
                self._note()
                if self._superseded:
                    _log.error("%s; it does the rest", self._superseded)
                    return Superseded.exit_code
                await self._step()
                await self._carry_on()
            self._cleaner.turned()
            await self._cleaner.wait()
        finally:
            await self._close()
        return Unavailable.exit_code if self._talk.trouble else 0

    def look_now(self) -> None:
        """Something at the site may have changed: do not wait for the next look."""
        self._wake.set()

    # ---- inside

    def _speak(self) -> None:
        """Say what is known, if that is due, and that the loop lives."""
        self._talk.listen()
        if self._plan is not None and self._can_speak and not self._superseded:
            self._talk.say(self._describe(), self._plan.reports)
        if self._supervisor.is_there:
            self._supervisor.turned(in_words(self._plan, self._talk, self._seen.mode))
        if self._health is not None:
            self._health.turned()

    async def _carry_on(self) -> None:
        """Wait for what goes on beside this, and do what follows; a run of a whole night if it must be."""
        for _ in range(_ONCE_MAX):
            await self._heartbeat.until(lambda: not self._goes_on() or bool(self._superseded))
            await self._step()
            if not self._goes_on() or self._superseded:
                return

    def _goes_on(self) -> bool:
        """Whether bytes are carried; tells how far those over SSH are."""
        errands = self._site.files.errands if self._site is not None else ()
        if errands and time.monotonic() - self._told_at >= SEEN_SECONDS:
            self._told_at = time.monotonic()
            _log.info("%s", "; ".join(errands))
        return bool(errands) or self._transfers.are_under_way

    async def _step(self) -> Plan | None:
        """Look, decide and do, until nothing more can be done at once. None: the spool cannot be read now."""
        for _ in range(_STEPS_MAX):
            try:
                seen = await asyncio.to_thread(self._sight.look)
            except Unavailable as error:
                self._say("spool", logging.ERROR, str(error))
                return None
            self._said.pop("spool", None)
            self._seen = seen
            self._heartbeat.moved()
            news = self._talk.news  # a newer one may come while this is done
            plan = reconcile(self._observed(seen), self._limits, self._config.consent)
            if not await self._act_on(plan, news):
                break
        return plan

    async def _act_on(self, plan: Plan, news: News | None) -> bool:
        """Carry out the plan; whether anything of it leaves something to be decided at once.

        A launcher that failed only after a while is left alone until the next step: a dead controller takes its
        90 s from each question, and cancellations would wait behind launches.
        """
        changed, is_slow = False, False
        for action in plan.actions:
            if self._superseded:
                return False
            if is_slow and action.act in _OF_THE_LAUNCHER:
                continue
            began = time.monotonic()
            try:
                changed |= await self._act(action, news)
            except Unavailable:
                is_slow |= time.monotonic() - began >= _SLOW_SECONDS
            self._heartbeat.moved()
        return changed and not is_slow

    def _observed(self, seen: Seen) -> Observation:
        news = self._talk.news
        self._say("mode", logging.INFO, f"mode: {seen.mode.mode} {seen.mode.reason}".strip())
        return Observation(
            wanted=news.offers if news else None,
            answered=news.answered if news else frozenset(),
            settled=news.settled if news else frozenset(),
            told=news.told if news else {},
            held=seen.held,
            sightings=seen.sightings,
            problems=self._transfers.problems,
            refusals=self._deeds.refusals,
            closing=seen.standing.closing,
            waits=seen.mode.waits or seen.standing.waits,
            pause_running=bool(seen.mode.waits) or seen.standing.pause_running,
        )

    async def _act(self, action: Action, news: News | None) -> bool:
        """Carry out one action; whether it leaves something to be decided at once. Raises Unavailable only."""
        attempt = action.attempt
        self._say(attempt, logging.INFO, f"{attempt}: {action.act}: {action.reason}")
        try:
            is_news = await self._deeds.do(action, self._link, news)
        except SprachbundError as error:
            self._say(attempt, logging.WARNING, f"{attempt}: {action.act} failed: {error}")
            if isinstance(error, Unavailable):
                raise
            return False
        if action.act is Act.DROP:
            self._said.pop(attempt, None)
        return is_news

    def _describe(self) -> site_pb2.SiteDescription:
        """Made anew only if it says something new: it is looked at several times between two Syncs."""
        config, manifest, draining = self._config, self._description.manifest, self._seen.mode.is_draining
        if self._described is None or self._described[0] is not manifest or self._described[1] != draining:
            message = description_message(
                manifest,
                self._limits.slots,
                self._release,
                config.consent.merges,
                draining=draining,
                allocation=self._spending.allocation,
                windows=self._spending.windows,
                gpus=config.gpus_of_job,
                launcher=config.launcher,
            )
            self._described = manifest, draining, message
        return self._described[2]

    @property
    def _superseded(self) -> str:
        return self._talk.superseded or self._transfers.superseded

    @property
    def _can_speak(self) -> bool:
        """Whether it is known what to say: text that is described for the first time takes its time."""
        return self._plan is not None and self._description.manifest is not None

    async def _rest(self) -> None:
        """Until something wakes the loop, or the next look is due. What is due to be said meanwhile is said."""
        clock = asyncio.get_running_loop().time
        is_idle = self._plan is not None and not self._plan.reports
        poll = self._launcher.poll_seconds
        look_at = clock() + (max(_IDLE_SECONDS, poll) if is_idle else poll)
        while True:
            due = self._talk.seconds_until_due() if self._can_speak else None
            limits = (look_at - clock(), due, self._supervisor.seconds_max)
            with contextlib.suppress(TimeoutError):
                # wait_for of Python 3.11 may swallow a cancellation
                async with asyncio.timeout(min(limit for limit in limits if limit is not None)):
                    await self._wake.wait()
                return
            if clock() >= look_at or self._superseded:
                return
            self._speak()

    def _standing(self) -> Told:
        """For whoever watches; called in another thread, so it only reads."""
        reports = self._plan.reports if self._plan is not None else ()
        allocation = self._spending.allocation
        running = (report.progress for report in reports if report.phase is Phase.RUNNING)
        return Told(
            site=self._config.site,
            release=self._release,
            mode=self._seen.mode.mode,
            phases=dict(Counter(report.phase.value for report in reports)),
            slots=self._limits.slots,
            synced_at=self._talk.synced_at,
            is_connected=self._talk.connected,
            sent_bytes=self._deeds.meter.sent,
            received_bytes=self._deeds.meter.received,
            free_bytes=free_bytes(self._home),
            used_gpu_seconds=self._spending.gpu_hours * 3600.0,
            granted_gpu_seconds=allocation.gpu_hours * 3600.0 if allocation else None,
            tokens_per_second=math.fsum(progress.tokens_per_second for progress in running if progress),
            launched=self._deeds.launched,
        )

    def _say(self, subject: str, level: int, sentence: str) -> None:
        """One line when something changes, not one a look."""
        if self._said.get(subject) != sentence:
            self._said[subject] = sentence
            _log.log(level, "%s", sentence)

    def _note(self) -> None:
        """For ``site status``, which must not speak to the coordinator in this agent's place."""
        try:
            self._presence.note(self._talk)
        except Unavailable as error:
            self._say("status", logging.ERROR, str(error))

    async def _close(self) -> None:
        self._supervisor.is_leaving()
        if self._health is not None:
            await asyncio.to_thread(self._health.close)
        self._description.stop()
        await self._talk.stop()
        await self._transfers.stop_all()
        await self._cleaner.close()
        await self._link.close()
        with contextlib.suppress(SprachbundError):  # a full disk is no reason not to leave
            self._presence.leave()


def limits(config: SiteConfig) -> Limits:
    gpus = config.gpus_of_job
    return Limits(
        slots=slots(config.slots, config.consent, gpus),
        gpus=gpus,
        public=tuple(sorted({text.language for text in config.text if text.access == "public"})),
        apps=config.flower.apps,
        lives_max=config.lives_max,
        lives_total_max=config.lives_total_max,
        save_seconds=max(_SAVE_SECONDS, float(config.slurm.signal_seconds if config.slurm else 0)),
        stall_seconds=config.stall_minutes * 60.0,
    )
