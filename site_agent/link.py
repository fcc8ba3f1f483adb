"""What the agent says to its coordinator and what it believes of the answer."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from sprachbund.v1 import site_pb2, site_pb2_grpc

from consortium.channels import open_channel, user_agent
from consortium.errors import BadInput, Refused, SprachbundError, Unavailable
from consortium.identity import signing_request
from consortium.ids import AttemptId, SiteName
from consortium.pieces import ArtifactCalls
from consortium.wire_errors import from_rpc_error
from site_agent import wire
from site_agent.core.facts import Offer, Report, Usage, UsedUp
from site_agent.identity import SiteIdentity, certificate_of, next_key
from site_agent.witness import Witness

_log = logging.getLogger(__name__)

_ANSWER_SECONDS = 30.0  # beyond what the coordinator was allowed to wait


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """One answer to Sync, checked."""

    offers: tuple[Offer, ...]
    signed: dict[AttemptId, site_pb2.SignedAssignment]  #: the bytes behind the offers
    answered: frozenset[AttemptId]  #: whom the reports were of
    settled: frozenset[AttemptId]
    told: dict[AttemptId, Usage | None]  #: what was said to be used of ``answered``
    next_seconds: float
    upload_bytes_max: int
    clock_ahead_seconds: float  #: of the coordinator's clock over this one
    used_up: tuple[UsedUp, ...] = ()  #: what it does not take down for a while


class Link:
    """The agent's connection. Calls raise the errors of consortium/errors.py, the other side's included."""

    def __init__(
        self,
        site: SiteName,
        target: str,
        home: Path,
        identity: SiteIdentity,
        incarnation: str,
        proxy: str | None = None,
    ) -> None:
        self.identity = identity
        self._site = site
        self._target = target
        self._home = home
        self._incarnation = incarnation
        self._proxy = proxy
        self._witness = Witness(home / "checkpoints.jsonl", identity.ledger_key)
        self._revision = 0
        self._channels: list[grpc.aio.Channel] = []
        self.artifacts: Any = _Newest()
        self._open()

    async def sync(
        self, description: site_pb2.SiteDescription, reports: Sequence[Report], wait_seconds: float
    ) -> News:
        """Tell what the site has, hear what is wanted; at once if there is news, else after ``wait_seconds``.

        Raises Broken if the ledger's head contradicts an earlier one: then nothing of the answer is used.
        """
        request = site_pb2.SyncRequest(
            site=description,
            attempts=[wire.report_message(report) for report in reports],
            wait=_duration(wait_seconds),
            seen=self._revision,
            incarnation=self._incarnation,
        )
        try:
            answer = await self._sites.Sync(request, timeout=wait_seconds + _ANSWER_SECONDS)
        except grpc.RpcError as error:
            refused = from_rpc_error(error)
            if isinstance(refused, Refused) and self._take_up_newer():
                raise Unavailable("another agent of this home has renewed the certificate") from error
            raise refused from error
        if answer.HasField("checkpoint"):
            self._witness.see(wire.checkpoint(answer.checkpoint))
        self._revision = answer.revision
        told = {report.attempt: report.usage for report in reports}
        return self._news(answer, frozenset(told), told)

    def is_due(self, now: float) -> bool:
        """Whether the certificate should be renewed over this link."""
        return self.identity.is_due(now)

    async def renew(self) -> None:
        """A certificate for a new key, in place of the present one, on disk and on the wire."""
        key = next_key(self._home)
        request = site_pb2.RenewCertificateRequest(signing_request=signing_request(self._site, key))
        try:
            answer = await self._sites.RenewCertificate(request, timeout=_ANSWER_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        identity = self.identity.renewed(key, answer.certificate)
        identity.save(self._home)
        self.identity = identity
        self._open()

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    def _open(self) -> None:
        # earlier channels stay open: transfers under way go on with the old certificate, which is still valid
        channel = open_channel(
            self._target,
            self.identity.authority,
            self.identity.credentials,
            proxy=self._proxy,
            program=user_agent(version("sprachbund"), self._incarnation),
        )
        self._channels.append(channel)
        self._sites: Any = site_pb2_grpc.SiteServiceStub(channel)
        self.artifacts.stub = ArtifactCalls(channel)

    def _take_up_newer(self) -> bool:
        """Whether there is another certificate on disk than the one in use; then it is in use from now on."""
        try:
            if certificate_of(self._home) == self.identity.certificate:
                return False
            self.identity = SiteIdentity.load(self._home)
        except SprachbundError:
            return False
        self._open()
        return True

    def _news(
        self,
        answer: site_pb2.SyncResponse,
        answered: frozenset[AttemptId],
        told: dict[AttemptId, Usage | None],
    ) -> News:
        offers: dict[AttemptId, Offer] = {}
        signed: dict[AttemptId, site_pb2.SignedAssignment] = {}
        for message in answer.wanted:
            try:
                offer = wire.offer(message, self._site, self.identity.ledger_key)
            except BadInput as error:
                _log.error("an assignment without a usable name was left out: %s", error)
                continue
            offers[offer.attempt] = offer
            signed[offer.attempt] = message
        return News(
            offers=tuple(offers[attempt] for attempt in sorted(offers)),
            signed=signed,
            answered=answered,
            told=told,
            settled=frozenset(AttemptId(attempt) for attempt in answer.settled),
            next_seconds=max(0.0, answer.next.ToTimedelta().total_seconds()),
            upload_bytes_max=answer.upload_bytes_max,
            clock_ahead_seconds=answer.now.ToNanoseconds() / 1e9 - time.time()
            if answer.HasField("now")
            else 0.0,
            used_up=wire.used_up(answer.used_up, time.time()),
        )


class _Newest:
    """An ``ArtifactServiceStub`` that calls over the newest channel: a transfer outlives a renewed certificate."""

    stub: Any

    @property
    def Stat(self) -> Any:
        return self.stub.Stat

    @property
    def piece(self) -> Any:
        return self.stub.piece

    @property
    def Upload(self) -> Any:
        return self.stub.Upload

    @property
    def Download(self) -> Any:
        return self.stub.Download


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
