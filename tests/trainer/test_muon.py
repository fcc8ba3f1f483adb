"""Muon for the blocks' matrices: its rule against two references, whose weights it has, and jobs cut up and shared."""

import math
import random
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from test_many_ranks import is_close, launch, meet, sharded
from trainer_samples import contribution, make_job, sha256, train_work

from consortium.canonical import digest_of_fact, encode
from consortium.jobs import LayerGroup, Lora, Muon, Optimizer, Train
from consortium.tensors import TensorFile
from site_agent.config import Engine
from site_agent.trainer import muon, saves
from site_agent.trainer.folder import JobFailed, JobFolder, Site, Stopped
from site_agent.trainer.inner_optimizer import InnerOptimizer
from site_agent.trainer.planning import planned
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.stepping import choose, make_stepper
from site_agent.trainer.training import train

RULE = Optimizer(learning_rate=3e-3, warmup_steps=3, muon=Muon())
WORK = train_work(optimizer=RULE)
NAME = "model.layers.0.mlp.up_proj.weight"
SHAPES = [(24, 24), (16, 40), (40, 16), (1, 7)]


def gradients(shape: tuple[int, int], count: int, seed: int = 5) -> list[torch.Tensor]:
    draw = np.random.default_rng([seed, *shape])
    return [torch.from_numpy(draw.normal(0, 0.1, shape).astype(np.float32)) for _ in range(count)]


def stepped(shape: tuple[int, int], rule: Optimizer, steps: int, kind: torch.dtype) -> torch.Tensor:
    """A matrix after so many steps of the rule that the optimizer calls, the direction made orthogonal in ``kind``."""
    weight, momentum = torch.ones(shape), torch.zeros(shape)
    assert isinstance(rule.muon, Muon)
    for gradient in gradients(shape, steps):
        muon.step_matrix(
            weight,
            momentum,
            gradient,
            rule=rule.muon,
            learning_rate=rule.learning_rate,
            weight_decay=rule.weight_decay,
            is_finite=torch.tensor(True),
            orthogonal_rows=lambda way: muon.orthogonal(way.to(kind)),
            shape=shape,
        )
    return weight


# --- the rule ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bf16_it_is_torchs_muon_bit_for_bit(shape: tuple[int, int]) -> None:
    weight = torch.nn.Parameter(torch.ones(shape))
    theirs = torch.optim.Muon(
        [weight], lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients(shape, 12):
        weight.grad = gradient.clone()
        theirs.step()
    rule = Optimizer(learning_rate=0.02, weight_decay=0.1, muon=Muon(momentum=0.9))
    assert torch.equal(stepped(shape, rule, 12, torch.bfloat16), weight.detach())


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_it_is_the_formula_in_float64(shape: tuple[int, int]) -> None:
    """Written from the singular values: the iteration is an odd polynomial of each, vectors stay."""
    rate, decay, mu = 0.02, 0.1, 0.9
    weight, momentum = np.ones(shape), np.zeros(shape)
    for gradient in gradients(shape, 12):
        given = gradient.numpy().astype(np.float64)
        momentum = mu * momentum + (1 - mu) * given
        left, values, right = np.linalg.svd((1 - mu) * given + mu * momentum, full_matrices=False)
        values = values / math.sqrt(np.square(values).sum())
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        weight = (1 - rate * decay) * weight - rate * 0.2 * math.sqrt(max(shape)) * (left * values) @ right
    rule = Optimizer(learning_rate=rate, weight_decay=decay, muon=Muon(momentum=mu))
    found = stepped(shape, rule, 12, torch.float32)
    assert found.numpy() == pytest.approx(weight, abs=2e-5)


def test_a_step_is_about_as_large_as_adamws() -> None:
    """0.2 times the learning rate, as root mean square, whatever the matrix's sides."""
    for shape in ((64, 64), (32, 128), (128, 32)):
        way = muon.orthogonal(gradients(shape, 1)[0])
        size = float(way.square().mean().sqrt()) * 0.2 * math.sqrt(max(shape))
        assert 0.15 < size < 0.25, shape


# --- whose weights it has ---------------------------------------------------------------------------


def weights() -> dict[str, torch.Tensor]:
    shapes = {
        NAME: (8, 4),
        "model.layers.0.input_layernorm.weight": (4,),
        "model.layers.0.self_attn.q_proj.bias": (4,),
        "model.layers.1.mlp.up_proj.weight": (8, 4),
        "model.embed_tokens.weight": (16, 4),
        "lm_head.weight": (16, 4),
        "model.norm.weight": (4,),
    }
    draw = torch.Generator().manual_seed(1)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float32))
        for name, shape in shapes.items()
    }


def run_steps(
    work: Train, steps: int = 4, poisoned: int = -1, **more: Any
) -> tuple[InnerOptimizer, list[Any]]:
    given = weights()
    optimizer = InnerOptimizer(given, work, **more)
    done = []
    for step in range(steps):
        draw = torch.Generator().manual_seed(step)
        for name in sorted(given):
            gradient = torch.randn(given[name].shape, generator=draw)
            given[name].grad = (gradient * (math.nan if step == poisoned else 1)).to(given[name].dtype)
        done.append(bool(optimizer.step(step)))
    return optimizer, done


def test_matrices_of_blocks_are_muons_and_the_rest_is_adamws_bit_for_bit() -> None:
    plain, both = (
        run_steps(train_work(optimizer=rule))[0].state
        for rule in (msgspec.structs.replace(RULE, muon=msgspec.UNSET), RULE)
    )
    mine = {f"model.layers.{number}.mlp.up_proj.weight" for number in (0, 1)}
    assert {name for name in both if name.startswith("momentum/")} == {f"momentum/{name}" for name in mine}
    for name, tensor in plain.items():
        part, _, weight = name.partition("/")
        if weight in mine:
            assert (part == "weight" and not torch.equal(tensor, both[name])) or name not in both
        else:
            assert torch.equal(tensor, both[name]), name
    assert not any(name.startswith("momentum/") for name in plain)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    before, _ = run_steps(WORK, steps=2)
    after, done = run_steps(WORK, steps=3, poisoned=2)
    assert done == [True, True, False]
    for name, tensor in before.state.items():
        assert torch.equal(tensor, after.state[name]), name


def test_frozen_matrices_have_no_momentum_and_slower_ones_move_less() -> None:
    groups = (
        LayerGroup(match="*layers.0.mlp*", learning_rate_factor=0.0),
        LayerGroup(match="*layers.1.mlp*", learning_rate_factor=0.5),
    )
    start = weights()
    free = run_steps(WORK, steps=1)[0].state
    held = run_steps(msgspec.structs.replace(WORK, groups=groups), steps=1)[0].state
    assert f"momentum/{NAME}" not in held
    assert torch.equal(held[f"weight/{NAME}"], start[NAME])
    slower = "model.layers.1.mlp.up_proj.weight"
    ways = [(state[f"weight/{slower}"] - start[slower]).detach() for state in (free, held)]
    assert float(ways[1].norm() / ways[0].norm()) == pytest.approx(0.5, rel=1e-3)


def test_masters_are_stepped_and_the_models_weights_are_their_roundings() -> None:
    optimizer, _ = run_steps(WORK, in_bf16=True)
    exact, _ = run_steps(WORK)
    for name, parameter in optimizer._parameters.items():
        master = optimizer.state[f"weight/{name}"]
        assert torch.equal(parameter, master.bfloat16())
        assert (master - exact.state[f"weight/{name}"]).abs().max() < 5e-3  # gradients were bf16
    assert not torch.equal(
        optimizer.state[f"weight/{NAME}"].bfloat16().float(), optimizer.state[f"weight/{NAME}"]
    )


def test_an_order_without_it_is_spelt_as_before() -> None:
    before = train_work()
    assert b"muon" not in encode(before)
    assert b'"muon":{"momentum":0.95}' in encode(WORK)
    assert digest_of_fact(WORK) != digest_of_fact(before)
    digest = (
        "977932a4e1c2c3403cc923612642893b45316ca698b6914c3f99596e29c246c5"  # from before there was a choice
    )
    assert digest_of_fact(before.optimizer) == digest


def test_adapters_and_muon_exclude_each_other(base: Path, alone: Ranks) -> None:
    with pytest.raises(JobFailed, match=r"optimizer\.muon: orthogonal steps are of whole matrices"):
        choose(base, msgspec.structs.replace(WORK, lora=Lora(rank=2)), alone, Engine(), rows_at_once=4)


@pytest.mark.parametrize("rule", [RULE, msgspec.structs.replace(RULE, muon=msgspec.UNSET)])
def test_the_memory_plan_has_as_many_moments_as_there_are(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, rule: Optimizer
) -> None:
    work = train_work(
        optimizer=rule, groups=(LayerGroup(match="*.layers.0.mlp.*", learning_rate_factor=0.0),)
    )
    folder = JobFolder(make_job(tmp_path / "job", site, work, base))
    ways = choose(folder.base, work, alone, Engine(), rows_at_once=4)
    sizes, plan = planned(folder, work, alone, "none", ways)
    state = make_stepper(folder.base, work, alone, ways).optimizer.state
    kept = [tensor for name, tensor in state.items() if name.startswith(("mean/", "square/", "momentum/"))]
    assert plan is not None and plan.moments == sum(tensor.numel() * 4 for tensor in kept)
    largest = max(
        (tensor.numel() for name, tensor in state.items() if name.startswith("momentum/")), default=0
    )
    assert sizes is not None and sizes.largest_of_muon == largest


# --- jobs -------------------------------------------------------------------------------------------


def test_cut_at_five_steps_a_job_is_one_job(tmp_path: Path, site: Site, base: Path, alone: Ranks) -> None:
    work = msgspec.structs.replace(WORK, steps=30, checkpoint_steps=7)
    straight = make_job(tmp_path / "straight", site, work, base)
    train(JobFolder(straight), work, alone, lambda: False)
    folder = make_job(tmp_path / "cut", site, work, base)
    begun, momenta = 0, 0
    for stop in sorted(random.Random(11).sample(range(1, 30), 5)):
        looks = iter(range(begun + 1, 31))
        with pytest.raises(Stopped):
            train(JobFolder(folder), work, alone, lambda looks=looks, stop=stop: next(looks) >= stop)  # type: ignore[misc]
        begun = stop
        found = saves.newest(folder / "checkpoint")
        assert found is not None and found[0].account.step == stop
        with TensorFile(found[1]) as file:
            momenta = sum(name.startswith("momentum/") for name in file)
    train(JobFolder(folder), work, alone, lambda: False)
    assert momenta == 14  # seven matrices in each of two blocks
    assert sha256(folder / "result/delta.safetensors") == sha256(straight / "result/delta.safetensors")
    losses = contribution(folder).losses
    assert losses is not None and losses.last < losses.first
    plain = make_job(tmp_path / "plain", site, train_work(steps=30, checkpoint_steps=7), base)
    train(JobFolder(plain), train_work(steps=30, checkpoint_steps=7), alone, lambda: False)
    assert sha256(plain / "result/delta.safetensors") != sha256(straight / "result/delta.safetensors")


SHARED = msgspec.structs.replace(WORK, steps=6, batch_sequences=5, checkpoint_steps=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, site: Site, base: Path, alone: Ranks) -> Path:
    folder = make_job(tmp_path_factory.mktemp("whole") / "job", site, SHARED, base)
    train(JobFolder(folder), SHARED, alone, lambda: False)
    return folder


@pytest.mark.slow
def test_two_ranks_gather_each_matrix_from_its_shards(
    tmp_path: Path, site: Site, base: Path, whole: Path
) -> None:
    folder = make_job(tmp_path / "job", sharded(site, "fsdp"), SHARED, base)
    assert meet(folder, 2) == 0
    assert contribution(folder).software["device"].endswith("2 rank(s)")
    assert is_close(folder, whole)


@pytest.mark.soak
def test_what_three_ranks_saved_one_goes_on_from(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, whole: Path
) -> None:
    """Of 32 rows three ranks have 11, 11 and 10."""
    folder = make_job(tmp_path / "job", sharded(site, "fsdp"), SHARED, base)
    (folder / "STOP").touch()
    assert launch(folder, 3) == [0]
    other = make_job(tmp_path / "other", site, SHARED, base)
    shutil.copytree(folder / "checkpoint", other / "checkpoint")
    train(JobFolder(other), SHARED, alone, lambda: False)
    assert '"step":1,' in (other / "progress.jsonl").read_text().replace(" ", "").splitlines()[0]
    assert is_close(other, whole)
