"""Rows of embeddings and head whose tokens a job never met: zero in the delta where the order wants it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_many_ranks import launch, sharded
from trainer_samples import CONFIG, contribution, make_job, sha256, train_work

from consortium.codecs.names import EncodingName
from consortium.codecs.reading import open_delta
from consortium.ids import Digest
from consortium.jobs import Train
from consortium.merging.operands import read_row_counts
from consortium.models import initialise
from consortium.tensors import TensorFile
from site_agent.trainer.delivery import finish, rows_of_tokens
from site_agent.trainer.folder import JobFolder, Site, Stopped
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.training import train

ROWS = ("lm_head.weight", "model.embed_tokens.weight")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    """With a matrix in its layers that has as many rows as the vocabulary has tokens: it has no tokens' rows."""
    folder = tmp_path_factory.mktemp("untied") / "model"
    initialise(CONFIG | {"tie_word_embeddings": False, "intermediate_size": 320}, 3, tokenizer_json, folder)
    return folder


def trained(
    folder: Path, site: Site, work: Train, base: Path, alone: Ranks, residual: Path | None = None
) -> Path:
    make_job(folder, site, work, base)
    if residual is not None:
        shutil.copy(residual, folder / "residual.safetensors")
    train(JobFolder(folder), work, alone, lambda: False)
    return folder / "result"


def tensors(path: Path) -> dict[str, np.ndarray]:
    with open_delta(path) as file:
        return {name: file.array(name).copy() for name in file}


@pytest.mark.parametrize("encoding", ["fp32", "bf16", "int8", "int4", "topk"])
def test_what_was_not_seen_does_not_move_and_all_else_moves_as_before(
    tmp_path: Path, site: Site, untied: Path, alone: Ranks, encoding: EncodingName
) -> None:
    work = train_work(steps=3, delta_dtype="fp32", token_counts=True)
    moved = tensors(trained(tmp_path / "move", site, work, untied, alone) / "delta.safetensors")
    unseen_V = read_row_counts(tmp_path / "move/result/token_counts.safetensors") == 0
    assert 20 < unseen_V.sum() < 300
    work = train_work(steps=3, delta_dtype=encoding, unseen_rows="keep")
    kept = tensors(trained(tmp_path / "keep", site, work, untied, alone) / "delta.safetensors")
    assert set(contribution(tmp_path / "keep").artifacts) == {"delta"}  # the counts stay here
    for name, change in kept.items():
        if name in ROWS:
            assert np.abs(moved[name][unseen_V]).max() > 0
            assert not kept[name][unseen_V].any()
        if encoding == "fp32":
            still = unseen_V if name in ROWS else np.zeros(len(change), bool)
            assert np.array_equal(change[~still], moved[name][~still])
        else:
            assert change.any()


@pytest.mark.parametrize("encoding", ["int8", "int4", "topk"])
def test_a_residual_forgets_what_was_left_out_and_keeps_what_was_owed(
    tmp_path: Path, site: Site, untied: Path, alone: Ranks, encoding: EncodingName
) -> None:
    """Of a row that round 1 saw and round 2 did not: just what round 1 left unsaid is still there."""
    first = (
        trained(tmp_path / "0", site, train_work(delta_dtype=encoding), untied, alone)
        / "residual.safetensors"
    )
    work = train_work(
        steps=2, batch_sequences=2, seed=8, delta_dtype=encoding, unseen_rows="keep", token_counts=True,
        residual=Digest(sha256(first)),
    )  # fmt: skip
    result = trained(tmp_path / "1", site, work, untied, alone, first)
    assert contribution(tmp_path / "1").residual_before == sha256(first)
    unseen_V = read_row_counts(result / "token_counts.safetensors") == 0
    delta = tensors(result / "delta.safetensors")
    with TensorFile(first) as before, TensorFile(result / "residual.safetensors") as after:
        for name in ROWS:
            assert not delta[name][unseen_V].any()
            owed, left = before.array(name), after.array(name)
            assert np.abs(owed[unseen_V]).max() > 0
            assert np.array_equal(left[unseen_V], owed[unseen_V])
            assert not np.array_equal(left[~unseen_V], owed[~unseen_V])


def test_a_partial_result_is_of_the_tokens_of_the_steps_really_done(
    tmp_path: Path, site: Site, untied: Path, alone: Ranks
) -> None:
    short = train_work(steps=12, unseen_rows="keep", token_counts=True, checkpoint_steps=2)
    folder = JobFolder(make_job(tmp_path / "cut", site, short, untied))
    looks = iter(range(99))
    with pytest.raises(Stopped):
        train(folder, short, alone, lambda: next(looks) > 0)
    finish(folder, short)
    assert contribution(tmp_path / "cut").steps < 12
    cut_V = read_row_counts(tmp_path / "cut/result/token_counts.safetensors") == 0
    full = trained(tmp_path / "full", site, short, untied, alone)
    full_V = read_row_counts(full / "token_counts.safetensors") == 0
    assert (cut_V & ~full_V).any()  # met later: these must not have moved yet
    for path, unseen_V in ((tmp_path / "cut/result", cut_V), (full, full_V)):
        delta = tensors(path / "delta.safetensors")
        for name in ROWS:
            assert delta[name].any(axis=1).tolist() == (~unseen_V).tolist()


def test_rows_of_tokens_lie_outside_the_layers() -> None:
    tokens_V = np.zeros(320, bool)
    shapes = {"lm_head.weight": (320, 8), "lm_head.bias": (320,), "model.norm.weight": (8,), "odd": ()}
    inside: dict[str, tuple[int, ...]] = {"model.layers.0.mlp.up_proj.weight": (320, 8)}
    assert set(rows_of_tokens(shapes | inside, tokens_V)) == {"lm_head.weight", "lm_head.bias"}


@pytest.mark.slow
@pytest.mark.soak
def test_in_shards_too(tmp_path: Path, site: Site, untied: Path) -> None:
    work = train_work(steps=3, batch_sequences=4, unseen_rows="keep", token_counts=True)
    folder = make_job(tmp_path / "job", sharded(site, "fsdp"), work, untied)
    assert launch(folder, 2) == [0]
    unseen_V = read_row_counts(folder / "result/token_counts.safetensors") == 0
    delta = tensors(folder / "result/delta.safetensors")
    for name in ROWS:
        assert delta[name].any(axis=1).tolist() == (~unseen_V).tolist()
