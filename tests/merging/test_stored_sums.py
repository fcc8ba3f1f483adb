"""Stored sums: a contribution can be added and taken out again, to the bit."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consortium.errors import BadInput, Corrupt, Refused
from consortium.merging.merge import MergeInput, merge, merge_sum
from consortium.merging.recipe import PLAIN_AVERAGE, OuterStep, Recipe
from consortium.merging.sums import FACTS_FILE, SUM_FILE, add, begin_sum, open_sum, remove
from consortium.store import ref_of
from consortium.tensor_writer import TensorWriter


def content(folder: Path) -> tuple[bytes, bytes]:
    return (folder / SUM_FILE).read_bytes(), (folder / FACTS_FILE).read_bytes()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_came_and_went_only_what_is_in_it_counts(
    seed: int, tmp_path: Path, base_dir: Path, delta: Callable[..., MergeInput]
) -> None:
    rng = random.Random(seed)
    inputs = [
        delta(k, weight=rng.choice([0, 1, 3, 7919, 10**9]), scale=10.0 ** rng.randint(-4, 0))
        for k in range(5)
    ]
    inside = rng.sample(inputs, 2)
    place = tmp_path / "sum-0"
    begin_sum(base_dir, inside, place, bits=30)
    for step in range(1, 9):
        outside = [one for one in inputs if one not in inside]
        further = tmp_path / f"sum-{step}"
        if outside and (len(inside) < 2 or rng.random() < 0.5):
            inside = [*inside, rng.choice(outside)]
            add(place, inside[-1], further, threads=rng.randint(1, 3))
        else:
            gone = rng.choice(inside)
            inside = [one for one in inside if one is not gone]
            remove(place, gone, further)
        place = further

    begin_sum(base_dir, rng.sample(inside, len(inside)), tmp_path / "afresh", bits=30)

    assert content(place) == content(tmp_path / "afresh")


def test_its_mean_is_the_linear_merge_bit_for_bit(
    tmp_path: Path, base_dir: Path, delta: Callable[..., MergeInput]
) -> None:
    inputs = [delta(1, weight=30), delta(2, weight=11), delta(3, weight=5)]
    begin_sum(base_dir, inputs[1:], tmp_path / "two", bits=5)
    add(tmp_path / "two", inputs[0], tmp_path / "three")
    for recipe in (PLAIN_AVERAGE, Recipe(outer=OuterStep(), dtype="bfloat16", shard_bytes=100)):
        name = recipe.dtype
        straight = merge(base_dir, inputs, None, recipe, tmp_path / f"straight-{name}")
        stored = merge_sum(base_dir, tmp_path / "three", None, recipe, tmp_path / f"stored-{name}")
        assert stored == straight  # 30 tokens: its unit is 2^5 as well
    before = tmp_path / "straight-bfloat16/outer.safetensors"
    momentum = [
        run(base_dir, what, before, Recipe(outer=OuterStep()), tmp_path / f"next-{run.__name__}")
        for run, what in ((merge, inputs), (merge_sum, tmp_path / "three"))
    ]
    assert momentum[0] == momentum[1]


def test_what_is_refused_and_why(tmp_path: Path, base_dir: Path, delta: Callable[..., MergeInput]) -> None:
    one, other = delta(1, weight=3), delta(2, weight=4)
    place = tmp_path / "sum"
    begin_sum(base_dir, [one], place)
    with pytest.raises(BadInput, match="is in the sum already"):
        add(place, one, tmp_path / "out")
    with pytest.raises(BadInput, match="is not in the sum; take out one of"):
        remove(place, other, tmp_path / "out")
    with pytest.raises(BadInput, match="with weight 5 is not in the sum"):
        remove(place, replace(one, weight=5), tmp_path / "out")
    with pytest.raises(BadInput, match="give the delta's ref"):
        add(place, replace(other, ref=None), tmp_path / "out")
    with pytest.raises(Corrupt, match="fetch it again"):
        add(place, replace(other, ref=one.ref.__class__(digest=other.ref.digest, size=9)), tmp_path / "out")
    with pytest.raises(BadInput, match="method linear"):
        merge_sum(base_dir, place, None, Recipe(method="coordinate_median"), tmp_path / "out")
    begin_sum(base_dir, [replace(one, weight=0)], tmp_path / "nothing")
    with pytest.raises(Refused, match="sum to zero"):
        merge_sum(base_dir, tmp_path / "nothing", None, PLAIN_AVERAGE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_leaves_the_range_is_refused(
    tmp_path: Path, base_dir: Path, delta: Callable[..., MergeInput]
) -> None:
    place = tmp_path / "sum"
    begin_sum(base_dir, [delta(1)], place)
    with open_sum(place) as stored:
        shapes = stored.tensors.shapes
    for number, size in enumerate((1e5, 1e5, 2e5)):
        path = tmp_path / f"large-{number}"
        with TensorWriter(path, shapes, "F32") as writer:
            for name, shape in shapes.items():
                writer.write(name, 0, np.full(int(np.prod(shape)), size + number, np.float32))
        given = MergeInput(path, ref_of(path), 1)
        if number == 0:
            place = place if add(place, given, tmp_path / "larger") is None else tmp_path / "larger"
            continue
        with pytest.raises(Refused, match="leaves the exact range"):
            add(place, given, tmp_path / "out")
