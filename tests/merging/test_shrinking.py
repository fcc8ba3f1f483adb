"""Model stock and norm-preserving averaging against whole vectors and known geometry."""

import numpy as np
import pytest
import vector_references as reference
from hypothesis import assume, given
from hypothesis import strategies as st
from vector_references import Vectors, assert_merges_to, gram_of, unhurried, vector_sets, weights_for

from consortium.errors import BadInput, Refused
from consortium.merging.geometry.shrinking import model_stock, norm_preserving


@unhurried
@given(vector_sets(2))
def test_model_stock_is_that_of_the_vectors(rows_KN: Vectors) -> None:
    coefficients_K = model_stock(gram_of(rows_KN))
    assume(np.abs(coefficients_K).max() < 1e3)  # beside the pole rounding decides
    got_N, want_N = coefficients_K @ rows_KN, reference.model_stock(rows_KN)
    scale = max(1.0, np.abs(coefficients_K).max()) * np.linalg.norm(rows_KN, axis=1).sum()  # t may be 0
    assert np.linalg.norm(got_N - want_N) <= 1e-9 * scale


def test_model_stock_follows_what_agrees_and_not_what_does_not() -> None:
    assert model_stock(np.ones((3, 3))) == pytest.approx([1 / 3] * 3)  # the same delta: all of it
    assert model_stock(np.eye(3)).tolist() == [0.0] * 3  # unrelated languages: the base
    assert model_stock(np.array([[1.0, 0.5], [0.5, 1.0]])) == pytest.approx([1 / 3] * 2)  # t = 2/3
    assert model_stock(np.array([[1.0, -0.2], [-0.2, 1.0]])) == pytest.approx([-0.25] * 2)  # t = -1/2


def test_model_stock_at_its_pole_is_the_base() -> None:
    assert model_stock(np.array([[1.0, -1.0], [-1.0, 1.0]])).tolist() == [0.0, 0.0]


def test_model_stock_sees_tiny_deltas_as_it_sees_large_ones() -> None:
    gram = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert model_stock(gram * 2.0**-60).tolist() == model_stock(gram).tolist()


def test_a_zero_delta_is_perpendicular_to_all() -> None:
    gram = np.zeros((3, 3))
    gram[:2, :2] = 1.0
    assert model_stock(gram) == pytest.approx([1 / 3 / (1 + 2 / 3)] * 3)
    assert model_stock(np.zeros((2, 2))).tolist() == [0.0, 0.0]


def test_model_stock_wants_two() -> None:
    with pytest.raises(Refused, match="has one"):
        model_stock(np.ones((1, 1)))


def test_mergekit_gets_the_same_model_stock() -> None:
    pytest.importorskip("mergekit", reason="the oracle is an extra of its own")
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    from mergekit.merge_methods.model_stock import model_stock_merge_method

    rng = np.random.default_rng(5)
    rows_KN = rng.standard_normal((4, 33)) + rng.standard_normal(33)
    inputs = [SimpleNamespace(tensor=torch.from_numpy(row_N)) for row_N in rows_KN]
    base = SimpleNamespace(tensor=torch.zeros(33, dtype=torch.float64))
    group = SimpleNamespace(base=base, non_base=inputs)
    theirs_N = model_stock_merge_method.implementation(group).numpy()
    assert model_stock(gram_of(rows_KN)) @ rows_KN == pytest.approx(theirs_N, rel=1e-12, abs=1e-12)


@unhurried
@given(st.data(), vector_sets())
def test_norm_preserving_is_that_of_the_vectors(data: st.DataObject, rows_KN: Vectors) -> None:
    weights = data.draw(weights_for(len(rows_KN)))
    got_K = norm_preserving(gram_of(rows_KN), weights)
    assert_merges_to(got_K, rows_KN, reference.norm_preserving(rows_KN, weights))


def test_perpendicular_deltas_keep_the_length_that_a_mean_would_halve() -> None:
    merged_N = norm_preserving(np.eye(4) * 9.0, [1.0] * 4) * 3.0
    assert np.linalg.norm(merged_N) == pytest.approx(3.0)
    assert np.linalg.norm(np.full(4, 0.25) * 3.0) == pytest.approx(1.5)


def test_where_directions_balance_nothing_is_restored() -> None:
    opposite = np.array([[4.0, -2.0], [-2.0, 1.0]])  # 2 and -1
    assert norm_preserving(opposite, [1.0, 1.0]).tolist() == [0.5, 0.5]
    assert norm_preserving(np.zeros((2, 2)), [1.0, 3.0]).tolist() == [0.25, 0.75]


def test_norm_preserving_wants_shares() -> None:
    with pytest.raises(BadInput, match=r"weight -0\.5 is not a share"):
        norm_preserving(np.eye(2), [1.0, -0.5])
    with pytest.raises(Refused, match="all 2 contributions are zero"):
        norm_preserving(np.eye(2), [0.0, 0.0])


@unhurried
@given(st.data(), vector_sets(2))
def test_order_changes_no_bit_of_a_coefficient(data: st.DataObject, rows_KN: Vectors) -> None:
    order = data.draw(st.permutations(range(len(rows_KN))))
    weights = np.array(data.draw(weights_for(len(rows_KN))))
    gram = gram_of(rows_KN)
    turned = gram[np.ix_(order, order)]
    assert model_stock(gram)[order].tolist() == model_stock(turned).tolist()
    assert norm_preserving(gram, weights)[order].tolist() == norm_preserving(turned, weights[order]).tolist()
