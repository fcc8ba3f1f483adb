"""What no merge accepts: each with a sentence that names the place and the way out, and nothing left on disk."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import method_samples
import model_samples
import numpy as np
import pytest
from merge_elsewhere import contents
from model_samples import Values

from consortium.canonical import replace
from consortium.errors import BadInput, Corrupt, Refused, SprachbundError
from consortium.ids import digest_of
from consortium.manifests import FileRef
from consortium.merging.merge import MergeInput, merge
from consortium.merging.recipe import PLAIN_STEP, Guards, OuterStep, Recipe, Setting
from consortium.merging.recipes.signatures import SIGNATURES, Value
from consortium.merging.run import merge_recipe
from consortium.store import ref_of

SHAPES = {"embed_tokens": (37, 16), "layers.0.mlp": (24, 16), "layers.1.mlp": (24, 16), "norm": (16,)}
PLAIN = Recipe(weights="uniform")


@pytest.fixture
def base_values() -> Values:
    return model_samples.base_values(SHAPES)


@pytest.fixture
def models(tmp_path: Path, base_values: Values) -> list[Path]:
    """The base and three models."""
    values = [base_values, *(model_samples.tuned(base_values, k) for k in range(1, 4))]
    return [model_samples.save_model(tmp_path / f"m{k}", model, "bfloat16") for k, model in enumerate(values)]


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[..., str]:
    """``refusal(error, what, *arguments)``: the sentence, after seeing that nothing was left behind."""

    def refused(kind: type[SprachbundError], what: Callable[..., object], *arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(kind) as caught:
            what(*arguments)
        assert type(caught.value) is kind
        assert sorted(tmp_path.rglob("*")) == before
        sentence = str(caught.value)
        assert ";" in sentence or "," in sentence, f"{sentence!r} has no way out"
        return sentence

    return refused


def inputs_of(folders: list[Path], **parameters: tuple[Value, ...]) -> list[MergeInput]:
    return [
        MergeInput(
            folder, settings=method_samples.settings({name: each[k] for name, each in parameters.items()})
        )
        for k, folder in enumerate(folders)
    ]


def spoilt(folder: Path, values: Values, **changes: np.ndarray | None) -> Path:
    changed = {name.replace("__", "."): array for name, array in changes.items()}
    kept = {name: array for name, array in (values | changed).items() if array is not None}
    return model_samples.save_model(folder, kept)


@pytest.mark.parametrize("method", SIGNATURES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf], ids=str)
def test_no_method_lets_a_number_through_that_is_none(
    method: str, poison: float, tmp_path: Path, base_values: Values, models: list[Path], refusal: Callable
) -> None:
    bad = base_values["layers.1.mlp"].copy()
    bad[3, 5] = poison
    poisoned = spoilt(tmp_path / "poisoned", base_values, layers__1__mlp=bad)
    variant = next(variant for variant in method_samples.VARIANTS if variant.method == method)
    count = variant.counts[-1] if variant.counts[-1] <= 3 else 3
    folders = [poisoned, *models[2:]][:count]
    base = None if SIGNATURES[variant.method].base == "ignored" else models[0]
    recipe = replace(variant.recipe, outer=PLAIN_STEP)
    if method in ("multi_krum",):
        recipe = replace(recipe, parameters={})
    given = [
        MergeInput(folder, settings=method_samples.settings(variant.own_values(k)))
        for k, folder in enumerate(folders)
    ]

    sentence = refusal(BadInput, merge, base, given, None, recipe, tmp_path / "out")

    assert "tensor 'layers.1.mlp'" in sentence
    assert f"{poison} at element 53" in sentence
    assert "poisoned" in sentence


def test_a_base_with_a_number_that_is_none(
    tmp_path: Path, base_values: Values, models: list[Path], refusal: Callable
) -> None:
    bad = base_values["norm"].copy()
    bad[7] = np.nan
    base = spoilt(tmp_path / "broken", base_values, norm=bad)
    sentence = refusal(BadInput, merge, base, inputs_of(models[1:]), None, PLAIN, tmp_path / "out")
    assert "broken: tensor 'norm' is nan at element 7" in sentence


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm": None}, ("norm", "other")),
        ({"more": np.zeros(3, np.float32)}, ("more", "other")),
        ({"norm": np.zeros((4, 4), np.float32)}, ("norm", "[4, 4]", "[16]")),
        ({"embed_tokens": np.zeros((38, 16), np.float32)}, ("embed_tokens", "[38, 16]", "[37, 16]")),
    ],
    ids=["missing", "extra", "misshapen", "another vocabulary"],
)
@pytest.mark.parametrize("with_base", [True, False])
def test_tensors_that_do_not_fit(
    changes: Mapping[str, np.ndarray | None],
    said: tuple[str, ...],
    with_base: bool,
    tmp_path: Path,
    base_values: Values,
    models: list[Path],
    refusal: Callable,
) -> None:
    other = spoilt(tmp_path / "other", base_values, **changes)
    base = models[0] if with_base else None
    sentence = refusal(BadInput, merge, base, inputs_of([models[1], other]), None, PLAIN, tmp_path / "out")
    for word in said:
        assert word in sentence


PAIR = "models: [{model: m1, parameters: {weight: 1}}, {model: m2, parameters: {weight: 1}}]\nmerge_method: linear"


def test_another_tokenizer(tmp_path: Path, models: list[Path], refusal: Callable) -> None:
    (models[2] / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}}}')
    (tmp_path / "recipe.yml").write_text(PAIR)
    sentence = refusal(Refused, merge_recipe, tmp_path / "recipe.yml", tmp_path / "out")
    assert "m1" in sentence and "m2" in sentence and "different tokenizers" in sentence


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("linear", (0.5, -0.25, -0.25)),
        ("linear", (0.0, 0.0, 0.0)),
        ("task_arithmetic", (0.1, 0.2, -0.3)),
        ("ties", (0.0, 0.0, 0.0)),
        ("multislerp", (1.0, 1.0, -2.0)),
        ("norm_preserving", (0.0, 0.0, 0.0)),
        ("coordinate_median", (0.0, 0.0, 0.0)),
        ("geometric_median", (0.0, 0.0, 0.0)),
    ],
)
@pytest.mark.parametrize("by", ["uniform", "tokens"])
def test_weights_that_sum_to_zero(
    method: str, weights: tuple[float, ...], by: str, tmp_path: Path, models: list[Path], refusal: Callable
) -> None:
    divides: Mapping[str, Value] = {"normalize": True} if "normalize" in SIGNATURES[method].shared else {}  # type: ignore[index]
    recipe = replace(PLAIN, method=method, parameters=method_samples.settings(divides), weights=by)
    given = inputs_of(models[1:], weight=weights)
    sentence = refusal(Refused, merge, models[0], given, None, recipe, tmp_path / "out")
    assert "zero" in sentence


@pytest.mark.parametrize(
    ("method", "shared", "own", "said"),
    [
        ("ties", {}, {"density": 1.5}, "tensor 'embed_tokens': parameter 'density' of m"),
        ("ties", {}, {"density": -0.1}, "is -0.1; write a number in [0, 1]"),
        ("dare_ties", {}, {"density": float("nan")}, "is nan; write a number in [0, 1]"),
        ("breadcrumbs", {}, {"gamma": 1.0}, "is 1.0; write a number in [0, 1)"),
        ("della", {}, {"density": 0.9, "epsilon": 0.15}, "lower epsilon"),
        ("sce", {"select_topk": 2.0}, {}, "is 2.0; write a number in [0, 1]"),
        ("trimmed_mean", {"trim": 0.5}, {}, "is 0.5; write a number in [0, 0.5)"),
        ("krum", {"byzantine": -1}, {}, "is -1; write a whole number of at least 0"),
        ("karcher", {"tol": 0.0}, {}, "is 0.0; write a number above 0"),
        ("ties", {"normalize": 0.5}, {}, "is 0.5; write true or false"),
        ("linear", {"lambda": 0.5}, {}, "has no parameter 'lambda'"),
        ("linear", {}, {"density": 0.5}, "has no parameter 'density'"),
        ("slerp", {}, {}, "exactly 1"),
        ("nuslerp", {}, {}, "exactly 2"),
    ],
)
def test_parameters_out_of_range(
    method: str,
    shared: Mapping[str, Value],
    own: Mapping[str, float],
    said: str,
    tmp_path: Path,
    models: list[Path],
    refusal: Callable,
) -> None:
    recipe = replace(PLAIN, method=method, parameters=method_samples.settings(shared))
    given = inputs_of(models[1:], **{name: (value,) * 3 for name, value in own.items()})
    sentence = refusal(BadInput, merge, models[0], given, None, recipe, tmp_path / "out")
    assert said in sentence.replace(str(tmp_path) + "/", "")


def test_a_filter_that_leaves_tensors_without_weight(
    tmp_path: Path, models: list[Path], refusal: Callable
) -> None:
    recipe = replace(PLAIN, parameters={"weight": (Setting(value=0.5, filter="mlp"),)})
    sentence = refusal(BadInput, merge, models[0], inputs_of(models[1:]), None, recipe, tmp_path / "out")
    assert "tensor 'embed_tokens': parameter 'weight'" in sentence and "is missing" in sentence


def test_a_method_that_needs_a_base_and_has_none(
    tmp_path: Path, models: list[Path], refusal: Callable
) -> None:
    for recipe in (replace(PLAIN, method="ties"), replace(PLAIN, outer=OuterStep())):
        sentence = refusal(BadInput, merge, None, inputs_of(models[1:]), None, recipe, tmp_path / "out")
        assert "name the base" in sentence


def test_nobody_to_merge(tmp_path: Path, models: list[Path], refusal: Callable) -> None:
    assert "nothing to merge" in refusal(Refused, merge, models[0], [], None, PLAIN, tmp_path / "out")
    lonely = replace(PLAIN, method="krum", parameters=method_samples.settings({"byzantine": 1}))
    sentence = refusal(Refused, merge, models[0], inputs_of(models[1:]), None, lonely, tmp_path / "out")
    assert "needs 5 contributions" in sentence


def test_guards_that_leave_nobody(
    tmp_path: Path, base_values: Values, models: list[Path], refusal: Callable
) -> None:
    recipe = replace(PLAIN, guards=Guards(cosine_min=0.999))
    sentence = refusal(Refused, merge, models[0], inputs_of(models[1:]), None, recipe, tmp_path / "out")
    assert "lower it" in sentence


def test_other_bytes_than_were_promised(
    tmp_path: Path, base_values: Values, models: list[Path], refusal: Callable
) -> None:
    delta = models[1] / "model.safetensors"
    ref = ref_of(delta)
    for promised in (
        FileRef(digest=digest_of(b"other"), size=ref.size),
        FileRef(digest=ref.digest, size=ref.size + 1),
    ):
        given = [MergeInput(delta, promised)]
        sentence = refusal(Corrupt, merge, models[0], given, None, PLAIN, tmp_path / "out")
        assert ref.digest in sentence and "fetch it again" in sentence


def test_other_weights_than_a_recipe_pins(tmp_path: Path, models: list[Path], refusal: Callable) -> None:
    wrong = f"sprachbund:\n  inputs: {{m1: {{digest: {digest_of(b'other')}}}}}"
    (tmp_path / "recipe.yml").write_text(f"{PAIR}\n{wrong}\n")
    sentence = refusal(Corrupt, merge_recipe, tmp_path / "recipe.yml", tmp_path / "out")
    assert "m1" in sentence and "pins" in sentence


def test_weights_beyond_exact_sums(
    tmp_path: Path, base_values: Values, models: list[Path], refusal: Callable
) -> None:
    huge = spoilt(tmp_path / "huge", base_values, norm=np.full(16, 3e5, np.float32))
    sentence = refusal(Refused, merge, None, inputs_of([huge]), None, PLAIN, tmp_path / "out")
    assert "tensor 'norm'" in sentence and "300000" in sentence and "leave this input out" in sentence


def test_a_place_that_is_taken(tmp_path: Path, models: list[Path], refusal: Callable) -> None:
    (tmp_path / "recipe.yml").write_text(PAIR)
    before = contents(models[2])
    assert "exists already" in refusal(
        BadInput, merge, models[0], inputs_of(models[1:]), None, PLAIN, models[2]
    )
    assert "exists already" in refusal(BadInput, merge_recipe, tmp_path / "recipe.yml", models[2])
    assert contents(models[2]) == before


KILLED_HALF_WAY = """
import os, signal, sys
from pathlib import Path
from consortium.merging.run import merge_recipe

def die(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

merge_recipe(Path(sys.argv[1]), Path(sys.argv[2]), progress=die)
"""


def test_a_killed_merge_shows_nothing_and_runs_again(tmp_path: Path, models: list[Path]) -> None:
    recipe, out = tmp_path / "recipe.yml", tmp_path / "out"
    recipe.write_text(PAIR)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_HALF_WAY, str(recipe), str(out)],
        env={**os.environ, "PYTHONPATH": "."},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert len(list(tmp_path.glob(".out.*.partial"))) == 1

    again = merge_recipe(recipe, out)

    assert list(tmp_path.glob(".*")) == []
    undisturbed = merge_recipe(recipe, tmp_path / "undisturbed")
    assert again == undisturbed
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert {path.name for path in out.iterdir()} == {
        path.name for path in (tmp_path / "undisturbed").iterdir()
    }
