"""Training jobs, in this process."""

import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from trainer_samples import CONFIG, contribution, languages, make_job, sha256, source, train_work, write_jsonl

from consortium.errors import BadInput
from consortium.jobs import Optimizer, Train
from consortium.merging.operands import read_row_counts
from consortium.models import initialise
from consortium.tensors import Checkpoint, TensorFile
from site_agent.trainer import model as loading
from site_agent.trainer import saves
from site_agent.trainer.batches import Batches
from site_agent.trainer.folder import FailureReason, JobFailed, JobFolder, Site, Stopped
from site_agent.trainer.inner_optimizer import InnerOptimizer, learning_rate
from site_agent.trainer.model import load_model
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.training import train

Made = tuple[str, object]


class Killed(Exception):
    """Stands for SIGKILL: the step is lost, nothing is saved."""


def _train(folder: Path, alone: Ranks, wish: Callable[[], bool] = lambda: False) -> None:
    job = JobFolder(folder)
    assert isinstance(job.job.work, Train)
    train(job, job.job.work, alone, wish)


def _made(folder: Path) -> Made:
    found = contribution(folder)
    assert found.artifacts["delta"].digest == sha256(folder / "result" / "delta.safetensors")
    return found.artifacts["delta"].digest, (found.losses, found.tokens, found.steps)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, site: Site, base: Path, alone: Ranks) -> Made:
    folder = make_job(tmp_path_factory.mktemp("undisturbed") / "job", site, train_work(), base)
    _train(folder, alone)
    return _made(folder)


def test_token_counts_are_of_what_was_read_or_predicted(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[np.ndarray] = []
    rows = Batches.rows
    monkeypatch.setattr(Batches, "rows", lambda *at: read.append(rows(*at)) or read[-1])
    monkeypatch.setattr("site_agent.trainer.batches._COUNTED_STEPS", 5)
    work = train_work(token_counts=True)
    folder = make_job(tmp_path / "job", site, work, base)

    _train(folder, alone)

    made = contribution(folder)
    assert set(made.artifacts) == {"delta", "token_counts"}
    path = folder / "result" / "token_counts.safetensors"
    assert made.artifacts["token_counts"].digest == sha256(path)
    counts = np.bincount(np.concatenate(read[: work.steps]).reshape(-1), minlength=320)
    assert read_row_counts(path).tolist() == counts.tolist()
    assert counts.sum() == work.steps * work.batch_sequences * (work.sequence_tokens + 1)


@pytest.mark.parametrize("seed", range(6))
def test_however_often_it_stops_or_dies_it_ends_in_the_same_bytes(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, undisturbed: Made, seed: int
) -> None:
    draw = random.Random(seed)
    folder = make_job(tmp_path / "job", site, train_work(), base)
    for _ in range(4):
        steps_left, dies = draw.randrange(1, 6), draw.random() < 0.5
        looks = itertools.count(1)

        def wish(looks: "itertools.count[int]" = looks, last: int = steps_left, dies: bool = dies) -> bool:
            asked = next(looks) >= last
            if asked and dies:
                raise Killed
            return asked

        try:
            _train(folder, alone, wish)
        except (Stopped, Killed):
            continue
        break
    else:
        _train(folder, alone)
    assert _made(folder) == undisturbed
    assert not (folder / "checkpoint").exists()


def test_a_broken_training_checkpoint_is_passed_over(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, undisturbed: Made
) -> None:
    folder = make_job(tmp_path / "job", site, train_work(), base)
    looks = itertools.count(1)
    with pytest.raises(Stopped):
        _train(folder, alone, lambda: next(looks) >= 10)
    kept = sorted(path.name for path in (folder / "checkpoint").iterdir())
    assert kept == ["step-000000008", "step-000000010"]  # the last two
    newest = folder / "checkpoint" / kept[-1] / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes(data)
    (folder / "checkpoint" / kept[0] / "state.json").write_text("{")
    _train(folder, alone)
    assert _made(folder) == undisturbed


def test_a_checkpoint_of_other_text_is_not_used(tmp_path: Path, base: Path, alone: Ranks) -> None:
    """Else the delta would be of a mixture that no manifest names."""
    texts = [f"lause number {number} siin" for number in range(300)]
    write_jsonl(tmp_path / "et.jsonl", texts)
    site = Site(text=(source("et", tmp_path / "et.jsonl"),), heldout_share=0.1, cache=str(tmp_path / "cache"))
    work = train_work(languages=languages("et"), public_languages=(), replay_share=0.0)
    folder = make_job(tmp_path / "job", site, work, base)
    with pytest.raises(Stopped):
        _train(folder, alone, lambda: True)
    write_jsonl(tmp_path / "et.jsonl", [text[::-1] for text in texts])
    fresh = make_job(tmp_path / "fresh", site, work, base)
    for path in (folder, fresh):
        _train(path, alone)
    assert _made(folder) == _made(fresh)


def test_the_delta_is_trained_minus_base_and_the_loss_falls(
    tmp_path: Path, site: Site, base: Path, alone: Ranks
) -> None:
    work = train_work(steps=60, batch_sequences=8, delta_dtype="bf16")
    folder = make_job(tmp_path / "job", site, work, base)
    _train(folder, alone)
    found = contribution(folder)
    assert found.losses is not None
    assert found.losses.last < found.losses.first - 1.0
    assert (found.steps, found.planned_steps, found.base) == (60, 60, work.base)
    assert sum(found.tokens.values()) == 60 * 8 * 16
    assert sum(found.public_tokens.values()) == 60 * 8 * 16 / 2
    assert set(found.data) == {"bg.private", "bg.public", "el.public", "et.private", "et.public"}
    with TensorFile(folder / "result" / "delta.safetensors") as delta, Checkpoint(base) as before:
        assert delta.shapes == before.shapes
        assert {info.dtype for info in delta.values()} == {"BF16"}
        assert all(np.abs(delta.array(name)).max() > 0 for name in delta)
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert [lines[0]["step"], lines[-1]["step"], lines[-1]["steps"]] == [0, 60, 60]
    assert lines[-1]["tokens"] == 7680
    assert lines[-1]["loss"] == found.losses.last


def test_passing_few_sequences_at_a_time_gives_the_same_gradient(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, undisturbed: Made
) -> None:
    narrow = msgspec.structs.replace(site, device_sequences=3)
    folder = make_job(tmp_path / "job", narrow, train_work(), base)
    _train(folder, alone)
    _, (losses, tokens, _) = _made(folder)  # type: ignore[misc]
    _, (expected, expected_tokens, _) = undisturbed  # type: ignore[misc]
    assert tokens == expected_tokens
    assert losses.last == pytest.approx(expected.last, rel=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": False, "head_dim": 16, "num_key_value_heads": 4}]
)
def test_the_native_model_is_that_of_transformers(
    tmp_path: Path,
    site: Site,
    tokenizer_json: Path,
    alone: Ranks,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
) -> None:
    """Losses and gradients, bit for bit: the delta after some steps is the same."""
    initialise(CONFIG | changes, 5, tokenizer_json, tmp_path / "base")
    made = []
    for name in ("native", "theirs"):
        folder = make_job(tmp_path / name, site, train_work(), tmp_path / "base")
        _train(folder, alone)
        made.append(_made(folder))
        assert ("transformers" in contribution(folder).software["model"]) == (name == "theirs")
        monkeypatch.setattr(loading, "shape_of", lambda config: "for comparison")
    assert made[0] == made[1]


def test_other_architectures_train_and_resume(
    tmp_path: Path, site: Site, tokenizer_json: Path, alone: Ranks
) -> None:
    """With dropout, whose random numbers belong to the step."""
    config = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    initialise(config, 5, tokenizer_json, tmp_path / "base")
    made = []
    for name, stops in (("straight", ()), ("halting", (5,))):
        folder = make_job(tmp_path / name, site, train_work(steps=8), tmp_path / "base")
        for last in stops:
            looks = itertools.count(1)
            with pytest.raises(Stopped):
                _train(folder, alone, lambda looks=looks, last=last: next(looks) >= last)  # type: ignore[misc]
        _train(folder, alone)
        made.append(_made(folder))
    assert made[0] == made[1]


def _broken(base: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(base, folder)
    change(folder)
    return folder


@pytest.mark.parametrize(
    ("file", "words", "sentence"),
    [
        ("config.json", "{", r"config\.json"),
        ("config.json", '{"model_type": "nonsense", "vocab_size": 320, "eos_token_id": 0}', "cannot load it"),
        ("config.json", '{"vocab_size": 320, "eos_token_id": null}', "eos_token_id None must be one of"),
        ("tokenizer.json", "{}", r"not a tokenizer\.json"),
        ("model.safetensors", "", "cannot hold a header"),
    ],
)
def test_a_broken_base_is_named(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, file: str, words: str, sentence: str
) -> None:
    broken = _broken(base, tmp_path / "base", lambda folder: (folder / file).write_text(words) and None)
    fresh = msgspec.structs.replace(site, cache=str(tmp_path / "cache"))
    with pytest.raises(BadInput, match=sentence):
        _train(make_job(tmp_path / "job", fresh, train_work(), broken), alone)


def test_weights_that_do_not_fit_the_config_are_named(
    tmp_path: Path, site: Site, base: Path, alone: Ranks
) -> None:
    def deeper(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))

    broken = _broken(base, tmp_path / "base", deeper)
    with pytest.raises(BadInput, match=r"'model.layers.2.input_layernorm.weight' is missing"):
        _train(make_job(tmp_path / "job", site, train_work(), broken), alone)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"languages": languages("bg", "el")}, "no private el text"),
        ({"languages": (), "public_languages": languages("mt")}, "no public text in mt"),
        ({"public_languages": ()}, "no public text in any language"),
    ],
)
def test_a_job_without_text_says_so(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(JobFailed, match=sentence) as caught:
        _train(make_job(tmp_path / "job", site, train_work(**changes), base), alone)
    assert caught.value.reason is FailureReason.NO_DATA


def test_a_step_that_is_not_finite_changes_nothing_and_three_end_the_job(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(base, alone.device)
    optimizer = InnerOptimizer(model.weights, train_work())
    for weight in model.weights.values():
        weight.grad = torch.full_like(weight, 1e-3)
    before = {name: tensor.clone() for name, tensor in optimizer.state.items()}
    next(iter(model.weights.values())).grad.flatten()[3] = float("inf")  # type: ignore[union-attr]
    assert not optimizer.step(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in optimizer.state.items())
    assert all(weight.grad is None for weight in model.weights.values())

    real, calls = InnerOptimizer.step, itertools.count()

    def poisoned(self: InnerOptimizer, step: int) -> torch.Tensor:
        if next(calls) in (1, 2, 4, 5, 6):
            for weight in self._weights.values():
                weight.grad = torch.full_like(weight, float("nan"))
        return real(self, step)

    monkeypatch.setattr(InnerOptimizer, "step", poisoned)
    folder = make_job(tmp_path / "job", site, train_work(checkpoint_steps=100), base)
    with pytest.raises(JobFailed, match="3 steps in a row, the last one step 7 of 12") as caught:
        _train(folder, alone)
    assert caught.value.reason is FailureReason.NON_FINITE


def test_adamw_is_that_of_torch(base: Path, alone: Ranks) -> None:
    """Against torch's own optimizer and clipping, over ten steps with decay, warm-up and clipping."""
    work = train_work(
        optimizer=Optimizer(learning_rate=1e-2, warmup_steps=4, clip_norm=0.5, weight_decay=0.1)
    )
    ours, theirs = load_model(base, alone.device), load_model(base, alone.device)
    optimizer = InnerOptimizer(ours.weights, work)
    groups = [
        {"params": [w for w in theirs.weights.values() if w.ndim > 1], "weight_decay": 0.1},
        {"params": [w for w in theirs.weights.values() if w.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for step in range(10):
        generator = torch.Generator().manual_seed(step)
        for name, weight in ours.weights.items():
            weight.grad = torch.randn(weight.shape, generator=generator) * (0.001 if step % 2 else 1.0)
            theirs.weights[name].grad = weight.grad.clone()
        for group in reference.param_groups:
            group["lr"] = learning_rate(work, step)
        torch.nn.utils.clip_grad_norm_(list(theirs.weights.values()), 0.5)
        reference.step()
        assert optimizer.step(step)
    for name, weight in ours.weights.items():
        torch.testing.assert_close(weight, theirs.weights[name], rtol=1e-5, atol=1e-6)


def test_the_learning_rate_warms_up_in_the_job_and_decays_over_the_campaign() -> None:
    rule = Optimizer(learning_rate=1.0, warmup_steps=2, decay="linear", final_share=0.2)
    work = train_work(optimizer=rule, steps=10, schedule_start=50, schedule_steps=100)
    assert [learning_rate(work, step) for step in (0, 1, 2)] == pytest.approx(
        [0.5 * 0.6, 1 - 0.8 * 0.51, 1 - 0.8 * 0.52]
    )
    alone = msgspec.structs.replace(work, schedule_start=0, schedule_steps=0)
    cosine = msgspec.structs.replace(rule, decay="cosine")
    assert learning_rate(msgspec.structs.replace(alone, optimizer=cosine), 5) == pytest.approx(0.6)
    constant = msgspec.structs.replace(rule, decay="constant")
    assert learning_rate(msgspec.structs.replace(alone, optimizer=constant), 9) == 1.0


def test_accounts_skip_what_was_skipped() -> None:
    account = saves.Account()
    for nats in (20.0, float("nan"), 10.0):
        account = saves.advanced(account, tokens=10, nats=nats, is_finite=nats == nats)
    assert account == saves.Account(step=3, updates=2, loss_first=2.0, loss_last=1.0, loss_sum=3.0)
