"""A site's host: its agent started, killed and started again on one home, beside a batch system that outlives it.

Agent, conversation, transfers, spool and account are the product's; only what it says of its text is invented.
"""

import asyncio
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consortium.errors import SprachbundError
from consortium.files import make_folder
from consortium.ids import Language
from consortium.invitation import Invitation
from consortium.jobs import Purpose
from consortium.manifests import DataManifest, Holding
from simulation.checkers import Referee
from simulation.cluster import Cluster
from simulation.coordinators import ENROLMENT, MAIN
from simulation.launcher import SimulatedLauncher
from simulation.learning import holding_digest
from simulation.loop import Process, VirtualLoop
from simulation.machine import Host
from simulation.network import Network
from simulation.outcome import Happening
from simulation.plan import Held, SitePlan
from site_agent.agent import Agent
from site_agent.config import Consent, SiteConfig
from site_agent.core.cleaning import Cleaning
from site_agent.enrol import ask
from site_agent.identity import SiteIdentity, has_enrolled
from site_agent.mode import Mode, ModeName, write_mode

_BYTES_PER_DOCUMENT = 4000
_ENROL_AGAIN_SECONDS = 60.0
_KEPT_HOURS = 0.5  # by a site that is cleaned at all: much is to go


def manifest_of_site(plan: SitePlan) -> DataManifest:
    """What the site says it holds."""
    holdings = [
        *(_holding(plan, language, held, "private") for language, held in plan.languages.items()),
        *(_holding(plan, language, held, "public") for language, held in plan.public.items()),
    ]
    return DataManifest(
        site=plan.name, holdings=tuple(sorted(holdings, key=lambda one: (one.language, one.access)))
    )


def _holding(plan: SitePlan, language: Language, held: Held, access: Any) -> Holding:
    return Holding(
        language=language,
        access=access,
        documents=held.documents,
        bytes=held.documents * _BYTES_PER_DOCUMENT,
        heldout_documents=held.heldout if access == "private" else 0,
        licence="LicenseRef-simulated",
        digest=holding_digest(plan, language, access),
    )


class Told:
    """In place of ``site_agent.agent.Description``: the plan's holdings, at once."""

    def __init__(self, manifests: dict[str, DataManifest], config: SiteConfig) -> None:
        self.manifest: DataManifest | None = manifests[config.site]

    def refresh(self) -> bool:
        return False

    def keep_fresh(self, changed: Callable[[], None]) -> None:
        pass

    def stop(self) -> None:
        pass


def config_of(
    plan: SitePlan, home: Path, sync_seconds: float, cleaned_hours: float | None = None
) -> SiteConfig:
    """What the site's operator would have written. ``cleaned_hours``: between cleanings; None: never."""
    return SiteConfig(
        site=plan.name,
        coordinator=MAIN,
        enrolment=ENROLMENT,
        proxy="",
        home=str(home),
        slots=plan.slots,
        gpus=plan.gpus,
        sync_seconds=sync_seconds,
        allocation=plan.allocation,
        timezone=plan.timezone,
        windows=plan.windows,
        consent=Consent(purposes=tuple(Purpose)) if plan.merges else Consent(),
        cleaning=Cleaning(every_hours=cleaned_hours, keep_hours=_KEPT_HOURS),
    )


class SiteHost:
    def __init__(
        self,
        plan: SitePlan,
        config: SiteConfig,
        host: Host,
        loop: VirtualLoop,
        network: Network,
        cluster: Cluster,
        referee: Referee,
        happened: Callable[[Happening], None],
        rest_seconds: Callable[[], float],
    ) -> None:
        self.plan, self.config, self.host, self.cluster = plan, config, host, cluster
        self.process: Process | None = None  #: the newest; older ones leave once they hear of it
        self._processes: list[Process] = []
        self.deaths = 0
        self._loop, self._network, self._referee = loop, network, referee
        self._happened, self._rest_seconds = happened, rest_seconds
        cluster.blame = referee.blame
        self._invitation: Invitation | None = None

    def start(self, invitation: Invitation | None = None) -> None:
        """Begin, or begin again; beside one that still runs, as who types too fast does."""
        self._invitation = invitation or self._invitation
        self.process = process = Process(f"agent of {self.plan.name}", self.host)
        self._processes = [*(one for one in self._processes if one.alive), process]
        process.on_death = lambda: self._died(process)
        self.cluster.conduct.starts(process)
        process.spawn(self._run(process))

    def stop(self) -> None:
        """For good."""
        for process in self._processes:
            process.on_death = lambda: None
            process.kill()

    def set_mode(self, mode: ModeName) -> None:
        """As its operator says it: ``sprachbund site drain``, ``resume``."""
        make_folder(Path(self.config.home))
        write_mode(Path(self.config.home), Mode(mode=mode, reason="the operator's wish"))

    async def _run(self, process: Process) -> None:
        home = Path(self.config.home)
        try:
            while not has_enrolled(home):
                try:
                    assert self._invitation is not None
                    (await ask(self.config, self._invitation, home)).save(home)
                except SprachbundError as error:
                    self._moment("not enrolled", str(error))
                    await asyncio.sleep(_ENROL_AGAIN_SECONDS)
            launcher = SimulatedLauncher(self.cluster, 2.0 * self.config.sync_seconds)
            agent = Agent(self.config, SiteIdentity.load(home), launcher)
            self.cluster.stirred = agent.look_now
            await agent.run()
        except SprachbundError as error:  # it leaves with a sentence, and the service manager starts it again
            self._moment("agent left", str(error))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._referee.blame(
                f"invariant 8: the agent of {self.plan.name} fell: {error!r} at {where.name}:{where.lineno}"
            )
        process.kill()

    def _died(self, process: Process) -> None:
        self.deaths += 1
        self._network.hang_up(process)
        if process is not self.process:  # an older one: nobody starts it again
            return
        self.cluster.stirred = lambda: None
        rest = self._rest_seconds()
        now = self.host.true_time
        self._happened(
            Happening(at=now, place=self.plan.name, kind="down", subject="agent", until=now + rest)
        )
        self._loop.call_later(rest, self.start, context=self._loop.outside)

    def _moment(self, kind: str, detail: str) -> None:
        self._happened(Happening(at=self.host.true_time, place=self.plan.name, kind=kind, detail=detail))
