"""How far to follow the mean of deltas: model stock shrinks it, norm-preserving averaging restores its length.

Both take the Gram matrix of the K deltas of a tensor (of one filter of it), as ``span`` describes it, and
return coefficients c (K,) float64: the merged delta is sum_k c_k D_k.
"""

import math
from collections.abc import Iterable

import numpy as np

from consortium.errors import Refused
from consortium.merging.exact import F64Array
from consortium.merging.geometry.span import clamp, lengths_of, rows_of, shares_of_weights
from consortium.merging.geometry.spherical import mean_direction

_SINGULAR = 1e-6


def model_stock(gram_KK: F64Array) -> F64Array:
    """t / K each, with t = K cos / (1 + (K - 1) cos) and cos the mean cosine of all pairs.

    Deltas that agree are followed (t = 1), perpendicular ones are taken for noise (t = 0). So this returns
    the base for specialists of unrelated languages: never merge those with it. Where deltas oppose each
    other t is negative, as in mergekit, and 0 at the formula's pole. A zero delta has cosine 0 with any
    other. Unlike mergekit 0.1.5 we don't raise products of norms to 1e-6, which makes small tensors look
    perpendicular. Raises Refused for fewer than two. Source: Jang et al. 2024, arXiv:2403.19522, equation 5.
    """
    gram = rows_of(gram_KK)
    count, sizes = len(gram), lengths_of(gram)
    if count < 2:
        raise Refused("model_stock compares deltas and has one; give it two or more, or use `linear`")
    cosines = [
        clamp(gram[i][j] / (sizes[i] * sizes[j])) if sizes[i] and sizes[j] else 0.0
        for i in range(count)
        for j in range(i)
    ]
    cosine = math.fsum(cosines) / len(cosines)
    below = 1.0 + (count - 1) * cosine
    return np.full(count, cosine / below if abs(below) >= _SINGULAR else 0.0)


def norm_preserving(gram_KK: F64Array, weights_K: Iterable[float]) -> F64Array:
    """The direction of the mean direction at the mean length ("RDA").

    (sum_k w_k |D_k|) u / |u| with u = sum_k w_k D_k / |D_k|, weights normalized. A plain mean of K
    perpendicular deltas is 1 / sqrt(K) as long as they are; this one is as long. Where directions balance
    out there is none to lengthen, and the plain mean is returned. Raises BadInput for negative weights,
    Refused if all are zero. Source: Decoupled DiLoCo, arXiv:2604.21428.
    """
    gram = rows_of(gram_KK)
    shares = shares_of_weights(weights_K, len(gram))
    return np.array(mean_direction(gram, shares) or shares)
