"""Sums on the grid: right, and blind to order."""

import random
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from consortium.errors import BadInput, Refused
from consortium.merging.exact import GRID, Factors, exact_factors, unit_bits, weighted_sum

deltas = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-100, 100, width=32),
)


def summed(rows_KN: np.ndarray, factors: Factors) -> np.ndarray:
    out_N = np.full(rows_KN.shape[1], np.nan)
    return out_N * weighted_sum(rows_KN, factors, out_N)


def means(weights: Sequence[float]) -> Factors:
    return exact_factors(weights, sum(map(Fraction, weights)))


@given(deltas, st.data())
def test_near_the_true_mean_and_the_same_bits_in_any_order(
    deltas_KN: np.ndarray, data: st.DataObject
) -> None:
    num_rows = len(deltas_KN)
    weight = st.one_of(st.integers(1, 10**12), st.floats(1e-6, 10))
    weights = data.draw(st.lists(weight, min_size=num_rows, max_size=num_rows))
    order = data.draw(st.permutations(range(num_rows)))

    merged_N = summed(deltas_KN, means(weights))

    assert summed(deltas_KN[order], means([weights[k] for k in order])).tobytes() == merged_N.tobytes()
    total = sum(map(Fraction, weights))
    for column, merged in zip(deltas_KN.T.tolist(), merged_N.tolist(), strict=True):
        true = sum(Fraction(w) / total * Fraction(x) for w, x in zip(weights, column, strict=True))
        # the unit is at most twice the largest weight, which is at most the total
        assert abs(merged - true) <= num_rows * GRID + 1e-15 * sum(map(abs, column))


def test_plain_float_sums_would_have_failed_the_order_test() -> None:
    deltas_KN = np.random.default_rng(0).standard_normal((8, 1000)).astype(np.float32)
    assert deltas_KN.sum(0).tobytes() != deltas_KN[::-1].sum(0).tobytes()
    assert summed(deltas_KN, means([1] * 8)).tobytes() == summed(deltas_KN[::-1], means([1] * 8)).tobytes()


def test_exact_up_to_the_edge_of_the_range() -> None:
    edge = np.float32(2.0**15 - 2.0**-8)  # 4 rows at factor 1: the limit is 2^15 each
    rows = [[edge], [edge], [edge], [-edge + 2.0**-8]]
    expected = 2 * float(edge) + 2.0**-8
    for seed in range(10):
        random.Random(seed).shuffle(rows)
        assert summed(np.array(rows, np.float32), exact_factors([1] * 4, None))[0] == expected


@pytest.mark.parametrize("value", [2.0**15, -(2.0**15), 3e38, float("nan"), float("inf"), -float("inf")])
def test_beyond_the_range_is_refused(value: float) -> None:
    with pytest.raises(Refused, match=r"input 2 of 4 .* range of exact sums"):
        summed(np.array([[0.0], [value], [0.0], [0.0]], np.float32), exact_factors([1] * 4, None))


def test_weights_are_scaled_by_a_power_of_two_however_large() -> None:
    assert means([1, 2]) == Factors((0.5, 1.0), 2 / 3)
    assert means([10**30, 2 * 10**30]).per_row == (10**30 / 2**101, 2 * 10**30 / 2**101)
    assert exact_factors([0.25, -0.5], None) == Factors((0.5, -1.0), 0.5)
    assert means([1, 1, 1]) == Factors((1.0, 1.0, 1.0), 1 / 3)  # however many: what stored sums rest on
    assert [unit_bits([w]) for w in (1, 2, 3, 0.75, 0.5, 0.51, -4, 0)] == [0, 1, 2, 0, -1, 0, 2, 0]


def test_weights_that_mean_nothing_are_refused() -> None:
    with pytest.raises(Refused, match="no contribution"):
        exact_factors([], None)
    with pytest.raises(Refused, match="all 2 contributions sum to zero"):
        means([0, 0])
    with pytest.raises(Refused, match="all 2 contributions sum to zero"):
        means([1, -1])
    with pytest.raises(BadInput, match="weight nan"):
        exact_factors([3, float("nan")], None)
