"""Merging along the sphere, from inner products, against whole vectors, mergekit and known geometry."""

import math
from typing import Any

import numpy as np
import pytest
import vector_references as reference
from hypothesis import given
from hypothesis import strategies as st
from vector_references import Vectors, assert_merges_to, gram_of, unhurried, vector_sets, weights_for

from consortium.errors import BadInput, Refused
from consortium.merging.exact import F64Array
from consortium.merging.geometry.span import angle_of, cosine, length, rows_of, shares_of_weights, sine
from consortium.merging.geometry.spherical import karcher, multislerp, nuslerp, slerp

T = st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0, 1.5])


@unhurried
@given(vector_sets(2, 2), T)
def test_slerp_is_that_of_the_vectors(rows_KN: Vectors, t: float) -> None:
    assert_merges_to(slerp(gram_of(rows_KN), t), rows_KN, reference.slerp(rows_KN[0], rows_KN[1], t))


@unhurried
@given(vector_sets(2, 2), weights_for(2))
def test_nuslerp_is_that_of_the_vectors(rows_KN: Vectors, weights: list[float]) -> None:
    want_N = reference.nuslerp(rows_KN[0], rows_KN[1], weights)
    assert_merges_to(nuslerp(gram_of(rows_KN), weights), rows_KN, want_N)


@unhurried
@given(st.data(), vector_sets(2), st.booleans(), st.sampled_from([1e-8, 1e-3]))
def test_multislerp_is_that_of_the_vectors_without_its_detour_through_the_tangent_space(
    data: st.DataObject, rows_KN: Vectors, normalize: bool, eps: float
) -> None:
    weights = data.draw(weights_for(len(rows_KN)))
    want_N = reference.multislerp(rows_KN, weights, normalize, eps)
    if want_N is not None:
        got_K = multislerp(gram_of(rows_KN), weights, normalize, eps)
        # its cos(eps) and the tangent's rounding are all that is left of the detour
        scale = np.abs(got_K) @ np.linalg.norm(rows_KN, axis=1)
        assert np.linalg.norm(got_K @ rows_KN - want_N) <= (1e-9 + eps * eps) * scale
    elif len(rows_KN) == 2 or not rows_KN.any():
        shares = np.array(weights) / (sum(weights) if normalize else 1.0)
        assert_merges_to(multislerp(gram_of(rows_KN), weights, normalize, eps), rows_KN, shares @ rows_KN)
    else:
        with pytest.raises(Refused, match=r"balance out.*change the weights"):
            multislerp(gram_of(rows_KN), weights, normalize, eps)


@unhurried
@given(st.data(), vector_sets(2), st.sampled_from([(10, 1e-5), (0, 1e-5), (1, 1e-3), (40, 1e-6)]))
def test_karcher_is_that_of_the_vectors(
    data: st.DataObject, rows_KN: Vectors, limits: tuple[int, float]
) -> None:
    weights = data.draw(weights_for(len(rows_KN)))
    got_K = karcher(gram_of(rows_KN), weights, *limits)
    assert_merges_to(got_K, rows_KN, reference.karcher(rows_KN, weights, *limits))


@unhurried
@given(st.data(), vector_sets(2))
def test_order_changes_no_bit_of_a_coefficient(data: st.DataObject, rows_KN: Vectors) -> None:
    order = data.draw(st.permutations(range(len(rows_KN))))
    weights = np.array(data.draw(weights_for(len(rows_KN))))
    gram_KK = gram_of(rows_KN)
    assert (
        karcher(gram_KK, weights)[order].tolist()
        == karcher(gram_KK[np.ix_(order, order)], weights[order]).tolist()
    )

    def merged(gram: F64Array, weights: F64Array) -> list[float] | str:
        try:
            return multislerp(gram, weights).tolist()
        except Refused as refusal:
            return str(refusal)

    once, again = merged(gram_KK, weights), merged(gram_KK[np.ix_(order, order)], weights[order])
    assert again == (once if isinstance(once, str) else [once[k] for k in order])


def test_a_quarter_turn_keeps_its_length() -> None:
    perpendicular = np.eye(2)
    assert slerp(perpendicular, 0.5) == pytest.approx([math.sqrt(0.5)] * 2, rel=1e-15)
    assert nuslerp(perpendicular, [1.0, 2.0]) == pytest.approx([0.5, math.sqrt(0.75)], rel=1e-15)
    assert multislerp(perpendicular, [1.0, 1.0]) == pytest.approx([math.sqrt(0.5)] * 2, rel=1e-7)
    assert karcher(perpendicular) == pytest.approx([math.sqrt(0.5)] * 2, rel=1e-15)


def test_three_points_meet_in_the_middle_of_the_arc_that_a_plain_mean_misses() -> None:
    """On a circle the Karcher mean is the mean of the angles: (0 + 0 + 90) / 3 degrees."""
    rows_KN = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    got_N = karcher(gram_of(rows_KN)) @ rows_KN
    assert got_N == pytest.approx([math.cos(math.pi / 6), 0.5], abs=1e-9)


def test_parallel_and_opposite_pairs_are_interpolated_linearly() -> None:
    for factor in (2.0, -1.0):
        gram = gram_of(np.array([[3.0, 4.0], [3.0 * factor, 4.0 * factor]]))
        assert slerp(gram, 0.25).tolist() == [0.75, 0.25]
        assert nuslerp(gram, [3.0, 1.0]).tolist() == [0.75, 0.25]
    opposite = gram_of(np.array([[3.0, 4.0], [-3.0, -4.0]]))
    assert multislerp(opposite, [1.0, 1.0]).tolist() == [0.5, 0.5]
    assert karcher(opposite).tolist() == [0.5, 0.5]  # no one mean: linear


def test_directions_that_balance_only_to_within_rounding_are_not_taken_for_a_direction() -> None:
    """Three float32 vectors in a plane at 120 degrees: what is left of their sum is noise."""
    turns = 0.3 + np.arange(3) * 2 * np.pi / 3
    rows_KN = np.stack([np.cos(turns), np.sin(turns)], 1).astype(np.float32).astype(np.float64)
    assert np.abs(rows_KN.sum(0)).max() > 0
    with pytest.raises(Refused, match="these 3 tensors balance out"):
        multislerp(gram_of(rows_KN), [1.0] * 3)
    assert karcher(gram_of(rows_KN)) == pytest.approx([1 / 3] * 3, rel=1e-15)


def test_a_direction_opposite_to_the_mean_does_not_pull() -> None:
    rows_KN = np.array([[1.0], [1.0], [-1.0]])
    assert karcher(gram_of(rows_KN)) @ rows_KN == pytest.approx([1.0])
    down = [math.sqrt(0.75), -0.5]
    rows_KN = np.array([[0.0, 1.0], down, down, [-1.0, 0.0]])  # at 90, -30, -30 and 180; their mean is at 0
    got_N = karcher(gram_of(rows_KN), max_iter=1) @ rows_KN
    assert math.degrees(math.atan2(got_N[1], got_N[0])) == pytest.approx((90 - 30 - 30) / 4)


def test_zero_vectors() -> None:
    zeros = np.zeros((3, 3))
    assert karcher(zeros).tolist() == [0.0] * 3
    assert multislerp(zeros, [1.0] * 3).tolist() == [1.0 / 3.0] * 3
    assert slerp(zeros[:2, :2], 0.5) == pytest.approx([math.sqrt(0.5)] * 2)  # whatever times zero
    assert nuslerp(zeros[:2, :2], [1.0, 1.0]) == pytest.approx([math.sqrt(0.5)] * 2)
    one_left = gram_of(np.array([[0.0, 0.0], [3.0, 4.0]]))
    assert karcher(one_left) == pytest.approx([0.0, 0.5])  # the other's direction at half its length


def test_one_vector_is_returned_as_it_is() -> None:
    assert multislerp(np.array([[4.0]]), [0.3]).tolist() == [1.0]
    assert karcher(np.array([[4.0]])).tolist() == [1.0]


def test_weights() -> None:
    gram = np.eye(2)
    assert nuslerp(gram, [1.0, -1.0]) == pytest.approx(nuslerp(gram, [1.0, 1.0]))  # no share: the middle
    with pytest.raises(Refused, match="sum to zero"):
        multislerp(gram, [1.0, -1.0])
    assert multislerp(gram, [1.0, 1.0], normalize_weights=False) == pytest.approx([math.sqrt(2)] * 2)
    with pytest.raises(BadInput, match=r"weight -1\.0"):
        karcher(gram, [1.0, -1.0])
    with pytest.raises(Refused, match="all 2 contributions are zero"):
        shares_of_weights([0.0, 0.0], 2)


def test_a_matrix_with_nan_is_refused() -> None:
    with pytest.raises(Refused, match="not finite"):
        karcher(np.array([[1.0, math.nan], [math.nan, 1.0]]))


@unhurried
@given(st.floats(-1.0, 1.0), st.floats(-50.0, 50.0))
def test_our_own_trigonometry_is_as_good_as_the_platforms(cos: float, angle: float) -> None:
    assert angle_of(cos) == pytest.approx(math.acos(cos), rel=2e-15, abs=1e-300)
    assert sine(angle) == pytest.approx(math.sin(angle), rel=0, abs=1e-14)
    assert cosine(angle) == pytest.approx(math.cos(angle), rel=0, abs=1e-14)


def test_bits_that_every_machine_must_show() -> None:
    """Nothing but IEEE arithmetic went in: these are not tolerances."""
    gram = np.array([[4.0, 1.0, -0.5], [1.0, 9.0, 2.0], [-0.5, 2.0, 1.0]])
    assert [value.hex() for value in slerp(gram[:2, :2], 0.3)] == [
        "0x1.afec503591feep-1",
        "0x1.a86c047914073p-2",
    ]
    assert [value.hex() for value in karcher(gram)] == [
        "0x1.1293a49720842p-1",
        "0x1.39d99475ed047p-2",
        "0x1.fd471c17aba7ep-1",
    ]


def test_length_is_zero_where_all_cancels() -> None:
    rows = rows_of(gram_of(np.array([[0.1, 0.2], [-0.3, -0.6]])))
    assert length([3.0, 1.0], rows) == 0.0
    assert length([3.0, 1.00001], rows) == pytest.approx(1e-5 * math.hypot(0.3, 0.6), rel=1e-4)


@pytest.fixture(scope="module")
def mergekit() -> Any:
    pytest.importorskip("mergekit", reason="the oracle is an extra of its own")
    from mergekit.merge_methods import karcher as k
    from mergekit.merge_methods import nuslerp as n
    from mergekit.merge_methods import slerp as s

    return {"slerp": s.slerp, "nuslerp": n.nuslerp, "karcher": k.karcher_merge_tensors}


@pytest.mark.parametrize("seed", range(8))
def test_mergekit_gets_the_same(mergekit: Any, seed: int) -> None:
    import torch

    rng = np.random.default_rng(seed)
    rows_KN = rng.standard_normal((4, 33)) * rng.uniform(0.1, 10.0, (4, 1)) + rng.standard_normal(33)
    if seed == 0:
        rows_KN[1] = rows_KN[0] * 1.5
    x = torch.from_numpy(rows_KN)
    gram = gram_of(rows_KN)
    t = torch.tensor([0.3], dtype=torch.float64)
    theirs_N = mergekit["slerp"](t, x[:1], x[1:2])[0].numpy()
    assert slerp(gram[:2, :2], 0.3) @ rows_KN[:2] == pytest.approx(theirs_N, rel=1e-9, abs=1e-9)
    theirs_N = mergekit["nuslerp"](0.75, x[0], x[1], flatten=True).numpy()
    assert nuslerp(gram[:2, :2], [1.0, 3.0]) @ rows_KN[:2] == pytest.approx(theirs_N, rel=1e-9, abs=1e-9)
    theirs_N = mergekit["karcher"](list(x), [0.25] * 4).numpy()
    assert karcher(gram) @ rows_KN == pytest.approx(theirs_N, rel=1e-9, abs=1e-9)
