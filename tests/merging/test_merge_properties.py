"""One set of inputs, one recipe, one base: one model, to the bit, however and wherever the merge is done."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import merge_elsewhere
import model_samples
import pytest
from merge_elsewhere import contents, drawn_inputs, drawn_recipe, is_relative, some_merges
from method_samples import VARIANTS

from consortium.canonical import replace
from consortium.deltas import write_delta
from consortium.merging.kernels import BLOCK
from consortium.merging.merge import MergeInput, merge
from consortium.merging.recipe import PLAIN_STEP
from consortium.merging.recipes.signatures import SIGNATURES
from consortium.tensors import Checkpoint
from consortium.versions import OUTER_STATE

SEEDS = range(20)
NUM_MODELS = 5
SHAPES = {
    name: model_samples.ODD_SHAPES[name] for name in ("cube", "long", "one", "scalar", "vector", "wide")
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The base, then models tuned from it; the last two are coarse, so that magnitudes and sums tie."""
    where = tmp_path_factory.mktemp("models")
    base = model_samples.coarse(model_samples.base_values(SHAPES), 2.0**-12)
    tuned = [model_samples.tuned(base, k) for k in range(1, NUM_MODELS + 1)]
    values = [base, *tuned[:-2], *(model_samples.coarse(model, 2.0**-12) for model in tuned[-2:])]
    return [model_samples.save_model(where / str(k), model, "bfloat16") for k, model in enumerate(values)]


@pytest.fixture(scope="module")
def deltas(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[MergeInput]:
    """The same models as delta files, some of them coarser than their models."""
    where = tmp_path_factory.mktemp("deltas")
    with Checkpoint(models[0]) as base:
        return [
            MergeInput(
                where / path.name,
                write_delta(
                    base, model_samples.load_model(path), where / path.name, "bf16" if k % 2 else "fp32"
                ),
            )
            for k, path in enumerate(models[1:])
        ]


@pytest.mark.parametrize("seed", SEEDS)
def test_order_threads_chunks_and_shards_leave_no_trace(
    seed: int, models: list[Path], deltas: list[MergeInput], tmp_path: Path
) -> None:
    rng = random.Random(seed)
    for method in SIGNATURES:
        variant = rng.choice([variant for variant in VARIANTS if variant.method == method])
        relative = is_relative(variant)
        pool = deltas if relative and rng.random() < 0.5 else [MergeInput(path) for path in models[1:]]
        inputs, recipe = drawn_inputs(rng, variant, pool), drawn_recipe(rng, variant)
        base, momentum = models[0] if relative else None, None
        for step in range(1 if recipe.outer == PLAIN_STEP else 2):
            one, other = tmp_path / f"{method}-{step}", tmp_path / f"{method}-{step}-otherwise"
            plain = merge(base, inputs, momentum, recipe, one, threads=1, chunk=1 << 16)
            otherwise = merge(
                base,
                rng.sample(inputs, len(inputs)),
                momentum,
                replace(recipe, shard_bytes=rng.choice([1 << 10, 1 << 15, 1 << 30])),
                other,
                threads=rng.randint(1, 4),
                chunk=rng.choice([1, 2, 5]) * BLOCK,
            )
            assert contents(other) == contents(one), f"{variant}, step {step}, {recipe}"
            assert otherwise.checksums == plain.checksums
            assert otherwise.ingredients == plain.ingredients
            base, momentum = one, one / OUTER_STATE


@pytest.mark.parametrize("seed", SEEDS)
def test_another_process_with_other_hashes_and_kernels_makes_the_same(
    seed: int, models: list[Path], tmp_path: Path
) -> None:
    arguments = [merge_elsewhere.__file__, str(tmp_path / "there"), str(seed), *map(str, models)]
    settings = {"PYTHONHASHSEED": str(seed), "PYTHONPATH": ".", "SPRACHBUND_KERNELS": "portable"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == some_merges(models, tmp_path / "here", seed)
