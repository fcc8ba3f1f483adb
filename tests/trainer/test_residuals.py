"""Three rounds of training with error feedback: the chain of residuals, and that nothing is lost on the way."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from trainer_samples import contribution, make_job, run, sha256, train_work

from consortium.codecs.names import CodedName
from consortium.codecs.reading import open_delta
from consortium.deltas import apply_delta
from consortium.ids import Digest
from consortium.jobs import Train
from consortium.manifests import Contribution
from consortium.tensors import TensorFile
from site_agent.trainer.folder import JobFolder, Site
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.training import train


def trained(
    folder: Path, site: Site, work: Train, base: Path, alone: Ranks, residual: Path | None
) -> Contribution:
    make_job(folder, site, work, base)
    if residual is not None:
        shutil.copy(residual, folder / "residual.safetensors")
    job = JobFolder(folder)
    train(job, work, alone, lambda: False)
    return contribution(folder)


def flat(path: Path) -> np.ndarray:
    with open_delta(path) as delta:
        return np.concatenate([delta.array(name).reshape(-1).astype(np.float64) for name in delta])


@pytest.mark.parametrize("encoding", ["int8", "int4", "topk"])
def test_over_three_rounds_everything_trained_is_said_or_kept(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, encoding: CodedName
) -> None:
    said, wanted = np.zeros(1), np.zeros(1)
    residual: Path | None = None
    found: list[Contribution] = []
    for number in range(3):
        before = Digest(sha256(residual)) if residual else None
        work = train_work(seed=number, steps=6, delta_dtype=encoding, residual=before)
        place = tmp_path / f"round {number}"
        found.append(trained(place / "job", site, work, base, alone, residual))
        exact = train_work(seed=number, steps=6)
        trained(place / "exact", site, exact, base, alone, None)
        said = said + flat(place / "job/result/delta.safetensors")
        wanted = wanted + flat(place / "exact/result/delta.safetensors")
        residual = place / "job/result/residual.safetensors"
        assert found[-1].residual == sha256(residual)
        assert set(found[-1].artifacts) == {"delta"}  # the residual stays here
        apply_delta(base, place / "job/result/delta.safetensors", place / "next")
        shutil.copy(base / "tokenizer.json", place / "next/tokenizer.json")
        base = place / "next"
    assert [one.residual_before for one in found] == [None, found[0].residual, found[1].residual]
    assert residual is not None
    lost = np.linalg.norm(said - wanted)
    assert lost > 1e-5 * np.linalg.norm(wanted)
    with TensorFile(residual) as left:
        kept = np.concatenate([left.array(name).reshape(-1).astype(np.float64) for name in left])
    np.testing.assert_allclose(said + kept, wanted, rtol=0, atol=1e-7)


def test_the_same_order_with_the_same_residual_gives_the_same_bits(
    tmp_path: Path, site: Site, base: Path, alone: Ranks
) -> None:
    first = trained(tmp_path / "0", site, train_work(delta_dtype="int4"), base, alone, None)
    work = train_work(delta_dtype="int4", residual=first.residual)
    residual = tmp_path / "0/result/residual.safetensors"
    again = [trained(tmp_path / name, site, work, base, alone, residual) for name in "ab"]
    assert again[0].artifacts == again[1].artifacts != first.artifacts
    assert again[0].residual == again[1].residual


@pytest.mark.parametrize("fate", ["missing", "damaged"])
def test_a_lost_residual_is_said_and_the_delta_begins_from_zero(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, fate: str, capfd: pytest.CaptureFixture[str]
) -> None:
    first = trained(tmp_path / "0", site, train_work(delta_dtype="int8"), base, alone, None)
    residual: Path | None = None
    if fate == "damaged":
        data = bytearray((tmp_path / "0/result/residual.safetensors").read_bytes())
        data[-1] ^= 1
        residual = tmp_path / "damaged"
        residual.write_bytes(data)
    work = train_work(delta_dtype="int8", residual=first.residual)
    found = trained(tmp_path / "1", site, work, base, alone, residual)
    assert found.residual_before is None
    assert found.artifacts == first.artifacts
    assert f"the order names residual {first.residual}, here is" in capfd.readouterr().err


def test_the_process_does_it_too(tmp_path: Path, site: Site, base: Path) -> None:
    folder = make_job(
        tmp_path / "job", site, train_work(delta_dtype="topk", delta_density=0.1, steps=2), base
    )
    assert run(folder) == 0
    assert contribution(folder).residual == sha256(folder / "result/residual.safetensors")
    assert sha256(folder / "result/delta.safetensors") == contribution(folder).artifacts["delta"].digest
