"""The kernels: right by their definitions, and the same bits from C as from NumPy."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from consortium.merging import exact, kernels
from consortium.merging.kernels import EVERYTHING, NOTHING, Boundary, Row, portable
from consortium.merging.outer import outer_step
from consortium.merging.recipe import OuterStep
from consortium.tensors import F32Array

ROOT = Path(__file__).parents[2]
KEY = 0x9E3779B97F4A7C15

if kernels.CHOSEN == "native":
    from consortium.merging.kernels import native

    BUILDS = [portable, native]
else:
    BUILDS = [portable]
needs_native = pytest.mark.skipif(len(BUILDS) < 2, reason=kernels.WHY)


@pytest.fixture(params=BUILDS, ids=lambda module: module.__name__.rpartition(".")[2])
def build(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


# ---- the same bits ----

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1.5, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, 2.0**-37, 3 * 2.0**-37]
finite = st.one_of(st.floats(allow_nan=False, allow_infinity=False, width=32), st.sampled_from(SPECIAL))
sizes = st.sampled_from([0, 1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130])
big_sizes = [1, 4095, 4096, 4097, 12_345]
row_counts = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33]

Call = Callable[[ModuleType, F32Array], list[Any]]


def bf16_of(x_N: F32Array) -> npt.NDArray[np.uint16]:
    """Finite bfloat16: sums and differences of what is not finite may be any NaN."""
    raw_N = (x_N.view(np.uint32) >> 16).astype(np.uint16)
    return np.where((raw_N & 0x7F80) == 0x7F80, np.uint16(0x3F80), raw_N)


def base_like(rows_KN: F32Array) -> F32Array:
    return np.linspace(-3, 3, rows_KN.shape[1], dtype=np.float32)


def mixed(rows_KN: F32Array) -> list[Row]:
    """Rows as a merge has them: stored or not, relative or not; small enough for their sum to be exact."""
    tame_KN = np.clip(rows_KN, -1e3, 1e3)
    return [
        Row(bf16_of(row_N) if k % 2 else row_N, is_relative=k % 3 == 0) for k, row_N in enumerate(tame_KN)
    ]


def factors_of(rows_KN: F32Array) -> list[float]:
    return [portable.UNITS * (k + 1) / 7 for k in range(len(rows_KN))]


def step_of(build: ModuleType, rows_KN: F32Array, nesterov: bool) -> list[Any]:
    theta_N, size = rows_KN[0], rows_KN.shape[1]
    found: list[Any] = []
    for before_N in (None, rows_KN[-1]):
        next_N, kept_N = np.full(size, 7, np.float32), np.full(size, 7, np.float32)
        merged_N = np.clip(rows_KN[0], -1e9, 1e9).astype(np.float64) * 2.0**36
        build.sgd_step(theta_N, merged_N, 2.0**-36 / 3, before_N, 0.7, 0.9, nesterov, next_N, kept_N)
        found += [next_N, kept_N]
    return found


def rows_of(elements: st.SearchStrategy[float] = finite) -> st.SearchStrategy[F32Array]:
    shapes = st.tuples(st.sampled_from(row_counts), sizes)
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=elements))


def into(dtype: type[np.generic], call: Callable[[npt.NDArray[Any]], Any]) -> Callable[[int], list[Any]]:
    """What ``call`` returns and what it leaves in an array that was full of rubbish."""

    def run(size: int) -> list[Any]:
        out_N = np.full(size, 77, dtype)
        return [call(out_N), out_N]

    return run


def in_place(x_KN: F32Array, call: Callable[[F32Array], None]) -> list[Any]:
    copy_KN = x_KN.copy()
    call(copy_KN)
    return [copy_KN]


def total_like(x_N: F32Array) -> npt.NDArray[np.float64]:
    return np.arange(x_N.size) * 3.0 - 5


def grid_add(build: ModuleType, rows_KN: F32Array, factor: float) -> list[Any]:
    total_N = total_like(rows_KN[0])
    return [build.grid_add(total_N, row_N, factor) for row_N in rows_KN] + [total_N]


def apply_step(build: ModuleType, rows_KN: F32Array) -> list[Any]:
    merged_N = rows_KN[-1].astype(np.float64) * 1.000000123
    return into(np.float32, lambda out_N: build.apply_step(rows_KN[0], merged_N, -0.7, out_N))(merged_N.size)


def elect(build: ModuleType, rows_KN: F32Array, **options: bool) -> list[Any]:
    num_rows, size = rows_KN.shape
    rows_KN = rows_KN.clip(-100, 100)  # where sums are exact; callers refuse what is beyond
    weights_K = np.linspace(0.3, 1.7, num_rows) * np.where(np.arange(num_rows) % 5 == 4, -1, 1)
    factors_K = weights_K / np.linspace(1, 0.4, num_rows)
    return into(np.float64, lambda out_N: build.elect(rows_KN, factors_K, weights_K, out_N, **options))(size)


def count_keys(build: ModuleType, x_N: F32Array, low: int, shift: int, num_bins: int) -> list[Any]:
    counts_B = np.arange(num_bins, dtype=np.uint32)
    return [build.count_keys(x_N, low, shift, counts_B), counts_B]


CALLS: dict[str, Call] = {
    "decode_bf16": lambda b, x: into(
        np.float32, lambda o: b.decode_bf16(x.view(np.uint16)[0, ::2].copy(), o)
    )(x.shape[1]),
    "encode_bf16": lambda b, x: into(np.uint16, lambda o: b.encode_bf16(x[0], o))(x.shape[1]),
    "first_non_finite": lambda b, x: [b.first_non_finite(x[0])],
    "grid_add": lambda b, x: grid_add(b, x, 0.37 * portable.UNITS),
    "sum_rows": lambda b, x: into(
        np.float64, lambda out_N: b.sum_rows(mixed(x), base_like(x), factors_of(x), out_N)
    )(x.shape[1]),
    "sum_rows_onto": lambda b, x: into(
        np.float32,
        lambda out_N: b.sum_rows_onto(mixed(x), base_like(x), factors_of(x), 2.0**-36 / 3, x[0], out_N),
    )(x.shape[1]),
    "sum_rows_onto nothing": lambda b, x: into(
        np.float32,
        lambda out_N: b.sum_rows_onto(mixed(x), base_like(x), factors_of(x), 2.0**-36 / 3, None, out_N),
    )(x.shape[1]),
    "subtract_bf16": lambda b, x: into(
        np.float32, lambda out_N: b.subtract_bf16(bf16_of(x[0]), base_like(x), out_N)
    )(x.shape[1]),
    "sgd_step": lambda b, x: step_of(b, x, True) + step_of(b, x, False),
    "scale_to": lambda b, x: into(
        np.float32, lambda out_N: b.scale_to(x[-1].astype(np.float64) * 1e9, 1 / 3, out_N)
    )(x.shape[1]),
    "grid_add of odd factors": lambda b, x: (
        grid_add(b, x, -0.5) + grid_add(b, x, 1e-300) + grid_add(b, x, 0.0)
    ),
    "apply_step": apply_step,
    "keep_window": lambda b, x: in_place(
        x, lambda y: b.keep_window(y[0], 100, Boundary(0x3F800000, 103), Boundary(0x40000000, 130))
    ),
    "keep_window of all": lambda b, x: in_place(x, lambda y: b.keep_window(y[0], 0, EVERYTHING, NOTHING)),
    "keep_window of none": lambda b, x: in_place(x, lambda y: b.keep_window(y[0], 0, NOTHING, EVERYTHING)),
    "keep_window of few zeros": lambda b, x: in_place(
        x, lambda y: b.keep_window(y[0], 5, Boundary(0, 20), Boundary(0, 9))
    ),
    "keep_random": lambda b, x: in_place(x, lambda y: b.keep_random(y[0], 12_345, KEY, 0.4)),
    "keep_random of all": lambda b, x: in_place(x, lambda y: b.keep_random(y[0], 0, KEY, 1.0)),
    "keep_random of none": lambda b, x: in_place(x, lambda y: b.keep_random(y[0], 0, KEY, 0.0)),
    "keep_random far out": lambda b, x: in_place(x, lambda y: b.keep_random(y[0], (1 << 33) - 9, KEY, 0.5)),
    "keep_ranked": lambda b, x: in_place(x, lambda y: b.keep_ranked(y, 3, KEY, 0.5, 0.15, True)),
    "keep_ranked as it is": lambda b, x: in_place(x, lambda y: b.keep_ranked(y, 0, KEY, 0.8, 0.2, False)),
    "elect": elect,
    "elect, sum": lambda b, x: elect(b, x, normalize=False),
    "median": lambda b, x: into(np.float64, lambda o: b.median(x, o))(x.shape[1]),
    "trimmed_mean": lambda b, x: into(np.float64, lambda o: b.trimmed_mean(x, (len(x) - 1) // 2, o))(
        x.shape[1]
    ),
    "trimmed_mean of all": lambda b, x: into(np.float64, lambda o: b.trimmed_mean(x, 0, o))(x.shape[1]),
    "variance": lambda b, x: into(np.float32, lambda o: b.variance(x, o))(x.shape[1]),
    "gram": lambda b, x: [b.gram(x)],
    "gram of lines": lambda b, x: [b.gram(x, 7), b.gram(x, 33), b.gram(x, 64)],
    "abs_sum": lambda b, x: [b.abs_sum(x[0]), b.abs_sum(x[0], 50)],
    "count_keys": lambda b, x: count_keys(b, x[0], 0, 20, 2048),
    "count_keys near one": lambda b, x: count_keys(b, x[0], 0x3F7FFFF0, 2, 9),
    "count_keys of zeros": lambda b, x: count_keys(b, x[0], 0, 0, 1),
    "draw32": lambda b, x: [b.draw32(KEY, np.arange(x.size, dtype=np.int64) * 7919)],
}


def spelt(results: list[Any]) -> list[bytes]:
    return [np.asarray(result).tobytes() for result in results]


@needs_native
@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=60, deadline=None)
@given(rows_KN=rows_of())
@example(rows_KN=np.array([SPECIAL], np.float32))
@example(rows_KN=np.array([[0.0, -0.0, 0.0], [-0.0, 0.0, -0.0]], np.float32))
def test_native_gives_portables_bits(name: str, rows_KN: F32Array) -> None:
    assert spelt(CALLS[name](native, rows_KN)) == spelt(CALLS[name](portable, rows_KN))


@needs_native
@pytest.mark.parametrize("size", big_sizes)
@pytest.mark.parametrize("name", CALLS)
def test_native_gives_portables_bits_at_size(name: str, size: int) -> None:
    for num_rows in row_counts:
        rng = np.random.default_rng(size + num_rows)
        x_KN = rng.standard_normal((num_rows, size)) * rng.choice([1e-3, 1.0, 1e3], size)
        rows_KN = x_KN.astype(np.float32)
        rows_KN[:, rng.integers(0, size, size // 10)] = 0.25  # ties in columns and in rows
        rows_KN[rng.random(rows_KN.shape) < 0.1] = 0.0
        rows_KN[rng.random(rows_KN.shape) < 0.1] *= np.float32(-0.0)
        assert spelt(CALLS[name](native, rows_KN)) == spelt(CALLS[name](portable, rows_KN)), num_rows


@needs_native
@pytest.mark.parametrize("name", ["first_non_finite", "encode_bf16", "decode_bf16"])
def test_not_only_finite_ones(name: str) -> None:
    bits_N = np.random.default_rng(0).integers(0, 1 << 32, 100_001, np.uint32)
    bits_N[::3] = 0x7F800000 | bits_N[::3] & 0x807FFFFF  # NaN and infinity of all kinds
    x_KN = bits_N.view(np.float32)[None]
    assert spelt(CALLS[name](native, x_KN)) == spelt(CALLS[name](portable, x_KN))
    x_KN = x_KN[:, 1::3].copy()
    assert spelt(CALLS[name](native, x_KN)) == spelt(CALLS[name](portable, x_KN))


@needs_native
def test_rounding_is_rint_at_any_size() -> None:
    """Beyond 2^51 the add-and-subtract trick would fail; the exact range goes to 2^53."""
    x_N = np.array([1, 3, 2.0**23 + 1, 8388609.5, 2.0**24 - 1, 1.0000001], np.float32)
    for power in range(-3, 40):
        for factor in (2.0**power, -(2.0**power), 1.5 * 2.0**power):
            assert spelt(grid_add(native, x_N[None], factor)) == spelt(grid_add(portable, x_N[None], factor))


@needs_native
def test_c_does_not_write_where_it_should_not() -> None:
    with pytest.raises(AssertionError, match="want"):
        native.grid_add(np.zeros(3), np.zeros(4, np.float32), 1.0)
    with pytest.raises(AssertionError, match="want"):
        native.grid_add(np.zeros(4), np.zeros(8, np.float32)[::2], 1.0)
    with pytest.raises(AssertionError, match="want"):
        native.encode_bf16(np.zeros(4), np.zeros(4, np.uint16))


# ---- the definitions ----


def test_bf16_is_the_nearest_ties_to_even(build: ModuleType) -> None:
    raw_N = np.arange(1 << 16, dtype=np.uint16)
    x_N, back_N = np.empty(raw_N.size, np.float32), np.empty_like(raw_N)
    build.decode_bf16(raw_N, x_N)
    assert x_N[0x3F80] == 1.0 and x_N[0xC000] == -2.0 and x_N[1] == 2.0**-133
    build.encode_bf16(x_N, back_N)
    quiet_N = np.where(np.isnan(x_N), raw_N | 0x40, raw_N)  # a signalling NaN becomes a quiet one
    assert (back_N == quiet_N).all()
    ties = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-23, 3.4e38], np.float32)
    out = np.empty(4, np.uint16)
    build.encode_bf16(ties, out)
    assert out.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80]


def test_the_first_that_is_not_finite(build: ModuleType) -> None:
    x_N = np.zeros(2000, np.float32)
    assert build.first_non_finite(x_N) == build.first_non_finite(x_N[:0]) == -1
    x_N[1999] = -np.inf
    assert build.first_non_finite(x_N) == 1999
    x_N[513] = np.nan
    assert build.first_non_finite(x_N) == 513


def test_sums_are_made_on_the_grid(build: ModuleType) -> None:
    rows_KN = np.random.default_rng(0).standard_normal((4, 100)).astype(np.float32)
    factors = [0.1 / exact.GRID, 0.2 / exact.GRID, -0.3 / exact.GRID, 0.5]
    total_N = np.zeros(100)
    peaks = [build.grid_add(total_N, row_N, factor) for row_N, factor in zip(rows_KN, factors, strict=True)]
    for total, column in zip(total_N, rows_KN.T.tolist(), strict=True):
        assert total == sum(round(x * factor) for x, factor in zip(column, factors, strict=True))
    assert peaks == [np.abs(row_N).max() for row_N in rows_KN]
    assert portable.UNITS == 1 / exact.GRID


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_a_peak_tells_of_what_is_not_finite(build: ModuleType, value: float) -> None:
    rows_KN = np.ones((3, 700), np.float32)
    rows_KN[1, 600] = value
    rows_KN[2, 50] = 9e30
    found = (
        build.grid_add(np.zeros(700), rows_KN[1], 1.0),
        build.elect(rows_KN, np.ones(3), np.ones(3), np.zeros(700)),
    )
    assert np.array_equal(found, [abs(value)] * 2, equal_nan=True)
    assert build.grid_add(np.zeros(0), rows_KN[0, :0], 1.0) == 0.0


def test_windows_end_at_an_index(build: ModuleType) -> None:
    x_N = np.array([3, -2, 2, 1, -2, 0, 2, 5], np.float32)
    two = int(np.float32(2).view(np.uint32))
    three = int(np.float32(3).view(np.uint32))
    build.keep_window(x_N, 10, Boundary(two, 14), Boundary(three, 10))
    assert x_N.tolist() == [0, -2, 2, 0, -2, 0, 0, 0]


@settings(deadline=None)
@given(st.integers(1, 2000), st.floats(0, 1), st.integers(0, 1 << 40), st.data())
def test_what_is_kept_by_chance_depends_on_the_place_alone(
    size: int, chance: float, start: int, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, size))
    drawn_N = portable.draw32(KEY, np.arange(start, start + size))
    expected_N = np.where(drawn_N < math.floor(chance * 2**32), np.float32(1.5), np.float32(0))
    for module in BUILDS:
        x_N = np.full(size, 1.5, np.float32)
        module.keep_random(x_N[:cut], start, KEY, chance)
        module.keep_random(x_N[cut:], start + cut, KEY, chance)
        assert x_N.tobytes() == expected_N.tobytes()


def test_ranks_decide_chances(build: ModuleType) -> None:
    x_RC = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
    x_RC[:, 3] = -x_RC[:, 7]  # a tie
    expected_RC = np.zeros_like(x_RC)
    for row, x_C in enumerate(x_RC):
        order_C = sorted(range(10), key=lambda column: (abs(x_C[column]), column))
        for rank, column in enumerate(order_C):
            chance = (0.6 - 0.3) + 2 * 0.3 * rank / 9
            drawn = int(portable.draw32(KEY, np.array([(2 + row) * 10 + column]))[0])
            if drawn < math.floor(chance * 2**32):
                expected_RC[row, column] = np.float32(float(x_C[column]) / chance)
    build.keep_ranked(x_RC[:4], 2, KEY, 0.6, 0.3, True)
    build.keep_ranked(x_RC[4:], 6, KEY, 0.6, 0.3, True)
    assert x_RC.tobytes() == expected_RC.tobytes()


def test_one_column_has_the_lowest_chance(build: ModuleType) -> None:
    x_RC = np.ones((4000, 1), np.float32)
    build.keep_ranked(x_RC, 0, KEY, 0.5, 0.25, False)
    assert 900 < np.count_nonzero(x_RC) < 1100


def elected(column: list[float], factors: list[float], weights: list[float], normalize: bool) -> float:
    addends = [x * (factor * portable.UNITS) for x, factor in zip(column, factors, strict=True)]
    positive = sum(round(a) for a in addends) >= 0
    agree = [a > 0 if positive else a < 0 for a in addends]
    numerator = sum(round(a) for a, yes in zip(addends, agree, strict=True) if yes)
    divisor = sum(round(w * portable.UNITS) for w, yes in zip(weights, agree, strict=True) if yes)
    return float(Fraction(numerator) / (divisor if normalize and divisor else Fraction(portable.UNITS)))


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 5)),
        elements=st.one_of(st.integers(-3, 3).map(float), st.floats(-100, 100, width=32)),
    ),
    st.booleans(),
    st.data(),
)
def test_signs_are_elected(rows_KN: F32Array, normalize: bool, data: st.DataObject) -> None:
    num_rows, size = rows_KN.shape
    numbers = st.lists(st.sampled_from([1.0, 0.5, 0.3, -1.0, 2.0, 0.0]), min_size=num_rows, max_size=num_rows)
    factors, weights = data.draw(numbers), data.draw(numbers)
    order = data.draw(st.permutations(range(num_rows)))
    expected = [elected(column, factors, weights, normalize) for column in rows_KN.T.astype(float).tolist()]
    for module in BUILDS:
        out_N = np.empty(size)
        for turn in (list(range(num_rows)), list(order)):
            module.elect(rows_KN[turn], np.array(factors)[turn], np.array(weights)[turn], out_N, normalize)
            assert out_N.tolist() == expected


@given(st.integers(1, 12), st.integers(0, 1 << 32))
def test_order_statistics(num_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows_KN = rng.integers(-4, 5, (num_rows, 9)).astype(np.float32) / 4  # sums of quarters are exact
    trim = int(rng.integers(0, (num_rows - 1) // 2 + 1))
    kept_KN = np.sort(rows_KN, axis=0)[trim : num_rows - trim].astype(np.float64)
    for module in BUILDS:
        out_N, short_N = np.empty(9), np.empty(9, np.float32)
        module.median(rows_KN, out_N)
        assert (out_N == np.median(rows_KN.astype(np.float64), axis=0)).all()
        module.trimmed_mean(rows_KN, trim, out_N)
        assert (out_N == kept_KN.sum(axis=0) / len(kept_KN)).all()
        module.variance(rows_KN, short_N)
        assert np.allclose(short_N, np.var(rows_KN.astype(np.float64), axis=0), rtol=1e-6, atol=1e-12)


def test_order_statistics_are_blind_to_the_order_of_rows(build: ModuleType) -> None:
    rng = np.random.default_rng(0)
    rows_KN = rng.standard_normal((7, 500)).astype(np.float32)
    rows_KN[rng.random(rows_KN.shape) < 0.3] *= np.float32(-0.0)
    shuffled_KN = rng.permuted(rows_KN, axis=0)
    for name in ("median", "trimmed_mean of all", "variance"):
        assert spelt(CALLS[name](build, rows_KN)) == spelt(CALLS[name](build, shuffled_KN))


def test_gram_is_near_the_true_dot_products(build: ModuleType) -> None:
    rows_KN = np.random.default_rng(0).standard_normal((3, 10_000)).astype(np.float32)
    blocks = build.gram(rows_KN)
    assert blocks.shape == (3, 6)
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    for column, (i, j) in enumerate(pairs):
        true = math.fsum((rows_KN[i, 4096:8192].astype(float) * rows_KN[j, 4096:8192]).tolist())
        assert blocks[1, column] == pytest.approx(true, rel=1e-13, abs=1e-12)
    assert build.abs_sum(rows_KN[0])[2] == pytest.approx(
        math.fsum(np.abs(rows_KN[0, 8192:]).tolist()), rel=1e-14
    )


def test_lanes_are_folded_by_halves(build: ModuleType) -> None:
    """Of 1e100 and its negative, 16 lanes apart, what lies between is lost, and only that."""
    x_N, ones_N = np.zeros(40, np.float32), np.ones(40, np.float32)
    x_N[[0, 16, 1, 32]] = [1e30, -1e30, 3, 1]  # lane 0 is 1e30 + 1 = 1e30
    assert build.gram(np.stack([x_N, ones_N]))[0, 1] == 3
    assert build.gram(np.stack([x_N, ones_N]), 17)[:, 1].tolist() == [3, 1, 0]


def test_keys_are_counted_in_bins(build: ModuleType) -> None:
    x_N = np.arange(20, dtype=np.uint32).view(np.float32)
    counts_B = np.zeros(3, np.uint32)
    assert build.count_keys(-x_N, 5, 2, counts_B) == 3
    assert build.count_keys(x_N, 5, 2, counts_B) == 3
    assert counts_B.tolist() == [8, 8, 8]


# ---- which ones run ----


def chosen(wish: str, where: Path = ROOT) -> subprocess.CompletedProcess[str]:
    program = "from consortium.merging import kernels; print(kernels.CHOSEN, kernels.grid_add.__module__)"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "SPRACHBUND_KERNELS": wish, "PYTHONPATH": str(where)},
        cwd=where,
        capture_output=True,
        text=True,
    )


def test_the_choice_can_be_forced() -> None:
    assert chosen("portable").stdout.split() == ["portable", "consortium.merging.kernels.portable"]
    best = "portable" if chosen("native").returncode else "native"
    assert chosen("auto").stdout.split() == [best, f"consortium.merging.kernels.{best}"]
    assert "BadInput: SPRACHBUND_KERNELS=fast: it may be" in chosen("fast").stderr


@needs_native
def test_a_build_of_other_source_is_not_used(tmp_path: Path) -> None:
    assert chosen("native").stdout.split() == ["native", "consortium.merging.kernels.native"]
    shutil.copytree(
        ROOT / "consortium", tmp_path / "consortium", ignore=shutil.ignore_patterns("__pycache__")
    )
    with open(tmp_path / "consortium/merging/kernels/kernels.c", "a") as file:
        file.write("/* changed since */\n")
    assert chosen("auto", tmp_path).stdout.split()[0] == "portable"
    assert "was built from another kernels.c; install again, or set auto" in chosen("native", tmp_path).stderr
    for library in (tmp_path / "consortium/merging/kernels").glob("_kernels*"):
        library.unlink()
    assert "were not built; install again where there is a C compiler" in chosen("native", tmp_path).stderr


def test_a_step_in_one_kernel_is_the_outer_step(build: ModuleType) -> None:
    rng = np.random.default_rng(5)
    theta_N, before_N = rng.standard_normal((2, 700)).astype(np.float32)
    merged_N = np.rint(rng.standard_normal(700) * 2.0**36)
    for state_SN in (None, [before_N]):
        for nesterov in (True, False):
            step = OuterStep(learning_rate=0.7, momentum=0.9, nesterov=nesterov)
            next_N, kept_N = np.empty(700, np.float32), np.empty(700, np.float32)
            before = None if state_SN is None else before_N
            build.sgd_step(theta_N, merged_N, 2.0**-36 / 5, before, 0.7, 0.9, nesterov, next_N, kept_N)
            wanted_N, (kept,) = outer_step(theta_N, merged_N * (2.0**-36 / 5), state_SN, step)
            assert next_N.tobytes() == wanted_N.astype(np.float32).tobytes()
            assert kept_N.tobytes() == kept.astype(np.float32).tobytes()


def test_sums_of_rows_by_their_definition(build: ModuleType) -> None:
    rng = np.random.default_rng(6)
    rows_KN = rng.standard_normal((5, 1000)).astype(np.float32)
    rows, factors, base_N = mixed(rows_KN), factors_of(rows_KN), base_like(rows_KN)
    total_N, out_N = np.full(1000, np.nan), np.full(1000, np.nan, np.float32)
    peaks = build.sum_rows(rows, base_N, factors, total_N)
    assert build.sum_rows_onto(rows, base_N, factors, 0.25, base_N, out_N) == peaks
    wanted_N, largest = np.zeros(1000), []
    for (values_N, is_relative), factor in zip(rows, factors, strict=True):
        x_N = values_N
        if values_N.dtype == np.uint16:
            x_N = (values_N.astype(np.uint32) << np.uint32(16)).view(np.float32)
        x_N = x_N - base_N if is_relative else x_N
        wanted_N += np.rint(x_N.astype(np.float64) * factor)
        largest.append(float(np.abs(x_N).max()))
    assert total_N.tobytes() == wanted_N.tobytes() and peaks == largest
    assert out_N.tobytes() == (wanted_N * 0.25 + base_N).astype(np.float32).tobytes()


def test_a_sum_of_no_rows_is_nothing(build: ModuleType) -> None:
    total_N, out_N, base_N = (
        np.full(1000, np.nan),
        np.full(1000, np.nan, np.float32),
        base_like(np.ones((1, 1000))),
    )
    assert build.sum_rows([], None, [], total_N) == []
    assert total_N.tobytes() == bytes(8000)
    assert build.sum_rows_onto([], None, [], 0.25, base_N, out_N) == []
    assert out_N.tobytes() == base_N.tobytes()


def test_what_is_not_finite_is_told(build: ModuleType) -> None:
    raw_N = np.zeros(700, np.uint16)
    base_N, out_N, total_N = np.zeros(700, np.float32), np.zeros(700, np.float32), np.zeros(700)
    assert build.subtract_bf16(raw_N, base_N, out_N) is True
    for bits in (0x7F80, 0xFF80, 0x7FC0, 0x7F81):
        raw_N[699] = bits
        assert build.subtract_bf16(raw_N, base_N, out_N) is False
        (peak,) = build.sum_rows([Row(raw_N, False)], None, [1.0], total_N)
        assert not peak < math.inf
