"""LoRA jobs: what they deliver is exactly the dense model that was trained."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from trainer_samples import contribution, make_job, sha256, train_work

from consortium.deltas import write_delta
from consortium.errors import BadInput
from consortium.jobs import LayerGroup, Lora
from consortium.tensors import Checkpoint, TensorFile
from site_agent.carry import salvage
from site_agent.config import Engine
from site_agent.trainer.engine import Given, ways_of
from site_agent.trainer.feeding import Fed, Part
from site_agent.trainer.folder import JobFailed, JobFolder, Site, Stopped
from site_agent.trainer.model import load_model
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.stepping import Stepper, choose, make_stepper
from site_agent.trainer.training import train

LORA = Lora(rank=3, alpha=6.0, match=("*.q_proj.weight", "*.mlp.*"))
WORK = train_work(lora=LORA)
IDS = torch.randint(0, 320, (4, 17), generator=torch.Generator().manual_seed(2))


def trained(base: Path, alone: Ranks, steps: int = 5, **engine: str) -> Stepper:
    ways = choose(base, WORK, alone, Engine(**engine), rows_at_once=4)  # type: ignore[arg-type]
    stepper = make_stepper(base, WORK, alone, ways)
    for step in range(steps):
        assert stepper.step(step, Fed([Part(IDS[:, :-1], IDS[:, 1:], None)], 64))[1] == 1
    return stepper


@pytest.mark.parametrize("backend", ["native", "transformers"])
def test_the_delta_is_exactly_that_of_the_dense_model(
    tmp_path: Path, base: Path, alone: Ranks, backend: str
) -> None:
    stepper = trained(base, alone, backend=backend)
    dense = load_model(base, alone.device, backend=backend)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in stepper.weights.items():
            dense.weights[name].copy_(weight)
    with torch.no_grad():
        assert torch.equal(dense.logits(IDS), stepper.shared.model.logits(IDS))
    with Checkpoint(base) as before:
        for label, weights in (("lora", stepper.weights), ("dense", dense.weights)):
            arrays = {name: weight.detach().numpy() for name, weight in weights.items()}
            write_delta(before, arrays, tmp_path / label, "fp32")
    assert sha256(tmp_path / "lora") == sha256(tmp_path / "dense")
    with TensorFile(tmp_path / "lora") as delta:
        for name in delta:
            found = delta.array(name)
            if "q_proj" in name or ".mlp." in name:
                sizes = np.linalg.svd(found, compute_uv=False)
                assert sizes[0] > 1e-3 and sizes[3:].max() < 1e-4 * sizes[0]
            else:
                assert not found.any(), name


def test_a_change_is_alpha_over_rank_times_the_product(base: Path, alone: Ranks) -> None:
    stepper, name = trained(base, alone), "model.layers.1.mlp.up_proj.weight"
    a_RC, b_RR = (stepper.optimizer.state[f"weight/{name}.lora_{side}"].double() for side in "ab")
    with Checkpoint(base) as before, torch.no_grad():
        expected = torch.from_numpy(before.array(name)).double() + (6.0 / 3) * (b_RR @ a_RC)
    torch.testing.assert_close(stepper.weights[name].double(), expected, rtol=1e-6, atol=1e-8)
    assert (b_RR @ a_RC).abs().max() > 1e-4


def test_a_step_moves_adapters_only_and_before_it_the_model_is_the_base(base: Path, alone: Ranks) -> None:
    stepper, model = trained(base, alone, steps=0), load_model(base, alone.device)
    with torch.no_grad():
        assert torch.equal(model.logits(IDS), stepper.shared.model.logits(IDS))
    assert set(stepper.optimizer.state) == {
        f"{group}/{name}.{side}"
        for group in ("weight", "mean", "square", "updates")
        for name in model.weights
        if "q_proj" in name or ".mlp." in name
        for side in ("lora_a", "lora_b")
    }
    again = trained(base, alone, steps=0)
    for name, tensor in stepper.optimizer.state.items():
        assert torch.equal(tensor, again.optimizer.state[name])
    first = next(tensor for name, tensor in stepper.optimizer.state.items() if name.endswith("lora_a"))
    assert 0.5 < first.std() * (3 * 32) ** 0.5 < 1.5  # uniform between -1 and 1 over the root of 32 columns


def test_a_job_goes_on_and_is_finished_without_torch_in_the_same_bits(
    tmp_path: Path, site: Site, base: Path, alone: Ranks
) -> None:
    def job(name: str, stops: int = 0, finishes: int = 0) -> Path:
        folder = make_job(tmp_path / name, site, WORK, base)
        looks, ends = iter(range(1, 50)), iter(range(1, 50))
        if stops:
            with pytest.raises(Stopped):
                train(JobFolder(folder), WORK, alone, lambda: next(looks) >= stops)
        if name != "stopped":
            train(
                JobFolder(folder),
                WORK,
                alone,
                lambda: False,
                lambda: bool(finishes) and next(ends) >= finishes,
            )
        return folder

    straight, halting = job("straight"), job("halting", stops=5)
    digests = [sha256(folder / "result/delta.safetensors") for folder in (straight, halting)]
    assert digests[0] == digests[1]
    finished, stopped = job("finished", finishes=5), job("stopped", stops=5)
    asyncio.run(salvage(stopped))  # as the agent does
    digests = [sha256(folder / "result/delta.safetensors") for folder in (finished, stopped)]
    assert digests[0] == digests[1]
    losses = contribution(straight).losses
    assert losses is not None and losses.last < losses.first


def test_what_does_not_go_together_is_refused(tmp_path: Path, base: Path, alone: Ranks) -> None:
    given = Given(
        is_gpu=True, is_native=True, computes_in_bf16=True, ranks=2, is_sharded=True, rows=8, vocabulary=320
    )
    whole = given._replace(ranks=1, is_sharded=False)
    with pytest.raises(JobFailed, match="cannot be shared in shards"):
        ways_of(Engine(), WORK, given)
    with pytest.raises(JobFailed, match="weights: bf16: adapters are added"):
        ways_of(Engine(weights="bf16"), WORK, whole)
    with pytest.raises(JobFailed, match="compile: on: weights with adapters"):
        ways_of(Engine(compile="on"), WORK, whole)
    for change in ({"proximal": 0.1}, {"groups": (LayerGroup(match="*", learning_rate_factor=0.5),)}):
        with pytest.raises(JobFailed, match="adapters are all that learns"):
            ways_of(Engine(), train_work(lora=LORA, **change), whole)
    for lora, why in (
        (Lora(rank=2, match=("*.nothing.*",)), r"'\*\.nothing\.\*' fits no matrix of a block"),
        (Lora(rank=2, match=("model.embed_tokens.weight",)), "fits no matrix of a block"),
        (
            Lora(rank=16, match=("*.k_proj.weight",)),
            "rank 16 is not below 16, the least side of model.layers.0",
        ),
    ):
        work = train_work(lora=lora)
        with pytest.raises(BadInput, match=why):
            make_stepper(base, work, alone, choose(base, work, alone, Engine(), rows_at_once=4))


def test_the_plan_counts_adapters_and_what_is_there_twice(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, capfd: pytest.CaptureFixture[str]
) -> None:
    train(JobFolder(make_job(tmp_path / "job", site, WORK, base)), WORK, alone, lambda: False)
    # of 29k parameters 14k in adapted matrices; adapters of 3 (32 + 32 + 3 x 96) numbers in each of two blocks
    assert "weights 0.1, moments 0.0, copies 0.1" in capfd.readouterr().err.replace("gradients 0.0, ", "")
