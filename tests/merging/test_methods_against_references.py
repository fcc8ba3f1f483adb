"""Every method, on odd shapes in every dtype, is what its paper says: a float64 reference, rounded once.

The engine rounds every addend to its exact grid (2^-36, see ``exact``), the reference does not. So an element
must lie between the reference a little lower, rounded, and a little higher, rounded: the same bits, but
where a rounding boundary lies in that gap. How much "a little" is follows from the weights (``slack``).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace as replace_input
from pathlib import Path

import method_samples
import model_samples
import numpy as np
import pytest
import references
from merge_elsewhere import contents
from method_samples import VARIANTS, Variant
from model_samples import F32Array, Values
from references import Case

from consortium.canonical import replace
from consortium.deltas import write_delta
from consortium.merging.kernels import BLOCK
from consortium.merging.merge import MergeInput, merge
from consortium.merging.operands import fingerprint
from consortium.merging.randomness import key_of
from consortium.merging.recipe import PLAIN_STEP
from consortium.merging.recipes.signatures import SIGNATURES
from consortium.tensors import Checkpoint

GEOMETRIC = ("slerp", "nuslerp", "multislerp", "karcher", "model_stock", "norm_preserving")
NUM_MODELS = 5

SHAPES = {
    name: shape for name, shape in model_samples.ODD_SHAPES.items() if name not in ("long", "wide", "vector")
} | {"matrix": (20, 31), "still": (7, 9), "vector": (131,)}

BASES = {"required": [True], "optional": [True, False], "ignored": [False]}

#: dtype of the files, dtype of the result, whether magnitudes are often equal
KINDS = [
    ("float32", "float32", False),
    ("bfloat16", "bfloat16", True),
    ("float16", "float32", True),
    ("float32", "float16", False),
    ("bfloat16", "float32", False),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], list[Path]]:
    """The base and five models tuned from it, stored as a dtype; coarse ones are full of equal magnitudes."""
    made: dict[tuple[str, bool], list[Path]] = {}

    def folder(dtype: str, is_coarse: bool) -> list[Path]:
        if (dtype, is_coarse) not in made:
            where = tmp_path_factory.mktemp(f"{dtype}-{is_coarse}")
            base = model_samples.base_values(SHAPES)
            models = [base, *(model_samples.tuned(base, k, 0.2, "still") for k in range(1, NUM_MODELS + 1))]
            if is_coarse:
                models = [model_samples.coarse(model) for model in models]
            made[dtype, is_coarse] = [
                model_samples.save_model(where / str(k), model, dtype, shards=1 + k % 3)
                for k, model in enumerate(models)
            ]
        return made[dtype, is_coarse]

    return folder


def inputs_of(variant: Variant, folders: list[Path]) -> list[MergeInput]:
    return [
        MergeInput(folder, settings=method_samples.settings(variant.own_values(k)))
        for k, folder in enumerate(folders)
    ]


def expected(
    variant: Variant, base: Values | None, models: list[Values], streams: list[str], seed: int
) -> Mapping[str, references.F64Array]:
    """The reference's answer for every tensor."""
    relative = base is not None and SIGNATURES[variant.method].operand == "deltas"
    merged = {}
    for name, first in models[0].items():
        rows = [model[name] - base[name] if relative and base else model[name] for model in models]
        case = Case(
            base=None if base is None else base[name].astype(np.float64),
            rows=[row.astype(np.float64).reshape(first.shape) for row in rows],
            own=[variant.own_values(k) for k in range(len(models))],
            shared=variant.shared_values(),
            keys=[key_of(seed, name, stream) for stream in streams],
        )
        merged[name] = references.REFERENCES[variant.method](case)
    return merged


def slack(variant: Variant, count: int) -> float:
    """How far K addends on the grid can be from their exact sum: half a unit each, scaled as weights are.

    Thinned deltas may be scaled up by the inverse of their density, agreeing ones divided by a small weight.
    """
    own = [variant.own_values(k) for k in range(count)]
    weights = [abs(values.get("weight", 1.0)) for values in own]
    shared = variant.shared_values()
    steep = shared.get("rescale") or variant.method in GEOMETRIC
    largest = max(weights) * (8.0 if steep else 1.0)
    unit = 2.0 ** max(0, math.ceil(math.log2(largest)))
    divisor = 0.125 if variant.method == "sce" else min(weights) if shared.get("normalize", True) else 1.0
    return count * references.GRID / 2 * unit / divisor * float(shared.get("lambda", 1.0)) + 1e-14


def require_rounded(got: F32Array, want: references.F64Array, dtype: str, within: float, what: str) -> None:
    low, high = references.rounded(want - within, dtype), references.rounded(want + within, dtype)
    wrong = ~((low <= got) & (got <= high))
    assert got.shape == want.shape, what
    assert not wrong.any(), (
        f"{what}: {wrong.sum()} of {wrong.size}, e.g. {got[wrong][0]} not {want[wrong][0]}"
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
@pytest.mark.parametrize(
    ("variant", "count", "with_base"),
    [
        (variant, count, with_base)
        for variant in VARIANTS
        if variant.method in references.REFERENCES
        for count in variant.counts
        for with_base in BASES[SIGNATURES[variant.method].base]
    ],
    ids=str,
)
def test_the_engine_gives_the_reference_rounded_once(
    variant: Variant,
    count: int,
    with_base: bool,
    kind: tuple[str, str, bool],
    folders: Callable,
    tmp_path: Path,
) -> None:
    dtype, out_dtype, is_coarse = kind
    base_dir, *chosen = folders(dtype, is_coarse)[: count + 1]
    recipe = replace(variant.recipe, dtype=out_dtype, outer=PLAIN_STEP)

    merge(base_dir if with_base else None, inputs_of(variant, chosen), None, recipe, tmp_path / "out")

    streams = []
    for folder in chosen:
        with Checkpoint(folder) as model:
            streams.append(fingerprint(model))
    base = model_samples.load_model(base_dir) if with_base else None
    want = expected(variant, base, [model_samples.load_model(path) for path in chosen], streams, recipe.seed)
    got = model_samples.load_model(tmp_path / "out")
    assert got.keys() == want.keys()
    for name in want:
        require_rounded(got[name], want[name], out_dtype, slack(variant, count), f"{name} {SHAPES[name]}")


@pytest.mark.parametrize(
    "variant",
    [
        Variant("ties"),
        Variant("breadcrumbs", shared={"rescale": True}),
        Variant("sce", shared={"select_topk": 0.3}),
    ],
    ids=str,
)
def test_boundaries_in_a_tensor_too_large_to_sort(variant: Variant, tmp_path: Path) -> None:
    """300 000 elements on a coarse grid: hundreds have the very magnitude at which the top ends."""
    base = model_samples.coarse(model_samples.base_values({"large": (300, 1031)}), 2.0**-12)
    models = [model_samples.coarse(model_samples.tuned(base, k, 0.2), 2.0**-12) for k in (1, 2, 3)]
    base_dir, *folders = (
        model_samples.save_model(tmp_path / str(k), values) for k, values in enumerate([base, *models])
    )
    recipe = replace(variant.recipe, outer=PLAIN_STEP)

    merge(base_dir, inputs_of(variant, folders), None, recipe, tmp_path / "out", chunk=BLOCK)

    want = expected(variant, base, models, ["", "", ""], recipe.seed)["large"]
    require_rounded(
        model_samples.load_model(tmp_path / "out")["large"], want, "float32", slack(variant, 3), "large"
    )


@pytest.mark.parametrize("method", ["linear", "ties", "breadcrumbs_ties", "sce", "norm_preserving", "krum"])
def test_a_delta_is_merged_as_its_model_is(method: str, folders: Callable, tmp_path: Path) -> None:
    base_dir, *chosen = folders("bfloat16", True)[:4]
    variant = next(variant for variant in VARIANTS if variant.method == method)
    recipe = replace(variant.recipe, outer=PLAIN_STEP)
    models = inputs_of(variant, chosen)
    with Checkpoint(base_dir) as base:
        deltas = [
            replace_input(
                one,
                path=tmp_path / one.path.name,
                ref=write_delta(base, model_samples.load_model(one.path), tmp_path / one.path.name, "fp32"),
            )
            for one in models
        ]
    merge(base_dir, models, None, recipe, tmp_path / "models")
    merge(base_dir, [*deltas[:2], *models[2:]], None, recipe, tmp_path / "deltas")
    assert contents(tmp_path / "deltas") == contents(tmp_path / "models")
