"""The rules of ``spherical``, ``shrinking`` and ``robust`` on whole vectors, as the papers have them, float64.

Nothing here knows of inner products between contributions: vectors are added, measured and compared.
Also the strategy that draws sets of vectors, and the check both ways share.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st

Vectors = npt.NDArray[np.float64]

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  #: on a busy machine


@st.composite
def vector_sets(draw: st.DrawFn, least: int = 1, most: int = 8) -> Vectors:
    """K vectors of an odd length; some zero, twice there, opposite, or a thousand times as long."""
    count = draw(st.integers(least, most))
    size = draw(st.sampled_from([1, 3, 7, 33, 129]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    common = draw(st.sampled_from([0.0, 1.0, 5.0])) * rng.standard_normal(size)
    rows_KN = rng.standard_normal((count, size)) + common
    for k in range(count):
        other = draw(st.integers(0, count - 1))
        kind = draw(st.sampled_from(["own"] * 4 + ["zero", "same", "opposite", "long"]))
        if kind == "zero":
            rows_KN[k] = 0.0
        elif kind == "same":
            rows_KN[k] = rows_KN[other]
        elif kind == "opposite":
            rows_KN[k] = -rows_KN[other]
        elif kind == "long":
            rows_KN[k] *= 1000.0
    return rows_KN * draw(st.sampled_from([1.0, 1e-4, 100.0]))


def weights_for(count: int) -> st.SearchStrategy[list[float]]:
    """Weights of which not all are zero."""
    return st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 7.25]), min_size=count, max_size=count).filter(
        any
    )


def gram_of(rows_KN: Vectors) -> Vectors:
    return rows_KN @ rows_KN.T


def assert_merges_to(coefficients_K: Vectors, rows_KN: Vectors, want_N: Vectors) -> None:
    """1e-9 of what went in: the coefficients' own sizes times the vectors', and the result's."""
    scale = np.abs(coefficients_K) @ np.linalg.norm(rows_KN, axis=1) + np.linalg.norm(want_N)
    assert np.linalg.norm(coefficients_K @ rows_KN - want_N) <= 1e-9 * scale


def _unit(x_N: Vectors) -> Vectors:
    return x_N / np.linalg.norm(x_N)


def slerp(a_N: Vectors, b_N: Vectors, t: float) -> Vectors:
    u_N, v_N = (x_N / norm if (norm := np.linalg.norm(x_N)) > 1e-8 else x_N for x_N in (a_N, b_N))
    cos = np.clip(np.dot(u_N, v_N), -1, 1)
    if abs(cos) > 0.9995:
        return (1 - t) * a_N + t * b_N
    angle = np.arccos(cos)
    return (np.sin((1 - t) * angle) * a_N + np.sin(t * angle) * b_N) / np.sin(angle)


def nuslerp(a_N: Vectors, b_N: Vectors, weights: Sequence[float]) -> Vectors:
    t = weights[1] / sum(weights) if abs(sum(weights)) >= 1e-6 else 0.5
    u_N, v_N = (x_N / max(np.linalg.norm(x_N), 1e-7) for x_N in (a_N, b_N))
    cos = np.clip(np.dot(u_N, v_N), -1, 1)
    if np.float32(abs(cos)) == 1:
        return (1 - t) * a_N + t * b_N
    angle = np.arccos(cos)
    return (np.sin((1 - t) * angle) * a_N + np.sin(t * angle) * b_N) / np.sin(angle)


def multislerp(rows_KN: Vectors, weights: Sequence[float], normalize: bool, eps: float) -> Vectors | None:
    """All of it, tangent space included. None where the directions balance out."""
    w_K1 = np.array(weights)[:, None] / (sum(weights) if normalize else 1)
    norms_K1 = np.linalg.norm(rows_KN, axis=1, keepdims=True)
    units_KN = rows_KN / (norms_K1 + eps)
    mean_N = (w_K1 * units_KN).sum(0)
    if np.linalg.norm(mean_N) < 0.9 * eps:
        return None
    assume(np.linalg.norm(mean_N) > 10 * max(eps, 1e-6 * np.abs(w_K1).sum()))  # between: rounding decides
    mean_N = _unit(mean_N)
    tangents_KN = units_KN - (units_KN @ mean_N)[:, None] * mean_N
    tangent_N = (w_K1 * tangents_KN).sum(0)
    angle = np.linalg.norm(tangent_N) + eps
    on_sphere_N = np.cos(angle) * mean_N + np.sin(angle) / angle * tangent_N
    return float((w_K1 * norms_K1).sum()) * on_sphere_N


def karcher(rows_KN: Vectors, weights: Sequence[float], max_iter: int, tol: float) -> Vectors:
    norms_K = np.linalg.norm(rows_KN, axis=1)
    w_K = np.array(weights) / sum(weights)
    valid_K = norms_K > tol
    if not (w_K * valid_K).any():
        return np.zeros(rows_KN.shape[1])
    units = [_unit(row_N) for row_N in rows_KN[valid_K]]
    pulls = w_K[valid_K] / w_K[valid_K].sum()
    mean_N = sum(pull * unit_N for pull, unit_N in zip(pulls, units, strict=True))
    if np.linalg.norm(mean_N) < max(tol, 1e-6):
        return np.array(w_K @ rows_KN)
    mean_N = _unit(mean_N)
    for _ in range(max_iter):
        tangent_N = np.zeros_like(mean_N)
        for pull, unit_N in zip(pulls, units, strict=True):
            cos = np.clip(unit_N @ mean_N, -1, 1)
            across_N = unit_N - cos * mean_N
            if np.linalg.norm(across_N) > 1e-6:  # neither there already nor opposite
                tangent_N += pull * np.arccos(cos) * _unit(across_N)
        angle = np.linalg.norm(tangent_N)
        if angle < tol:
            break
        mean_N = _unit(np.cos(angle) * mean_N + np.sin(angle) * tangent_N / angle)
    return np.array(w_K @ norms_K * mean_N)


def model_stock(rows_KN: Vectors) -> Vectors:
    count = len(rows_KN)
    norms_K = np.linalg.norm(rows_KN, axis=1)
    units_KN = rows_KN / np.where(norms_K, norms_K, 1)[:, None]
    cos = np.mean([units_KN[i] @ units_KN[j] for i in range(count) for j in range(i)])
    below = 1 + (count - 1) * cos
    return rows_KN.mean(0) * (count * cos / below if abs(below) > 1e-6 else 0.0)


def norm_preserving(rows_KN: Vectors, weights: Sequence[float]) -> Vectors:
    w_K = np.array(weights) / sum(weights)
    norms_K = np.linalg.norm(rows_KN, axis=1)
    u_N = (w_K[:, None] * rows_KN / np.where(norms_K, norms_K, 1)[:, None]).sum(0)
    if np.linalg.norm(u_N) <= 1e-6:
        return np.array(w_K @ rows_KN)
    return float(w_K @ norms_K) * _unit(u_N)


def clip(rows_KN: Vectors, times: float) -> Vectors:
    norms_K = np.linalg.norm(rows_KN, axis=1)
    most = times * np.median(norms_K)
    return np.array(
        [row_N if n <= most else row_N * most / n for row_N, n in zip(rows_KN, norms_K, strict=True)]
    )


def cosines_to_others(rows_KN: Vectors) -> list[float | None]:
    found: list[float | None] = []
    for k, row_N in enumerate(rows_KN):
        others = [_unit(other_N) for j, other_N in enumerate(rows_KN) if j != k and other_N.any()]
        mean_N = np.mean(others, 0) if others else np.zeros_like(row_N)
        nowhere = not row_N.any() or np.linalg.norm(mean_N) < 1e-6
        found.append(None if nowhere else float(_unit(row_N) @ _unit(mean_N)))
    return found


def krum_scores(rows_KN: Vectors, byzantine: int) -> Vectors:
    count = len(rows_KN)
    scores = []
    for i in range(count):
        squares = sorted(np.linalg.norm(rows_KN[i] - rows_KN[j]) ** 2 for j in range(count) if j != i)
        scores.append(sum(squares[: count - byzantine - 2]))
    return np.array(scores)


def geometric_median(rows_KN: Vectors, weights: Sequence[float], nu: float, iterations: int) -> Vectors:
    z_N = np.average(rows_KN, axis=0, weights=weights)
    for _ in range(iterations):
        pulls_K = np.array(weights) / np.maximum(nu, np.linalg.norm(rows_KN - z_N, axis=1))
        z_N = np.average(rows_KN, axis=0, weights=pulls_K)
    return np.array(z_N)


def centered_clipping(
    rows_KN: Vectors, weights: Sequence[float], tau: float, iterations: int, v_N: Vectors
) -> Vectors:
    w_K = np.array(weights) / sum(weights)
    for _ in range(iterations):
        steps = [
            w * (row_N - v_N) * min(1.0, tau / max(np.linalg.norm(row_N - v_N), 1e-300))
            for w, row_N in zip(w_K, rows_KN, strict=True)
        ]
        v_N = v_N + np.sum(steps, 0)
    return v_N
