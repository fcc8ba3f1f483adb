"""Flower's own FedAvg on small fp32 models is an oracle for our merge.

Not bit for bit. Flower works in fp32 over whole weights: each share is rounded to fp32, each product is, and each
sum; with K replies of shares s_k that is at most (K + 1) roundings, each of u = 2**-24 relative to S = sum(s_k |w_k|).
Ours sums deltas, each rounded to fp32 when it was written (u * sum(s_k |d_k|)), exactly on a grid of 2**-36, and rounds
the result once (u * |r|). Nothing else may differ.
"""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from consortium.deltas import write_delta
from consortium.flower import compat
from consortium.merging.merge import MergeInput, merge
from consortium.merging.recipe import PLAIN_AVERAGE
from consortium.tensor_writer import CheckpointWriter
from consortium.tensors import Checkpoint, F32Array

U = 2.0**-24
GRID = 2.0**-36
SHAPES = {"bias": (7,), "head": (64, 33), "scalar": (1,), "wide": (5, 1031)}


def models(seed: int, count: int) -> tuple[dict[str, F32Array], list[dict[str, F32Array]]]:
    """A base and ``count`` models that were trained from it, as far away as a round goes."""
    dice = np.random.default_rng(seed)
    base = {name: dice.normal(0, 0.5, shape).astype(np.float32) for name, shape in SHAPES.items()}
    trained = [
        {
            name: (values + dice.normal(0, 0.02, values.shape)).astype(np.float32)
            for name, values in base.items()
        }
        for _ in range(count)
    ]
    return base, trained


def by_flower(trained: list[dict[str, F32Array]], weights: list[int]) -> dict[str, F32Array]:
    from flwr.serverapp.strategy import FedAvg

    compat.be(1, compat.SERVER_NODE)
    replies = []
    for node, (model, weight) in enumerate(zip(trained, weights, strict=True), 2):
        asked = compat.instruction(
            compat.RecordDict(), run=1, node=node, message_id=str(node), message_type="train", group="1"
        )
        arrays = compat.ArrayRecord({name: compat.Array(values) for name, values in sorted(model.items())})
        metrics = compat.MetricRecord({"num-examples": weight})
        replies.append(compat.reply_to(asked, compat.RecordDict({"arrays": arrays, "metrics": metrics})))
    found, _ = FedAvg().aggregate_train(1, replies)
    assert found is not None
    return {name: array.numpy() for name, array in found.items()}


def by_us(
    base: dict[str, F32Array], trained: list[dict[str, F32Array]], weights: list[int], folder: Path
) -> dict[str, F32Array]:
    (folder / "base").mkdir()
    with CheckpointWriter(folder / "base", SHAPES, "F32", 1 << 20) as writer:
        for name, values in base.items():
            writer.write(name, 0, values.ravel())
    (folder / "base" / "config.json").write_text("{}")
    inputs = []
    with Checkpoint(folder / "base") as opened:
        for number, (model, weight) in enumerate(zip(trained, weights, strict=True)):
            path = folder / f"delta-{number}"
            inputs.append(MergeInput(path, write_delta(opened, model, path, "fp32"), weight))
    merge(folder / "base", inputs, None, PLAIN_AVERAGE, folder / "merged")
    return {
        name: values
        for file in sorted((folder / "merged").glob("*.safetensors"))
        for name, values in load_file(file).items()
    }


@pytest.mark.parametrize(("seed", "weights"), [(1, [1, 1]), (2, [240, 31, 7]), (3, [5, 1, 9, 2, 77, 1000])])
def test_our_merge_is_flowers_average_up_to_flowers_roundings(
    seed: int, weights: list[int], tmp_path: Path
) -> None:
    base, trained = models(seed, len(weights))
    flowers, ours = by_flower(trained, weights), by_us(base, trained, weights, tmp_path)
    shares = np.array(weights, np.float64) / sum(weights)
    for name in SHAPES:
        assert ours[name].dtype == flowers[name].dtype == np.float32
        whole = sum(
            s * np.abs(model[name].astype(np.float64)) for s, model in zip(shares, trained, strict=True)
        )
        moved = sum(
            s * np.abs(model[name].astype(np.float64) - base[name])
            for s, model in zip(shares, trained, strict=True)
        )
        exact = sum(s * model[name].astype(np.float64) for s, model in zip(shares, trained, strict=True))
        of_ours = U * (moved + np.abs(exact)) + GRID
        assert (np.abs(ours[name] - exact) <= 1.01 * of_ours).all()
        of_flowers = (len(weights) + 1) * U * whole
        difference = np.abs(ours[name].astype(np.float64) - flowers[name])
        assert (difference <= 1.01 * (of_flowers + of_ours)).all()
        assert (
            difference.max() < np.abs(exact - base[name]).max() / 1000
        )  # the bound is not so wide that anything fits


def test_the_oracle_can_tell_a_wrong_average(tmp_path: Path) -> None:
    base, trained = models(4, 3)
    flowers, ours = by_flower(trained, [1, 2, 3]), by_us(base, trained, [3, 2, 1], tmp_path)
    assert np.abs(ours["wide"] - flowers["wide"]).max() > 1e-3
