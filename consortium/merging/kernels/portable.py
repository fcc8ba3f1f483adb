"""What every kernel computes, in NumPy: the reference to whose bits ``kernels.c`` is held.

Arrays are C-contiguous: ``x_N`` are N elements of a chunk, ``rows_KN`` the same N elements of K inputs. All
arithmetic is IEEE 754, rounded once per operation and never contracted to multiply-adds, in the order written
here: hence the same bits on every machine. Where order could matter it is fixed: sums run in row order, or in
ascending order of values (-0.0 before +0.0), or in the lanes of ``gram``. Two things are left open, both
refused by callers, who see them by the peak that ``grid_add`` and ``elect`` return: which NaN comes out of a
NaN, and what ``elect`` finds where sums leave the exact range.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]
I64Array = npt.NDArray[np.int64]
U16Array = npt.NDArray[np.uint16]
U32Array = npt.NDArray[np.uint32]

BLOCK = 4096  #: elements whose products are added in one go; spans of a tensor are multiples of it
LANES = 32  #: partial sums of a block: four vectors of eight float64, enough to hide an addition's latency
SLIGHT = 2.0**10  #: units: weights that cancel but for their rounding; dividing by it would blow noise up
UNITS = 2.0**36  #: units of the exact grid in one, see ``exact``

_SIGN = np.uint32(0x7FFFFFFF)  #: all bits but the sign
_INFINITY = np.uint32(0x7F800000)


class Boundary(NamedTuple):
    """Where the top of a tensor ends, by size of element and then by index.

    An element is in the top if its key (|x| as float32, seen as an integer: the same order) exceeds ``bits``,
    or equals it at an index of at most ``index``.
    """

    bits: int
    index: int  # type: ignore[assignment]  # a word better used here than for tuple's search


NOTHING = Boundary(0xFFFFFFFF, -1)  #: no element is in the top
EVERYTHING = Boundary(0, 1 << 62)  #: every one is


def decode_bf16(raw_N: U16Array, out_N: F32Array) -> None:
    """bfloat16 as stored -> float32, exactly."""
    bits_N = out_N.view(np.uint32)
    bits_N[:] = raw_N
    bits_N <<= np.uint32(16)


def encode_bf16(x_N: F32Array, out_N: U16Array) -> None:
    """float32 -> bfloat16, rounded to nearest, ties to even; NaN stays NaN."""
    bits_N = x_N.view(np.uint32)
    rounded_N = bits_N >> np.uint32(16)
    rounded_N &= np.uint32(1)
    rounded_N += np.uint32(0x7FFF)
    rounded_N += bits_N
    rounded_N >>= np.uint32(16)
    nan_N = np.isnan(x_N)
    if nan_N.any():  # rounding could carry a NaN over to infinity or zero
        rounded_N[nan_N] = (bits_N[nan_N] >> np.uint32(16)) | np.uint32(0x40)
    out_N[:] = rounded_N


def first_non_finite(x_N: F32Array) -> int:
    """The position of the first NaN or infinity, -1 if there is none."""
    finite_N = np.isfinite(x_N)
    return -1 if finite_N.all() else int(np.argmin(finite_N))


@np.errstate(all="ignore")
def grid_add(total_N: F64Array, x_N: F32Array, factor: float) -> float:
    """total <- total + rint(x * factor), ties to even, in float64.

    With ``factor = weight * UNITS`` the totals are integers of grid units and exact while below 2^53, which
    the caller checks by the result: the largest |x| (0.0 if there is no element, NaN if one is NaN).
    """
    addend_N = x_N.astype(np.float64)
    addend_N *= factor
    np.rint(addend_N, out=addend_N)
    total_N += addend_N
    return _peak(x_N)


class Thinning(NamedTuple):
    """What becomes of a row before it is merged: ``keep_window``, ``keep_random`` or nothing."""

    window: tuple[Boundary, Boundary] | None = None  #: in the first, not in the second
    draw: tuple[int, float] | None = None  #: key and chance


class Row(NamedTuple):
    """One of the rows that ``sum_rows`` adds.

    values_N     float32, or bfloat16 as stored (uint16)
    is_relative  whether the base is to be subtracted first, in float32
    """

    values_N: F32Array | U16Array
    is_relative: bool


def sum_rows(
    rows: Sequence[Row], base_N: F32Array | None, factors: Sequence[float], total_N: F64Array
) -> list[float]:
    """total <- sum_k rint(x_k * factor_k) as ``grid_add`` has it; returns the largest |x| of every row."""
    total_N.fill(0.0)
    peaks, x_N = [], np.empty(total_N.size, np.float32)
    for (values_N, is_relative), factor in zip(rows, factors, strict=True):
        if values_N.dtype == np.uint16:
            decode_bf16(values_N, x_N)  # type: ignore[arg-type]
        else:
            x_N[:] = values_N
        if is_relative:
            with np.errstate(all="ignore"):
                x_N -= base_N  # type: ignore[arg-type]
        peaks.append(grid_add(total_N, x_N, factor))
    return peaks


def sum_rows_onto(
    rows: Sequence[Row],
    base_N: F32Array | None,
    factors: Sequence[float],
    scale: float,
    theta_N: F32Array | None,
    out_N: F32Array,
) -> list[float]:
    """out <- float32(theta + scale * total), without theta if it is None; total and result as ``sum_rows``."""
    total_N = np.empty(out_N.size)
    peaks = sum_rows(rows, base_N, factors, total_N)
    if theta_N is None:
        scale_to(total_N, scale, out_N)
    else:
        apply_step(theta_N, total_N, scale, out_N)
    return peaks


def subtract_bf16(raw_N: U16Array, base_N: F32Array, out_N: F32Array) -> bool:
    """out <- x - base in float32 of bfloat16 as stored; whether all of it is finite."""
    decode_bf16(raw_N, out_N)
    with np.errstate(all="ignore"):
        out_N -= base_N
    return bool(np.isfinite(out_N).all())


@np.errstate(all="ignore")
def sgd_step(
    theta_N: F32Array,
    merged_N: F64Array,
    scale: float,
    before_N: F32Array | None,
    rate: float,
    momentum: float,
    nesterov: bool,
    next_N: F32Array,
    kept_N: F32Array,
) -> None:
    """``outer.outer_step`` of optimizer sgd on the delta ``scale * merged``, to float32."""
    gradient_N = -(merged_N * scale)
    velocity_N = gradient_N if before_N is None else momentum * before_N.astype(np.float64) + gradient_N
    direction_N = gradient_N + momentum * velocity_N if nesterov else velocity_N
    next_N[:] = theta_N - rate * direction_N
    kept_N[:] = velocity_N


@np.errstate(all="ignore")
def scale_to(merged_N: F64Array, factor: float, out_N: F32Array) -> None:
    """out <- float32(factor * merged), computed in float64."""
    out_N[:] = merged_N * factor


@np.errstate(all="ignore")
def apply_step(theta_N: F32Array, merged_N: F64Array, factor: float, out_N: F32Array) -> None:
    """out <- float32(theta + factor * merged), computed in float64; ``out_N`` may be ``theta_N``."""
    step_N = merged_N * factor
    step_N += theta_N
    out_N[:] = step_N


def keep_window(x_N: F32Array, start: int, top: Boundary, without: Boundary) -> None:
    """Set to 0.0, in place, what is not in ``top`` or is in ``without``; ``x_N`` begins at index ``start``.

    TIES keeps the top (Yadav et al. 2023, arXiv:2306.01708), breadcrumbs the top without its outermost part
    (Davari and Belilovsky 2023, arXiv:2312.06795).
    """
    keys_N, index_N = _keys(x_N), np.arange(start, start + x_N.size)
    x_N[~_within(keys_N, index_N, top) | _within(keys_N, index_N, without)] = 0.0


def keep_random(x_N: F32Array, start: int, key: int, chance: float) -> None:
    """Keep, in place, element i of the tensor iff draw32(key, i) < floor(chance * 2^32); else it is 0.0.

    start   index of the first element within its tensor
    chance  0 to 1, both exact
    DARE's mask (Yu et al. 2023, arXiv:2311.03099); the same for every split into chunks.
    """
    drawn_N = draw32(key, np.arange(start, start + x_N.size))
    x_N[drawn_N >= _threshold(np.float64(chance))] = 0.0


@np.errstate(all="ignore")
def keep_ranked(x_RC: F32Array, row0: int, key: int, density: float, epsilon: float, rescale: bool) -> None:
    """Keep elements, in place, with a chance that grows with the rank of |x| in its row; others become 0.0.

    x_RC     R whole rows of C elements, beginning at row ``row0`` of the tensor
    rank     r = 0 .. C-1, ascending by |x|; of equal ones the lower column has the lower rank
    chance   p = (density - epsilon) + 2 epsilon r / (C-1); density - epsilon if C is 1
    kept     iff draw32(key, (row0 + row) C + column) < floor(p 2^32); as float32(x / p) if ``rescale``
    DELLA's MagPrune (Deep et al. 2024, arXiv:2406.11617).
    """
    num_columns = x_RC.shape[1]
    chance_C = np.full(num_columns, density - epsilon)
    if num_columns > 1:
        chance_C += 2 * epsilon * np.arange(num_columns) / (num_columns - 1)
    threshold_C = _threshold(chance_C)
    for row, x_C in enumerate(x_RC, row0):
        order_C = np.argsort(_keys(x_C), kind="stable")
        drawn_C = draw32(key, np.arange(row * num_columns, (row + 1) * num_columns))[order_C]
        ranked_C = x_C[order_C]
        if rescale:
            ranked_C = (ranked_C / chance_C).astype(np.float32)
        x_C[order_C] = np.where(drawn_C < threshold_C, ranked_C, np.float32(0.0))


@np.errstate(all="ignore")
def elect(
    rows_KN: F32Array,
    factors_K: F64Array,
    weights_K: F64Array,
    out_N: F64Array,
    normalize: bool = True,
) -> float:
    """The weighted mean of the addends that have the sign of their sum; returns the largest |x| of all rows.

    addend   a_k = float64(x_k) * (factor_k * UNITS); on the grid: rint(a_k)
    sign     of sum_k rint(a_k); zero counts as positive
    agrees   a_k that is not zero and has that sign
    out      sum of agreeing rint(a_k) / sum of their rint(weight_k * UNITS); over UNITS instead, if not
             ``normalize`` or if that sum is below ``SLIGHT``
    All sums are of integers and exact while below 2^53 (the caller checks by the peak): no order matters.
    Trimming apart, TIES (Yadav et al. 2023, arXiv:2306.01708, section 3).
    """
    addends_KN = rows_KN * (factors_K * UNITS)[:, None]
    units_KN = np.rint(addends_KN)
    positive_N = _sum_rows(units_KN) >= 0
    agrees_KN = np.where(positive_N, addends_KN > 0, addends_KN < 0)
    out_N[:] = _sum_rows(np.where(agrees_KN, units_KN, 0.0))
    divisor_N = np.full_like(out_N, UNITS)
    if normalize:
        weight_N = _sum_rows(np.where(agrees_KN, np.rint(weights_K * UNITS)[:, None], 0.0))
        np.copyto(divisor_N, weight_N, where=np.abs(weight_N) >= SLIGHT)
    out_N /= divisor_N
    return _peak(rows_KN)


@np.errstate(all="ignore")
def median(rows_KN: F32Array, out_N: F64Array) -> None:
    """The median of each coordinate; of an even number of rows the mean of the middle two.

    Yin et al. 2018, arXiv:1803.01498.
    """
    sorted_KN = _ascending(rows_KN)
    below, above = (len(rows_KN) - 1) // 2, len(rows_KN) // 2
    out_N[:] = sorted_KN[above]
    if below != above:
        out_N += sorted_KN[below]
        out_N *= 0.5


@np.errstate(all="ignore")
def trimmed_mean(rows_KN: F32Array, trim: int, out_N: F64Array) -> None:
    """The mean of each coordinate without its ``trim`` largest and ``trim`` smallest values, 2 trim < K.

    Yin et al. 2018, arXiv:1803.01498.
    """
    kept_KN = _ascending(rows_KN)[trim : len(rows_KN) - trim]
    out_N[:] = _sum_rows(kept_KN)
    out_N /= len(kept_KN)


@np.errstate(all="ignore")
def variance(rows_KN: F32Array, out_N: F32Array) -> None:
    """The population variance of each coordinate over the K rows: mean of (x_k - mean x)^2, in float64."""
    sorted_KN = _ascending(rows_KN)
    mean_N = _sum_rows(sorted_KN) / len(rows_KN)
    out_N[:] = _sum_rows(np.square(sorted_KN - mean_N)) / len(rows_KN)


@np.errstate(all="ignore")
def gram(rows_KN: F32Array, block: int = BLOCK) -> F64Array:
    """Dot products of all pairs of rows, per block of consecutive elements.

    block  elements of one; the last may be short
    Returns (ceil(N / block), K (K+1) / 2) float64, pairs (i, j) with i <= j in the order (0, 0), (0, 1) ...
    A product of float32s is exact in float64. Lane l of a block adds those of elements l, l + LANES ... in
    order, beginning with +0.0; then the upper half of the lanes is added to the lower, until one is left.
    """
    pairs = [(i, j) for i in range(len(rows_KN)) for j in range(i, len(rows_KN))]
    sums = np.empty((-(-rows_KN.shape[1] // block), len(pairs)))
    for column, (i, j) in enumerate(pairs):
        sums[:, column] = _block_sums(np.multiply(rows_KN[i], rows_KN[j], dtype=np.float64), block)
    return sums


@np.errstate(all="ignore")
def abs_sum(x_N: F32Array, block: int = BLOCK) -> F64Array:
    """The sums of |x| per block, (ceil(N / block),) float64, added as in ``gram``."""
    return _block_sums(np.abs(x_N).astype(np.float64), block)


def count_keys(x_N: F32Array, low: int, shift: int, counts_B: U32Array) -> int:
    """Add to bin b how many keys (|x| as an integer) lie in low + [b 2^shift, (b+1) 2^shift).

    low, shift  low < 2^31, shift <= 31
    Returns how many lie above the last bin.
    """
    offset_N = _keys(x_N).astype(np.int64) - low
    offset_N = offset_N[offset_N >= 0] >> shift
    inside_N = offset_N < counts_B.size
    bins, times = np.unique(offset_N[inside_N], return_counts=True)
    counts_B[bins] += times.astype(np.uint32)
    return offset_N.size - int(np.count_nonzero(inside_N))


def draw32(key: int, index_N: I64Array) -> U32Array:
    """The random words at places ``index_N`` (from 0) of the stream ``key``: uniform in 0 .. 2^32 - 1.

    Philox2x32 with ten rounds (Salmon et al. 2011, doi:10.1145/2063384.2063405): place i is word i mod 2 of
    the block at counter i div 2, under the low half of the 64-bit key; the high half is XORed into the
    counter's high word.
    """
    counter_N = index_N.astype(np.uint64) >> np.uint64(1)
    half, word = np.uint64(32), np.uint64(0xFFFFFFFF)
    left_N = counter_N & word
    right_N = (counter_N >> half) ^ np.uint64(key >> 32)
    for round_key in _round_keys(key):
        product_N = left_N * np.uint64(0xD256D193)
        left_N, right_N = (product_N >> half) ^ right_N ^ round_key, product_N & word
    return np.where(index_N & 1, right_N, left_N).astype(np.uint32)


def _round_keys(key: int) -> Iterator[np.uint64]:
    for number in range(10):
        yield np.uint64((key + number * 0x9E3779B9) & 0xFFFFFFFF)


def _threshold(chance: Any) -> Any:
    """Draws below it keep an element: floor(chance * 2^32) for chances in 0 .. 1, which bound it."""
    return np.floor(np.clip(chance, 0.0, 1.0) * 2.0**32).astype(np.uint64)


def _keys(x_N: F32Array) -> U32Array:
    return x_N.view(np.uint32) & _SIGN


def _within(keys_N: U32Array, index_N: I64Array, top: Boundary) -> npt.NDArray[np.bool_]:
    inside_N: npt.NDArray[np.bool_] = (keys_N > top.bits) | ((keys_N == top.bits) & (index_N <= top.index))
    return inside_N


def _peak(x: F32Array) -> float:
    return float(np.abs(x).max()) if x.size else 0.0


def _sum_rows(rows_KN: F64Array) -> F64Array:
    """From +0.0 on, one row after the other: ``sum`` promises no order."""
    total_N = np.zeros(rows_KN.shape[1])
    for row_N in rows_KN:
        total_N += row_N
    return total_N


def _ascending(rows_KN: F32Array) -> F64Array:
    """Each column sorted. As integers, whose order is total: floats would leave -0.0 and 0.0 to chance."""
    bits_KN = rows_KN.view(np.int32)
    mirrored_KN = bits_KN ^ ((bits_KN >> 31) & np.int32(_SIGN))  # negative floats run the wrong way
    mirrored_KN.sort(axis=0)
    sorted_KN = mirrored_KN ^ ((mirrored_KN >> 31) & np.int32(_SIGN))
    return sorted_KN.view(np.float32).astype(np.float64)


def _block_sums(addends_N: F64Array, block: int) -> F64Array:
    num_blocks, num_steps = -(-addends_N.size // block), -(-block // LANES)
    whole = np.zeros(num_blocks * block)
    whole[: addends_N.size] = addends_N
    padded = np.zeros((num_blocks, num_steps * LANES))
    padded[:, :block] = whole.reshape(num_blocks, block)
    lanes = np.zeros((num_blocks, LANES))
    for step in range(num_steps):
        lanes += padded[:, step * LANES : (step + 1) * LANES]
    width = LANES
    while width > 1:
        width //= 2
        lanes[:, :width] += lanes[:, width : 2 * width]
    return lanes[:, 0].copy()
