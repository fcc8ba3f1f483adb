"""Whom the robust rules believe, against whole vectors, and why they stay within a cohort."""

import math

import numpy as np
import pytest
import vector_references as reference
from hypothesis import assume, given
from hypothesis import strategies as st
from vector_references import Vectors, assert_merges_to, gram_of, unhurried, vector_sets, weights_for

from consortium.errors import BadInput, Refused
from consortium.merging.exact import F64Array
from consortium.merging.geometry.robust import (
    Choice,
    centered_clipping,
    cohort_weights,
    cohorts_of,
    cosine_filter,
    geometric_median,
    guarded,
    krum,
    multi_krum,
    norm_clip,
)
from consortium.merging.recipe import Guards


def liar_among(count: int, seed: int = 0) -> Vectors:
    """Honest deltas about a common direction, the last one turned round and ten times as long."""
    rng = np.random.default_rng(seed)
    rows_KN = rng.standard_normal(65) + 0.5 * rng.standard_normal((count, 65))
    rows_KN[-1] *= -10.0
    return rows_KN


@unhurried
@given(vector_sets(), st.sampled_from([0.5, 1.0, 1.5, 3.0]))
def test_clipping_is_that_of_the_vectors(rows_KN: Vectors, times: float) -> None:
    factors_K = norm_clip(gram_of(rows_KN), times).coefficients_K
    np.testing.assert_allclose(
        factors_K[:, None] * rows_KN, reference.clip(rows_KN, times), rtol=1e-9, atol=0
    )


@unhurried
@given(vector_sets(), st.sampled_from([-2.0, -0.5, 0.0, 0.3]))
def test_the_cosine_filter_is_that_of_the_vectors(rows_KN: Vectors, least: float) -> None:
    cosines = reference.cosines_to_others(rows_KN)
    assume(all(each is None or abs(each - least) > 1e-9 for each in cosines))
    want = [float(each is None or each >= least) for each in cosines]
    if any(want):
        assert cosine_filter(gram_of(rows_KN), least).coefficients_K.tolist() == want
    else:
        with pytest.raises(Refused, match=f"leaves nobody of a cohort of {len(rows_KN)}"):
            cosine_filter(gram_of(rows_KN), least)


@unhurried
@given(st.data(), vector_sets(3))
def test_multi_krum_is_that_of_the_vectors(data: st.DataObject, rows_KN: Vectors) -> None:
    count = len(rows_KN)
    byzantine = data.draw(st.integers(0, (count - 3) // 2))
    keep = data.draw(st.integers(1, count))
    weights = data.draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=count, max_size=count))
    scores_K = reference.krum_scores(rows_KN, byzantine)
    last = np.sort(scores_K)[keep - 1]
    near = 1e-9 * (np.linalg.norm(rows_KN, axis=1).max() ** 2 + 1e-300)
    below_K, tied_K = scores_K < last - near, np.abs(scores_K - last) <= near
    places_K = below_K + tied_K * (keep - below_K.sum()) / tied_K.sum()
    want_N = np.average(rows_KN, axis=0, weights=places_K * weights)
    choice = multi_krum(gram_of(rows_KN), weights, byzantine, keep)
    # Scores that are equal but for rounding may fall either side of the edge: hold it to them one by one.
    if tied_K.sum() == 1 or keep == count:
        assert_merges_to(choice.coefficients_K, rows_KN, want_N)
    assert not choice.coefficients_K[~below_K & ~tied_K].any()
    assert (choice.coefficients_K[below_K] > 0).all()
    assert math.fsum(choice.coefficients_K) == pytest.approx(1.0)


@unhurried
@given(st.data(), vector_sets(), st.sampled_from([(1e-6, 8), (0.1, 3), (1e-2, 40)]))
def test_the_geometric_median_is_that_of_the_vectors(
    data: st.DataObject, rows_KN: Vectors, limits: tuple[float, int]
) -> None:
    weights = data.draw(weights_for(len(rows_KN)))
    norms_K = np.linalg.norm(rows_KN, axis=1)
    floor = limits[0] * (np.median(norms_K[norms_K > 0]) if rows_KN.any() else 1.0)
    got_K = geometric_median(gram_of(rows_KN), weights, *limits).coefficients_K
    assert_merges_to(got_K, rows_KN, reference.geometric_median(rows_KN, weights, floor, limits[1]))


@unhurried
@given(st.data(), vector_sets(2), st.sampled_from([0.3, 1.0, 2.0]), st.integers(1, 5), st.booleans())
def test_centered_clipping_is_that_of_the_vectors(
    data: st.DataObject, rows_KN: Vectors, tau: float, iterations: int, starts_at_last: bool
) -> None:
    deltas_KN = rows_KN[:-1] if starts_at_last else rows_KN
    v_N = rows_KN[-1] if starts_at_last else np.zeros(rows_KN.shape[1])
    weights = data.draw(weights_for(len(deltas_KN)))
    radius = tau * float(np.median(np.linalg.norm(deltas_KN, axis=1)))
    choice = centered_clipping(gram_of(rows_KN), weights, tau, iterations, starts_at_last)
    want_N = reference.centered_clipping(deltas_KN, weights, radius, iterations, v_N)
    assert_merges_to(choice.coefficients_K, rows_KN, want_N)
    assert len(choice.reasons_K) == len(choice.coefficients_K) == len(rows_KN)


RULES = {
    "krum": krum,
    "multi_krum": multi_krum,
    "geometric_median": geometric_median,
    "centered_clipping": centered_clipping,
    "norm_clip": lambda gram_KK, _: norm_clip(gram_KK, 1.5),
    "cosine_filter": lambda gram_KK, _: cosine_filter(gram_KK, -2.0),
}


@pytest.mark.parametrize("name", RULES)
@unhurried
@given(st.data(), vector_sets(3))
def test_order_changes_no_bit_and_no_reason(name: str, data: st.DataObject, rows_KN: Vectors) -> None:
    order = data.draw(st.permutations(range(len(rows_KN))))
    weights = np.array([1.0 + 0.5 * k for k in range(len(rows_KN))])
    gram = gram_of(rows_KN)
    once, again = RULES[name](gram, weights), RULES[name](gram[np.ix_(order, order)], weights[order])
    assert once.coefficients_K[order].tolist() == again.coefficients_K.tolist()
    assert [once.reasons_K[k] for k in order] == list(again.reasons_K)


def test_a_liar_is_clipped_filtered_and_outvoted() -> None:
    rows_KN = liar_among(5)
    gram, weights = gram_of(rows_KN), [1.0] * 5
    clipped = norm_clip(gram, 1.5)
    assert clipped.coefficients_K[:4].tolist() == [1.0] * 4
    assert clipped.coefficients_K[4] < 0.3
    assert clipped.reasons_K[4].startswith(f"scaled by {clipped.coefficients_K[4]:.3g}: its norm is ")
    assert "1.5 times its cohort's median norm" in clipped.reasons_K[4]
    filtered = cosine_filter(gram, 0.0)
    assert filtered.coefficients_K.tolist() == [1.0] * 4 + [0.0]
    assert filtered.reasons_K[4].startswith("left out: its cosine -0.")
    assert filtered.reasons_K[4].endswith("to the mean of its cohort's others is below 0")
    assert filtered.reasons_K[0].startswith("kept: its cosine 0.")
    assert multi_krum(gram, weights, byzantine=1).coefficients_K.tolist() == [0.25] * 4 + [0.0]
    assert krum(gram, weights, byzantine=1).coefficients_K[4] == 0.0
    assert geometric_median(gram, weights).coefficients_K[4] < 0.03
    assert centered_clipping(gram, weights).coefficients_K[4] < 0.1


def test_the_geometric_median_holds_against_just_less_than_half_however_long() -> None:
    rows_KN = np.array([[1.0, 0.0], [1.0, 0.01], [1.0, -0.01], [-1e9, 0.0], [0.0, 1e9]])
    coefficients_K = geometric_median(gram_of(rows_KN), [1.0] * 5, iterations=50).coefficients_K
    assert coefficients_K @ rows_KN == pytest.approx([1.0, 0.0], abs=0.02)


def test_the_geometric_median_of_a_square_and_its_centre_is_the_centre() -> None:
    rows_KN = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 0.0]])
    choice = geometric_median(gram_of(rows_KN), [1.0] * 5)
    assert choice.coefficients_K @ rows_KN == pytest.approx([0.0, 0.0], abs=1e-15)
    assert choice.coefficients_K[4] > 0.99
    assert choice.reasons_K[0].startswith("weighs 1e-06 instead of 0.2: at distance 1 from")


def test_distances_of_almost_equal_deltas_survive_the_inner_products() -> None:
    """Deltas that differ by a millionth of their length: Krum must still see who is apart."""
    rng = np.random.default_rng(3)
    common_N = rng.standard_normal(1001)
    rows_KN = common_N + 1e-6 * rng.standard_normal((5, 1001))
    rows_KN[2] += 3e-6 * rng.standard_normal(1001)
    assert multi_krum(gram_of(rows_KN), [1.0] * 5, byzantine=1).coefficients_K[2] == 0.0


def test_krum_of_three_is_the_middle_of_the_closest_two() -> None:
    rows_KN = np.array([[1.0], [2.0], [9.0]])
    choice = krum(gram_of(rows_KN), [1.0, 1.0, 1.0])
    assert choice.coefficients_K.tolist() == [0.5, 0.5, 0.0]
    assert choice.reasons_K[0] == "kept by 0.5, tied: Krum score 1, the best 1 of 3 reach to 1"
    assert choice.reasons_K[2] == "left out: Krum score 49, the best 1 of 3 reach to 1"


def test_krum_wants_enough_to_outvote_the_wrong_ones() -> None:
    with pytest.raises(Refused, match=r"`byzantine: 1` that keeps 1 needs 5 .* has 4; .*geometric_median"):
        krum(np.eye(4), [1.0] * 4, byzantine=1)
    with pytest.raises(Refused, match="needs 6 contributions"):
        multi_krum(np.eye(5), [1.0] * 5, keep=6)
    with pytest.raises(Refused, match="have weight zero"):
        krum(gram_of(np.array([[1.0], [1.0], [1.0], [9.0]])), [0.0, 0.0, 0.0, 1.0])


def test_half_and_more_zero_deltas_set_the_measure() -> None:
    gram = gram_of(np.array([[0.0], [0.0], [5.0]]))
    assert norm_clip(gram, 2.0).coefficients_K.tolist() == [1.0, 1.0, 0.0]
    assert cosine_filter(gram, 0.0).coefficients_K.tolist() == [1.0, 1.0, 1.0]
    assert cosine_filter(gram, 0.0).reasons_K[0].startswith("kept: its delta is zero")
    assert cosine_filter(gram, 0.0).reasons_K[2].startswith("kept: the others have no common direction")
    assert (geometric_median(gram, [1.0] * 3).coefficients_K @ [0, 0, 5.0]) == pytest.approx(0.0, abs=0.05)
    assert geometric_median(np.zeros((3, 3)), [1.0] * 3).coefficients_K == pytest.approx([1 / 3] * 3)


# ---- cohorts


def specialists() -> tuple[Vectors, list[str]]:
    """Four sites train Finnish, one of them spoilt, and one alone trains Albanian: other coordinates move."""
    rng = np.random.default_rng(7)
    rows_KN = np.zeros((5, 40))
    rows_KN[:4, :20] = 1.0 + 0.1 * rng.standard_normal((4, 20))
    rows_KN[3, :20] *= -3.0
    rows_KN[4, 20:] = 1.0 + 0.1 * rng.standard_normal(20)
    return rows_KN, ["fi", "fi", "fi", "fi", "sq"]


@pytest.mark.parametrize("name", ["krum", "multi_krum", "geometric_median"])
def test_across_languages_a_rule_deletes_what_one_site_knows_and_cohorts_save_it(name: str) -> None:
    rows_KN, cohorts = specialists()
    rules = {
        "krum": lambda gram, weights: krum(gram, weights, byzantine=0),
        "multi_krum": lambda gram, weights: multi_krum(gram, weights, keep=2),
        "geometric_median": geometric_median,
    }
    albanian_N = np.repeat([0.0, 1.0], 20)
    across_N = rules[name](gram_of(rows_KN), [1.0] * 5).coefficients_K @ rows_KN
    within = cohort_weights(gram_of(rows_KN), [1.0] * 5, cohorts, rules[name])
    within_N = within.coefficients_K @ rows_KN
    fair = 0.2 * (albanian_N @ rows_KN[4])  # its share of a plain mean
    assert albanian_N @ across_N < 0.4 * fair
    assert albanian_N @ within_N == pytest.approx(fair)
    assert within.reasons_K[4] == "passes untouched: alone in its cohort, and a majority takes 3"
    assert within.coefficients_K[3] < 0.03  # the spoilt one is still caught
    assert within_N[:20].mean() == pytest.approx(0.8, abs=0.15)


def test_the_median_of_coordinates_deletes_it_altogether() -> None:
    rows_KN, cohorts = specialists()
    assert not np.median(rows_KN, axis=0)[20:].any()
    albanian, finnish = cohorts_of([{"fi": "suomi", "sq": "shqip"}[name] for name in cohorts])
    assert (albanian, finnish) == ([4], [0, 1, 2, 3])
    within_N = 0.8 * np.median(rows_KN[finnish], axis=0) + 0.2 * np.median(rows_KN[albanian], axis=0)
    assert within_N[20:].tolist() == (0.2 * rows_KN[4, 20:]).tolist()


def test_a_cohort_has_the_share_of_its_members_weights() -> None:
    gram, weights = gram_of(liar_among(6)), [1.0, 2.0, 3.0, 2.0, 4.0, 4.0]
    cohorts = ["b", "a", "b", "b", "c", "c"]
    seen: list[tuple[int, list[float]]] = []

    def first_only(gram_CC: F64Array, weights_C: list[float]) -> Choice:
        assert gram_CC.tolist() == gram[np.ix_([0, 2, 3], [0, 2, 3])].tolist()
        seen.append((len(gram_CC), weights_C))
        return Choice(np.array([1.0, 0.0, 0.0]), ("first", "not first", "not first"))

    choice = cohort_weights(gram, weights, cohorts, first_only)
    assert seen == [(3, [1 / 16, 3 / 16, 2 / 16])]  # called for the only cohort of three
    assert choice.coefficients_K.tolist() == [6 / 16, 2 / 16, 0.0, 0.0, 4 / 16, 4 / 16]
    assert choice.reasons_K[:3] == (
        "first",
        "passes untouched: alone in its cohort, and a majority takes 3",
        "not first",
    )
    assert choice.reasons_K[5] == "passes untouched: one of 2 in its cohort, and a majority takes 3"


def test_a_cohort_without_weight_has_no_say() -> None:
    choice = cohort_weights(np.eye(4), [0.0, 0.0, 0.0, 2.0], ["a", "a", "a", "b"], krum)
    assert choice.coefficients_K.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert choice.reasons_K[0] == "left out: its whole cohort has weight zero"
    with pytest.raises(Refused, match="all 2 contributions are zero"):
        cohort_weights(np.eye(2), [0.0, 0.0], ["a", "b"], krum)
    with pytest.raises(BadInput, match="weight nan"):
        cohort_weights(np.eye(2), [1.0, math.nan], ["a", "b"], krum)


def test_one_cohort_is_the_rule_itself() -> None:
    gram = gram_of(liar_among(5))
    whole, cohort = krum(gram, [1.0] * 5), cohort_weights(gram, [1.0] * 5, [""] * 5, krum)
    assert cohort.coefficients_K.tolist() == whole.coefficients_K.tolist()
    assert cohort.reasons_K == whole.reasons_K


def test_guards_clip_and_filter_within_cohorts() -> None:
    rows_KN = np.vstack([liar_among(4), 100.0 * np.ones((1, 65))])
    gram, cohorts = gram_of(rows_KN), ["fi"] * 4 + ["sq"]
    clipped = guarded(gram, cohorts, Guards(clip=1.5))
    assert clipped.coefficients_K.tolist()[:3] == [1.0] * 3 and 0 < clipped.coefficients_K[3] < 0.3
    assert clipped.coefficients_K[4] == 1.0  # a hundred times as long as the Finnish, and nobody's business
    both = guarded(gram, cohorts, Guards(clip=1.5, cosine_min=0.0))
    assert both.coefficients_K.tolist() == [1.0, 1.0, 1.0, 0.0, 1.0]
    assert "scaled by" in both.reasons_K[3] and "; left out: its cosine" in both.reasons_K[3]
    assert both.reasons_K[4].startswith("passes untouched: alone")
    rows_KN[3] *= -1.0  # long, but of everyone's opinion
    long_only = guarded(gram_of(rows_KN), cohorts, Guards(clip=1.5, cosine_min=0.0))
    assert long_only.coefficients_K.tolist() == clipped.coefficients_K.tolist()
    assert guarded(gram, cohorts, Guards()).coefficients_K.tolist() == [1.0] * 5
