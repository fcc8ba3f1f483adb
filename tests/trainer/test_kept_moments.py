"""Moments that a site keeps from job to job: two jobs are one longer job, and what cannot be gone on with is said."""

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import UNSET
from msgspec.structs import replace
from safetensors.numpy import load_file, save_file
from test_many_ranks import is_close, meet, sharded
from trainer_samples import contribution, make_job, sha256, train_work

from consortium.errors import Unavailable
from consortium.ids import Digest
from consortium.jobs import LayerGroup, Lora, Muon, Optimizer, Train
from consortium.manifests import Contribution, FileRef
from consortium.store import ref_of
from consortium.tensors import TensorFile
from site_agent.trainer import moments, training
from site_agent.trainer.batches import Batches, Stream
from site_agent.trainer.delivery import finish
from site_agent.trainer.folder import JobFailed, JobFolder, Site, Stopped
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.training import train

HALF = 5
ADAMW = Optimizer(learning_rate=3e-3, warmup_steps=3, decay="constant", moments="keep")
MUON = replace(ADAMW, muon=Muon())
WORK = train_work(optimizer=ADAMW, steps=HALF, checkpoint_steps=2)
MOMENTS = "result/moments.safetensors"


def trained(
    folder: Path, site: Site, work: Train, base: Path, alone: Ranks, before: Path | None = None
) -> Contribution:
    make_job(folder, site, work, base)
    if before is not None:
        shutil.copy(before, folder / "moments.safetensors")
    train(JobFolder(folder), work, alone, lambda: False)
    return contribution(folder)


def going_on(work: Train, before: Path) -> Train:
    return replace(work, moments=Digest(sha256(before)))


def metadata(path: Path) -> dict[str, str]:
    with TensorFile(path) as file:
        return file.metadata


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, site: Site, base: Path, alone: Ranks) -> Path:
    """The result of a first job."""
    folder = tmp_path_factory.mktemp("first") / "job"
    trained(folder, site, WORK, base, alone)
    return folder


# --- two are one ------------------------------------------------------------------------------------


class Stretch(Batches):
    """Of a job of ``steps`` the batches from ``begin`` on."""

    def __init__(self, steps: int, begin: int, work: Train, streams: list[Stream]) -> None:
        super().__init__(replace(work, steps=steps), streams)
        self._begin = begin

    def _indices(self, step: int, rank: int, world: int) -> range:
        return super()._indices(step + self._begin, rank, world)


@pytest.mark.parametrize(
    "rule",
    [ADAMW, MUON, replace(ADAMW, warmup_steps=HALF + 2)],
    ids=["AdamW", "Muon", "warm-up ends in the second"],
)
def test_two_rounds_of_one_site_are_one_job_of_both(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch, rule: Optimizer
) -> None:
    """Bit for bit, in weights and in moments, where the base of the second is what the first has trained."""
    trained_weights: list[dict[str, np.ndarray]] = []
    deliver = training.deliver

    def noting(folder: JobFolder, work: Train, weights: Mapping[str, Any], *rest: Any) -> None:
        trained_weights.append({name: np.array(weights[name]) for name in weights})
        deliver(folder, work, weights, *rest)

    def job(name: str, steps: int, begin: int, base: Path, before: Path | None = None) -> Contribution:
        monkeypatch.setattr(training, "Batches", functools.partial(Stretch, 2 * HALF, begin))
        work = train_work(optimizer=rule, steps=steps)
        if before is not None:
            work = going_on(work, before)
        return trained(tmp_path / name, site, work, base, alone, before)

    monkeypatch.setattr(training, "deliver", noting)
    both = job("both", 2 * HALF, 0, base)
    one = job("one", HALF, 0, base)
    passed = tmp_path / "passed straight through"
    shutil.copytree(base, passed)
    save_file(trained_weights[1], passed / "model.safetensors", {"format": "pt"})
    two = job("two", HALF, HALF, passed, tmp_path / "one" / MOMENTS)
    forgot = job("forgot", HALF, HALF, passed)

    assert (one.moments_before, two.moments_before) == (UNSET, one.moments)
    assert one.moments == sha256(tmp_path / "one" / MOMENTS) and both.moments_before is UNSET
    assert two.moments == both.moments == sha256(tmp_path / "two" / MOMENTS)
    expected, _, found, forgotten = trained_weights
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name].view(np.uint32), weight.view(np.uint32), err_msg=name)
    assert any((forgotten[name] != weight).any() for name, weight in expected.items())
    assert forgot.moments != two.moments


def test_a_first_job_only_leaves_moments(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, first: Path
) -> None:
    plain = trained(
        tmp_path / "plain", site, replace(WORK, optimizer=replace(ADAMW, moments="fresh")), base, alone
    )
    keeping = contribution(first)
    assert plain.artifacts == keeping.artifacts  # the moments are none of them: they stay here
    assert (plain.moments, plain.moments_before) == (UNSET, UNSET)
    assert not (tmp_path / "plain" / MOMENTS).exists()
    assert keeping.moments == sha256(first / MOMENTS) and keeping.moments_before is UNSET
    with TensorFile(first / MOMENTS) as file:
        kinds = {name.split("/")[0] for name in file}
        assert kinds == {"mean", "square", "updates"}
        assert file.metadata["steps"] == str(HALF)
        assert file.array("updates/model.norm.weight") == HALF


@pytest.mark.parametrize("rule", [ADAMW, MUON], ids=["AdamW", "Muon"])
def test_what_stays_on_disk_is_told_before(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, rule: Optimizer, capfd: pytest.CaptureFixture[str]
) -> None:
    frozen = (LayerGroup(match="embeddings", learning_rate_factor=0.0),)
    trained(tmp_path / "job", site, replace(WORK, steps=1, optimizer=rule, groups=frozen), base, alone)
    with TensorFile(tmp_path / "job" / MOMENTS) as file:
        size = sum(info.num_elements * 4 for name, info in file.items() if not name.startswith("updates/"))
    said = f"moments that stay at this site for the next round, MiB on disk: {size / (1 << 20):,.1f}\n"
    assert size > 1 << 16 and said in capfd.readouterr().err


def test_error_feedback_does_not_notice(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, first: Path
) -> None:
    coded = replace(WORK, delta_dtype="int4")
    keeping = trained(tmp_path / "keeping", site, coded, base, alone)
    plain = trained(
        tmp_path / "plain", site, replace(coded, optimizer=replace(ADAMW, moments=UNSET)), base, alone
    )
    assert (keeping.residual, keeping.artifacts) == (plain.residual, plain.artifacts)
    assert keeping.moments == contribution(first).moments


# --- many lives -------------------------------------------------------------------------------------


def test_a_job_of_many_lives_begins_with_them_once(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, first: Path
) -> None:
    """Lives after the first go on from a training checkpoint, and need the file no more."""
    before = first / MOMENTS
    work = replace(going_on(WORK, before), seed=8)
    straight = trained(tmp_path / "straight", site, work, base, alone, before)
    folder = make_job(tmp_path / "cut", site, work, base)
    shutil.copy(before, folder / "moments.safetensors")
    for _ in range(HALF - 1):
        with pytest.raises(Stopped):
            train(JobFolder(folder), work, alone, lambda: True)
        (folder / "moments.safetensors").unlink(missing_ok=True)
    train(JobFolder(folder), work, alone, lambda: False)
    cut = contribution(folder)
    assert cut.artifacts == straight.artifacts
    assert cut.moments == straight.moments == sha256(folder / MOMENTS)
    assert cut.moments_before == straight.moments_before == sha256(before)
    assert metadata(folder / MOMENTS)["steps"] == str(2 * HALF)


def test_a_partial_result_leaves_the_moments_of_its_steps(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, first: Path
) -> None:
    before = first / MOMENTS
    work = replace(going_on(WORK, before), seed=8)
    folders = [make_job(tmp_path / name, site, work, base) for name in ("asked", "without training")]
    for folder in folders:
        shutil.copy(before, folder / "moments.safetensors")
    looks = iter(range(1, 9))
    train(JobFolder(folders[0]), work, alone, lambda: False, lambda: next(looks) >= 2)
    steps = iter(range(1, 9))
    with pytest.raises(Stopped):
        train(JobFolder(folders[1]), work, alone, lambda: next(steps) >= 2)
    finish(JobFolder(folders[1]), work)
    one, other = map(contribution, folders)
    assert (one.steps, one.moments, one.moments_before) == (2, other.moments, other.moments_before)
    assert sha256(folders[0] / MOMENTS) == sha256(folders[1] / MOMENTS) == one.moments
    assert metadata(folders[0] / MOMENTS)["steps"] == str(HALF + 2)


# --- what cannot be gone on with ----------------------------------------------------------------------


def spoilt(how: str, before: Path, out: Path) -> Path | None:
    """What lies in the job directory in place of the moments that were left."""
    if how == "missing":
        return None
    tensors, notes = load_file(before), metadata(before)
    if how == "of another shape":
        tensors["mean/model.norm.weight"] = tensors["mean/model.norm.weight"][:-1]
    if how == "infinite":
        tensors["square/model.norm.weight"][3] = np.inf
    if how == "no count of steps":
        notes["steps"] = "-1"
    if how == "one tensor less":
        del tensors["updates/model.norm.weight"]
    save_file(tensors, out, notes)
    if how == "no tensors at all":
        out.write_bytes(b"words")
    return out


@pytest.mark.parametrize(
    ("how", "change", "words"),
    [
        ("missing", {}, "here is none"),
        ("damaged", {}, "the order names moments 0000"),
        ("whole", {"optimizer": MUON}, "the moments are of the optimizer"),
        ("whole", {"optimizer": replace(ADAMW, beta2=0.9)}, "the moments are of the optimizer"),
        (
            "whole",
            {"groups": (LayerGroup(match="embeddings", learning_rate_factor=0.0),)},
            "are not of this model and its groups: mean/model.embed_tokens.weight is otherwise",
        ),
        ("of another shape", {}, "mean/model.norm.weight is otherwise"),
        ("one tensor less", {}, "updates/model.norm.weight is otherwise"),
        ("no count of steps", {}, "steps is otherwise"),
        ("infinite", {}, "square/model.norm.weight is not finite"),
        ("no tensors at all", {}, "moments.safetensors"),
    ],
)
def test_what_cannot_be_gone_on_with_is_said_and_the_job_begins_anew(
    tmp_path: Path,
    site: Site,
    base: Path,
    alone: Ranks,
    first: Path,
    capfd: pytest.CaptureFixture[str],
    how: str,
    change: dict[str, Any],
    words: str,
) -> None:
    before = spoilt(how, first / MOMENTS, tmp_path / "before")
    named = Digest("0" * 64) if how in ("missing", "damaged") or before is None else Digest(sha256(before))
    work = replace(WORK, steps=1, moments=named, **change)
    found = trained(tmp_path / "job", site, work, base, alone, before)
    said = capfd.readouterr().err
    assert words in said and "the optimizer begins anew, and the manifest says so" in said
    fresh = trained(tmp_path / "fresh", site, replace(work, moments=UNSET), base, alone)
    assert found.moments_before is UNSET
    assert (found.artifacts, found.moments) == (fresh.artifacts, fresh.moments)
    assert "begins anew" not in capfd.readouterr().err


def test_a_disk_that_cannot_read_them_fails_no_job(
    tmp_path: Path,
    site: Site,
    base: Path,
    alone: Ranks,
    first: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(path: Path) -> FileRef:
        if path.parent.name == "job":
            raise Unavailable(f"{path}: Input/output error")
        return ref_of(path)

    monkeypatch.setattr(moments, "ref_of", broken)
    work = going_on(WORK, first / MOMENTS)
    found = trained(tmp_path / "job", site, work, base, alone, first / MOMENTS)
    assert "Input/output error; the optimizer begins anew" in capfd.readouterr().err
    assert (found.moments_before, found.artifacts) == (UNSET, contribution(first).artifacts)


def test_slower_layers_go_on_with_moments_of_fast_ones(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, first: Path
) -> None:
    """A gradient's moments do not depend on the rate."""
    slower = (LayerGroup(match="embeddings", learning_rate_factor=0.5),)
    work = replace(going_on(WORK, first / MOMENTS), steps=1, groups=slower)
    found = trained(tmp_path / "job", site, work, base, alone, first / MOMENTS)
    assert found.moments_before == sha256(first / MOMENTS)


def test_adapters_keep_no_moments(tmp_path: Path, site: Site, base: Path, alone: Ranks) -> None:
    with pytest.raises(JobFailed, match="every job draws its adapters anew"):
        trained(tmp_path / "job", site, replace(WORK, lora=Lora(rank=2)), base, alone)


# --- many ranks -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rule", [ADAMW, pytest.param(MUON, marks=pytest.mark.soak)], ids=["AdamW", "Muon"])
def test_moments_go_from_one_rank_to_shards_and_back(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, rule: Optimizer
) -> None:
    work = replace(WORK, optimizer=rule, steps=3, batch_sequences=5)
    trained(tmp_path / "one", site, work, base, alone)
    before = tmp_path / "one" / MOMENTS
    work = replace(going_on(work, before), seed=8)
    alone_again = trained(tmp_path / "again", site, work, base, alone, before)
    folder = make_job(tmp_path / "shards", sharded(site, "fsdp"), work, base)
    shutil.copy(before, folder / "moments.safetensors")
    assert meet(folder, 2) == 0
    shared = contribution(folder)
    assert shared.moments_before == alone_again.moments_before == sha256(before)
    assert is_close(folder, tmp_path / "again")
    left, expected = load_file(folder / MOMENTS), load_file(tmp_path / "again" / MOMENTS)
    assert left.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(left[name], expected[name], rtol=1e-2, atol=1e-6, err_msg=name)
    assert metadata(folder / MOMENTS) == metadata(tmp_path / "again" / MOMENTS)
    work = replace(going_on(work, folder / MOMENTS), seed=9)
    assert (
        trained(tmp_path / "back", site, work, base, alone, folder / MOMENTS).moments_before == shared.moments
    )
