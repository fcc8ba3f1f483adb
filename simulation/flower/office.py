"""A coordinator without a network: the core over a ledger of its own, asked and told by whoever carries the words.

What the daemon does with gRPC, a clock and a worker's threads happens here one after the other, on a clock that
only counts the questions: the same campaign, sites and text give the same versions.
"""

import itertools
from pathlib import Path
from types import TracebackType

from consortium.errors import BadInput
from consortium.identity import identity_of, token_hash
from consortium.ids import AttemptId, CampaignId, Digest, SiteName
from consortium.jobs import Assignment, Evaluate, Outcome, Phase
from consortium.manifests import DataManifest
from coordinator.config import CoordinatorConfig
from coordinator.core import commands as cm
from coordinator.core.owed import owed
from coordinator.core.state import CampaignState
from coordinator.driver import Driver
from coordinator.founding import Keys, found
from coordinator.ledger import Ledger
from coordinator.workshop import Workshop, do
from policies.campaign import Campaign

_START = 1_767_571_200.0  # 2026-01-05T00:00:00Z
_STEP_SECONDS = 0.001  # per question: no lease lapses, no deadline passes


class Office:
    """Founded below ``config.home``; ``with`` it. ``workshop.store`` is where contributions are handed in."""

    def __init__(self, config: CoordinatorConfig) -> None:
        home = Path(config.home)
        ticks = itertools.count()
        found(config, _START)
        self._keys = Keys.load(home, config.names, _START)
        self._ledger = Ledger(Path(config.ledger or home / "ledger.sqlite"))
        self._driver = Driver(self._ledger, self._keys.ledger, lambda: _START + _STEP_SECONDS * next(ticks))
        self.workshop = Workshop.at(home)
        self._slots: dict[SiteName, int] = {}
        self._holdings: dict[SiteName, DataManifest] = {}
        self._given: set[AttemptId] = set()

    def __enter__(self) -> "Office":
        self._ledger.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ledger.__exit__(kind, error, trace)

    def enrol(self, site: SiteName, signing_request: bytes, holds: DataManifest, slots: int) -> None:
        """Let a site in: it signs what it delivers with the key of ``signing_request`` (PEM)."""
        now = self._driver.clock()
        token = token_hash(f"flower {site}")
        certificate = self._keys.authority.site(signing_request, site, now)
        who = identity_of(certificate, self._driver.state.consortium)
        self._driver.execute(
            cm.IssueToken(
                site=site,
                organisation=site,
                country="EU",
                token_hash=token,
                valid_until=now + 3600.0,
                membership="a site of this Flower app",
            )
        )
        self._driver.execute(
            cm.EnrolSite(
                site=site,
                token_hash=token,
                certificate=certificate.decode(),
                fingerprint=who.fingerprint,
                not_after=who.not_after,
            )
        )
        self._slots[site], self._holdings[site] = slots, holds

    def submit(self, campaign: Campaign) -> None:
        self._driver.execute(cm.SubmitCampaign(campaign=campaign, sender="flower"))

    def give(self, evaluations: bool) -> list[Assignment]:
        """The orders that sites now get and have not had: evaluations, or all others; by site and attempt."""
        for site in sorted(self._slots):
            self._sync(site)
        state = self._driver.state
        orders = [
            job.assignment(job.attempt, site)
            for site in sorted(self._slots)
            for job in state.live(site)
            if job.attempt is not None and isinstance(job.work, Evaluate) == evaluations
        ]
        new = [order for order in orders if order.attempt not in self._given]
        self._given.update(order.attempt for order in new)
        return new

    def take(self, site: SiteName, attempt: AttemptId, envelope: Digest | None, reason: str = "") -> None:
        """What a site says of an attempt: its envelope is in the store, or why there is none."""
        outcome = Outcome.SUCCEEDED if envelope else Outcome.FAILED
        report = cm.Report(
            attempt=attempt, phase=Phase.ENDED, outcome=outcome, envelope=envelope, reason=reason
        )
        self._sync(site, report)

    def work(self) -> None:
        """Inspect, merge and judge all that is owed. Raises what the world refuses."""
        while obligations := owed(self._driver.state):
            self._driver.execute(do(obligations[0], self._driver.state, self.workshop))

    def campaign(self, name: CampaignId) -> CampaignState:
        return self._driver.state.campaigns[name]

    def _sync(self, site: SiteName, *reports: cm.Report) -> None:
        self._driver.execute(
            cm.SyncSite(
                site=site,
                agent_version="flower",
                slots=self._slots[site],
                draining=False,
                holdings=self._holdings[site].holdings,
                reports=reports,
            )
        )


def refuse_unfinished(campaign: CampaignState) -> None:
    """Raise BadInput if a campaign that has run has not ended well."""
    if campaign.status != "completed":
        name, reason = campaign.spec.campaign, campaign.reason or "more waves are needed"
        raise BadInput(f"campaign {name} is {campaign.status} after all its waves: {reason}")
