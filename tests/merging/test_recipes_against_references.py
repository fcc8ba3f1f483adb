"""What a recipe does around its method: outer steps, rules over the whole model, guards, cohorts, tokens, rows."""

from collections.abc import Callable, Sequence
from dataclasses import replace as replace_input
from pathlib import Path

import method_samples
import model_samples
import numpy as np
import pytest
import references
import vector_references
from merge_elsewhere import STEPS
from model_samples import Values
from references import F64Array
from safetensors.numpy import load_file, save_file

from consortium.canonical import replace
from consortium.merging.merge import MergeInput, merge
from consortium.merging.recipe import PLAIN_STEP, EmbeddingRows, Guards, OuterStep, Recipe
from consortium.merging.recipes.signatures import Value
from consortium.versions import OUTER_STATE

SHAPES = {"cube": (3, 5, 7), "embed_tokens": (37, 16), "empty": (0, 5), "matrix": (20, 31), "scalar": ()}
SIZES = {name: int(np.prod(shape)) for name, shape in sorted(SHAPES.items())}
NUM_MODELS = 6
PLAIN = Recipe(outer=PLAIN_STEP, weights="uniform")
Folders = list[Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The base and six models: the fifth went far, the sixth went the other way."""
    where = tmp_path_factory.mktemp("models")
    base = model_samples.base_values(SHAPES)
    common = model_samples.tuned(base, 9, 0.2)
    values = [base, *(model_samples.tuned(common, k) for k in range(1, 5))]
    far, turned = model_samples.tuned(common, 5), model_samples.tuned(common, 6)
    values.append({name: np.asarray(base[name] + 9 * (far[name] - base[name]), np.float32) for name in base})
    values.append({name: np.asarray(base[name] - (turned[name] - base[name]), np.float32) for name in base})
    return [model_samples.save_model(where / str(k), model) for k, model in enumerate(values)]


def flat(values: Values) -> F64Array:
    """All elements of a model, tensor after tensor by name."""
    return np.concatenate([values[name].reshape(-1).astype(np.float64) for name in SIZES])


def deltas_of(base: Path, folders: Sequence[Path]) -> F64Array:
    """(K, all elements): the deltas as float32 has them."""
    before = model_samples.load_model(base)
    after = [model_samples.load_model(folder) for folder in folders]
    return np.stack([flat({name: model[name] - before[name] for name in SIZES}) for model in after])


def require_close(folder: Path, want_N: F64Array, within: float = 2.0**-32) -> None:
    """Equal up to the grid's slack and one rounding to float32."""
    got_N = flat(model_samples.load_model(folder))
    low_N, high_N = (references.rounded(want_N + side * within, "float32") for side in (-1, 1))
    wrong_N = ~((low_N <= got_N) & (got_N <= high_N))
    assert not wrong_N.any(), (
        f"{wrong_N.sum()} of {wrong_N.size}, e.g. {got_N[wrong_N][0]} not {want_N[wrong_N][0]}"
    )


def inputs_of(
    folders: Sequence[Path], weights: Sequence[float] = (), tokens: Sequence[int] = ()
) -> list[MergeInput]:
    return [
        MergeInput(
            folder,
            weight=tokens[k] if tokens else 1,
            settings=method_samples.settings({"weight": weights[k]}) if weights else {},
        )
        for k, folder in enumerate(folders)
    ]


@pytest.mark.parametrize("step", STEPS[1:], ids=lambda step: f"{step.optimizer}-{step.nesterov}")
@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_two_rounds_of_an_outer_optimizer(
    step: OuterStep, method: str, models: Folders, tmp_path: Path
) -> None:
    shared: dict[str, Value] = {"t": 0.25} if method == "slerp" else {}
    recipe = replace(PLAIN, method=method, parameters=method_samples.settings(shared), outer=step)
    start, momentum, state = models[0], None, None
    for number, trained in enumerate((models[1:2], models[2:3])):
        out = tmp_path / str(number)
        merge(start, inputs_of(trained), momentum, recipe, out)

        theta_N = flat(model_samples.load_model(start))
        delta_N = deltas_of(start, trained)[0]
        if method == "slerp":
            before, after = model_samples.load_model(start), model_samples.load_model(trained[0])
            delta_N = np.concatenate(
                [
                    vector_references.slerp(
                        *(x[name].reshape(-1).astype(np.float64) for x in (before, after)), 0.25
                    )
                    - before[name].reshape(-1)
                    for name in SIZES
                ]
            )
        stepped = references.outer_step(theta_N, delta_N, state, step)
        # an adaptive step divides by a root of v, and magnifies the grid's slack as much
        steep = 1.0 if step.optimizer == "sgd" else step.learning_rate / step.tau
        require_close(out, stepped.theta, 2.0**-33 * max(1.0, steep))
        kept = load_file(out / OUTER_STATE)
        names = ["{}"] if step.optimizer == "sgd" else ["{}", "{}.variance"]
        state = tuple(
            np.concatenate([kept[row.format(name)].reshape(-1).astype(np.float64) for name in SIZES])
            for row in names
        )
        for got_N, want_N in zip(state, stepped.state, strict=True):
            np.testing.assert_allclose(got_N, want_N, rtol=2.0**-23, atol=2.0**-33)
        start, momentum = out, out / OUTER_STATE


WHOLE: dict[str, tuple[dict[str, Value], Callable[[F64Array, Sequence[float]], F64Array]]] = {
    "krum": ({"byzantine": 1}, lambda rows, w: references.krum(rows, w, 1, 1)),
    "multi_krum": ({"byzantine": 1, "keep": 3}, lambda rows, w: references.krum(rows, w, 1, 3)),
    "geometric_median": ({"iterations": 6}, lambda rows, w: references.geometric_median(rows, w, 1e-6, 6)),
    "centered_clipping": ({"tau": 0.8}, lambda rows, w: references.centered_clipping(rows, w, 0.8, 3)),
}


@pytest.mark.parametrize("method", WHOLE)
@pytest.mark.parametrize("weights", [(1.0,) * 6, (0.5, 1.0, 2.0, 1.0, 0.25, 0.5)], ids=["equal", "weighted"])
def test_rules_over_the_whole_model(
    method: str, weights: tuple[float, ...], models: Folders, tmp_path: Path
) -> None:
    parameters, rule = WHOLE[method]
    recipe = replace(PLAIN, method=method, parameters=method_samples.settings(parameters))
    result = merge(models[0], inputs_of(models[1:], weights), None, recipe, tmp_path / "out")
    want_N = flat(model_samples.load_model(models[0])) + rule(deltas_of(models[0], models[1:]), weights)
    require_close(tmp_path / "out", want_N)
    assert len(result.notes) == NUM_MODELS


@pytest.mark.parametrize("method", ["linear", "geometric_median", "coordinate_median"])
def test_guards_clip_the_long_and_leave_out_the_opposed(method: str, models: Folders, tmp_path: Path) -> None:
    recipe = replace(PLAIN, method=method, guards=Guards(clip=1.5, cosine_min=0.0))
    result = merge(models[0], inputs_of(models[1:]), None, recipe, tmp_path / "out")
    deltas_KN = deltas_of(models[0], models[1:])
    most = 1.5 * np.median(np.linalg.norm(deltas_KN, axis=1))
    factors_K = np.minimum(1.0, most / np.linalg.norm(deltas_KN, axis=1))
    assert factors_K[4] < 0.5
    kept_KN = (deltas_KN * factors_K.astype(np.float32)[:, None])[:5].astype(np.float32).astype(np.float64)
    merged_N = {
        "linear": lambda: kept_KN.mean(axis=0),
        "geometric_median": lambda: references.geometric_median(kept_KN, [1.0] * 5, 1e-6, 8),
        "coordinate_median": lambda: np.median(kept_KN, axis=0),
    }[method]()
    require_close(tmp_path / "out", flat(model_samples.load_model(models[0])) + merged_N, 2.0**-30)
    assert sum("left out" in note for note in result.notes) == 1
    assert sum("scaled by" in note for note in result.notes) == 1


@pytest.mark.parametrize("cohorts", ["languages", "all"])
@pytest.mark.parametrize("method", ["coordinate_median", "trimmed_mean", "geometric_median"])
def test_robust_methods_compare_within_cohorts(
    cohorts: str, method: str, models: Folders, tmp_path: Path
) -> None:
    languages = ["de", "sq", "de", "de", "fi", "fi"]
    weights = [1.0, 3.0, 0.5, 1.0, 2.0, 0.5]
    given = [
        replace_input(one, cohort=language)
        for one, language in zip(inputs_of(models[1:], weights), languages, strict=True)
    ]
    recipe = replace(PLAIN, method=method, cohorts=cohorts)
    merge(models[0], given, None, recipe, tmp_path / "out")

    deltas_KN = deltas_of(models[0], models[1:])
    groups = [[1], [0, 2, 3], [4, 5]] if cohorts == "languages" else [[0, 1, 2, 3, 4, 5]]
    merged_N = np.zeros(deltas_KN.shape[1])
    for members in groups:
        rows_KN, own = deltas_KN[members], [weights[k] for k in members]
        if len(members) < 3:
            one_N = np.average(rows_KN, axis=0, weights=own)
        elif method == "geometric_median":
            one_N = references.geometric_median(rows_KN, own, 1e-6, 8)
        else:
            case = references.Case(None, list(rows_KN), [], {"trim": 0.2})
            one_N = references.REFERENCES[method](case)
        merged_N += sum(own) / sum(weights) * one_N
    require_close(tmp_path / "out", flat(model_samples.load_model(models[0])) + merged_N)


@pytest.mark.parametrize("weights", [(), (0.5, 0.3, 0.2, 1.0)])
@pytest.mark.parametrize("method", ["linear", "ties", "norm_preserving"])
def test_tokens_times_weights(
    method: str, weights: tuple[float, ...], models: Folders, tmp_path: Path
) -> None:
    tokens = [10**12, 3 * 10**11, 1, 7 * 10**10]
    recipe = replace(PLAIN, method=method, weights="tokens")
    merge(models[0], inputs_of(models[1:5], weights, tokens), None, recipe, tmp_path / "out")
    products = [n * w for n, w in zip(tokens, weights or [1.0] * 4, strict=True)]
    uniform = inputs_of(models[1:5], [product / sum(products) for product in products])
    merge(models[0], uniform, None, replace(recipe, weights="uniform"), tmp_path / "uniform")
    if method != "linear":  # its own reference
        require_close(tmp_path / "out", flat(model_samples.load_model(tmp_path / "uniform")), 2.0**-26)
        return
    merged_N = np.average(deltas_of(models[0], models[1:5]), axis=0, weights=products)
    require_close(tmp_path / "out", flat(model_samples.load_model(models[0])) + merged_N)


def test_embedding_rows_by_token_counts(models: Folders, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    counts_KV = rng.integers(0, 9, (4, 37)).astype(np.float32) ** 3
    counts_KV[:, 5] = 0.0  # a token that nobody saw
    counts_KV[1, 6] = 1e7  # beyond the count that still says something
    weights, given = [0.5, 1.0, 2.0, 1.0], []
    for k, one in enumerate(inputs_of(models[1:5], weights)):
        save_file({"token_counts": counts_KV[k]}, tmp_path / f"counts-{k}.safetensors")
        given.append(replace_input(one, row_counts=tmp_path / f"counts-{k}.safetensors"))
    recipe = replace(PLAIN, embedding_rows=EmbeddingRows(count_max=400))
    merge(models[0], given, None, recipe, tmp_path / "out")

    deltas_KN = deltas_of(models[0], models[1:5])
    merged_N = np.average(deltas_KN, axis=0, weights=weights)
    first = sum(SIZES[name] for name in sorted(SIZES) if name < "embed_tokens")
    rows_KVD = deltas_KN[:, first : first + SIZES["embed_tokens"]].reshape(4, 37, 16)
    shares_KV = np.minimum(counts_KV, 400).astype(np.float64) * np.array(weights)[:, None]
    totals_V = shares_KV.sum(axis=0)
    shares_KV /= np.where(totals_V, totals_V, 1.0)
    merged_N[first : first + SIZES["embed_tokens"]] = np.einsum("kv,kvd->vd", shares_KV, rows_KVD).reshape(-1)
    require_close(tmp_path / "out", flat(model_samples.load_model(models[0])) + merged_N)
