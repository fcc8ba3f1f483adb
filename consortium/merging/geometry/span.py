"""How vectors are measured that are known only by their inner products: the same bits on every machine.

K contributions enter as their Gram matrix G[i][j] = <x_i, x_j>; a vector of their span is its K
coefficients. Everything is made of + - * / and sqrt, which IEEE 754 rounds in one way, and of ``math.fsum``,
which rounds a whole sum once, so that the order of the contributions cannot matter. What varies is avoided:
libm's sines and powers (last bits), BLAS (order by machine), ``sum`` (compensated since Python 3.12).
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from consortium.errors import BadInput, Refused
from consortium.merging.exact import F64Array

#: A sum of squares this small beside its terms is their rounding: G's entries are good to some 2^-47, and
#: float32 elements that cancel leave 2^-24 of their length, whose square is 2^-48.
NOISE = 2.0**-44

_SERIES = 17  #: terms; the next term of a sine of pi is 5e-21


def rows_of(gram_KK: F64Array) -> list[list[float]]:
    """The matrix as Python's floats. Raises Refused if it is not finite."""
    assert gram_KK.ndim == 2 and gram_KK.shape[0] == gram_KK.shape[1] > 0, gram_KK.shape
    if not np.isfinite(gram_KK).all():
        raise Refused(
            "the inner products of the contributions are not finite; one of them has NaN, infinity or "
            "enormous elements: find it with `sprachbund merge --inspect` and leave it out"
        )
    rows: list[list[float]] = gram_KK.tolist()
    return rows


def shares_of_weights(weights_K: Iterable[float], count: int) -> list[float]:
    """Weights over their sum. Raises BadInput if one is negative or not finite, Refused if all are zero."""
    weights = [float(weight) for weight in weights_K]
    assert len(weights) == count, (len(weights), count)
    for weight in weights:
        if not 0.0 <= weight < math.inf:
            raise BadInput(f"weight {weight} is not a share of a mean; give weights of zero or more")
    total = math.fsum(weights)
    if total == 0.0:
        raise Refused(f"the weights of all {count} contributions are zero; give one of them a weight")
    return [weight / total for weight in weights]


def dot(left: Iterable[float], right: Iterable[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def lengths_of(gram: Sequence[Sequence[float]]) -> list[float]:
    """Of the K vectors themselves."""
    return [math.sqrt(row[i]) for i, row in enumerate(gram)]


def length(coefficients: Sequence[float], gram: Sequence[Sequence[float]]) -> float:
    """Of sum_k c_k x_k; 0.0 if all but rounding cancels."""
    terms = [
        (a * b) * product
        for a, row in zip(coefficients, gram, strict=True)
        for b, product in zip(coefficients, row, strict=True)
    ]
    square = math.fsum(terms)
    return math.sqrt(square) if square > NOISE * math.fsum(map(abs, terms)) else 0.0


def clamp(cos: float) -> float:
    return max(-1.0, min(1.0, cos))


def sine(angle: float) -> float:
    """sin, to about 4e-16."""
    x = math.remainder(angle, math.tau)  # exact
    terms = [x]
    for n in range(1, _SERIES):
        terms.append(terms[-1] * (-x * x / (2 * n * (2 * n + 1))))
    return math.fsum(terms)


def cosine(angle: float) -> float:
    """cos, to about 8e-16."""
    half = sine(angle / 2.0)
    return 1.0 - 2.0 * half * half


def angle_of(cos: float) -> float:
    """acos, in radians, to about 1e-15; the cosine is within -1..1."""
    if cos < 0.0:
        return math.pi - angle_of(-cos)
    tangent = math.sqrt((1.0 - cos) / (1.0 + cos))  # of half the angle
    for _ in range(3):
        tangent /= 1.0 + math.sqrt(1.0 + tangent * tangent)  # of half of that; now at most tan(pi/32)
    terms, power = [], tangent
    for n in range(_SERIES):
        terms.append(power / (2 * n + 1))
        power *= -tangent * tangent
    return 16.0 * math.fsum(terms)
