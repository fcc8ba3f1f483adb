"""How the agent works where nothing answers: it hears the newest bundle again and again, and is heard by the next.

To the agent this is a link like any other, so staging, launching and delivering are the same code. What it says is
kept for the next bundle; inputs came with the last one; results stay in the spool, where the next one takes them
from, until the coordinator has settled them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from sprachbund.v1 import artifact_pb2, site_pb2

from consortium.errors import Unavailable
from consortium.ids import AttemptId, Digest
from site_agent import wire
from site_agent.config import SiteConfig
from site_agent.core.facts import Report
from site_agent.courier.memory import Memory, response_of
from site_agent.identity import SiteIdentity
from site_agent.link import Link, News


def make_link(config: SiteConfig, identity: SiteIdentity, incarnation: str) -> Link:
    """The link that the config asks for: a connection, or a courier."""
    home = Path(config.home)
    if config.by_courier:
        return CourierLink(config, home, identity, incarnation)
    return Link(config.site, config.coordinator, home, identity, incarnation, config.proxy_setting)


class CourierLink(Link):
    def __init__(self, config: SiteConfig, home: Path, identity: SiteIdentity, incarnation: str) -> None:
        self._memory = Memory(home)
        self._sync_seconds = config.sync_seconds
        self._inputs: frozenset[Digest] = frozenset()
        super().__init__(config.site, config.coordinator, home, identity, incarnation)

    async def sync(
        self, description: site_pb2.SiteDescription, reports: Sequence[Report], wait_seconds: float
    ) -> News:
        """Keep what is to be told, and answer with the newest answer there is; it may be days old."""
        self.identity = SiteIdentity.load(self._home)  # an import may have renewed it
        self._memory.say(
            site_pb2.SyncRequest(
                site=description, attempts=[wire.report_message(report) for report in reports]
            )
        )
        answer = self._memory.answer()
        if answer is None:  # nothing is wanted yet, and of nothing it is known that it is not
            response, spoken_of = site_pb2.SyncResponse(), frozenset[AttemptId]()
        else:
            response, spoken_of = response_of(answer), frozenset(answer.answered)
        response.ClearField("now")  # it says when the bundle was written, not how clocks differ
        response.ClearField("used_up")  # of that time, too; and who speaks once a day uses up nothing
        news = self._news(response, spoken_of, {})
        self._inputs = frozenset(
            digest
            for offer in news.offers
            if offer.assignment is not None
            for digest in (*offer.assignment.inputs, offer.assignment.tokenizer)
            if digest is not None
        )
        return dataclasses.replace(news, next_seconds=self._sync_seconds)

    def is_due(self, now: float) -> bool:
        """Never: the next bundle asks for the certificate that is due."""
        return False

    def _open(self) -> None:
        self.artifacts = _NothingTravels(lambda: self._inputs)


class _NothingTravels:
    """In place of an ``ArtifactServiceStub``: says of results that they have arrived, so that nobody sends them.

    They have, as far as the agent goes: the next bundle takes them from where they lie. An input that is asked
    for is one that no bundle has brought.
    """

    def __init__(self, inputs: Callable[[], frozenset[Digest]]) -> None:
        self._inputs = inputs

    async def Stat(
        self, request: artifact_pb2.StatRequest, timeout: float | None = None
    ) -> artifact_pb2.StatResponse:
        if request.digest in self._inputs():
            raise _not_here(request.digest)
        return artifact_pb2.StatResponse(complete=True)

    def Download(self, request: artifact_pb2.DownloadRequest) -> NoReturn:
        """Of what no job that is wanted names: its order is older than the newest answer."""
        raise _not_here(request.digest)


def _not_here(digest: str) -> Unavailable:
    return Unavailable(f"input {digest} is not at this site; the answer to the next bundle will bring it")
