"""How contributions are merged along the sphere: slerp and its kin, as coefficients from inner products.

Every function takes the Gram matrix of a tensor's K contributions (weights, or deltas where the method has
a base), as ``span`` describes it, and returns coefficients c (K,) float64: the merged tensor is
sum_k c_k x_k. Results and parameters are those of mergekit 0.1.5, in float64 where it works in float32 or
in the tensors' own dtype; where we differ on purpose the docstring says so.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from consortium.errors import Refused
from consortium.merging.exact import F64Array
from consortium.merging.geometry.span import (
    NOISE,
    angle_of,
    clamp,
    cosine,
    dot,
    length,
    lengths_of,
    rows_of,
    shares_of_weights,
    sine,
)

SLERP_EPSILON = 1e-8  #: a shorter vector counts as it is, not as a direction
SLERP_STRAIGHT = 0.9995  #: an absolute cosine above this: the arc is straight enough, or undefined
NUSLERP_EPSILON = 1e-7
#: mergekit asks for 1 - cos^2 <= 1e-16, which its float32 grants when the cosine rounds to 1; in float64 we
#: say so, because coefficients of nearly opposite vectors grow with 1 / sin: here to 4096 at most.
NUSLERP_STRAIGHT = 1.0 - 2.0**-25


def slerp(gram_KK: F64Array, t: float) -> F64Array:
    """From the first of two vectors (t = 0) to the second (t = 1), turning at a constant rate.

    c = sin((1 - t) angle) / sin(angle), sin(t angle) / sin(angle); lengths are not evened out. Nearly
    parallel or opposite vectors are interpolated linearly; one shorter than 1e-8 counts as perpendicular or
    nearly so, as in mergekit. Source: Shoemake 1985, "Animating rotation with quaternion curves".
    """
    gram = rows_of(gram_KK)
    a, b = (size if size > SLERP_EPSILON else 1.0 for size in lengths_of(gram))
    return _arc(clamp(gram[0][1] / (a * b)), t, SLERP_STRAIGHT)


def nuslerp(gram_KK: F64Array, weights_K: Iterable[float]) -> F64Array:
    """Slerp of two vectors with t = w_2 / (w_1 + w_2), or the middle if the weights sum to nearly zero.

    With ``nuslerp_flatten: false``, once for every row (or column) of the tensor. Nearly parallel or opposite
    vectors are interpolated linearly. Source: mergekit 0.1.5, ``nuslerp``.
    """
    gram = rows_of(gram_KK)
    first, second = weights_K
    total = first + second
    a, b = (max(size, NUSLERP_EPSILON) for size in lengths_of(gram))
    t = 0.5 if abs(total) < 1e-6 else second / total
    return _arc(clamp(gram[0][1] / (a * b)), t, NUSLERP_STRAIGHT)


def multislerp(
    gram_KK: F64Array, weights_K: Iterable[float], normalize_weights: bool = True, eps: float = 1e-8
) -> F64Array:
    """The direction of the weighted mean of directions, at the weighted mean length.

    With u_k = x_k / (|x_k| + eps) and m = sum_k w_k u_k: (sum_k w_k |x_k|) m / |m|. mergekit goes on from
    there to the tangent space at m, but the weighted tangents sum to sum_k w_k u_k - <m, .> m = 0, so that
    its last step adds rounding only. One vector is returned as it is. Where the directions balance out, two
    are averaged linearly and more raise Refused, as do weights that sum to zero if they are to be normalized.
    Zero vectors alone make zero (mergekit refuses three of them: a tensor that nobody trained).
    Source: Goddard 2025, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea (mergekit 0.1.5).
    """
    gram, weights = rows_of(gram_KK), list(weights_K)
    if len(gram) == 1:
        return np.ones(1)
    if normalize_weights:
        total = dot(weights, [1.0] * len(gram))
        if total == 0.0:
            raise Refused(
                "multislerp: the weights sum to zero and cannot be normalized; change them or set "
                "`normalize_weights: false`"
            )
        weights = [weight / total for weight in weights]
    mean = mean_direction(gram, weights, eps)
    if mean is not None:
        return np.array(mean)
    if len(gram) == 2 or not any(lengths_of(gram)):
        return np.array(weights)
    raise Refused(
        f"multislerp: the weighted directions of these {len(gram)} tensors balance out, so their mean points "
        "nowhere; change the weights, or use `linear` for tensors with opposite changes"
    )


def mean_direction(
    gram: Sequence[Sequence[float]], weights: Sequence[float], eps: float = 0.0
) -> list[float] | None:
    """Coefficients of (sum_k w_k |x_k|) m / |m|, m = sum_k w_k x_k / (|x_k| + eps); None where m vanishes.

    A zero vector has no direction; its length of zero counts.
    """
    sizes = lengths_of(gram)
    mean = [weight / (size + eps) if size else 0.0 for weight, size in zip(weights, sizes, strict=True)]
    mean_size = length(mean, gram)
    if mean_size <= eps:
        return None
    factor = dot(weights, sizes) / mean_size
    return [factor * coefficient for coefficient in mean]


def karcher(
    gram_KK: F64Array, weights_K: Iterable[float] | None = None, max_iter: int = 10, tol: float = 1e-5
) -> F64Array:
    """The mean on the sphere (least squared angles), at the weighted mean length.

    weights_K  None: equal ones, as in mergekit
    tol        vectors shorter than this have no direction; angles and steps smaller than this count as zero
               (below 2.4e-7 a step cannot be told from rounding, and ends the iteration too)
    From the normalized mean of directions u_k, repeat m <- exp_m(sum_k w_k log_m(u_k)). A direction opposite
    to m does not pull: every way to it is equally short. Directions that balance out from the start have no
    one mean; then the vectors are averaged linearly (mergekit takes the first, whichever that is).
    Source: Karcher 1977, doi:10.1002/cpa.3160300502; mergekit 0.1.5; arXiv:2603.04972.
    """
    gram = rows_of(gram_KK)
    count, sizes = len(gram), lengths_of(gram)
    if count == 1:
        return np.ones(1)
    shares = shares_of_weights([1.0] * count if weights_K is None else weights_K, count)
    inverses = [1.0 / size if size > tol else 0.0 for size in sizes]
    valid = dot(shares, [float(inverse > 0.0) for inverse in inverses])
    if valid == 0.0:
        return np.zeros(count)
    pulls = [share / valid if inverse else 0.0 for share, inverse in zip(shares, inverses, strict=True)]
    mean = [pull * inverse for pull, inverse in zip(pulls, inverses, strict=True)]
    size = length(mean, gram)
    if size < tol:
        return np.array(shares)
    mean = [coefficient / size for coefficient in mean]
    for _ in range(max_iter):
        cosines = [clamp(inverse * dot(mean, row)) for inverse, row in zip(inverses, gram, strict=True)]
        factors = [pull * _log_factor(each, tol) for pull, each in zip(pulls, cosines, strict=True)]
        back = dot(factors, cosines)
        step = [f * inverse - back * m for f, inverse, m in zip(factors, inverses, mean, strict=True)]
        size = length(step, gram)
        if size == 0.0 or size < tol:
            break
        along, across = cosine(size), sine(size) / size
        mean = [along * m + across * s for m, s in zip(mean, step, strict=True)]
        size = length(mean, gram)
        mean = [coefficient / size for coefficient in mean]
    scale = dot(shares, sizes)
    return np.array([scale * coefficient for coefficient in mean])


def _log_factor(cos: float, tol: float) -> float:
    """angle / sin(angle): what the part of u across m is multiplied by to reach u from m."""
    angle = angle_of(cos)
    if angle < tol or 1.0 - cos * cos <= NOISE:
        return 0.0
    return angle / sine(angle)


def _arc(cos: float, t: float, straight: float) -> F64Array:
    if abs(cos) > straight:
        return np.array([1.0 - t, t])
    angle = angle_of(cos)
    return np.array([sine((1.0 - t) * angle), sine(t * angle)]) / sine(angle)
