"""The codecs in plain NumPy: the reference, and what runs where no compiler was at hand.

Encoders take t = (after - before) + residual, all float32, and leave in ``residual`` what the codes did not
say: error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847). ``formats`` says what is
computed; ``native`` does the same in one pass, to the same bits.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from consortium.codecs.formats import BLOCK, PEAK, TOPK_CHUNK, scale_max
from consortium.tensors import F32Array

I8Array = npt.NDArray[np.int8]
U8Array = npt.NDArray[np.uint8]
U16Array = npt.NDArray[np.uint16]

_MAGNITUDE = np.uint32(0x7FFFFFFF)
#: For every byte its two codes, as float32, in one number of that size: looking up is cheaper than shifting.
_HALVES = np.array(
    [[((byte >> shift & 15) ^ 8) - 8 for shift in (0, 4)] for byte in range(256)], np.float32
).view(np.float64)[:, 0]


def encode_int8(
    after_N: F32Array, before_N: F32Array, residual_N: F32Array, codes_N: I8Array, scales_B: F32Array
) -> int:
    """Code a piece that begins on a block's border; returns the first element whose t is not finite, or -1."""
    bad = _add_up(after_N, before_N, residual_N)
    if bad < 0:
        for t_BL, codes_BL, scales in _groups(BLOCK, residual_N, codes_N, scales_B):
            _quantise(t_BL, PEAK["int8"], codes_BL, scales)
    return bad


def encode_int4(
    after_N: F32Array, before_N: F32Array, residual_N: F32Array, packed_H: U8Array, scales_B: F32Array
) -> int:
    """The same, two codes to a byte."""
    bad = _add_up(after_N, before_N, residual_N)
    if bad < 0:
        codes_N = np.zeros(2 * packed_H.size, np.int8)
        for t_BL, codes_BL, scales in _groups(BLOCK, residual_N, codes_N, scales_B):
            _quantise(t_BL, PEAK["int4"], codes_BL, scales)
        halves = codes_N.view(np.uint8) & np.uint8(15)
        np.bitwise_or(halves[0::2], halves[1::2] << np.uint8(4), out=packed_H)
    return bad


def encode_topk(
    after_N: F32Array,
    before_N: F32Array,
    residual_N: F32Array,
    kept: int,
    codes_K: I8Array,
    offsets_K: U16Array,
    scales_C: F32Array,
) -> int:
    """Code the ``kept`` largest of each chunk; otherwise as ``encode_int8``."""
    bad = _add_up(after_N, before_N, residual_N)
    if bad >= 0:
        return bad
    done = 0
    for t_CL, _, scales in _groups(TOPK_CHUNK, residual_N, None, scales_C):
        rows, length = t_CL.shape
        k = -(-length * kept // TOPK_CHUNK)
        chosen_CL = _largest(t_CL, k)
        t_CK = t_CL[chosen_CL].reshape(rows, k)
        span = slice(done, done + rows * k)
        offsets_K[span] = np.nonzero(chosen_CL)[1]
        _quantise(t_CK, PEAK["topk"], codes_K[span].reshape(rows, k), scales)
        t_CL[chosen_CL] = t_CK.reshape(-1)
        done = span.stop
    return bad


def decode_int8(codes_N: I8Array, scales_B: F32Array, start: int, out_N: F32Array) -> bool:
    """``out_N`` is elements ``start ..`` of the blocks that ``scales_B`` begins with, ``codes_N`` their codes.

    Returns whether every code and scale is one that an encoder may write; if not, ``out_N`` means nothing.
    """
    return _spread(codes_N, scales_B, start, PEAK["int8"], out_N)


def decode_int4(packed_H: U8Array, scales_B: F32Array, start: int, out_N: F32Array) -> bool:
    """The same; ``packed_H`` begins with the byte in which element ``start`` lies."""
    codes_N = _HALVES.take(packed_H).view(np.float32)
    return _spread(codes_N[start % 2 :][: out_N.size], scales_B, start, PEAK["int4"], out_N)


def decode_topk(
    codes_K: I8Array,
    offsets_K: U16Array,
    scales_C: F32Array,
    kept: int,
    left: int,
    start: int,
    out_N: F32Array,
) -> bool:
    """Elements ``start ..`` of whole chunks, after which the tensor is ``left`` elements long.

    left  elements of the tensor from the first chunk on; tells how long the last one is
    """
    if not _are_scales(scales_C, PEAK["topk"]):
        return False
    ok = int(codes_K.min(initial=0)) >= -PEAK["topk"]
    out_N.fill(0.0)
    done = 0
    for chunk, scale in enumerate(scales_C):
        length = min(TOPK_CHUNK, left - chunk * TOPK_CHUNK)
        span = slice(done, done + -(-length * kept // TOPK_CHUNK))
        done = span.stop
        offsets = offsets_K[span].astype(np.int64)
        ok = ok and bool((np.diff(offsets) > 0).all()) and int(offsets.max(initial=0)) < length
        places = offsets + (chunk * TOPK_CHUNK - start)
        inside = (places >= 0) & (places < out_N.size)
        out_N[places[inside]] = codes_K[span][inside].astype(np.float32) * scale
    return ok


def _add_up(after_N: F32Array, before_N: F32Array, residual_N: F32Array) -> int:
    """residual <- (after - before) + residual; the first element that is not finite, or -1."""
    with np.errstate(over="ignore", invalid="ignore"):
        residual_N += after_N - before_N
    if np.isfinite(residual_N.max(initial=0)) and np.isfinite(residual_N.min(initial=0)):
        return -1
    return int(np.argmin(np.isfinite(residual_N)))


def _groups(length: int, t_N: F32Array, codes_N: I8Array | None, scales_B: F32Array) -> Any:
    """``(t, codes, scales)`` of the whole blocks as rows, then of a short last one as one row."""
    whole = t_N.size // length
    cut = whole * length
    for first, last, rows in ((0, cut, slice(0, whole)), (cut, t_N.size, slice(whole, None))):
        if last > first:
            shape = (-1, min(length, last - first))
            codes = None if codes_N is None else codes_N[first:last].reshape(shape)
            yield t_N[first:last].reshape(shape), codes, scales_B[rows]


def _quantise(t_BL: F32Array, peak: int, codes_BL: I8Array, scales_B: F32Array) -> None:
    """Codes and scales of rows; ``t_BL`` becomes what they do not say."""
    top = np.float32(peak)
    coded = np.abs(t_BL)
    # reduceat: half the time of max(axis=1)
    largest_B = np.maximum.reduceat(coded.reshape(-1), np.arange(0, coded.size, coded.shape[1]))
    np.minimum(largest_B / top, scale_max(peak), out=scales_B)
    divisor_B = np.where(scales_B == 0, np.float32(np.inf), scales_B)
    np.divide(t_BL, divisor_B[:, None], out=coded)
    np.clip(coded, -top, top, out=coded)
    codes_BL[...] = np.rint(coded, out=coded)
    coded += np.float32(0)  # a code has no -0
    coded *= scales_B[:, None]
    t_BL -= coded


def _largest(t_CL: F32Array, k: int) -> npt.NDArray[np.bool_]:
    """Which are the k largest magnitudes of each row; of equal ones the first."""
    keys = t_CL.view(np.uint32) & _MAGNITUDE
    border_C1 = np.partition(keys, keys.shape[1] - k, axis=1)[:, -k, None]
    above, ties = keys > border_C1, keys == border_C1
    room_C1 = k - above.sum(axis=1, keepdims=True)
    chosen: npt.NDArray[np.bool_] = above | (ties & (np.cumsum(ties, axis=1) <= room_C1))
    return chosen


def _spread(codes_N: I8Array | F32Array, scales_B: F32Array, start: int, peak: int, out_N: F32Array) -> bool:
    """out = code * scale, where the first code is element ``start`` of the first block."""
    if not _are_scales(scales_B, peak) or codes_N.min(initial=0) < -peak:
        return False
    # whole blocks by one scale each: half the time of a scale for every element
    np.copyto(out_N, codes_N)
    head = min(-start % BLOCK, out_N.size)
    tail = out_N.size - (out_N.size - head) % BLOCK
    first, last = start // BLOCK, (start + tail) // BLOCK
    blocks_BL = out_N[head:tail].reshape(-1, BLOCK)
    np.multiply(blocks_BL, scales_B[last - len(blocks_BL) : last, None], out=blocks_BL)
    for edge, scale in ((out_N[:head], first), (out_N[tail:], last)):
        if edge.size:
            edge *= scales_B[scale]
    return True


def _are_scales(scales_B: F32Array, peak: int) -> bool:
    """Whether all are from 0 to the largest allowed: as bits, where NaN and negative ones are greater."""
    return bool(scales_B.view(np.uint32).max(initial=0) <= scale_max(peak).view(np.uint32))
