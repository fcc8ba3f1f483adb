"""Merges: right, the same bits however they are done, and refused with a reason."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consortium.canonical import digest_of_fact
from consortium.canonical import replace as replace_fact
from consortium.errors import BadInput, Corrupt, Refused
from consortium.ids import digest_of
from consortium.manifests import FileRef
from consortium.merging.merge import MergeInput, MergeResult, merge
from consortium.merging.methods import METHODS
from consortium.merging.recipe import PLAIN_AVERAGE, MethodName, OuterStep, Recipe, Setting
from consortium.merging.recipes.signatures import SIGNATURES
from consortium.store import ref_of
from consortium.tensor_writer import TensorWriter
from consortium.tensors import TensorFile
from consortium.versions import verify_directory

DILOCO = Recipe(outer=OuterStep(), shard_bytes=100)
BASE = digest_of(b"base")


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    with TensorFile(path) as file:
        return {name: file.array(name) for name in file}


def test_two_rounds_as_the_formula_has_them(
    tmp_path: Path, base_dir: Path, base_values: dict, delta: Callable, load: Callable
) -> None:
    weights = {1: 10, 2: 30, 3: 60}
    rounds = [
        [delta(seed + 10 * r, weight, dtype="fp32") for seed, weight in weights.items()] for r in range(2)
    ]
    theta = {name: array.astype(np.float64) for name, array in base_values.items()}
    b = {name: np.zeros_like(array) for name, array in theta.items()}

    start, momentum = base_dir, None
    for number, inputs in enumerate(rounds):
        out = tmp_path / f"v{number}"
        result = merge(start, inputs, momentum, DILOCO, out)
        assert set(result.outer_state) == {"outer.safetensors"}
        start, momentum = out, out / "outer.safetensors"

        changes = [tensors_of(item.path) for item in inputs]
        for name in theta:
            g = -sum(item.weight / 100 * change[name] for item, change in zip(inputs, changes, strict=True))
            b[name] = 0.9 * b[name] + g
            theta[name] = theta[name] - 0.7 * (g + 0.9 * b[name])
    merged, kept = load(start), tensors_of(momentum)
    for name in theta:
        np.testing.assert_allclose(merged[name], theta[name], rtol=2e-7, atol=1e-10)
        np.testing.assert_allclose(kept[name], b[name], rtol=1e-6, atol=1e-10)


def test_a_plain_average_of_one_delta_is_its_specialist(
    tmp_path: Path, base_dir: Path, base_values: dict, delta: Callable, load: Callable
) -> None:
    one = delta(1, weight=7)
    result = merge(base_dir, [one], None, PLAIN_AVERAGE, tmp_path / "out")
    change = tensors_of(one.path)
    for name, array in load(tmp_path / "out").items():
        np.testing.assert_allclose(array, base_values[name] + change[name], rtol=1e-7, atol=1e-10)
    assert sorted(result.files) == ["checksums.json", "config.json", "model.safetensors"]
    assert result.outer_state == {}
    assert result.files == {name: ref_of(tmp_path / "out" / name) for name in result.files}


def test_uniform_weights_are_ones_whatever_the_tokens(
    tmp_path: Path, base_dir: Path, delta: Callable
) -> None:
    inputs = [delta(1, weight=1), delta(2, weight=1000), delta(3, weight=0)]
    recipe = Recipe(weights="uniform")
    uniform = merge(base_dir, inputs, None, recipe, tmp_path / "uniform")
    equal = merge(base_dir, [replace(item, weight=5) for item in inputs], None, Recipe(), tmp_path / "equal")
    by_tokens = merge(base_dir, inputs, None, Recipe(), tmp_path / "tokens")
    assert uniform.files == equal.files != by_tokens.files
    assert [item.weight for item in uniform.ingredients] == [1, 1, 1]
    assert uniform.manifest_onto(BASE).recipe == digest_of_fact(recipe)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_order_chunks_and_threads_leave_no_trace(
    data: st.DataObject, base_dir: Path, delta: Callable, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seeds = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=5, unique=True))
    inputs = [delta(seed, weight=1 + seed**3, scale=10.0 ** (seed - 4)) for seed in seeds]
    recipe = replace_fact(DILOCO, dtype=data.draw(st.sampled_from(["float32", "bfloat16"])))
    shuffled = data.draw(st.permutations(inputs))
    chunk, threads = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 4))
    folder = tmp_path_factory.mktemp("merges")

    one = merge(base_dir, inputs, None, recipe, folder / "one", threads=1)
    other = merge(base_dir, shuffled, None, recipe, folder / "other", threads=threads, chunk=chunk)
    verify_directory(one.manifest_onto(BASE), folder / "other")
    assert other.manifest_onto(BASE).digest == one.manifest_onto(BASE).digest

    momentum = folder / "one/outer.safetensors"
    again = merge(folder / "one", inputs, momentum, recipe, folder / "again", threads=1)
    last = merge(folder / "other", shuffled, momentum, recipe, folder / "last", threads=threads, chunk=chunk)
    assert again == last


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_a_tensor_that_nobody_weighs_stays_as_it_was(
    method: MethodName, tmp_path: Path, base_dir: Path, base_values: dict, delta: Callable, load: Callable
) -> None:
    only = (Setting(value=0.5, filter="layer"), Setting(value=0))
    inputs = [replace(delta(seed), settings={"weight": only}) for seed in (1, 2)]
    recipe = replace_fact(PLAIN_AVERAGE, method=method)
    merge(base_dir, inputs, None, recipe, tmp_path / "out")
    merged = load(tmp_path / "out")
    for name, array in base_values.items():
        assert (merged[name].tobytes() == array.tobytes()) == ("layer" not in name)


def test_every_method_of_the_schema_is_in_the_table() -> None:
    assert set(get_args(MethodName)) == set(METHODS) == set(SIGNATURES)


def test_progress_ends_at_all_elements(tmp_path: Path, base_dir: Path, delta: Callable) -> None:
    seen: list[tuple[int, int]] = []
    merge(base_dir, [delta(1)], None, DILOCO, tmp_path / "out", progress=lambda *at: seen.append(at), chunk=1)
    assert seen == sorted(seen)
    assert seen[-1] == (47, 47)


def rewrite(item: MergeInput, path: Path, **changes: np.ndarray | None) -> MergeInput:
    tensors: dict[str, Any] = {
        name: changes.get(name, array) for name, array in tensors_of(item.path).items()
    }
    tensors = {name: array for name, array in (tensors | changes).items() if array is not None}
    with TensorWriter(path, {name: array.shape for name, array in tensors.items()}, "F32") as writer:
        for name, array in tensors.items():
            writer.write(name, 0, array.reshape(-1))
    return MergeInput(path, ref_of(path), item.weight)


def test_what_is_refused_and_why(tmp_path: Path, base_dir: Path, delta: Callable) -> None:
    good = delta(1)

    def refusal(
        inputs: list[MergeInput], error: type[Exception] = BadInput, momentum: Path | None = None
    ) -> str:
        with pytest.raises(error) as caught:
            merge(base_dir, inputs, momentum, DILOCO, tmp_path / "out")
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]
        return str(caught.value)

    def damaged(**changes: np.ndarray | None) -> str:
        return refusal([good, rewrite(good, tmp_path / "bad", **changes)])

    assert "no contribution" in refusal([], Refused)
    assert "sum to zero" in refusal([replace(good, weight=0)], Refused)
    nothing = replace(good, settings={"weight": (Setting(value=0.0),)})
    assert "sum to zero" in refusal([nothing, nothing], Refused)
    assert "weight -3" in refusal([replace(good, weight=-3)])
    other = FileRef(digest=digest_of(b"other"), size=good.ref.size)
    assert f"not {good.ref.size}" in refusal([replace(good, ref=other)], Corrupt)
    assert "lacks tensor 'scale', which the base has" in damaged(scale=None)
    assert "the base lacks tensor 'more'" in damaged(more=np.zeros(2))
    assert "'embed'" in damaged(embed=np.zeros(21))
    assert "'layer.bias' is nan at element 2" in damaged(**{"layer.bias": np.array([0, 0, np.nan, 0, 0])})
    assert "'layer.bias' is -inf at element 4" in damaged(**{"layer.bias": np.array([0, 0, 0, 0, -np.inf])})
    huge = rewrite(good, tmp_path / "huge", scale=np.array(2e5))
    assert "tensor 'scale', elements from 0: input" in refusal([good, huge], Refused)
    alien = rewrite(good, tmp_path / "alien", scale=None)
    assert "the outer state: tensor 'scale' is None" in refusal([good], BadInput, alien.path)
    (tmp_path / "noise").write_bytes(b"noise" * 9)
    assert "cannot hold a header" in refusal(
        [MergeInput(tmp_path / "noise", ref_of(tmp_path / "noise"), 1)], Corrupt
    )


def test_an_older_model_is_never_overwritten(tmp_path: Path, base_dir: Path, delta: Callable) -> None:
    with pytest.raises(BadInput, match="exists already"):
        merge(base_dir, [delta(1)], None, DILOCO, base_dir)


def test_an_interrupted_merge_leaves_nothing(tmp_path: Path, base_dir: Path, delta: Callable) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    inputs = [delta(1), delta(2)]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        merge(base_dir, inputs, None, DILOCO, tmp_path / "out", progress=interrupt, chunk=1)
    assert sorted(tmp_path.iterdir()) == before


KILLED_HALF_WAY = """
import os, signal, sys
from pathlib import Path
from consortium.merging.merge import MergeInput, merge
from consortium.merging.recipe import OuterStep, Recipe
from consortium.store import ref_of

def die(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

base, out, *deltas = map(Path, sys.argv[1:])
inputs = [MergeInput(path, ref_of(path), 1) for path in deltas]
merge(base, inputs, None, Recipe(outer=OuterStep(), shard_bytes=100), out, progress=die, chunk=1)
"""


def test_a_killed_merge_leaves_no_model_and_the_next_one_cleans_up(
    tmp_path: Path, base_dir: Path, delta: Callable
) -> None:
    inputs = [delta(1), delta(2)]
    out = tmp_path / "out"
    arguments = [str(path) for path in (base_dir, out, *(item.path for item in inputs))]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_HALF_WAY, *arguments], env={**os.environ, "PYTHONPATH": "."}
    )
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert len(list(tmp_path.glob(".out.*.partial"))) == 1

    result: MergeResult = merge(base_dir, inputs, None, DILOCO, out)

    verify_directory(result.manifest_onto(BASE), out)
    assert list(tmp_path.glob(".out.*")) == []
    undisturbed = merge(base_dir, inputs, None, DILOCO, tmp_path / "undisturbed")
    assert undisturbed == result


def test_weights_that_cancel_but_for_rounding_blow_nothing_up(
    tmp_path: Path, base_dir: Path, delta: Callable, load: Callable
) -> None:
    inputs = [
        replace(delta(seed), settings={"weight": (Setting(value=value),)})
        for seed, value in enumerate((0.1, 0.2, -0.3))
    ]
    merge(
        base_dir,
        inputs,
        None,
        replace_fact(PLAIN_AVERAGE, method="ties", weights="uniform"),
        tmp_path / "out",
    )
    assert max(np.abs(array).max() for array in load(tmp_path / "out").values()) < 10


def test_what_float16_cannot_hold_is_refused(tmp_path: Path, base_dir: Path, delta: Callable) -> None:
    large = rewrite(delta(1, dtype="fp32"), tmp_path / "large", scale=np.array(65515.0))
    larger = rewrite(delta(1, dtype="fp32"), tmp_path / "larger", scale=np.array(65530.0))
    recipe = replace_fact(PLAIN_AVERAGE, dtype="float16")
    merge(base_dir, [large], None, recipe, tmp_path / "out")
    with pytest.raises(Refused, match=r"tensor 'scale' is 655\d\d.* at element 0, which float16 cannot hold"):
        merge(base_dir, [larger], None, recipe, tmp_path / "other")
