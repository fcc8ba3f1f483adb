"""How deltas are summed so that order cannot matter: every addend on one grid, every addition exact.

Each weighted addend is rounded to a multiple of 2^-36 in float64. Float64 adds such multiples without
rounding as long as every partial sum stays below 2^53 grid units, so any order, chunking or number of
threads gives the same bits. The range is checked, not assumed. The grid costs at most 7.3e-12 per addend,
some 250 times less than half an ulp of a float32 weight of 0.02; adding floats as they come would cost less
and change with the order.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from consortium.errors import BadInput, Refused
from consortium.tensors import F32Array

F64Array = npt.NDArray[np.float64]

GRID = 2.0**-36
_UNITS_MAX = 2.0**53  #: float64 holds every integer up to here


def shares_of(weights: Sequence[int]) -> F64Array:
    """Each weight over their sum: the float64 nearest to the exact quotient. Raises Refused."""
    if not weights:
        raise Refused("nothing to merge: there is no contribution; wait for one or fail the round")
    if min(weights) < 0:
        raise BadInput(
            f"a contribution has weight {min(weights)}; weights count tokens and are never negative"
        )
    total = sum(weights)
    if total == 0:
        raise Refused(f"the weights of all {len(weights)} contributions are zero; no tokens were trained on")
    return np.array([weight / total for weight in weights], np.float64)  # int / int rounds once, at any size


def weighted_sum(deltas_KN: F32Array, shares_K: F64Array) -> F64Array:
    """The sum of share times delta, on the grid, the same bits for every order of the K rows.

    deltas_KN  K deltas of N elements
    shares_K   any real weights
    Returns (N,) float64. Raises Refused if K addends as large as the largest could leave the exact range
    (with shares that sum to one: elements beyond 131072 / K at most), and for NaN and infinity.
    """
    num_rows = len(deltas_KN)
    total_N = np.zeros(deltas_KN.shape[1])
    addend_N = np.empty_like(total_N)
    for row, (delta_N, share) in enumerate(zip(deltas_KN, shares_K, strict=True), 1):
        if not delta_N.size:
            continue
        peak = max(float(delta_N.max()), -float(delta_N.min()))
        if not peak * abs(float(share)) * num_rows < (_UNITS_MAX - num_rows) * GRID:  # NaN fails as well
            raise Refused(
                f"delta {row} of {num_rows} (in digest order) has an element of size {peak}; at share "
                f"{share:.6g} it leaves the range of exact sums (size times share below "
                f"{_UNITS_MAX * GRID / num_rows:.6g}); no sane delta is so large, leave this contribution out"
            )
        addend_N[:] = delta_N
        addend_N *= share / GRID
        np.rint(addend_N, out=addend_N)
        total_N += addend_N
    total_N *= GRID
    return total_N
