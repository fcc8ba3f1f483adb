"""How the agent carries out one action of a plan: at the spool, the launcher or the coordinator."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from sprachbund.v1 import site_pb2

from consortium.canonical import encode
from consortium.errors import Refused
from consortium.ids import AttemptId
from consortium.store import BlobStore
from site_agent import carry
from site_agent.config import SiteConfig
from site_agent.core.facts import Act, Action, Ended
from site_agent.description import prepared_text
from site_agent.launchers.base import Launcher
from site_agent.link import Link, News
from site_agent.residuals import Residuals
from site_agent.spool import Spool
from site_agent.ssh.remote import remote_site
from site_agent.trainer.folder import Site
from site_agent.transfers import Transfers


class Deeds:
    """Every deed may be begun again at any time; a second beginning of the same does nothing."""

    def __init__(
        self,
        config: SiteConfig,
        spool: Spool,
        store: BlobStore,
        residuals: Residuals,
        launcher: Launcher,
        transfers: Transfers,
    ) -> None:
        self._config = config
        self._site = remote_site(config)
        self._spool = spool
        self._store = store
        self._residuals = residuals
        self._launcher = launcher
        self._transfers = transfers
        self.meter = carry.Meter()
        self.launched = 0  #: lives since the agent started
        self.refusals: dict[AttemptId, str] = {}  #: why the launcher will start no further life

    async def do(self, action: Action, link: Link, news: News | None) -> bool:
        """Carry out ``action``; whether it leaves something to be decided at once.

        news  the coordinator's newest answer, if there was one
        Raises what the disk or the launcher refuses; what a transfer meets goes to ``Transfers.problems``.
        """
        attempt = action.attempt
        try:
            match action.act:
                case Act.STAGE:
                    signed = news.signed.get(attempt) if news else None
                    self._transfers.begin(attempt, partial(self._stage, attempt, link, signed))
                case Act.UPLOAD:
                    limit = news.upload_bytes_max if news else 0
                    self._transfers.begin(attempt, partial(self._deliver, attempt, link, limit))
                case Act.LAUNCH:
                    await asyncio.to_thread(self._launch, attempt, action.life)
                case Act.STOP:
                    await asyncio.to_thread(self._stop, action)
                case Act.KILL:
                    await asyncio.to_thread(self._kill, action)
                case Act.FINISH:
                    await asyncio.to_thread(self._spool.ask_to_finish, attempt)
                case Act.SALVAGE:
                    self._transfers.begin(attempt, partial(self._salvage, self._spool.directory(attempt)))
                case Act.END:
                    assert action.outcome is not None, action
                    await self._transfers.stop(attempt)
                    ended = Ended(outcome=action.outcome, reason=action.reason)
                    await asyncio.to_thread(self._spool.end, attempt, ended)
                case Act.DROP:
                    await self._transfers.stop(attempt)
                    if self._site is not None:
                        await asyncio.to_thread(self._site.files.drop, self._spool.directory(attempt))
                    await asyncio.to_thread(self._spool.drop, attempt)
                    self._transfers.forget(attempt)
                    self.refusals.pop(attempt, None)
        except Refused as error:  # the machine's own rules will never let it run
            if action.act is not Act.LAUNCH:
                raise
            self.refusals[attempt] = str(error)
        return action.act in (Act.LAUNCH, Act.END, Act.DROP)

    async def _stage(self, attempt: AttemptId, link: Link, signed: site_pb2.SignedAssignment | None) -> None:
        if signed is not None:  # else it is in the spool already
            await asyncio.to_thread(self._spool.create, attempt, signed.job, signed.signature)
        artifacts: Any = link.artifacts
        await carry.stage(
            attempt,
            self._spool,
            self._store,
            self._residuals,
            artifacts,
            encode(site_of(self._config)),
            self.meter,
        )

    async def _deliver(self, attempt: AttemptId, link: Link, upload_bytes_max: int) -> None:
        ended = await carry.deliver(
            attempt,
            self._spool,
            self._store,
            self._residuals,
            link.artifacts,
            link.identity,
            upload_bytes_max,
            self.meter,
        )
        await asyncio.to_thread(self._spool.end, attempt, ended)

    async def _salvage(self, directory: Path) -> None:
        if self._site is not None:  # the training checkpoints are there
            await asyncio.to_thread(self._site.salvage, directory)
        else:
            await carry.salvage(directory)

    def _launch(self, attempt: AttemptId, life: int) -> None:
        self._spool.begin_life(attempt, life)
        self._launcher.submit(self._spool.directory(attempt), life)
        self.launched += 1

    def _stop(self, action: Action) -> None:
        if action.meant:
            self._spool.send_away(action.attempt, action.reason, action.meant)
        self._spool.ask_to_stop(action.attempt)

    def _kill(self, action: Action) -> None:
        if action.meant:
            self._spool.send_away(action.attempt, action.reason, action.meant)
        self._launcher.cancel(self._spool.directory(action.attempt))


def site_of(config: SiteConfig) -> Site:
    """What the trainer is told of the site: its ``site.json``."""
    return Site(
        text=config.text,
        heldout_share=config.heldout_share,
        cache=str(prepared_text(config)),
        threads=config.torch_threads,
        sharding=config.sharding_of_job,
        device_sequences=config.device_sequences,
        engine=config.engine,
        flower=config.flower,
    )
