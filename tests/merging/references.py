"""What a merge ought to give: every method as its paper or definition has it, on whole tensors, in float64.

Plain NumPy, written to be read: sorts, whole vectors; no arithmetic of ours is called. A case is one
tensor: ``rows`` are the models' weights, or their deltas from ``base``, in the order that the engine uses. What
comes out is the merged weights before any rounding.

One thing is the engine's own rule, not a paper's, and is written down here again: sums that elect a sign are
made on a grid of 2^-36, so that a sum of zero is zero in any order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import vector_references as vectors
from mask_references import breadcrumbs_mask, by_magnitude, drop, keep, magnitude_drop, same_l1, trim

from consortium.merging.recipe import OuterStep

F64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

GRID = 2.0**-36


@dataclass(frozen=True)
class Case:
    """One tensor to merge.

    rows    K arrays of the tensor's shape: weights, or deltas as float32 holds them
    own     K mappings of an input's own parameters
    shared  parameters of the method
    keys    K keys of random draws; unused by methods that draw nothing
    """

    base: F64Array | None
    rows: Sequence[F64Array]
    own: Sequence[Mapping[str, float]]
    shared: Mapping[str, float]
    keys: Sequence[int] = ()

    def each(self, name: str) -> list[float]:
        return [float(own[name]) for own in self.own]

    def onto_base(self, merged: F64Array) -> F64Array:
        return merged if self.base is None else self.base + merged


Reference = Callable[[Case], F64Array]


def rounded(values: F64Array, dtype: str) -> npt.NDArray[np.float32]:
    """What a file of ``dtype`` holds of ``values``: rounded to float32, that to ``dtype``; as float32."""
    single = torch.from_numpy(np.asarray(values, np.float64)).to(torch.float32)
    return single.to(getattr(torch, dtype)).to(torch.float32).numpy()


# How deltas become one


def _units(values: F64Array) -> npt.NDArray[np.int64]:
    return np.rint(values / GRID).astype(np.int64)


def _like(weights: Sequence[float], row: F64Array) -> F64Array:
    """Weights with an axis in front of those of ``row``."""
    return np.asarray(weights, np.float64).reshape(-1, *(1,) * row.ndim)


def agreement(weighted: F64Array) -> BoolArray:
    """Which of K addends have the sign of their sum; of zero sums it is plus; zeros agree with nobody."""
    sign = np.where(_units(weighted).sum(axis=0) >= 0, 1.0, -1.0)
    return np.sign(weighted) == sign


def fused(rows: Sequence[F64Array], weights: Sequence[float], elects: bool, normalize: bool) -> F64Array:
    """The sum of weight times row, of those that agree on the sign if it ``elects``; over their weights."""
    stacked, weights_K = np.stack(rows), _like(weights, rows[0])
    agree = agreement(weights_K * stacked) if elects else np.ones(stacked.shape, bool)
    total = (weights_K * stacked * agree).sum(axis=0)
    if not normalize:
        return total
    divisor = (weights_K * agree).sum(axis=0)
    return total / np.where(np.abs(divisor) < 1e-8, 1.0, divisor)


def _sparsified(case: Case, sparsify: Callable[[F64Array, int], F64Array], elects: bool) -> F64Array:
    """base + lambda times what is left of the deltas."""
    kept = [sparsify(row, k) for k, row in enumerate(case.rows)]
    merged = fused(kept, case.each("weight"), elects, bool(case.shared["normalize"]))
    return case.onto_base(case.shared["lambda"] * merged)


def linear(case: Case) -> F64Array:
    """Model soups (Wortsman et al. 2022, arXiv:2203.05482)."""
    total = sum(weight * row for weight, row in zip(case.each("weight"), case.rows, strict=True))
    return case.onto_base(np.asarray(total / sum(case.each("weight")) if case.shared["normalize"] else total))


def task_arithmetic(case: Case) -> F64Array:
    """Ilharco et al. 2023, arXiv:2212.04089."""
    return _sparsified(case, lambda row, k: row, elects=False)


def ties(case: Case) -> F64Array:
    def sparsify(row: F64Array, k: int) -> F64Array:
        kept = trim(row, case.own[k]["density"])
        return same_l1(row, kept) if case.shared["rescale"] else kept

    return _sparsified(case, sparsify, elects=True)


def _dare(case: Case, elects: bool) -> F64Array:
    def sparsify(row: F64Array, k: int) -> F64Array:
        return drop(row, case.own[k]["density"], case.keys[k], bool(case.shared["rescale"]))

    return _sparsified(case, sparsify, elects)


def _della(case: Case, elects: bool) -> F64Array:
    def sparsify(row: F64Array, k: int) -> F64Array:
        own = case.own[k]
        return magnitude_drop(row, own["density"], own["epsilon"], case.keys[k], bool(case.shared["rescale"]))

    return _sparsified(case, sparsify, elects)


def _breadcrumbs(case: Case, elects: bool) -> F64Array:
    def sparsify(row: F64Array, k: int) -> F64Array:
        kept = breadcrumbs_mask(row, case.own[k]["density"], case.own[k]["gamma"])
        return same_l1(row, kept) if case.shared["rescale"] else kept

    return _sparsified(case, sparsify, elects)


def sce(case: Case) -> F64Array:
    """Select, calculate, erase (Wan et al. 2024, arXiv:2408.07990).

    Select: the share ``select_topk`` of the elements that differ, by variance over the models as float32 has
    it. Calculate: each model weighs as much as its delta's mean square. Erase: minorities of sign.
    """
    rows = np.stack(case.rows)
    share = case.shared["select_topk"]
    if share < 1:
        variance = rows.var(axis=0).astype(np.float32).astype(np.float64)
        count = int(np.count_nonzero(variance) * share)
        chosen = keep(np.ones_like(variance), by_magnitude(variance)[:count])
        rows = rows * chosen
    energy = (rows**2).reshape(len(rows), -1).mean(axis=1) if rows[0].size else np.zeros(len(rows))
    weights = energy / energy.sum() if energy.sum() >= 1e-6 else np.full(len(rows), 1 / len(rows))
    agree, weights_K = agreement(rows), _like(weights, rows[0])
    merged = (weights_K * rows * agree).sum(axis=0) / np.maximum((weights_K * agree).sum(axis=0), 1e-6)
    return case.onto_base(merged)


def coordinate_median(case: Case) -> F64Array:
    """Yin et al. 2018, arXiv:1803.01498: of an even number the mean of the middle two."""
    return case.onto_base(np.median(np.stack(case.rows), axis=0))


def trimmed_mean(case: Case) -> F64Array:
    """Yin et al. 2018: without the share ``trim`` of the largest and of the smallest of each coordinate."""
    ordered = np.sort(np.stack(case.rows), axis=0)
    trimmed = int(case.shared["trim"] * len(ordered))
    return case.onto_base(ordered[trimmed : len(ordered) - trimmed].mean(axis=0))


# Methods of geometry: vectors of the whole tensor, or of its lines or columns


def _whole(case: Case, merge: Callable[[F64Array], F64Array]) -> F64Array:
    """``merge`` on all the tensor's elements as K vectors."""
    shape = case.rows[0].shape
    if not case.rows[0].size:
        return case.onto_base(case.rows[0])
    return case.onto_base(merge(np.stack([row.reshape(-1) for row in case.rows])).reshape(shape))


def _along(case: Case, axis: int, merge: Callable[[F64Array], F64Array]) -> F64Array:
    """``merge`` on every vector that lies along an axis."""
    moved = np.moveaxis(np.stack(case.rows), axis if axis < 0 else axis + 1, -1)
    merged = np.empty(moved.shape[1:])
    for place in np.ndindex(merged.shape[:-1]):
        merged[place] = merge(moved[(slice(None), *place)])
    return case.onto_base(np.moveaxis(merged, -1, axis))


def slerp(case: Case) -> F64Array:
    """From the base to the one model."""
    assert case.base is not None
    among = Case(None, [case.base, *case.rows], case.own, case.shared)
    return _whole(among, lambda rows_KN: vectors.slerp(rows_KN[0], rows_KN[1], case.shared["t"]))


def nuslerp(case: Case) -> F64Array:
    def merge(rows_KN: F64Array) -> F64Array:
        return vectors.nuslerp(rows_KN[0], rows_KN[1], case.each("weight"))

    if case.shared["nuslerp_flatten"] or case.rows[0].ndim < 2:
        return _whole(case, merge)
    return _along(case, 0 if case.shared["nuslerp_row_wise"] else -1, merge)


def multislerp(case: Case) -> F64Array:
    """Goddard 2025, step by step: means on the sphere through the tangent space at the mean direction."""
    if len(case.rows) == 1 or not any(row.any() for row in case.rows):
        return case.onto_base(case.rows[0])
    eps, weights_K = case.shared["eps"], np.array(case.each("weight"))
    weights_K = weights_K / weights_K.sum() if case.shared["normalize_weights"] else weights_K

    def merge(rows_KN: F64Array) -> F64Array:
        sizes_K = np.linalg.norm(rows_KN, axis=1)
        units_KN = rows_KN / (sizes_K + eps)[:, None]
        centre_N = weights_K @ units_KN
        centre_N /= np.linalg.norm(centre_N)
        tangent_N = weights_K @ (units_KN - np.outer(units_KN @ centre_N, centre_N))
        angle = np.linalg.norm(tangent_N) + eps
        return (weights_K @ sizes_K) * (np.cos(angle) * centre_N + np.sin(angle) / angle * tangent_N)

    return _whole(case, merge)


def karcher(case: Case) -> F64Array:
    equal, iterations, tol = [1.0] * len(case.rows), int(case.shared["max_iter"]), case.shared["tol"]
    return _whole(case, lambda rows_KN: vectors.karcher(rows_KN, equal, iterations, tol))


def model_stock(case: Case) -> F64Array:
    if not case.shared["filter_wise"] or case.rows[0].ndim < 2:
        return _whole(case, vectors.model_stock)
    return _along(case, -1, vectors.model_stock)


def norm_preserving(case: Case) -> F64Array:
    return _whole(case, lambda rows_KN: vectors.norm_preserving(rows_KN, case.each("weight")))


REFERENCES: Mapping[str, Reference] = {
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": lambda case: _dare(case, elects=False),
    "dare_ties": lambda case: _dare(case, elects=True),
    "della": lambda case: _della(case, elects=True),
    "della_linear": lambda case: _della(case, elects=False),
    "breadcrumbs": lambda case: _breadcrumbs(case, elects=False),
    "breadcrumbs_ties": lambda case: _breadcrumbs(case, elects=True),
    "sce": sce,
    "model_stock": model_stock,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "norm_preserving": norm_preserving,
    "coordinate_median": coordinate_median,
    "trimmed_mean": trimmed_mean,
}


# Rules that weigh whole deltas: K vectors of all the model's elements in, one out


def krum(rows_KN: F64Array, weights: Sequence[float], byzantine: int, keep: int) -> F64Array:
    """The mean of the ``keep`` with the best scores, which must not tie."""
    scores = vectors.krum_scores(rows_KN, byzantine)
    kept = np.argsort(scores)[:keep]
    return np.array(np.average(rows_KN[kept], axis=0, weights=np.array(weights)[kept]))


def geometric_median(rows_KN: F64Array, weights: Sequence[float], nu: float, iterations: int) -> F64Array:
    """``nu`` in median norms."""
    return vectors.geometric_median(rows_KN, weights, nu * _median_norm(rows_KN), iterations)


def centered_clipping(rows_KN: F64Array, weights: Sequence[float], tau: float, iterations: int) -> F64Array:
    """``tau`` in median norms; from zero."""
    zero_N = np.zeros(rows_KN.shape[1])
    return vectors.centered_clipping(rows_KN, weights, tau * _median_norm(rows_KN), iterations, zero_N)


def _median_norm(rows_KN: F64Array) -> float:
    return float(np.median(np.linalg.norm(rows_KN, axis=1)))


# The outer step


@dataclass(frozen=True)
class Stepped:
    theta: F64Array
    state: tuple[F64Array, ...]  #: momentum, then variance


def outer_step(
    theta: F64Array, delta: F64Array, state: tuple[F64Array, ...] | None, step: OuterStep
) -> Stepped:
    """One step of torch's SGD on the pseudo-gradient -delta, or of Reddi et al. 2021, algorithm 2."""
    g = -delta
    if step.optimizer == "sgd":
        b = g if state is None else step.momentum * state[0] + g
        move = g + step.momentum * b if step.nesterov else b
        return Stepped(theta - step.learning_rate * move, (b,))
    m, v = state if state is not None else (np.zeros_like(g), np.full_like(g, step.tau**2))
    m = step.beta1 * m + (1 - step.beta1) * g
    v = {
        "adagrad": v + g**2,
        "adam": step.beta2 * v + (1 - step.beta2) * g**2,
        "yogi": v - (1 - step.beta2) * g**2 * np.sign(v - g**2),
    }[step.optimizer]
    return Stepped(theta - step.learning_rate * m / (np.sqrt(v) + step.tau), (m, v))
