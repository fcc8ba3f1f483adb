"""Deltas: the same training gives the same bytes, and base plus delta is the specialist."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from consortium.deltas import apply_delta, check_delta, trained_tensors, write_delta
from consortium.errors import BadInput
from consortium.store import ref_of
from consortium.tensor_writer import TensorWriter
from consortium.tensors import Checkpoint, TensorFile


def test_the_order_of_tensors_does_not_show_in_the_bytes(
    tmp_path: Path, base_dir: Path, base_values: dict
) -> None:
    trained = {name: array + np.float32(0.01) for name, array in base_values.items()}
    backwards = dict(reversed(trained.items()))
    with Checkpoint(base_dir) as base:
        ref = write_delta(base, trained, tmp_path / "a")
        assert write_delta(base, backwards, tmp_path / "b") == ref == ref_of(tmp_path / "b")
        as_columns = {name: np.array(array, order="F") for name, array in trained.items()}
        assert write_delta(base, as_columns, tmp_path / "c") == ref


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 1e-7), ("bf16", 0.01 * 2**-8)])
def test_base_plus_delta_is_the_trained_model(
    tmp_path: Path, base_dir: Path, base_values: dict, load: Callable, dtype: str, error: float
) -> None:
    rng = np.random.default_rng(5)
    trained = {
        name: array + rng.uniform(-0.01, 0.01, array.shape).astype("f4")
        for name, array in base_values.items()
    }
    with Checkpoint(base_dir) as base:
        write_delta(base, trained, tmp_path / "delta", dtype)
        with TensorFile(tmp_path / "delta") as delta:
            in_memory = dict(trained_tensors(base, delta))
    apply_delta(base_dir, tmp_path / "delta", tmp_path / "specialist")
    on_disk = load(tmp_path / "specialist")
    assert (tmp_path / "specialist/config.json").exists()
    for name, array in trained.items():
        np.testing.assert_allclose(in_memory[name], array, rtol=0, atol=error + 2e-7)
        np.testing.assert_array_equal(on_disk[name], in_memory[name])


def test_a_model_that_cannot_be_this_bases_child_is_refused(
    tmp_path: Path, base_dir: Path, base_values: dict
) -> None:
    def refusal(trained: dict) -> str:
        with Checkpoint(base_dir) as base, pytest.raises(BadInput) as caught:
            write_delta(base, trained, tmp_path / "delta")
        assert not (tmp_path / "delta").exists()
        return str(caught.value)

    assert "'scale' is missing" in refusal({k: v for k, v in base_values.items() if k != "scale"})
    assert "'head' is not in the base" in refusal(base_values | {"head": np.zeros(3, np.float32)})
    assert "'embed' has shape [3, 7], the base [7, 3]" in refusal(
        base_values | {"embed": base_values["embed"].T}
    )
    broken = base_values["layer.weight"].copy()
    broken[1, 2] = np.inf
    assert "'layer.weight' is inf at element 7" in refusal(base_values | {"layer.weight": broken})


def test_a_delta_of_another_model_is_not_applied(tmp_path: Path, base_dir: Path) -> None:
    with TensorWriter(tmp_path / "delta", {"other": (1,)}, "F32") as writer:
        writer.write("other", 0, np.zeros(1))
    with pytest.raises(BadInput, match="'embed' is missing"):
        apply_delta(base_dir, tmp_path / "delta", tmp_path / "out")
    with Checkpoint(base_dir) as base, TensorFile(tmp_path / "delta", "delta abc") as delta:
        with pytest.raises(BadInput, match=r"^delta abc: tensor 'embed' is missing"):
            check_delta(base, delta)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta"]
