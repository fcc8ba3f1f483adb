"""Sites that follow a script: everything an agent says to its coordinator, nothing that takes time.

A scripted site enrols, syncs, downloads, uploads and signs as an agent does. Only its models and scores are made up:
a delta is noise seeded by the job, so a whole campaign takes a second and gives the same versions each time. A hostile
site is a subclass that does one thing differently.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from real_coordinator import DOCUMENTS, QUICK, SITES, Consortium, duration, fetch, in_our_words
from sprachbund.v1 import (
    artifact_pb2_grpc,
    enrolment_pb2,
    enrolment_pb2_grpc,
    site_pb2,
    site_pb2_grpc,
)

from consortium.canonical import decode, digest_of_fact, encode
from consortium.errors import Unavailable
from consortium.identity import Credentials, signing_request
from consortium.ids import AttemptId, Digest, Language, SiteName
from consortium.jobs import Assignment, Evaluate, Merge, Outcome, Phase, Train
from consortium.manifests import Contribution, FileRef, LanguageScore, Scores, VersionManifest
from consortium.merging.job import make_version
from consortium.merging.operands import write_row_counts
from consortium.signing import CONTRIBUTION, PrivateKey, load_key, new_key, save_key, seal
from consortium.store import BlobStore, ref_of
from consortium.tensor_writer import TensorWriter
from consortium.tensors import Checkpoint
from consortium.transfer import download, upload
from consortium.versions import VERSION, lay_out, model_file
from site_agent.core.facts import Ended, Report
from site_agent.wire import offer, report_message


class ScriptedSite:
    """An agent without a trainer. Its hooks are what a hostile one overrides."""

    def __init__(self, consortium: Consortium, name: str, slots: int = 4, merges: bool = False) -> None:
        self.consortium = consortium
        self.merges = merges
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
            site=site_pb2.SiteDescription(
                agent_version="script", slots=self.slots, holdings=holdings, merges=self.merges
            ),
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
            made = {"delta": await self.train(assignment, assignment.work, folder)}
            if assignment.work.token_counts:
                made["token_counts"] = self.count_tokens(assignment.work, folder)
        elif isinstance(assignment.work, Merge):
            made = await self.merge(assignment.work, folder)
        else:
            made = {"scores": self.evaluate(assignment.work, folder)}
        manifest = self.manifest(assignment, {name: await self.send(path) for name, path in made.items()})
        envelope = folder / "envelope.json"
        envelope.write_bytes(self.sign(manifest))
        return done(assignment.attempt, (await self.send(envelope)).digest)

    async def send(self, path: Path) -> FileRef:
        ref = ref_of(path)
        await upload(self.artifacts, path, ref, QUICK)
        return ref

    # ---- what it makes

    async def train(self, assignment: Assignment, work: Train, folder: Path) -> Path:
        await self.lay_out(work.base, folder / "base")
        with Checkpoint(folder / "base") as base:
            self.write(base, work, folder / "delta.safetensors")
        return folder / "delta.safetensors"

    def count_tokens(self, work: Train, folder: Path) -> Path:
        """As many as it read; every token as often as any other."""
        vocabulary = len(json.loads((folder / "base" / "tokenizer.json").read_bytes())["model"]["vocab"])
        counts_V = np.full(vocabulary, work.steps * work.batch_sequences * work.sequence_tokens // vocabulary)
        write_row_counts(folder / "token_counts.safetensors", counts_V)
        return folder / "token_counts.safetensors"

    async def lay_out(self, version: Digest, place: Path) -> None:
        manifest = decode(await fetch(self.artifacts, version), VersionManifest)
        for ref in manifest.files.values():
            await download(self.artifacts, ref, self.store, QUICK)
        if not place.exists():
            lay_out(manifest, self.store.path, place)

    async def merge(self, work: Merge, folder: Path) -> dict[str, Path]:
        """The files of the merged version, by artifact."""
        await self.lay_out(work.base, folder / "base")
        for ref in work.files:
            await download(self.artifacts, ref, self.store, QUICK)
        version = self.merged(work, folder)
        (folder / "version.json").write_bytes(encode(version))
        names = [*version.files, *version.outer_state]
        return {VERSION: folder / "version.json"} | {model_file(x): folder / "model" / x for x in names}

    def merged(self, work: Merge, folder: Path) -> VersionManifest:
        """Its manifest; the files lie in ``folder / "model"``."""
        return make_version(work, folder / "base", self.store.path, folder / "model", threads=1)

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
            base=work.base if isinstance(work, Train | Merge) else None,
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


async def introduce(consortium: Consortium) -> None:
    """Each site says what it holds, so that a campaign can count on it."""
    for name in SITES:
        await lease(consortium, name)


async def lease(consortium: Consortium, name: str, *reports: Report) -> site_pb2.SyncResponse:
    """One Sync of a site that then does nothing."""
    site = ScriptedSite(consortium, name)
    async with site.connected() as calls:
        with in_our_words():
            return await calls.Sync(site.request(*reports))


async def enrolled_at(folder: Path, base: Path) -> Consortium:
    """A new consortium, at rest: its sites are enrolled, the model in ``base`` lies in the store."""
    consortium = Consortium(folder)
    consortium.found()
    async with consortium.running(), consortium.admin() as admin:
        for name in sorted(SITES):
            await ScriptedSite(consortium, name).enrol(await admin.invite(name))
        for path in sorted(base.iterdir()):
            await upload(admin.artifacts, path, ref_of(path), QUICK)
    return Consortium(folder)
