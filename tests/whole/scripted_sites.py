"""A consortium on 127.0.0.1: the real coordinator, real certificates and calls, and sites that follow a script.

A scripted site enrols, syncs, downloads, uploads and signs as an agent does. Only its models and scores are made up:
a delta is noise seeded by the job, so a whole campaign takes seconds and gives the same versions each time. A hostile
site is a subclass that does one thing differently.
"""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.duration_pb2 import Duration
from sprachbund.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    artifact_pb2,
    artifact_pb2_grpc,
    audit_pb2_grpc,
    enrolment_pb2,
    enrolment_pb2_grpc,
    site_pb2,
    site_pb2_grpc,
)

from consortium.canonical import decode, digest_of_fact, encode, replace
from consortium.channels import open_channel
from consortium.errors import Unavailable
from consortium.identity import Credentials, signing_request
from consortium.ids import AttemptId, CampaignId, Digest, Language, SiteName
from consortium.jobs import Assignment, Evaluate, Optimizer, Outcome, Phase, Train
from consortium.manifests import Contribution, FileRef, LanguageScore, Scores, VersionManifest
from consortium.merging.recipe import Recipe
from consortium.roles import Role
from consortium.signing import CONTRIBUTION, PrivateKey, load_key, new_key, save_key, seal
from consortium.store import BlobStore, ref_of
from consortium.tensor_writer import TensorWriter
from consortium.tensors import Checkpoint
from consortium.transfer import Retries, download, upload
from consortium.versions import lay_out
from consortium.views import CampaignView, ConsortiumView
from consortium.wire_errors import from_rpc_error
from coordinator.config import CoordinatorConfig
from coordinator.daemon import serve
from coordinator.founding import PORTS_FILE, Keys, found, issue_person
from policies.campaign import Campaign, Gate, ModelSource, Quorum, TokenizerSource, TrainPlan
from site_agent.core.facts import Ended, Report
from site_agent.wire import offer, report_message

CONSORTIUM = "balkan"
LANGUAGES = (Language("bg"), Language("mk"))
SITES = {
    "ohrid": ("mk",),
    "plovdiv": ("bg",),
    "sofia": ("bg",),
}  #: what each holds; plovdiv is the hostile one
ATTEMPTS_MAX = 2
DOCUMENTS = 8  # held out, per language and site
PATIENCE_SECONDS = 60.0
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
        return Keys.load(self.home)

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
        server = self.server = asyncio.create_task(serve(self.config))
        try:
            while not ports.exists():
                if server.done():
                    server.result()
                await asyncio.sleep(0.01)
            self.config = replace(self.config, **decode(ports.read_bytes(), dict[str, int]))
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

    async def enrol(self, site: "ScriptedSite") -> bytes:
        """Invite and enrol a site; returns its token, which is used up."""
        async with self.admin() as admin:
            token = await admin.invite(site.name)
        await site.enrol(token)
        return token


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
        merge=Recipe(shard_bytes=1 << 20),
        quorum=Quorum(minimum=2),
        gate=Gate(documents_min=DOCUMENTS, resamples=200),
        attempts_max=ATTEMPTS_MAX,
    )
    return Campaign(**(fields | changes))


class ScriptedSite:
    """An agent without a trainer. Its hooks are what a hostile one overrides."""

    def __init__(self, consortium: Consortium, name: str, slots: int = 4) -> None:
        self.consortium = consortium
        self.name = SiteName(name)
        self.slots = slots
        self.folder = consortium.folder / "sites" / name
        self.store = BlobStore(self.folder / "store")
        self.incarnation = "first"
        self._quality: dict[str, float] = {}

    # ---- who it is

    @property
    def credentials(self) -> Credentials:
        return Credentials((self.folder / "site.pem").read_bytes(), (self.folder / "site.key").read_bytes())

    @property
    def key(self) -> PrivateKey:
        return load_key(self.folder / "site.key")

    async def enrol(self, token: str) -> None:
        key = new_key()
        request = enrolment_pb2.EnrolRequest(token=token, signing_request=signing_request(self.name, key))
        async with self.consortium.channel(None) as channel:
            with in_our_words():
                answer = await enrolment_pb2_grpc.EnrolmentServiceStub(channel).Enrol(request)
        save_key(self.folder / "site.key", key)
        (self.folder / "site.pem").write_bytes(answer.certificate)
        (self.folder / "ledger.key").write_bytes(answer.ledger_key)

    async def renew(self) -> None:
        """A new certificate for a new key."""
        key = new_key()
        request = site_pb2.RenewCertificateRequest(signing_request=signing_request(self.name, key))
        async with self.connected() as calls:
            with in_our_words():
                answer = await calls.RenewCertificate(request)
        save_key(self.folder / "site.key", key)
        (self.folder / "site.pem").write_bytes(answer.certificate)

    # ---- what it says

    @contextlib.asynccontextmanager
    async def connected(self, own: Credentials | None = None) -> AsyncIterator[Any]:
        async with self.consortium.channel(own or self.credentials) as channel:
            self.artifacts: Any = artifact_pb2_grpc.ArtifactServiceStub(channel)
            yield site_pb2_grpc.SiteServiceStub(channel)

    def request(self, *reports: Report, **fields: Any) -> site_pb2.SyncRequest:
        holdings = [
            site_pb2.Holding(
                language=language,
                documents=100,
                text_bytes=10_000,
                heldout_documents=DOCUMENTS,
                licence="CC0-1.0",
                digest=digest_of_fact([self.name, language]),
            )
            for language in SITES[self.name]
        ]
        return site_pb2.SyncRequest(
            site=site_pb2.SiteDescription(agent_version="script", slots=self.slots, holdings=holdings),
            attempts=[report_message(report) for report in reports],
            incarnation=self.incarnation,
            **fields,
        )

    async def run(self) -> None:
        """Do what is wanted until cancelled; a coordinator that is away is waited for."""
        reports: dict[str, Report] = {}
        while True:
            with contextlib.suppress(Unavailable), in_our_words():
                async with (
                    self.connected() as calls
                ):  # anew, because gRPC's own patience is for real networks
                    await self.converse(calls, reports)
            await asyncio.sleep(0.05)

    async def converse(self, calls: Any, reports: dict[str, Report]) -> None:
        """``reports`` is all that it remembers, by attempt."""
        revision = 0
        while True:
            request = self.request(*reports.values(), seen=revision, wait=duration(10.0))
            answer = await calls.Sync(request)
            revision = answer.revision
            for attempt in answer.settled:
                del reports[attempt]
            for message in answer.wanted:
                if message.attempt not in reports:
                    reports[message.attempt] = await self.carry_out(self.accept(message))

    def accept(self, message: site_pb2.SignedAssignment) -> Assignment:
        accepted = offer(message, self.name, (self.folder / "ledger.key").read_bytes())
        assert accepted.assignment is not None, accepted.problem
        return accepted.assignment

    async def carry_out(self, assignment: Assignment) -> Report:
        """Make the result, send it and sign for it."""
        folder = self.folder / "work" / assignment.attempt
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(assignment.work, Train):
            artifact = "delta", await self.train(assignment, assignment.work, folder)
        else:
            artifact = "scores", self.evaluate(assignment.work, folder)
        ref = await self.send(artifact[1])
        manifest = self.manifest(assignment, {artifact[0]: ref})
        envelope = folder / "envelope.json"
        envelope.write_bytes(self.sign(manifest))
        return done(assignment.attempt, (await self.send(envelope)).digest)

    async def send(self, path: Path) -> FileRef:
        ref = ref_of(path)
        await upload(self.artifacts, path, ref, QUICK)
        return ref

    # ---- what it makes

    async def train(self, assignment: Assignment, work: Train, folder: Path) -> Path:
        manifest = decode(await fetch(self.artifacts, work.base), VersionManifest)
        for ref in manifest.files.values():
            await download(self.artifacts, ref, self.store, QUICK)
        if not (folder / "base").exists():
            lay_out(manifest, self.store.path, folder / "base")
        with Checkpoint(folder / "base") as base:
            self.write(base, work, folder / "delta.safetensors")
        return folder / "delta.safetensors"

    def write(self, base: Checkpoint, work: Train, path: Path) -> None:
        """Noise for a delta, the same for the same job."""
        write_tensors(path, changes(base, work))

    def evaluate(self, work: Evaluate, folder: Path) -> Path:
        subjects = {}
        for subject in reversed(
            work.subjects
        ):  # the base comes after the candidate; each is better than the last
            quality = self._quality.setdefault(subject.name, 0.95 ** len(self._quality))
            subjects[subject.name] = {language: self.score(language, quality) for language in work.languages}
        path = folder / "scores.json"
        path.write_bytes(encode(Scores(site=self.name, subjects=subjects)))
        return path

    def score(self, language: Language, quality: float) -> LanguageScore:
        return LanguageScore(
            heldout=digest_of_fact([self.name, language, "held out"]),
            nats=tuple(quality * (60.0 + 7.0 * number) for number in range(DOCUMENTS)),
            bytes=tuple(50 + number for number in range(DOCUMENTS)),
        )

    def manifest(self, assignment: Assignment, artifacts: dict[str, FileRef]) -> Contribution:
        work = assignment.work
        steps = work.steps if isinstance(work, Train) else 0
        return Contribution(
            job=assignment.job,
            attempt=assignment.attempt,
            campaign=assignment.campaign,
            site=assignment.site,
            assignment=digest_of_fact(assignment),
            base=work.base if isinstance(work, Train) else None,
            artifacts=artifacts,
            steps=steps,
            planned_steps=steps,
            tokens={language: 32 * steps for language in work.languages} if steps else {},
        )

    def sign(self, manifest: Contribution) -> bytes:
        return seal(encode(manifest), CONTRIBUTION, self.key)


def changes(base: Checkpoint, work: Train) -> dict[str, np.ndarray]:
    dice = np.random.default_rng(work.seed)
    return {
        name: (0.001 * dice.standard_normal(base[name].shape)).astype(np.float32) for name in sorted(base)
    }


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with TensorWriter(path, {name: array.shape for name, array in tensors.items()}, "F32") as writer:
        for name, array in tensors.items():
            writer.write(name, 0, array.reshape(-1))


async def fetch(artifacts: Any, digest: Digest) -> bytes:
    """A blob of which only the name is known."""
    data = b""
    with in_our_words():
        async for message in artifacts.Download(artifact_pb2.DownloadRequest(digest=digest)):
            data += message.data
    return data


def done(attempt: str, envelope: Digest) -> Report:
    return Report(
        attempt=AttemptId(attempt),
        phase=Phase.ENDED,
        ended=Ended(outcome=Outcome.SUCCEEDED, contribution=envelope),
    )


@contextlib.asynccontextmanager
async def at_work(*sites: ScriptedSite) -> AsyncIterator[None]:
    """The sites run; what one of them raises is raised here."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(site.run()) for site in sites]
        yield
        for task in tasks:
            task.cancel()


def duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
