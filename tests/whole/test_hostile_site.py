"""One site misbehaves: it is refused in a sentence that an admin can read, and the round goes on without it."""

import re
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from real_coordinator import QUICK, Consortium, campaign, in_our_words
from scripted_sites import ScriptedSite, at_work, changes, write_tensors

from consortium.canonical import replace
from consortium.errors import Corrupt, Unavailable
from consortium.identity import DAY_SECONDS, Credentials, identity_of, signing_request
from consortium.ids import Digest, Language
from consortium.jobs import Assignment, Evaluate, Train
from consortium.manifests import Contribution, FileRef, LanguageScore
from consortium.merging.operands import read_row_counts, write_row_counts
from consortium.merging.recipe import EmbeddingRows, OuterStep, Recipe
from consortium.signing import load_key, new_key, save_key
from consortium.store import ref_of
from consortium.tensors import Checkpoint
from consortium.transfer import upload
from coordinator.core.commands import RenewCertificate
from coordinator.driver import Driver
from coordinator.ledger import Ledger
from site_agent.core.facts import Report

HOSTILE = "plovdiv"
NOWHERE = Digest("0" * 64)


class Hostile(ScriptedSite):
    spoils: ClassVar[str] = "train"  #: which of its jobs it spoils
    refusals: ClassVar[
        tuple[str, ...]
    ]  #: patterns of what each attempt is refused with; the last one repeats

    merge: ClassVar[Recipe] = Recipe(shard_bytes=1 << 20, outer=OuterStep())  #: of the campaign

    def __init__(self, consortium: Consortium, name: str) -> None:
        super().__init__(consortium, name)
        self.honest = ScriptedSite(consortium, name)

    async def carry_out(self, assignment: Assignment) -> Report:
        self.honest.artifacts = self.artifacts
        spoilt = f"-{self.spoils}-" in assignment.job
        return await (super() if spoilt else self.honest).carry_out(assignment)


class CorruptsTheUpload(Hostile):
    """What it sends is not what it announced; as that is not taken, it signs for it all the same."""

    refusals = ("^artifact delta [0-9a-f]{64} was never uploaded by plovdiv; upload it before reporting$",)

    async def send(self, path: Path) -> FileRef:
        if path.name != "delta.safetensors":
            return await super().send(path)
        announced, data = ref_of(path), bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(
            Corrupt, match=r"expected .* bytes with this sha256, got .*; the upload was deleted"
        ):
            await upload(self.artifacts, path, announced, QUICK)
        return announced


class SignsForAnothersBytes(Hostile):
    """A blob that is there, but that it never had: here the admin's, as well another site's delta."""

    refusals = ("^artifact delta [0-9a-f]{64} was never uploaded by plovdiv; ",)

    def manifest(self, assignment: Assignment, artifacts: dict[str, FileRef]) -> Contribution:
        config = ref_of(self.folder / "work" / assignment.attempt / "base" / "config.json")
        return super().manifest(assignment, {name: config for name in artifacts})


class InventsTokenCounts(Hostile):
    """Its embeddings would outweigh everybody's."""

    merge = Recipe(shard_bytes=1 << 20, outer=OuterStep(), embedding_rows=EmbeddingRows())
    refusals = ("^token_counts: [0-9]+ tokens, 4 steps show 136 at most$",)

    def count_tokens(self, work: Train, folder: Path) -> Path:
        path = super().count_tokens(work, folder)
        counts_V = read_row_counts(path) + 1000
        path.unlink()
        write_row_counts(path, counts_V.astype(np.int64))
        return path


class KeepsTokenCounts(Hostile):
    merge = InventsTokenCounts.merge
    refusals = (r"^artifacts are \['delta'\], this job's result is \['delta', 'token_counts'\]$",)

    def manifest(self, assignment: Assignment, artifacts: dict[str, FileRef]) -> Contribution:
        return super().manifest(assignment, {"delta": artifacts["delta"]})


class NamesAnotherSize(Hostile):
    refusals = ("^artifact delta: [0-9]+ bytes stored, the manifest says 7$",)

    def manifest(self, assignment: Assignment, artifacts: dict[str, FileRef]) -> Contribution:
        return super().manifest(assignment, {n: replace(ref, size=7) for n, ref in artifacts.items()})


class SendsNaN(Hostile):
    refusals = (
        r"^delta [0-9a-f]{12}: tensor 'model\.norm\.weight' is nan at element 3; every element must be finite, ",
    )

    def write(self, base: Checkpoint, work: Train, path: Path) -> None:
        made = changes(base, work)
        made["model.norm.weight"][3] = float("nan")
        write_tensors(path, made)


class SendsAnotherShape(Hostile):
    refusals = (r"^delta [0-9a-f]{12}: tensor 'model\.norm\.weight' has shape \[4, 4\], the base \[16\]; ",)

    def write(self, base: Checkpoint, work: Train, path: Path) -> None:
        made = changes(base, work)
        made["model.norm.weight"] = made["model.norm.weight"].reshape(4, 4)
        write_tensors(path, made)


class TrainedAnotherModel(Hostile):
    """The manifest is right, the tensors are those of a model with one layer fewer."""

    refusals = (r"^delta [0-9a-f]{12}: tensor 'model\.layers\.1\.[a-z_.]+' is missing, the base has it; ",)

    def write(self, base: Checkpoint, work: Train, path: Path) -> None:
        write_tensors(path, {n: array for n, array in changes(base, work).items() if "layers.1" not in n})


class SendsTheWholeModel(Hostile):
    refusals = (
        r"^delta [0-9a-f]{12}: its norm [0-9.]+ exceeds 0\.5 of the base's [0-9.]+; train fewer steps",
    )

    def write(self, base: Checkpoint, work: Train, path: Path) -> None:
        write_tensors(path, {n: base.array(n) + change for n, change in changes(base, work).items()})


class SendsNoTensors(Hostile):
    refusals = ("^delta [0-9a-f]{12}: ",)

    def write(self, base: Checkpoint, work: Train, path: Path) -> None:
        path.write_bytes(b"not a safetensors file")


class TrainedFromAnotherBase(Hostile):
    refusals = (
        f"^manifest's base is {NOWHERE}, the job's is [0-9a-f]{{64}}; train from the base of the round$",
    )

    def manifest(self, assignment: Assignment, artifacts: dict[str, FileRef]) -> Contribution:
        return replace(super().manifest(assignment, artifacts), base=NOWHERE)


class ClaimsMoreTokens(Hostile):
    """They are its weight in the merge."""

    refusals = ("^1000000 tokens in 4 steps of 2 sequences of 16 tokens cannot be; ",)

    def manifest(self, assignment: Assignment, artifacts: dict[str, FileRef]) -> Contribution:
        return replace(super().manifest(assignment, artifacts), tokens={"bg": 1_000_000})


class SignsWithAnothersKey(Hostile):
    refusals = (
        "^not signed by site plovdiv: signed envelope: signed by [0-9a-f]{12}, expected key [0-9a-f]{12}$",
    )

    @property
    def key(self):
        return load_key(self.consortium.folder / "sites" / "sofia" / "site.key")


class SignsWithAnExpiredCertificate(Hostile):
    """Its certificate of today is good for calling; it signs with that of last week."""

    refusals = (
        "^signed with a certificate of plovdiv that had expired 518[4-9][0-9]{2} s before delivery; "
        "the site must renew it or enrol again$",
    )

    def __init__(self, consortium: Consortium, name: str) -> None:
        super().__init__(consortium, name)
        expired_a_week_ago(self)

    @property
    def key(self):
        return load_key(self.folder / "expired.key")


class ReplaysAnEarlierAttempt(Hostile):
    refusals = (
        "^manifest's base is ",
        r"^manifest's attempt is demo_r1-train-plovdiv\.a1, the job's is .*\.a2; ",
    )

    def sign(self, manifest: Contribution) -> bytes:
        if manifest.attempt == "demo_r1-train-plovdiv.a1":
            self.first = super().sign(replace(manifest, base=NOWHERE))
        return self.first


class SignsNothing(Hostile):
    refusals = ("^not signed by site plovdiv: signed envelope: not DSSE JSON ",)

    def sign(self, manifest: Contribution) -> bytes:
        return b"trust me"


class ReportsWhatItNeverSent(Hostile):
    refusals = (f"^envelope {NOWHERE} was never uploaded by plovdiv; ",)

    async def send(self, path: Path) -> FileRef:
        return FileRef(digest=NOWHERE, size=1) if path.name == "envelope.json" else await super().send(path)


class ScoresNaN(Hostile):
    spoils = "gate"
    refusals = (r"^scores: JSON is malformed: invalid character \(byte [0-9]+\)$",)

    def evaluate(self, work: Evaluate, folder: Path) -> Path:
        path = super().evaluate(work, folder)
        path.write_bytes(path.read_bytes().replace(b'"nats":[', b'"nats":[NaN,'))
        return path


class ScoresInfinity(Hostile):
    spoils = "gate"
    refusals = (r"^scores: Number out of range - at `\$\.subjects",)

    def evaluate(self, work: Evaluate, folder: Path) -> Path:
        path = super().evaluate(work, folder)
        path.write_bytes(path.read_bytes().replace(b'"nats":[', b'"nats":[1e999,'))
        return path


class ScoresBelowNothing(Hostile):
    spoils = "gate"
    refusals = ("^[0-9a-f]{64}, bg: a document of -1.0 nats; none is negative$",)

    def score(self, language: Language, quality: float) -> LanguageScore:
        score = super().score(language, quality)
        return replace(score, nats=(-1.0, *score.nats[1:]))


class ScoresAnotherModel(Hostile):
    spoils = "gate"
    refusals = (f"^scored .'{NOWHERE}'.*, asked for ",)

    def evaluate(self, work: Evaluate, folder: Path) -> Path:
        subjects = [replace(subject, name=NOWHERE) for subject in work.subjects[:1]]
        return super().evaluate(replace(work, subjects=(*subjects, *work.subjects[1:])), folder)


class ScoresAnotherLanguage(Hostile):
    spoils = "gate"
    refusals = (r"^[0-9a-f]{64}: scored \['bg', 'mk'\], asked for \['bg'\]$",)

    def evaluate(self, work: Evaluate, folder: Path) -> Path:
        return super().evaluate(replace(work, languages=("bg", "mk")), folder)


def hostile_sites() -> list[type[Hostile]]:
    return Hostile.__subclasses__()


@pytest.mark.parametrize("hostile", hostile_sites())
async def test_the_round_goes_on_without(hostile: type[Hostile], consortium: Consortium, base: Path) -> None:
    site = hostile(consortium, HOSTILE)
    async with consortium.running(), consortium.admin() as admin:
        async with at_work(site, ScriptedSite(consortium, "ohrid"), ScriptedSite(consortium, "sofia")):
            await admin.submit(campaign(base, rounds=1, merge=hostile.merge))
            ended = await admin.until_ended("demo")
        job = f"demo_r1-{hostile.spoils}-{HOSTILE}"
        story = await admin.why(job)
        round_story = await admin.why("demo/r1")

    one, two = (line.partition(" refused: ")[2] for line in story if " refused: " in line)
    assert re.search(hostile.refusals[0], one), one
    assert re.search(hostile.refusals[-1], two), two
    assert story[-2] == f"{job} failed: 2 attempts failed, the last: {two}"
    assert set(story) - {story[-1]} <= set(round_story)

    assert ended.status == "completed"
    promoted = ended.versions[-1]
    assert (promoted.name, promoted.status, promoted.digest) == ("demo/v1", "promoted", ended.head)
    assert promoted.contributions == (2 if hostile.spoils == "train" else 3)
    assert ended.models[-1].results[0].documents == (16 if hostile.spoils == "train" else 8)


def expired_a_week_ago(site: ScriptedSite) -> None:
    """Put a certificate with its own key into the ledger that ended six days ago, before the one in use."""
    consortium, current = site.consortium, site.credentials.certificate
    key = new_key()
    save_key(site.folder / "expired.key", key)
    request = signing_request(site.name, key)
    old = consortium.keys.authority.site(request, site.name, time.time() - 7 * DAY_SECONDS, days=1)
    (site.folder / "expired.pem").write_bytes(old)
    with Ledger(consortium.home / "ledger.sqlite") as ledger:
        driver = Driver(ledger, consortium.keys.ledger)
        for certificate in (old, current):
            who = identity_of(certificate, consortium.config.consortium)
            driver.execute(
                RenewCertificate(
                    site=site.name,
                    certificate=certificate.decode(),
                    fingerprint=who.fingerprint,
                    not_after=who.not_after,
                )
            )


async def test_an_expired_certificate_is_refused_at_the_handshake(consortium: Consortium) -> None:
    site = ScriptedSite(consortium, HOSTILE)
    expired_a_week_ago(site)
    old = Credentials((site.folder / "expired.pem").read_bytes(), (site.folder / "expired.key").read_bytes())
    async with consortium.running():
        async with site.connected(old) as calls:
            with pytest.raises(Unavailable), in_our_words():
                await calls.Sync(site.request())
        async with site.connected() as calls:
            await calls.Sync(site.request())
