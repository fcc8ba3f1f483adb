"""How a person speaks with the coordinator: with which certificate, over which calls, and in our words."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from sprachbund.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    artifact_pb2,
    audit_pb2,
    audit_pb2_grpc,
)

from consortium import ids
from consortium.canonical import Fact, decode, encode
from consortium.channels import open_channel
from consortium.connection import CONNECTION_FILE, Connection
from consortium.errors import BadInput, Refused, SprachbundError, Unavailable
from consortium.files import disk_errors
from consortium.forecasts import Assumptions, Forecast
from consortium.identity import Credentials, identity_of
from consortium.ids import Digest
from consortium.manifests import FileRef
from consortium.pieces import ArtifactCalls
from consortium.roles import Role
from consortium.signing import Checkpoint
from consortium.views import ConsortiumView, Releases
from consortium.wire_errors import from_rpc_error
from policies.campaign import Campaign

CALL_SECONDS = 30.0
_AUTHORITY = "ca.pem"
_SITE_COMMANDS = {
    "drain": admin_pb2.SITE_COMMAND_DRAIN,
    "resume": admin_pb2.SITE_COMMAND_RESUME,
    "suspend": admin_pb2.SITE_COMMAND_SUSPEND,
}

T = TypeVar("T")


class Person(NamedTuple):
    """An admin or auditor, and the coordinator to whom the certificate means something."""

    credentials: Credentials
    authority: bytes
    connection: Connection
    role: Role


class Done(Fact):
    """What the coordinator said to a command."""

    reason: str
    sequence: int  #: of the last event in the ledger


class StoryLine(Fact):
    at: float  #: seconds since the epoch
    sequence: int
    text: str


class Story(Fact):
    subject: str
    lines: tuple[StoryLine, ...]


def find_person(place: Path | None) -> Person:
    """The person whose certificate lies at ``place``: a folder with one, or ``folder/name``.

    Raises BadInput if there is none or a choice, Refused if it has expired.
    """
    if place is None:
        place = Path("admin")
        if not place.is_dir():
            raise BadInput(
                "whose certificate? give --as FOLDER, or set SPRACHBUND_ADMIN: the folder that `sprachbund init` "
                "wrote, <home>/admin"
            )
    folder = place if place.is_dir() else place.parent
    found = sorted(path.stem for path in folder.glob("*.key") if path.with_suffix(".pem").is_file())
    if not found:
        raise BadInput(
            f"{place}: no certificate with its key here; `sprachbund coordinator person` makes one"
        )
    name = found[0] if place.is_dir() else place.stem
    if name not in found or (place.is_dir() and len(found) > 1):
        raise BadInput(
            f"{place}: say who you are with --as {folder / '<name>'}; here are: {', '.join(found)}"
        )
    with disk_errors(folder):
        certificate = (folder / f"{name}.pem").read_bytes()
        credentials = Credentials(certificate, (folder / f"{name}.key").read_bytes())
        authority = (folder / _AUTHORITY).read_bytes()
        written = (folder / CONNECTION_FILE).read_bytes()
    connection = decode(written, Connection, str(folder / CONNECTION_FILE))
    identity = identity_of(certificate, connection.consortium)
    if time.time() > identity.not_after:
        raise Refused(
            f"{folder / name}.pem: this certificate of {identity.role} {identity.name} has expired; "
            "`sprachbund coordinator person` makes a new one"
        )
    if connection.coordinator.endswith(":0"):
        raise Unavailable(
            f"{folder / CONNECTION_FILE}: the coordinator has no port yet; start it with `sprachbund coordinator run`"
        )
    return Person(credentials, authority, connection, identity.role)


def ask(place: Path | None, work: Callable[["Coordinator"], Awaitable[T]]) -> T:
    """Do ``work`` with the coordinator, as the person whose certificate lies at ``place``."""

    async def run() -> T:
        person = find_person(place)
        async with open_channel(
            person.connection.coordinator, person.authority, person.credentials
        ) as channel:
            coordinator = Coordinator(channel, person)
            with coordinator.in_our_words():
                return await work(coordinator)

    return asyncio.run(run())


class Coordinator:
    """The services that people use: messages in and out here, facts on the other side."""

    def __init__(self, channel: grpc.aio.Channel, person: Person) -> None:
        self.person = person
        self.artifacts: Any = ArtifactCalls(channel)
        self._admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
        self._audit: Any = audit_pb2_grpc.AuditServiceStub(channel)
        self._releases: Any = audit_pb2_grpc.ReleaseServiceStub(channel)

    @contextlib.contextmanager
    def in_our_words(self) -> Iterator[None]:
        """Raise what gRPC raises as the error of ours that it means."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._error(error) from error

    async def view(self) -> ConsortiumView:
        message = await self._admin.GetView(admin_pb2.GetViewRequest(), timeout=CALL_SECONDS)
        return decode(message.view, ConsortiumView, "view")

    async def views(self, seconds: float) -> AsyncIterator[ConsortiumView]:
        """One at once, then one every so many ``seconds``, until the connection ends."""
        request = admin_pb2.WatchRequest(interval=_duration(seconds))
        with self.in_our_words():
            async for message in self._admin.Watch(request):
                yield decode(message.view, ConsortiumView, "view")

    async def why(self, subject: str) -> Story:
        told = await self._admin.Why(admin_pb2.WhyRequest(subject=subject), timeout=CALL_SECONDS)
        lines = tuple(StoryLine(at=x.at, sequence=x.sequence, text=x.text) for x in told.lines)
        return Story(subject=told.subject, lines=lines)

    async def invite(self, site: str, organisation: str, country: str, hours: float | None) -> str:
        """The one-time token; None leaves it to the coordinator how long it is valid."""
        request = admin_pb2.IssueTokenRequest(
            site=site, organisation=organisation, country=country, valid=_duration((hours or 0.0) * 3600.0)
        )
        return str((await self._admin.IssueToken(request, timeout=CALL_SECONDS)).token)

    async def submit(self, campaign: Campaign) -> Done:
        request = admin_pb2.SubmitCampaignRequest(campaign=encode(campaign))
        return _done(await self._admin.SubmitCampaign(request, timeout=CALL_SECONDS))

    async def forecast(self, campaign: Campaign, assumptions: Assumptions) -> Forecast:
        """What the campaign would do and cost from now on; nothing is recorded."""
        request = admin_pb2.ForecastRequest(campaign=encode(campaign), assumptions=encode(assumptions))
        got = await self._admin.Forecast(request, timeout=CALL_SECONDS)
        return decode(got.forecast, Forecast, "forecast")

    async def stop(self, campaign: str, reason: str) -> Done:
        request = admin_pb2.StopCampaignRequest(campaign=campaign, reason=reason)
        return _done(await self._admin.StopCampaign(request, timeout=CALL_SECONDS))

    async def set_site(self, site: str, word: str, reason: str) -> Done:
        """word  drain, resume or suspend"""
        request = admin_pb2.SetSiteRequest(site=site, command=_SITE_COMMANDS[word], reason=reason)
        return _done(await self._admin.SetSite(request, timeout=CALL_SECONDS))

    async def revoke(self, role: str, name: str, reason: str) -> Done:
        request = admin_pb2.RevokeRequest(role=role, name=name, reason=reason)
        return _done(await self._admin.Revoke(request, timeout=CALL_SECONDS))

    async def releases(self) -> Releases:
        message = await self._releases.ListReleases(audit_pb2.ListReleasesRequest(), timeout=CALL_SECONDS)
        return decode(message.releases, Releases, "releases")

    async def move_head(self, is_back: bool, campaign: str, version: str, reason: str) -> Done:
        """Promote a version by hand, or go back to one that was promoted before."""
        request = admin_pb2.PromoteRequest(campaign=campaign, version=version, reason=reason)
        call = self._admin.RollBack if is_back else self._admin.Promote
        return _done(await call(request, timeout=CALL_SECONDS))

    async def carry(self, head: bytes) -> tuple[list[Digest], bytes]:
        """Blobs that have to come first, or the head of the answer to a bundle's ``head``."""
        got = await self._admin.Carry(admin_pb2.CarryRequest(said=head), timeout=CALL_SECONDS)
        return [ids.digest(text) for text in got.missing], got.answer

    async def blob(self, digest: Digest) -> FileRef:
        """A blob that the coordinator has, with its size."""
        stat = await self.artifacts.Stat(artifact_pb2.StatRequest(digest=digest), timeout=CALL_SECONDS)
        if not stat.complete:
            raise Unavailable(
                f"blob {digest} is not in the coordinator's store; run `sprachbund verify` there"
            )
        return FileRef(digest=digest, size=stat.received)

    async def ledger(self) -> AsyncIterator[tuple[int, bytes, str]]:
        """Every entry: its number, the bytes that were hashed, their hash."""
        async for event in self._audit.ReadLedger(audit_pb2.ReadLedgerRequest(from_sequence=1)):
            yield event.sequence, event.entry, event.hash

    async def checkpoint(self) -> Checkpoint:
        got = await self._audit.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=CALL_SECONDS)
        return Checkpoint(
            sequence=got.sequence, head=got.head, signature=got.signature, public_key=got.public_key
        )

    def _error(self, error: grpc.RpcError) -> SprachbundError:
        ours = from_rpc_error(error)
        if type(ours) is not Unavailable:
            return ours
        address = self.person.connection.coordinator
        return Unavailable(f"coordinator {address}: {ours}; is it running, and is this its address?")


def _done(response: Any) -> Done:
    return Done(reason=response.reason, sequence=response.sequence)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(int(seconds * 1e6))
    return duration
