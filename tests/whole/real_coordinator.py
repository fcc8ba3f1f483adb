"""A consortium on 127.0.0.1: the real coordinator behind its real ports, and an admin who calls it."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
from free_ports import free_port
from google.protobuf.duration_pb2 import Duration
from sprachbund.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    artifact_pb2,
    artifact_pb2_grpc,
    audit_pb2_grpc,
)

from consortium.canonical import decode, encode, replace
from consortium.channels import open_channel
from consortium.identity import Credentials
from consortium.ids import CampaignId, Digest, Language
from consortium.jobs import Optimizer
from consortium.merging.recipe import OuterStep, Recipe
from consortium.roles import Role
from consortium.store import ref_of
from consortium.transfer import Retries
from consortium.views import CampaignView, ConsortiumView
from consortium.wire_errors import from_rpc_error
from coordinator import daemon
from coordinator.config import CoordinatorConfig
from coordinator.founding import PORTS_FILE, Keys, found, issue_person
from policies.campaign import Campaign, Gate, ModelSource, Quorum, TokenizerSource, TrainPlan

CONSORTIUM = "balkan"
LANGUAGES = (Language("bg"), Language("mk"))
SITES = {"ohrid": ("mk",), "plovdiv": ("bg",), "sofia": ("bg",)}  #: what each holds
ATTEMPTS_MAX = 2
DOCUMENTS = 8  # held out, per language and site
PATIENCE_SECONDS = 200.0  #: for what takes seconds here; less than pytest's own
WAIT_SECONDS = 1.5 * PATIENCE_SECONDS  #: that a Sync is kept waiting which should hear of something before
QUICK = Retries(attempts=5, first_seconds=0.02, longest_seconds=0.2)


@contextlib.contextmanager
def in_our_words() -> Iterator[None]:
    """Raise what gRPC raises as the error of ours that it means."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


class Consortium:
    """One folder: the coordinator's home, and each site's key, certificate and store beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = CoordinatorConfig(
            consortium=CONSORTIUM,
            home=str(folder / "home"),
            listen="127.0.0.1",
            port=0,
            enrolment_port=0,
            tick_seconds=0.1,
            upload_bytes_max=4 << 20,
        )

    @property
    def home(self) -> Path:
        return Path(self.config.home)

    @property
    def keys(self) -> Keys:
        return Keys.load(self.home, ("127.0.0.1",), time.time())

    def found(self) -> None:
        found(self.config, time.time())
        issue_person(self.home, self.keys.authority, Role.AUDITOR, "petra", time.time())

    def copy_to(self, folder: Path) -> "Consortium":
        """The same consortium elsewhere, to be changed without harm. Its coordinator must not be running."""
        shutil.copytree(self.folder, folder)
        return Consortium(folder)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Its coordinator serves; when started again, on the same ports."""
        ports = self.home / PORTS_FILE
        ports.unlink(missing_ok=True)
        if not self.config.port:
            self.config = replace(self.config, port=free_port(self), enrolment_port=free_port(self))
        # not among all that pytest and torch have made: that takes a fifth of a second, at each of hundreds of starts
        with mock.patch.object(daemon, "_look_for_garbage_seldom"):
            server = self.server = asyncio.create_task(daemon.serve(self.config))
            try:
                while not ports.exists():
                    if server.done():
                        server.result()
                    await asyncio.sleep(0.01)
                yield
            finally:
                server.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await server

    def person(self, role: str, name: str) -> Credentials:
        stem = self.home / role / name
        return Credentials(stem.with_suffix(".pem").read_bytes(), stem.with_suffix(".key").read_bytes())

    def channel(self, own: Credentials | None) -> grpc.aio.Channel:
        """To the coordinator, as whoever has this certificate; with none, to the door for those who enrol."""
        port = self.config.port if own else self.config.enrolment_port
        return open_channel(f"127.0.0.1:{port}", self.keys.authority.pem, own)

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator["Admin"]:
        async with self.channel(self.person("admin", "admin")) as channel:
            yield Admin(channel)


class Admin:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.calls: Any = admin_pb2_grpc.AdminServiceStub(channel)
        self.artifacts: Any = artifact_pb2_grpc.ArtifactServiceStub(channel)
        self.audit: Any = audit_pb2_grpc.AuditServiceStub(channel)

    async def invite(self, site: str, seconds: float = 0.0) -> str:
        request = admin_pb2.IssueTokenRequest(
            site=site, organisation="Institute", country="BG", valid=duration(seconds)
        )
        with in_our_words():
            return (await self.calls.IssueToken(request)).token

    async def submit(self, campaign: Campaign) -> admin_pb2.CommandResponse:
        with in_our_words():
            return await self.calls.SubmitCampaign(admin_pb2.SubmitCampaignRequest(campaign=encode(campaign)))

    async def submit_and_wait(self, campaign: Campaign) -> None:
        """Until its first round's jobs are planned."""
        await self.submit(campaign)
        name = campaign.campaign
        await self.until(lambda view: job_state(view, f"{name}_r1-train-sofia") == "planned", "jobs planned")

    async def set_site(self, site: str, command: str, reason: str = "for the test") -> None:
        request = admin_pb2.SetSiteRequest(site=site, command=f"SITE_COMMAND_{command}", reason=reason)
        with in_our_words():
            await self.calls.SetSite(request)

    async def why(self, subject: str) -> list[str]:
        with in_our_words():
            answer = await self.calls.Why(admin_pb2.WhyRequest(subject=subject))
        return [line.text for line in answer.lines]

    async def view(self) -> ConsortiumView:
        with in_our_words():
            return decode((await self.calls.GetView(admin_pb2.GetViewRequest())).view, ConsortiumView)

    async def watch(self) -> AsyncIterator[ConsortiumView]:
        with in_our_words():
            async for message in self.calls.Watch(admin_pb2.WatchRequest(interval=duration(0.1))):
                yield decode(message.view, ConsortiumView)

    async def until(self, condition: Any, what: str) -> ConsortiumView:
        """The first view of which ``condition`` holds."""
        view = None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS), contextlib.aclosing(self.watch()) as views:
                async for view in views:
                    if condition(view):
                        return view
        except TimeoutError:
            pass
        raise AssertionError(f"still not so: {what}; the last view was {view}")

    async def until_ended(self, name: str) -> CampaignView:
        view = await self.until(lambda view: campaign_in(view, name).status != "open", f"{name} ended")
        return campaign_in(view, name)


def campaign_in(view: ConsortiumView, name: str) -> CampaignView:
    return next(campaign for campaign in view.campaigns if campaign.campaign == name)


def job_state(view: ConsortiumView, job: str) -> str:
    return next((one.state for one in view.jobs if one.job == job), "not planned")


def campaign(base: Path, name: str = "demo", **changes: Any) -> Campaign:
    """Two rounds over a given model, for three sites of which two are enough."""
    files = {path.name: ref_of(path) for path in sorted(base.iterdir())}
    plan = TrainPlan(
        steps=4,
        batch_sequences=2,
        sequence_tokens=16,
        optimizer=Optimizer(learning_rate=0.01),
        delta_dtype="fp32",
    )
    fields = dict(
        campaign=CampaignId(name),
        languages=LANGUAGES,
        sites_expected=len(SITES),
        model=ModelSource(files=files),
        tokenizer=TokenizerSource(digest=files["tokenizer.json"].digest),
        rounds=2,
        train=plan,
        merge=Recipe(shard_bytes=1 << 20, outer=OuterStep()),  # DiLoCo's, whose momentum is another file
        quorum=Quorum(minimum=2),
        gate=Gate(documents_min=DOCUMENTS, resamples=200),
        attempts_max=ATTEMPTS_MAX,
    )
    return Campaign(**(fields | changes))


async def fetch(artifacts: Any, digest: Digest) -> bytes:
    """A blob of which only the name is known."""
    data = b""
    with in_our_words():
        async for message in artifacts.Download(artifact_pb2.DownloadRequest(digest=digest)):
            data += message.data
    return data


def duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
