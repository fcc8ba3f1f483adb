"""What holds a job near its base: a proximal term, and layers that learn slower or not at all."""

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from test_many_ranks import is_close, launch, sharded
from trainer_samples import contribution, make_job, sha256, train_work

from consortium.errors import BadInput
from consortium.jobs import LayerGroup, Optimizer, Train
from consortium.tensors import TensorFile
from site_agent.trainer import saves
from site_agent.trainer.folder import JobFolder, Site, Stopped
from site_agent.trainer.groups import factors_of
from site_agent.trainer.inner_optimizer import InnerOptimizer, learning_rate
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.training import train

NAMES = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    *(f"model.layers.{number}.mlp.up_proj.weight" for number in range(7)),
    "model.norm.weight",
)
FROZEN = (
    LayerGroup(match="embeddings", learning_rate_factor=0.0),
    LayerGroup(match="*.0.self_attn.*", learning_rate_factor=0.0),
    LayerGroup(match="last third", learning_rate_factor=0.5),
)


def trained(folder: Path, site: Site, work: Train, base: Path, alone: Ranks) -> dict[str, np.ndarray]:
    make_job(folder, site, work, base)
    train(JobFolder(folder), work, alone, lambda: False)
    with TensorFile(folder / "result" / "delta.safetensors") as file:
        return {name: file.array(name).copy() for name in file}


def cut_up(folder: Path, site: Site, work: Train, base: Path, alone: Ranks) -> int:
    """Train, stopped after every third look; how many tensors the last checkpoint had."""
    make_job(folder, site, work, base)
    tensors = 0
    for _ in range(20):
        looks = itertools.count(1)
        try:
            train(JobFolder(folder), work, alone, lambda looks=looks: next(looks) >= 3)  # type: ignore[misc]
            return tensors
        except Stopped:
            found = saves.newest(folder / "checkpoint")
            assert found is not None
            with TensorFile(found[1]) as file:
                tensors = len(file)
    raise AssertionError("it never ends")


# --- the proximal term -----------------------------------------------------------------------------


def test_the_proximal_term_is_mu_times_the_way_from_the_base() -> None:
    """Two steps of AdamW against their formulas, in float64."""
    rule = Optimizer(learning_rate=0.01, clip_norm=0.5, weight_decay=0.0, decay="constant")
    work = train_work(optimizer=rule, proximal=3.0)
    base = torch.tensor([[0.5, -0.25], [1.0, 2.0]])
    gradient = torch.tensor([[0.3, 0.0], [-0.1, 0.2]])
    weight = torch.nn.Parameter(base.clone())
    optimizer = InnerOptimizer({"layer.weight": weight}, work)
    now, mean, square = base.double(), torch.zeros(2, 2).double(), torch.zeros(2, 2).double()
    for step in range(3):
        weight.grad = gradient.clone()
        optimizer.step(step)
        whole = gradient.double() + 3.0 * (now - base.double())
        whole = whole / max(1.0, float(whole.norm()) / 0.5)
        mean, square = 0.9 * mean + 0.1 * whole, 0.95 * square + 0.05 * whole**2
        step_size = learning_rate(work, step) / (1 - 0.9 ** (step + 1))
        now = now - step_size * mean / ((square / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
    assert weight.detach().numpy() == pytest.approx(now.numpy(), abs=1e-6)
    assert set(optimizer.state) == {
        f"{part}/layer.weight" for part in ("weight", "mean", "square", "updates")
    }


def test_a_job_is_held_near_its_base_and_resumes_in_the_same_bits(
    tmp_path: Path, site: Site, base: Path, alone: Ranks
) -> None:
    free = trained(tmp_path / "free", site, train_work(), base, alone)
    work = train_work(proximal=1.0)
    held = trained(tmp_path / "held", site, work, base, alone)
    norm = {
        title: sum(float(np.square(array).sum()) for array in delta.values()) ** 0.5
        for title, delta in (("free", free), ("held", held))
    }
    assert 0 < norm["held"] < 0.9 * norm["free"]
    first = [contribution(tmp_path / name).losses.first for name in ("free", "held")]  # type: ignore[union-attr]
    assert first[0] == first[1]  # the loss that is reported is that of the text alone
    cut_up(tmp_path / "cut", site, work, base, alone)
    assert sha256(tmp_path / "cut/result/delta.safetensors") == sha256(
        tmp_path / "held/result/delta.safetensors"
    )


# --- groups ----------------------------------------------------------------------------------------


def test_groups_are_the_words_of_inspections_or_patterns_and_the_first_counts() -> None:
    words = ("embeddings", "first third", "middle third", "last third", "norm and head")
    groups = [
        LayerGroup(match=word, learning_rate_factor=(1 + place) / 10) for place, word in enumerate(words)
    ]
    found = factors_of(NAMES, groups)
    assert [found[name] for name in NAMES] == [0.5, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.4, 0.5]
    first = LayerGroup(match="*.6.mlp.*", learning_rate_factor=0.0)
    assert factors_of(NAMES, [first, *groups])["model.layers.6.mlp.up_proj.weight"] == 0.0
    assert set(factors_of(NAMES, ()).values()) == {1.0}


def test_groups_that_fit_nothing_or_leave_nothing_are_refused() -> None:
    with pytest.raises(
        BadInput, match=r"'lm_haed\*' fits no tensor of the model; write embeddings, first third"
    ):
        factors_of(NAMES, [LayerGroup(match="lm_haed*", learning_rate_factor=0.5)])
    with pytest.raises(BadInput, match="nothing is left to learn"):
        factors_of(NAMES, [LayerGroup(match="*", learning_rate_factor=0.0)])


def test_what_is_frozen_stays_and_has_no_moments(
    tmp_path: Path, site: Site, base: Path, alone: Ranks
) -> None:
    plain = train_work(optimizer=Optimizer(learning_rate=3e-3, clip_norm=0.0), steps=1)
    free = trained(tmp_path / "free", site, plain, base, alone)
    work = msgspec.structs.replace(plain, groups=FROZEN)
    slow = trained(tmp_path / "slow", site, work, base, alone)
    for name, change in slow.items():
        if "embed" in name or ".0.self_attn" in name:
            assert not change.any(), name
        elif ".1." in name:  # the last third of two layers
            assert change == pytest.approx(free[name] / 2, rel=1e-3, abs=1e-7), name
        else:
            assert np.array_equal(change, free[name]), name
    longer = train_work(groups=FROZEN)
    trained(tmp_path / "whole", site, longer, base, alone)
    tensors = cut_up(tmp_path / "cut", site, longer, base, alone)
    assert tensors == len(slow) + 3 * sum(1 for change in slow.values() if change.any())
    assert sha256(tmp_path / "cut/result/delta.safetensors") == sha256(
        tmp_path / "whole/result/delta.safetensors"
    )


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("sharding", ["fsdp", "none"])
def test_on_two_ranks_too(tmp_path: Path, site: Site, base: Path, alone: Ranks, sharding: str) -> None:
    work = train_work(steps=4, groups=FROZEN, proximal=0.5)
    trained(tmp_path / "alone", site, work, base, alone)
    folder = make_job(tmp_path / "job", sharded(site, sharding), work, base)
    assert launch(folder, 2) == [0]
    assert is_close(folder, tmp_path / "alone")
    with TensorFile(folder / "result/delta.safetensors") as delta:
        assert not delta.array("model.embed_tokens.weight").any()
