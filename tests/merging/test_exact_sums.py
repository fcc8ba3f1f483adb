"""Sums on the grid: right, and blind to order."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from consortium.errors import BadInput, Refused
from consortium.merging.exact import GRID, shares_of, weighted_sum

deltas = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-100, 100, width=32),
)


@given(deltas, st.data())
def test_near_the_true_sum_and_the_same_bits_in_any_order(deltas_KN: np.ndarray, data: st.DataObject) -> None:
    num_rows = len(deltas_KN)
    weights = data.draw(st.lists(st.integers(1, 10**12), min_size=num_rows, max_size=num_rows))
    order = data.draw(st.permutations(range(num_rows)))
    shares_K = shares_of(weights)

    merged_N = weighted_sum(deltas_KN, shares_K)

    assert weighted_sum(deltas_KN[order], shares_K[order]).tobytes() == merged_N.tobytes()
    for column, merged in zip(deltas_KN.T, merged_N, strict=True):
        true = math.fsum(share * float(x) for share, x in zip(shares_K, column, strict=True))
        assert abs(merged - true) <= num_rows * GRID / 2 + 1e-15 * sum(map(abs, column.tolist()))


def test_plain_float_sums_would_have_failed_the_order_test() -> None:
    deltas_KN = np.random.default_rng(0).standard_normal((8, 1000)).astype(np.float32)
    assert deltas_KN.sum(0).tobytes() != deltas_KN[::-1].sum(0).tobytes()
    shares_K = shares_of([1] * 8)
    assert weighted_sum(deltas_KN, shares_K).tobytes() == weighted_sum(deltas_KN[::-1], shares_K).tobytes()


def test_exact_up_to_the_edge_of_the_range() -> None:
    edge = np.float32(2.0**15 - 2.0**-8)  # 4 rows at share 1: the limit is 2^15 each
    rows = [[edge], [edge], [edge], [-edge + 2.0**-8]]
    expected = 2 * float(edge) + 2.0**-8
    for seed in range(10):
        random.Random(seed).shuffle(rows)
        assert weighted_sum(np.array(rows, np.float32), np.ones(4))[0] == expected


@pytest.mark.parametrize("value", [2.0**15, -(2.0**15), 3e38, float("nan"), float("inf"), -float("inf")])
def test_beyond_the_range_is_refused(value: float) -> None:
    with pytest.raises(Refused, match=r"delta 2 of 4 .* range of exact sums"):
        weighted_sum(np.array([[0.0], [value], [0.0], [0.0]], np.float32), np.ones(4))


def test_shares_are_the_nearest_floats_however_large_the_weights() -> None:
    assert shares_of([1, 2]).tolist() == [1 / 3, 2 / 3]
    assert shares_of([10**30, 2 * 10**30]).tolist() == [1 / 3, 2 / 3]
    assert shares_of([0, 5]).tolist() == [0.0, 1.0]


def test_weights_that_mean_nothing_are_refused() -> None:
    with pytest.raises(Refused, match="no contribution"):
        shares_of([])
    with pytest.raises(Refused, match="all 2 contributions are zero"):
        shares_of([0, 0])
    with pytest.raises(BadInput, match="weight -1"):
        shares_of([3, -1])
