"""Which contributions to believe: the guards and the robust rules, from the inner products of deltas.

They are meant for contributions of one cohort, trained on the same mixture of languages: ``cohort_weights``
applies a rule to each cohort and adds up the cohorts by weight. Across languages the rules do harm: where
one site alone has Albanian, its delta is the outlier, and Krum, the medians and the trimmed mean delete what
nobody else knows. A cohort of one or two has no majority, so its members pass as they are; what answers for
them is the evaluation of their language, not their likeness to others.

Each rule takes the Gram matrix of K deltas in float64 and gives a ``Choice``. Squared distances are
G_ii + G_jj - 2 G_ij. On whole weights that difference would lose its digits, for models share nearly all of
their length; deltas are about as long as their distances, and float64 keeps 14 digits or so of those. Norms
depend on the model and the learning rate, so that ``clip``, ``nu`` and ``tau`` count in median norms; the
papers have absolute numbers.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from consortium.errors import Refused
from consortium.merging.exact import F64Array
from consortium.merging.geometry.span import dot, length, lengths_of, rows_of, shares_of_weights
from consortium.merging.recipe import Guards

COHORT_MIN = 3  #: of two that differ nobody can say which is wrong


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What a rule makes of K contributions: numbers, and why, for people."""

    coefficients_K: F64Array  #: of a guard: what each delta is multiplied by, 0 leaves it out;
    #: of a rule: the merged delta is sum_k c_k D_k, and they sum to one, unless deltas were clipped
    reasons_K: tuple[str, ...]


Rule = Callable[[F64Array, list[float]], Choice]  #: of a cohort's Gram matrix and weights


def norm_clip(gram_KK: F64Array, clip: float) -> Choice:
    """Factors min(1, C / |D_k|), C = ``clip`` times the median norm. Bounds a delta, rejects none.

    Source: Sun et al. 2019, arXiv:1911.07963 (there with a fixed C).
    """
    sizes = lengths_of(rows_of(gram_KK))
    most = clip * statistics.median(sizes)
    factors, reasons = [], []
    for size in sizes:
        factors.append(1.0 if size <= most else most / size)
        rule = f"{clip:.3g} times its cohort's median norm is {most:.3g}"
        verb = "kept" if size <= most else f"scaled by {factors[-1]:.3g}"
        reasons.append(f"{verb}: its norm is {size:.3g}, {rule}")
    return Choice(np.array(factors), tuple(reasons))


def cosine_filter(gram_KK: F64Array, cosine_min: float) -> Choice:
    """Factors 1, or 0 where the cosine to the mean direction of the others is below ``cosine_min``.

    Directions, not deltas, are averaged: a long delta has no more say than a short one. A zero delta has no
    direction and stays. Raises Refused if nobody would be left.
    """
    gram = rows_of(gram_KK)
    sizes = lengths_of(gram)
    factors, reasons = [], []
    for k, (row, size) in enumerate(zip(gram, sizes, strict=True)):
        others = [1.0 / other if other and j != k else 0.0 for j, other in enumerate(sizes)]
        theirs = length(others, gram)
        if size == 0.0 or theirs == 0.0:
            factors.append(1.0)
            what = "its delta is zero" if size == 0.0 else "the others have no common direction"
            reasons.append(f"kept: {what}, so there is no cosine to judge by")
            continue
        cosine = dot(row, others) / (size * theirs)
        factors.append(float(cosine >= cosine_min))
        verdict = ("left out", "below") if cosine < cosine_min else ("kept", "not below")
        reasons.append(
            f"{verdict[0]}: its cosine {cosine:.2f} to the mean of its cohort's others is {verdict[1]} {cosine_min:g}"
        )
    if not any(factors):
        raise Refused(
            f"the guard `cosine_min: {cosine_min:g}` leaves nobody of a cohort of {len(gram)}: its members "
            "oppose each other; lower it, or look at them with `sprachbund merge --inspect`"
        )
    return Choice(np.array(factors), tuple(reasons))


def krum(gram_KK: F64Array, weights_K: Iterable[float], byzantine: int = 0) -> Choice:
    """The delta that lies closest to its K - f - 2 nearest: ``multi_krum`` that keeps one.

    Source: Blanchard et al. 2017, arXiv:1703.02757, section 4.
    """
    return multi_krum(gram_KK, weights_K, byzantine, keep=1)


def multi_krum(gram_KK: F64Array, weights_K: Iterable[float], byzantine: int = 0, keep: int = 0) -> Choice:
    """The weighted mean of the ``keep`` deltas whose K - f - 2 nearest lie closest, by summed squared distance.

    byzantine  f, how many may be wrong; K must be 2 f + 3 at least
    keep       0: all but f
    Those tied for the last places share them equally, where the paper takes the smallest name: with three
    members and f = 0 the closest two always tie, and krum is their mean. Weights have no say in who is kept.
    Raises Refused if there are too few. Source: Blanchard et al. 2017, arXiv:1703.02757.
    """
    gram = rows_of(gram_KK)
    count = len(gram)
    keep = keep or count - byzantine
    needed = max(2 * byzantine + 3, keep)
    if count < needed:
        raise Refused(
            f"Krum with `byzantine: {byzantine}` that keeps {keep} needs {needed} contributions of a cohort "
            f"and has {count}; lower these parameters, wait for more, or use geometric_median"
        )
    scores = []
    for i, row in enumerate(gram):
        squares = sorted(_square_distance(gram, i, j) for j in range(len(row)) if j != i)
        scores.append(math.fsum(squares[: count - byzantine - 2]))
    last = sorted(scores)[keep - 1]
    below = sum(score < last for score in scores)
    of_tied = (keep - below) / scores.count(last)
    places = [1.0 if score < last else of_tied if score == last else 0.0 for score in scores]
    shares = shares_of_weights(weights_K, count)
    if not dot(places, shares):
        raise Refused(
            f"all {keep} contributions that Krum keeps have weight zero; give them a weight, or keep more"
        )
    chosen = shares_of_weights([a * b for a, b in zip(places, shares, strict=True)], count)
    reasons = (
        f"{'left out' if not place else 'kept' if place == 1.0 else f'kept by {place:.2g}, tied'}: "
        f"Krum score {score:.3g}, the best {keep} of {count} reach to {last:.3g}"
        for place, score in zip(places, scores, strict=True)
    )
    return Choice(np.array(chosen), tuple(reasons))


def geometric_median(
    gram_KK: F64Array, weights_K: Iterable[float], nu: float = 1e-6, iterations: int = 8
) -> Choice:
    """The point z with the least weighted sum of distances, by smoothed Weiszfeld steps from the mean.

    z <- sum_k b_k D_k / sum_k b_k, b_k = w_k / max(nu, |z - D_k|); nu counts in median norms (of the deltas
    that are not zero). Stands against just less than half of the weight. Source: Pillutla et al. 2019,
    arXiv:1912.13445, algorithm 2.
    """
    gram = rows_of(gram_KK)
    shares = shares_of_weights(weights_K, len(gram))
    floor = nu * statistics.median([size for size in lengths_of(gram) if size] or [1.0])
    mix, distances = shares, _distances(shares, gram)
    for _ in range(iterations):
        pulls = [share / max(floor, each) for share, each in zip(shares, distances, strict=True)]
        mix = shares_of_weights(pulls, len(gram))
        distances = _distances(mix, gram)
    reasons = (
        f"weighs {coefficient:.3g} instead of {share:.3g}: at distance {distance:.3g} from the geometric median"
        for coefficient, share, distance in zip(mix, shares, distances, strict=True)
    )
    return Choice(np.array(mix), tuple(reasons))


def centered_clipping(
    gram_KK: F64Array,
    weights_K: Iterable[float],
    tau: float = 1.0,
    iterations: int = 3,
    starts_at_last: bool = False,
) -> Choice:
    """v <- v + sum_k w_k (D_k - v) min(1, tau / |D_k - v|), ``iterations`` times; tau in median norms.

    starts_at_last  the Gram matrix has one row more than there are weights: v to start from, the last
                    aggregate, which gets a coefficient and a reason too; otherwise v starts at zero
    Source: Karimireddy et al. 2021, arXiv:2012.10333, section 5 (weights equal there).
    """
    gram, weights = rows_of(gram_KK), list(weights_K)
    count = len(gram) - starts_at_last
    shares = shares_of_weights(weights, count)
    radius = tau * statistics.median(lengths_of(gram)[:count])
    centre = [0.0] * count + [1.0] * starts_at_last
    distances: list[float] = []
    factors: list[float] = []
    for _ in range(iterations):
        distances = _distances(centre, gram)[:count]
        factors = [1.0 if each <= radius else radius / each for each in distances]
        pulls = [share * factor for share, factor in zip(shares, factors, strict=True)]
        rest = 1.0 - math.fsum(pulls)
        centre = [rest * old + pull for old, pull in zip(centre, pulls + [0.0] * starts_at_last, strict=True)]
    reasons = [
        f"{'whole' if factor == 1.0 else f'clipped to {factor:.3g}'}: at distance {distance:.3g} from the centre, "
        f"{tau:.3g} times the median norm is {radius:.3g}"
        for factor, distance in zip(factors, distances, strict=True)
    ]
    reasons += ["where clipping starts from"] * starts_at_last
    return Choice(np.array(centre), tuple(reasons))


def guarded(gram_KK: F64Array, cohorts_K: Sequence[str], guards: Guards) -> Choice:
    """What each delta is multiplied by before any method sees it: clipped first, then filtered by cosine.

    0 means left out: its weight must not count either. Cohorts of fewer than three pass untouched.
    """
    factors_K = np.ones(len(cohorts_K))
    reasons = [""] * len(cohorts_K)
    for members in cohorts_of(cohorts_K):
        found = [_too_few(len(members))]
        if len(members) >= COHORT_MIN:
            gram_CC = gram_KK[np.ix_(members, members)]
            found = []
            if guards.clip is not None:
                found.append(norm_clip(gram_CC, guards.clip))
            if guards.cosine_min is not None:  # of directions: clipping before or after is the same
                found.append(cosine_filter(gram_CC, guards.cosine_min))
        for place, member in enumerate(members):
            for choice in found:
                factors_K[member] *= choice.coefficients_K[place]
            reasons[member] = "; ".join(choice.reasons_K[place] for choice in found)
    return Choice(factors_K, tuple(reasons))


def cohort_weights(
    gram_KK: F64Array, weights_K: Sequence[float], cohorts_K: Sequence[str], rule: Rule
) -> Choice:
    """Apply a rule within each cohort; a cohort's share of the whole is its members' share of the weights.

    cohorts_K  the name of each contribution's cohort; the same name for all: one cohort
    Cohorts of fewer than three pass as they are, by weight. Raises what the rule raises, BadInput for
    negative weights and Refused if all are zero.
    """
    shares = shares_of_weights(weights_K, len(cohorts_K))
    coefficients_K = np.zeros(len(cohorts_K))
    reasons = [""] * len(cohorts_K)
    for members in cohorts_of(cohorts_K):
        inner = [shares[member] for member in members]
        share = math.fsum(inner)
        choice = Choice(
            np.zeros(len(members)), ("left out: its whole cohort has weight zero",) * len(members)
        )
        if share > 0.0 and len(members) < COHORT_MIN:
            choice = Choice(np.array(inner) / share, _too_few(len(members)).reasons_K)
        elif share > 0.0:
            choice = rule(gram_KK[np.ix_(members, members)], inner)
        for place, member in enumerate(members):
            coefficients_K[member] = share * choice.coefficients_K[place]
            reasons[member] = choice.reasons_K[place]
    return Choice(coefficients_K, tuple(reasons))


def cohorts_of(cohorts_K: Sequence[str]) -> list[list[int]]:
    """The positions of each cohort's members; cohorts by name."""
    return [[k for k, each in enumerate(cohorts_K) if each == name] for name in sorted(set(cohorts_K))]


def _too_few(count: int) -> Choice:
    who = "alone in its cohort" if count == 1 else f"one of {count} in its cohort"
    reason = f"passes untouched: {who}, and a majority takes {COHORT_MIN}"
    return Choice(np.ones(count), (reason,) * count)


def _square_distance(gram: Sequence[Sequence[float]], i: int, j: int) -> float:
    return max(0.0, math.fsum((gram[i][i], gram[j][j], -2.0 * gram[i][j])))


def _distances(mix: Sequence[float], gram: Sequence[Sequence[float]]) -> list[float]:
    """From sum_k c_k x_k to every x_k: c'Gc - 2 (Gc)_k + G_kk."""
    along = [dot(mix, row) for row in gram]
    square = dot(mix, along)
    return [
        math.sqrt(max(0.0, math.fsum((square, -2.0 * each, row[k]))))
        for k, (each, row) in enumerate(zip(along, gram, strict=True))
    ]
