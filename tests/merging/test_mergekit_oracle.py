"""Whoever brings a mergekit recipe gets mergekit's model: whole runs of mergekit 0.1.5 beside ours, on tiny Llamas.

Both read the same YAML with ``dtype: float32``. mergekit adds in float32 in the order of the recipe, we on a
grid in float64, so elements of float32 differ by some roundings of the largest intermediate: by ``TOLERANCE``
at most, three ulps of float32 at the largest weights here, which are below one half. Where the output is
bfloat16, that may tip an element over to its neighbour. Magnitudes do not tie here; how we break ties is our
own (``docs/merging.md``). Random masks are our own, too: DARE and DELLA are compared by what share is kept.
"""

import textwrap
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import model_samples
import numpy as np
import pytest
import yaml
from model_samples import Values

from consortium.merging.run import merge_recipe

with warnings.catch_warnings():  # its imports use names that numpy and pydantic deprecate
    warnings.simplefilter("ignore")
    pytest.importorskip("mergekit", reason="pip install '.[oracle]'")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

TOLERANCE = 3 * 2.0**-25
NUM_MODELS = 4
SHAPES = model_samples.llama_shapes()


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base`` and the models ``m1`` .. ``m4`` tuned from it, two of them sharded."""
    folder = tmp_path_factory.mktemp("models")
    base = model_samples.base_values(SHAPES)
    model_samples.save_model(folder / "base", base)
    for k in range(1, NUM_MODELS + 1):
        model_samples.save_model(folder / f"m{k}", model_samples.tuned(base, k, size=0.3), shards=1 + k % 2)
    return folder


Merged = tuple[Values, Values]
Both = Callable[..., Merged]


@pytest.fixture
def both(where: Path, tmp_path: Path) -> Both:
    """``both(recipe)`` is the model that mergekit makes of a recipe (YAML), and ours."""

    def merged(recipe: str, random_seed: int = 0) -> Merged:
        text = textwrap.dedent(recipe)
        file = tmp_path / "recipe.yml"
        file.write_text(text)
        merge_recipe(file, tmp_path / "ours", models_dirs=[where], seed=random_seed)
        return theirs(text, where, tmp_path / "theirs", random_seed), model_samples.load_model(
            tmp_path / "ours"
        )

    return merged


def theirs(text: str, where: Path, out: Path, random_seed: int) -> Values:
    """What mergekit makes of a recipe whose models lie in ``where``."""

    def located(value: object) -> object:
        if isinstance(value, Mapping):
            return {
                key: str(where / inner) if key in ("model", "base_model") else located(inner)
                for key, inner in value.items()
            }
        return [located(inner) for inner in value] if isinstance(value, list) else value

    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=random_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_merge(MergeConfiguration.model_validate(located(yaml.safe_load(text))), str(out), options)
    return model_samples.load_model(out)


def require_same(merged: Merged, bits: int = 24) -> None:
    """Equal within ``TOLERANCE`` and, if fewer bits than float32's are kept, the last of those."""
    want, got = merged
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].shape == want[name].shape, name
        slack = TOLERANCE + (np.abs(want[name]) * 2.0 ** (1 - bits) if bits < 24 else 0.0)
        wrong = np.abs(got[name] - want[name]) > slack
        assert not wrong.any(), (
            f"{name}: {wrong.sum()} of {wrong.size}, e.g. {got[name][wrong][0]} not {want[name][wrong][0]}"
        )


MODELS = """
models:
- model: m1
  parameters: {weight: 0.6, density: 0.5, gamma: 0.05}
- model: m2
  parameters: {weight: 0.3, density: 0.25, gamma: 0.01}
- model: m3
  parameters: {weight: 0.4, density: 0.7, gamma: 0.1}
"""
PLAIN_MODELS = "models: [{model: m1}, {model: m2}, {model: m3}]\n"
WEIGHTED = """
models:
- {model: m1, parameters: {weight: 0.6}}
- {model: m2, parameters: {weight: 0.3}}
- {model: m3, parameters: {weight: 0.4}}
"""
PAIR = """
models:
- {model: m1, parameters: {weight: 0.6}}
- {model: m2, parameters: {weight: 0.3}}
"""

RECIPES: Mapping[str, str] = {
    "linear": WEIGHTED + "merge_method: linear",
    "linear, a sum": WEIGHTED + "merge_method: linear\nparameters: {normalize: false}",
    "linear, the base among the models": """
        models:
        - {model: base, parameters: {weight: 0.5}}
        - {model: m1, parameters: {weight: 0.5}}
        base_model: base
        merge_method: linear""",
    "slerp": "models: [{model: m1}]\nbase_model: base\nmerge_method: slerp\nparameters: {t: 0.3}",
    "slerp, base listed": """
        models: [{model: base}, {model: m2}]
        base_model: base
        merge_method: slerp
        parameters:
          t:
          - {filter: self_attn, value: [0, 0.5, 0.3]}
          - {filter: mlp, value: [1, 0.5, 0.7, 0.3]}
          - value: 0.5""",
    "nuslerp": PAIR + "merge_method: nuslerp",
    "nuslerp, onto a base": PAIR + "base_model: base\nmerge_method: nuslerp",
    "nuslerp, lines": PAIR + "merge_method: nuslerp\nparameters: {nuslerp_flatten: false}",
    "nuslerp, columns": PAIR
    + "base_model: base\nmerge_method: nuslerp\nparameters: {nuslerp_flatten: false, nuslerp_row_wise: true}",
    "multislerp": WEIGHTED + "merge_method: multislerp",
    "multislerp, onto a base": PAIR + "base_model: base\nmerge_method: multislerp",
    "multislerp, weights as they are": WEIGHTED
    + "merge_method: multislerp\nparameters: {normalize_weights: false}",
    "karcher": PLAIN_MODELS + "merge_method: karcher",
    "karcher, not to the end": PLAIN_MODELS + "merge_method: karcher\nparameters: {max_iter: 1, tol: 1e-9}",
    "task_arithmetic": WEIGHTED + "base_model: base\nmerge_method: task_arithmetic",
    "task_arithmetic, a mean": WEIGHTED
    + "base_model: base\nmerge_method: task_arithmetic\nparameters: {normalize: true, lambda: 0.8}",
    "ties": MODELS + "base_model: base\nmerge_method: ties",
    "ties, a sum, rescaled": MODELS
    + "base_model: base\nmerge_method: ties\nparameters: {normalize: false, rescale: true, lambda: 1.3}",
    "ties, int8_mask": MODELS + "base_model: base\nmerge_method: ties\nparameters: {int8_mask: true}",
    "breadcrumbs": MODELS + "base_model: base\nmerge_method: breadcrumbs",
    "breadcrumbs, rescaled": MODELS
    + "base_model: base\nmerge_method: breadcrumbs\nparameters: {rescale: true, normalize: true}",
    "breadcrumbs_ties": MODELS + "base_model: base\nmerge_method: breadcrumbs_ties",
    "sce": PLAIN_MODELS + "base_model: base\nmerge_method: sce",
    "sce, selected": PLAIN_MODELS + "base_model: base\nmerge_method: sce\nparameters: {select_topk: 0.4}",
    "model_stock": PLAIN_MODELS + "base_model: base\nmerge_method: model_stock",
    "model_stock, filters": PLAIN_MODELS
    + "base_model: base\nmerge_method: model_stock\nparameters: {filter_wise: true}",
    "filters and gradients everywhere": """
        models:
        - model: m1
          parameters:
            weight:
            - {filter: mlp, value: [0, 1]}
            - {filter: embed_tokens, value: 0.9}
            - value: 0.4
            density: [1, 0.5, 0.3]
        - model: m2
          parameters:
            weight: [0.7, 0.2, 0.1, 0.6]
            density:
            - {filter: self_attn.q, value: 0.3}
            - {filter: "*", value: 0.8}
        base_model: base
        merge_method: ties
        parameters:
          normalize: true
          lambda: [{filter: lm_head, value: 0.5}, {value: 1.0}]""",
    "slices": """
        slices:
        - sources:
          - {model: base, layer_range: [0, 2]}
          - {model: m1, layer_range: [0, 2], parameters: {weight: 0.6}}
          - {model: m2, layer_range: [0, 2], parameters: {weight: [0.1, 0.5]}}
        - sources:
          - {model: base, layer_range: [1, 3]}
          - {model: m3, layer_range: [1, 3], parameters: {weight: 0.7}}
          - {model: m1, layer_range: [0, 2], parameters: {weight: [0.8, 0.2]}}
          parameters: {lambda: 0.7}
        base_model: base
        merge_method: task_arithmetic""",
    "slices of slerp": """
        slices:
        - sources:
          - {model: base, layer_range: [0, 3]}
          - {model: m1, layer_range: [0, 3]}
        base_model: base
        merge_method: slerp
        parameters: {t: [{filter: self_attn, value: [0, 0.5, 1]}, {value: 0.25}]}""",
}


@pytest.mark.parametrize("name", RECIPES)
def test_float32_is_theirs_up_to_rounding(name: str, both: Both) -> None:
    require_same(both(textwrap.dedent(RECIPES[name]) + "\ndtype: float32\n"))


@pytest.mark.parametrize("name", ["linear", "ties", "slices", "slerp", "model_stock"])
def test_bfloat16_is_theirs_up_to_its_last_bit(name: str, both: Both) -> None:
    require_same(both(textwrap.dedent(RECIPES[name]) + "\ndtype: float32\nout_dtype: bfloat16\n"), bits=8)


def test_tied_embeddings(tmp_path: Path) -> None:
    base = model_samples.base_values(model_samples.llama_shapes(tied=True))
    for name, values in {
        "base": base,
        "m1": model_samples.tuned(base, 1),
        "m2": model_samples.tuned(base, 2),
    }.items():
        model_samples.save_model(tmp_path / name, values, tied=True)
    text = PAIR + "base_model: base\nmerge_method: task_arithmetic\ndtype: float32\n"
    (tmp_path / "recipe.yml").write_text(text)
    merge_recipe(tmp_path / "recipe.yml", tmp_path / "ours")
    require_same(
        (theirs(text, tmp_path, tmp_path / "theirs", 0), model_samples.load_model(tmp_path / "ours"))
    )


RANDOM = """
models:
- {{model: m1, parameters: {{weight: 1.0, density: 0.4, epsilon: 0.2}}}}
base_model: base
merge_method: {method}
dtype: float32
parameters: {{rescale: false, normalize: false}}
"""


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della_linear", "della"])
def test_random_masks_keep_as_many_and_are_as_fond_of_the_large(method: str, both: Both, where: Path) -> None:
    """Of 7000 elements with chance 0.4 the share that is kept has a standard error of 0.006, of half 0.008."""
    base, moved = model_samples.load_model(where / "base"), model_samples.load_model(where / "m1")
    want, got = both(RANDOM.format(method=method))
    shares = [_kept_share(merged, base, moved) for merged in (want, got)]
    assert shares[0] == pytest.approx(shares[1], abs=0.05)  # theirs are other masks in every process
    assert shares[1][0] == pytest.approx(0.4, abs=0.02)
    favour = shares[1][1] - shares[1][0]  # of the larger half of each line, over all
    assert favour == pytest.approx(0.1 if "della" in method else 0.0, abs=0.03)


def _kept_share(merged: Values, base: Values, moved: Values) -> tuple[float, float]:
    """Which share of the elements kept their delta: of all, and of the larger half of every line."""
    kept, kept_large = [], []
    for name in merged:
        delta = np.atleast_2d(moved[name] - base[name])
        there = np.atleast_2d(merged[name] != base[name])
        large = np.abs(delta) > np.median(np.abs(delta), axis=1, keepdims=True)
        if delta.any():
            kept.append(there.reshape(-1))
            kept_large.append(there[large])
    return float(np.concatenate(kept).mean()), float(np.concatenate(kept_large).mean())
