"""Merges to compare between processes: ``python merge_elsewhere.py OUT SEED BASE MODEL...`` prints their digests."""

import hashlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import method_samples
import safetensors
from method_samples import VARIANTS, Variant

from consortium.canonical import replace as replace_in
from consortium.merging.kernels import BLOCK
from consortium.merging.merge import MergeInput, merge
from consortium.merging.recipe import PLAIN_STEP, OuterStep, Recipe
from consortium.merging.recipes.signatures import SIGNATURES
from consortium.versions import OUTER_STATE

Contents = dict[str, str]

STEPS = [
    PLAIN_STEP,
    OuterStep(),
    OuterStep(momentum=0.5, nesterov=False),
    OuterStep(optimizer="adam", learning_rate=0.01),
    OuterStep(optimizer="yogi", learning_rate=0.01),
    OuterStep(optimizer="adagrad", learning_rate=0.01),
]


def contents(folder: Path) -> Contents:
    """Digests of the config and of every tensor's bytes, whatever file they are in."""
    found = {"config.json": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()}
    for path in sorted(folder.glob("*.safetensors")):
        kind = "state" if path.name == OUTER_STATE else "weights"
        for name, tensor in safetensors.deserialize(path.read_bytes()):
            digest = hashlib.sha256(tensor["data"]).hexdigest()
            found[f"{kind} {name}"] = f"{tensor['dtype']} {tensor['shape']} {digest}"
    return found


def is_relative(variant: Variant) -> bool:
    """Whether the method cannot do without a base."""
    return SIGNATURES[variant.method].base == "required"


def drawn_inputs(rng: random.Random, variant: Variant, pool: Sequence[MergeInput]) -> list[MergeInput]:
    """Some of the pool, in some order, with some tokens and languages."""
    languages = ["de", "de", "de", "sq"] if "krum" not in variant.method else [""]  # Krum needs a crowd
    return [
        replace(
            given,
            settings=method_samples.settings(variant.own_values(k)),
            weight=rng.randint(1, 10**9),
            cohort=rng.choice(languages),
        )
        for k, given in enumerate(rng.sample(pool, rng.choice(variant.counts)))
    ]


def drawn_recipe(rng: random.Random, variant: Variant) -> Recipe:
    shared = variant.shared_values()
    divides = shared.get("normalize", shared.get("normalize_weights", True))
    return replace_in(
        variant.recipe,
        dtype=rng.choice(["float32", "bfloat16", "float16"]),
        outer=rng.choice(STEPS) if is_relative(variant) else PLAIN_STEP,
        weights=rng.choice(["tokens", "uniform"]) if divides else "uniform",  # a billion deltas are no delta
        seed=rng.randrange(2**32),
    )


def some_merges(models: Sequence[Path], out: Path, seed: int) -> dict[str, Contents]:
    """What every seventh variant makes of the models, beginning with another for every seed."""
    rng, found = random.Random(seed), {}
    for variant in VARIANTS[seed % 7 :: 7]:
        inputs = drawn_inputs(rng, variant, [MergeInput(path) for path in models[1:]])
        base = models[0] if is_relative(variant) else None
        folder = out / str(len(found))
        merge(base, inputs, None, drawn_recipe(rng, variant), folder, chunk=BLOCK)
        found[str(variant)] = contents(folder)
    return found


if __name__ == "__main__":
    out, seed, *models = sys.argv[1:]
    print(json.dumps(some_merges([Path(path) for path in models], Path(out), int(seed))))
