"""A round merged at a site: a real agent gives the same digest, a liar is refused and the round goes on."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from blake3 import blake3
from real_coordinator import SITES, Consortium, campaign, job_state
from safetensors.numpy import load_file, save_file
from scripted_sites import ScriptedSite, at_work

from consortium.canonical import replace
from consortium.ids import Digest, short
from consortium.invitation import Invitation
from consortium.jobs import Merge, Purpose
from consortium.manifests import FileRef, VersionManifest
from consortium.merging.checksums import read_checksums, write_checksums
from consortium.merging.job import ingredients_of
from consortium.merging.recipe import EmbeddingRows, Guards, OuterStep, Recipe, Setting
from consortium.store import ref_of
from consortium.versions import OUTER_STATE, manifest_of
from coordinator.driver import replay
from coordinator.ledger import Ledger
from coordinator.verification import verify
from site_agent.agent import Agent
from site_agent.config import Consent, SiteConfig
from site_agent.enrol import enrol
from site_agent.launchers.local import TRAINER, LocalLauncher

VARNA, LIAR = "varna", "plovdiv"
ROOT = Path(__file__).parents[2]

# The real trainer, but the first start of all stops in the midst of its merge until it is killed.
STALLING = """
import os, pathlib, sys, time
from site_agent.trainer import __main__ as program, merging
stalled, make = pathlib.Path(__file__).with_name("stalled"), merging.make_version
def stalling(*order, progress, **rest):
    def stop_here(done, total):
        progress(done, total)
        stalled.with_suffix(".new").write_text(str(os.getpid()))
        stalled.with_suffix(".new").rename(stalled)
        time.sleep(600)
    return make(*order, progress=stop_here, **rest)
if not stalled.exists():
    merging.make_version = stalling
sys.exit(program.main(sys.argv[1:]))
"""


def digests(consortium: Consortium) -> dict[str, Digest]:
    with Ledger(consortium.home / "ledger.sqlite", read_only=True) as ledger:
        return {v.name: v.digest for v in replay(ledger).campaigns["demo"].versions.values()}


@contextlib.asynccontextmanager
async def varna(
    consortium: Consortium, token: str, command: tuple[str, ...] = TRAINER, lives_max: int = 3
) -> AsyncIterator[asyncio.Task[int]]:
    """A real agent of a site without text, which lends itself to merging and to nothing else."""
    config = SiteConfig(
        site=VARNA,
        coordinator=f"127.0.0.1:{consortium.config.port}",
        enrolment=f"127.0.0.1:{consortium.config.enrolment_port}",
        home=str(consortium.folder / VARNA),
        sync_seconds=0.2,
        lives_max=lives_max,
        consent=Consent(purposes=(Purpose.MERGE,)),
    )
    invitation = Invitation(
        consortium=consortium.config.consortium,
        site=VARNA,
        coordinator=config.coordinator,
        enrolment=config.enrolment,
        authority=consortium.keys.authority.pem.decode(),
        token=token,
    )
    identity = await asyncio.to_thread(enrol, config, invitation)
    agent = asyncio.create_task(Agent(config, identity, LocalLauncher(command, poll_seconds=0.05)).run())
    try:
        yield agent
    finally:
        agent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await agent


def scripted(consortium: Consortium) -> list[ScriptedSite]:
    return [ScriptedSite(consortium, name) for name in SITES]


async def test_a_real_site_and_the_coordinator_merge_to_the_same_digests(
    consortium: Consortium, completed: Consortium, base: Path
) -> None:
    """Two rounds, so that the momentum of the first goes to the site and back."""
    async with consortium.running(), consortium.admin() as admin:
        async with varna(consortium, await admin.invite(VARNA)), at_work(*scripted(consortium)):
            await admin.submit(campaign(base, merge_at="site", merge_sites=(VARNA,)))
            ended = await admin.until_ended("demo")
        made, of_the_site = await admin.why("demo/v2"), await admin.why(VARNA)
    assert ended.status == "completed"
    assert digests(consortium) == digests(completed)
    story = (
        f"demo/v2 ({short(ended.versions[2].digest)}) made from 3 contribution(s) at varna: merged 3 "
        "contribution(s) of ohrid, plovdiv, sofia onto demo/v1; the coordinator merged again and got the same bytes"
    )
    assert made[0] == story and story in of_the_site
    report = verify(consortium.home)
    assert report.problems == () and set(report.versions) == {"demo/v1", "demo/v2"}
    assert not [*consortium.home.glob("work/scratch/*"), *consortium.home.glob("work/making/*")]


DRAWING = Recipe(
    method="dare_ties",
    parameters={"density": (Setting(value=0.5),)},
    guards=Guards(clip=1.0),
    outer=OuterStep(optimizer="adam", learning_rate=0.001),
    seed=7,
)
COUNTING = Recipe(embedding_rows=EmbeddingRows(), outer=OuterStep(), dtype="bfloat16", shard_bytes=1 << 20)


@pytest.mark.parametrize("recipe", [DRAWING, COUNTING], ids=["draws", "counts tokens"])
async def test_whatever_the_recipe(consortium: Consortium, base: Path, recipe: Recipe) -> None:
    """Guards, draws, an adaptive outer step, token counts of embedding rows: all of it is in the order."""
    plan = campaign(base, rounds=2, merge=recipe)
    async with consortium.running(), consortium.admin() as admin:
        async with varna(consortium, await admin.invite(VARNA)), at_work(*scripted(consortium)):
            await admin.submit(replace(plan, merge_at="site", merge_sites=(VARNA,)))
            await admin.submit(replace(plan, campaign="other"))
            ended = [await admin.until_ended(name) for name in ("demo", "other")]
        told = await admin.why("demo/v2")  # and of other/v2, which is the same model
    assert [version.digest for version in ended[0].versions] == [
        version.digest for version in ended[1].versions
    ]
    made = {line[:4]: " at varna: " in line for line in told if "/v2 (" in line and " made " in line}
    assert made == {"demo": True, "othe": False}


@pytest.mark.parametrize("lives_max", [1, 3])
async def test_a_merge_that_is_killed_midway_is_made_again(
    consortium: Consortium, completed: Consortium, base: Path, tmp_path: Path, lives_max: int
) -> None:
    """By another start of the same attempt; where the site allows none, by another attempt."""
    program, stalled = tmp_path / "stalling.py", tmp_path / "stalled"
    program.write_text(STALLING)
    async with consortium.running(), consortium.admin() as admin:
        command = (sys.executable, str(program))
        async with (
            varna(consortium, await admin.invite(VARNA), command, lives_max),
            at_work(*scripted(consortium)),
        ):
            await admin.submit(campaign(base, rounds=1, merge_at="site", merge_sites=(VARNA,)))
            while not stalled.exists():
                await asyncio.sleep(0.02)
            os.kill(int(stalled.read_text()), signal.SIGKILL)
            await admin.until_ended("demo")
        story = "\n".join(await admin.why("demo_r1-merge"))
    assert digests(consortium)["demo/v1"] == digests(completed)["demo/v1"]
    failed = "a1 failed: life 1 ended without a result (killed by SIGKILL)"
    assert (failed in story) == (lives_max == 1)
    assert f"demo_r1-merge.a{2 if lives_max == 1 else 1} delivered by varna" in story


async def test_a_site_that_is_lost_with_its_merge_is_replaced_by_the_coordinator(
    consortium: Consortium, completed: Consortium, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, stalled = tmp_path / "stalling.py", tmp_path / "stalled"
    program.write_text(STALLING)
    clock, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: clock() + ahead[0])
    async with consortium.running(), consortium.admin() as admin, at_work(*scripted(consortium)):
        async with varna(consortium, await admin.invite(VARNA), (sys.executable, str(program))):
            plan = campaign(base, rounds=1, merge_at="any", merge_sites=(VARNA,), lease_seconds=60.0)
            await admin.submit(plan)
            while not stalled.exists():
                await asyncio.sleep(0.02)
        os.kill(int(stalled.read_text()), signal.SIGKILL)
        ahead[0] += 61.0
        await admin.until(lambda view: job_state(view, "demo_r1-merge") == "planned", "the lease lapsed")
        ahead[0] += 61.0
        await admin.until_ended("demo")
        story = "\n".join(await admin.why("demo_r1-merge"))
    assert digests(consortium)["demo/v1"] == digests(completed)["demo/v1"]
    assert "demo_r1-merge.a1 expired: no word from varna for 60 s" in story
    assert "demo_r1-merge cancelled: no site took it within 60 s; the coordinator merges" in story


async def test_who_does_not_consent_is_not_asked(consortium: Consortium, base: Path) -> None:
    """And what the campaign waits for is said, until the admin ends it."""
    async with consortium.running(), consortium.admin() as admin, at_work(*scripted(consortium)):
        await admin.submit(campaign(base, rounds=1, merge_at="site"))
        view = await admin.until(
            lambda view: any("a site that can merge round 1" in c.reason for c in view.campaigns), "it waits"
        )
    assert view.campaigns[0].reason == (
        "a site that can merge round 1: ohrid does not offer to merge; plovdiv does not offer to merge; "
        "sofia does not offer to merge"
    )
    assert job_state(view, "demo_r1-merge") == "not planned"


# --- liars ----------------------------------------------------------------------------------------------


BELIEVED = "believed"


class Liar(ScriptedSite):
    """Merges honestly, then changes something."""

    refusal: ClassVar[str]  #: what it is refused with, by whatever check
    unless_rebuilt: ClassVar[str] = ""  #: with ``merge_check: none``, if it is another; or BELIEVED

    def __init__(self, consortium: Consortium, name: str) -> None:
        super().__init__(consortium, name, merges=True)

    def merged(self, work: Merge, folder: Path) -> VersionManifest:
        version = super().merged(work, folder)
        self.change(work, folder / "model")
        files = manifest_of(folder / "model").files
        outer = {
            x: ref_of(folder / "model" / x) for x in version.outer_state if (folder / "model" / x).exists()
        }
        return self.tell(replace(version, files=files, outer_state=outer))

    def change(self, work: Merge, model: Path) -> None:
        """The files."""

    def tell(self, version: VersionManifest) -> VersionManifest:
        """The manifest."""
        return version


def rewrite(path: Path, **changes: np.ndarray) -> None:
    tensors = load_file(path)
    os.chmod(path, 0o644)
    save_file({**tensors, **changes}, path, {"format": "pt"})


NORM = "model.norm.weight"
PROOF = (
    "^(checksums.json|model.safetensors): plovdiv delivered [0-9]+ bytes with [0-9a-f]{12}, the coordinator's own "
    "merge gives [0-9]+ bytes with [0-9a-f]{12}; a merge has one right result, so the site's is wrong$"
)


class ChangesAWeight(Liar):
    """Nothing but merging again finds this."""

    refusal = PROOF
    unless_rebuilt = BELIEVED

    def change(self, work: Merge, model: Path) -> None:
        weights = load_file(model / "model.safetensors")[NORM]
        weights[0] += 1e-3
        rewrite(model / "model.safetensors", **{NORM: weights})
        told = read_checksums(model)
        piece = replace(told.tensors[NORM], pieces=(blake3(weights.tobytes()).hexdigest(),))
        write_checksums(model, replace(told, tensors=told.tensors | {NORM: piece}))


class ForgetsTheChecksums(Liar):
    refusal = PROOF
    unless_rebuilt = "^checksums.json: is not of the weights that were delivered$"

    def change(self, work: Merge, model: Path) -> None:
        rewrite(model / "model.safetensors", **{NORM: np.ones(16, np.float32)})


class CountsOtherPieces(Liar):
    refusal = "^checksums.json: plovdiv delivered "
    unless_rebuilt = "^checksums.json: is not of the weights that were delivered$"

    def change(self, work: Merge, model: Path) -> None:
        told = read_checksums(model)
        tensor = replace(told.tensors[NORM], pieces=2 * told.tensors[NORM].pieces)
        write_checksums(model, replace(told, tensors=told.tensors | {NORM: tensor}))


class SendsNaN(Liar):
    refusal = PROOF
    unless_rebuilt = rf"^the version: tensor '{re.escape(NORM)}' is not finite; no merge gives that$"

    def change(self, work: Merge, model: Path) -> None:
        rewrite(model / "model.safetensors", **{NORM: np.full(16, np.nan, np.float32)})


class SendsAnotherShape(Liar):
    refusal = PROOF
    unless_rebuilt = (
        r"tensor 'model.norm.weight' has shape \(4, 4\), the base \(16,\); a merge changes no shape$"
    )

    def change(self, work: Merge, model: Path) -> None:
        rewrite(model / "model.safetensors", **{NORM: np.ones((4, 4), np.float32)})


class SendsHalfPrecision(Liar):
    refusal = PROOF
    unless_rebuilt = "tensor 'model.norm.weight' is F16, the merge writes F32$"

    def change(self, work: Merge, model: Path) -> None:
        rewrite(model / "model.safetensors", **{NORM: np.ones(16, np.float16)})


class KeepsItsMomentum(Liar):
    refusal = r"^outer.safetensors: plovdiv delivered no such file, the coordinator's own merge gives .*; a merge has"
    unless_rebuilt = r"^version's outer state: \[\], the merge writes \['outer.safetensors'\]; deliver those$"

    def change(self, work: Merge, model: Path) -> None:
        (model / OUTER_STATE).unlink()


class AddsCode(Liar):
    refusal = (
        r"^modeling.py: plovdiv delivered 8 bytes with .*, the coordinator's own merge gives no such file; "
    )
    unless_rebuilt = r"^version's files: \[.*'modeling.py'.*\], the merge writes "

    def change(self, work: Merge, model: Path) -> None:
        (model / "modeling.py").write_text("import x")


class ChangesTheConfig(Liar):
    refusal = "^config.json: plovdiv delivered "
    unless_rebuilt = "^config.json: is not the base's; a merge copies config and tokenizer$"

    def change(self, work: Merge, model: Path) -> None:
        os.chmod(model / "config.json", 0o644)
        (model / "config.json").write_text((model / "config.json").read_text().replace("64", "65"))


class LeavesSomebodyOut(Liar):
    """And says so."""

    refusal = (
        "^version's ingredient [0-9a-f]{12} with weight 128 is missing; merge exactly the contributions "
    )

    def merged(self, work: Merge, folder: Path) -> VersionManifest:
        return super().merged(replace(work, parts=work.parts[1:]), folder)


class LeavesSomebodyOutInSecret(LeavesSomebodyOut):
    refusal = PROOF
    unless_rebuilt = BELIEVED

    async def merge(self, work: Merge, folder: Path) -> dict[str, Path]:
        self.work = work
        return await super().merge(work, folder)

    def tell(self, version: VersionManifest) -> VersionManifest:
        return replace(version, ingredients=ingredients_of(self.work))


class WeighsItselfMore(Liar):
    refusal = "^version's ingredient [0-9a-f]{12} with weight [0-9]+ "

    def merged(self, work: Merge, folder: Path) -> VersionManifest:
        heavy = replace(work.parts[0], weight=10 * work.parts[0].weight)
        return super().merged(replace(work, parts=(heavy, *work.parts[1:])), folder)


class UsesAnotherRecipe(Liar):
    refusal = "^version's recipe is [0-9a-f]{64}, the job's is [0-9a-f]{64}; merge by that$"

    def merged(self, work: Merge, folder: Path) -> VersionManifest:
        return super().merged(replace(work, recipe=replace(work.recipe, weights="uniform")), folder)


class NamesAnotherBase(Liar):
    refusal = "^version's base is 0{64}, the job's is [0-9a-f]{64}; merge onto that$"

    def tell(self, version: VersionManifest) -> VersionManifest:
        return replace(version, base=Digest("0" * 64))


class DeliversAFileLess(Liar):
    refusal = (
        "^model/tokenizer.json: the version manifest has [0-9]+ bytes with .*, the delivery no such file; "
    )

    async def merge(self, work: Merge, folder: Path) -> dict[str, Path]:
        made = await super().merge(work, folder)
        return {name: path for name, path in made.items() if name != "model/tokenizer.json"}


class SignsForWhatItNeverSent(Liar):
    refusal = "^artifact model/model.safetensors [0-9a-f]{64} was never uploaded by plovdiv; "

    async def send(self, path: Path) -> FileRef:
        return ref_of(path) if path.name == "model.safetensors" else await super().send(path)


class SendsNoManifest(Liar):
    refusal = r"^artifacts are \['model/checksums.json', .*\], without 'version', the manifest$"

    async def merge(self, work: Merge, folder: Path) -> dict[str, Path]:
        made = await super().merge(work, folder)
        return {name: path for name, path in made.items() if name != "version"}


class SpellsItAnotherWay(Liar):
    refusal = "^version manifest: is not in its canonical spelling; "

    async def merge(self, work: Merge, folder: Path) -> dict[str, Path]:
        made = await super().merge(work, folder)
        made["version"].write_bytes(made["version"].read_bytes() + b"\n")
        return made


def liars() -> list[type[Liar]]:
    return [*Liar.__subclasses__(), LeavesSomebodyOutInSecret]


@pytest.mark.parametrize("check", ["rebuild", "none"])
@pytest.mark.parametrize("liar", liars())
async def test_a_liar_is_refused_and_the_coordinator_merges(
    liar: type[Liar], check: str, consortium: Consortium, completed: Consortium, base: Path
) -> None:
    others = [ScriptedSite(consortium, name) for name in SITES if name != LIAR]
    async with consortium.running(), consortium.admin() as admin:
        async with at_work(liar(consortium, LIAR), *others):
            plan = campaign(base, rounds=1, merge_at="any", merge_sites=(LIAR,), merge_check=check)
            await admin.submit(plan)
            ended = await admin.until_ended("demo")
        story = await admin.why("demo_r1-merge")
    assert ended.status == "completed"
    if check == "none" and liar.unless_rebuilt == BELIEVED:
        assert story[-2].endswith("shapes and finiteness are right; merge_check: none merged nothing again")
        assert digests(consortium)["demo/v1"] != digests(completed)["demo/v1"]
        assert verify(consortium.home, rebuild=False).problems == ()
        [problem] = verify(consortium.home).problems
        assert re.search(
            "^rebuild demo/v1: checksums.json comes out as [0-9a-f]{12}, the ledger has [0-9a-f]{12}, as plovdiv "
            "merged it$",
            problem,
        )
        return
    [said] = [line.partition(".a1 refused: ")[2] for line in story if ".a1 refused: " in line]
    wanted = (check == "none" and liar.unless_rebuilt) or liar.refusal
    assert re.search(wanted, said), said
    assert story[-2] == f"demo_r1-merge failed: no site is left to ask, the last was refused: {said}"
    assert digests(consortium)["demo/v1"] == digests(completed)["demo/v1"]
    assert not [*consortium.home.glob("work/scratch/*"), *consortium.home.glob("work/making/*")]
