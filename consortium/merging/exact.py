"""How weighted sums are made so that order cannot matter: every addend on one grid, every addition exact.

Each weighted addend is rounded to a multiple of 2^-36 in float64. Float64 adds such multiples without
rounding as long as every partial sum stays below 2^53 grid units, so any order, chunking or number of
threads gives the same bits, and an addend that was added can be taken out again (``sums``). The range is
checked, not assumed. Weights are first scaled by a power of two to at most 1, and the sum scaled back at the
end: the grid costs at most 7.3e-12 per addend, some 250 times less than half an ulp of a float32 weight of
0.02; adding floats as they come would cost less and change with the order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from consortium.errors import BadInput, Refused
from consortium.merging import kernels
from consortium.merging.kernels import Row
from consortium.tensors import F32Array

F64Array = npt.NDArray[np.float64]
Weight = int | float | Fraction

GRID = 2.0**-36
_SLIGHT = 1e-8  #: of the largest weight; mergekit's bound, there absolute
_UNITS_MAX = 2.0**53  #: float64 holds every integer up to here


@dataclass(frozen=True, slots=True)
class Factors:
    """What each row is multiplied by before it is rounded to the grid, and the sum after it was added up."""

    per_row: tuple[float, ...]  #: at most 1 in size
    scale: float

    @property
    def in_units(self) -> tuple[float, ...]:
        """What makes each row a number of grid units."""
        return tuple(factor / GRID for factor in self.per_row)

    @property
    def scale_of_units(self) -> float:
        """What makes a number of grid units the wanted sum."""
        return GRID * self.scale


def unit_bits(weights: Sequence[Weight]) -> int:
    """b such that 2^b is the smallest power of two that no weight exceeds in size; 0 if all are zero."""
    largest = max((abs(Fraction(weight)) for weight in weights), default=Fraction(0))
    if not largest:
        return 0
    bits = largest.numerator.bit_length() - largest.denominator.bit_length()
    return bits if largest <= Fraction(2) ** bits else bits + 1


def exact_factors(weights: Sequence[Weight], divisor: Weight | None, bits: int | None = None) -> Factors:
    """Factors for sum_k w_k x_k, divided by ``divisor`` if any: exact rationals, rounded once each.

    bits  the unit is 2^bits; ``unit_bits(weights)`` if None. A stored sum keeps the one it began with.
    Raises Refused for no weights, and for a divisor that is zero, or so small that only rounding of the
    weights can have left it.
    """
    if not weights:
        raise Refused("nothing to merge: there is no contribution; wait for one or fail the round")
    for weight in weights:
        if not math.isfinite(weight):
            raise BadInput(f"a contribution has weight {weight}; weights are finite numbers")
    slight = Fraction(_SLIGHT) * max(abs(Fraction(weight)) for weight in weights)
    if divisor is not None and abs(Fraction(divisor)) <= slight:
        raise Refused(
            f"the weights of all {len(weights)} contributions sum to zero and cannot be normalized; "
            "give weights that do not cancel, or `normalize: false`"
        )
    unit = Fraction(2) ** (unit_bits(weights) if bits is None else bits)
    scale = unit if divisor is None else unit / Fraction(divisor)
    return Factors(tuple(float(Fraction(weight) / unit) for weight in weights), float(scale))


def require_range(peak: float, factor: float, num_rows: int, row: int) -> None:
    """Refuse a row with an element so large (or NaN) that ``num_rows`` such addends could leave the exact range.

    peak  largest size of an element of the row; with factors of 1, anything below 131072 / num_rows passes
    """
    if not peak * abs(factor) * num_rows < (_UNITS_MAX - num_rows) * GRID:  # NaN fails as well
        raise Refused(
            f"input {row + 1} of {num_rows} (in digest order) has an element of size {peak}; at factor "
            f"{factor:.6g} it leaves the range of exact sums (size times factor below "
            f"{_UNITS_MAX * GRID / num_rows:.6g}); no sane model is so large, leave this input out"
        )


def weighted_sum(rows_KN: Sequence[F32Array] | F32Array, factors: Factors, out_N: F64Array) -> float:
    """out = sum_k factor_k * row_k in units of the grid; returns what makes it the wanted sum when multiplied.

    The same bits for every order of the K rows. Raises Refused if K addends as large as the largest could
    leave the exact range, and for NaN and infinity.
    """
    rows = [Row(row_N, is_relative=False) for row_N in rows_KN]
    require_ranges(kernels.sum_rows(rows, None, factors.in_units, out_N), factors)
    return factors.scale_of_units


def require_ranges(peaks: Sequence[float], factors: Factors) -> None:
    """``require_range`` of all the rows of a sum."""
    for row, (peak, factor) in enumerate(zip(peaks, factors.per_row, strict=True)):
        require_range(peak, factor, len(peaks), row)
