"""A model of a few dozen weights, on disk, and deltas for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from consortium.deltas import write_delta
from consortium.merging.merge import MergeInput
from consortium.tensor_writer import CheckpointWriter
from consortium.tensors import Checkpoint, F32Array

SHAPES = {"embed": (7, 3), "layer.bias": (5,), "layer.weight": (4, 5), "scale": ()}

Values = dict[str, F32Array]
WriteDelta = Callable[..., MergeInput]


def values(seed: int, scale: float = 1.0) -> Values:
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape) * scale).astype(np.float32) for name, shape in SHAPES.items()}


def write_model(directory: Path, tensors: Values, shard_bytes: int = 1 << 20) -> Path:
    directory.mkdir()
    shapes = {name: array.shape for name, array in tensors.items()}
    with CheckpointWriter(directory, shapes, "F32", shard_bytes) as writer:
        for name, array in tensors.items():
            writer.write(name, 0, array.reshape(-1))
    (directory / "config.json").write_text('{"dtype": "float32", "model_type": "toy"}')
    return directory


@pytest.fixture
def base_values() -> Values:
    return values(0)


@pytest.fixture
def base_dir(tmp_path: Path, base_values: Values) -> Path:
    return write_model(tmp_path / "base", base_values, shard_bytes=100)


@pytest.fixture
def delta(tmp_path: Path, base_dir: Path, base_values: Values) -> WriteDelta:
    """``delta(seed, weight=..., scale=..., dtype=...)`` trains a specialist by adding noise."""

    def write(seed: int, weight: int = 1, scale: float = 0.01, dtype: str = "bf16") -> MergeInput:
        change = values(seed, scale)
        trained = {name: base_values[name] + change[name] for name in base_values}
        path = tmp_path / f"delta-{seed}-{dtype}"
        with Checkpoint(base_dir) as base:
            return MergeInput(path, write_delta(base, trained, path, dtype), weight)

    return write


@pytest.fixture
def load() -> Callable[[Path], Values]:
    def read(directory: Path) -> Values:
        with Checkpoint(directory) as model:
            return {name: model.array(name) for name in model}

    return read
