"""Where the k largest elements of a tensor end: exactly, without sorting or holding it.

A sample says near which key the boundary lies, and how wide to look. One pass then counts the keys near it,
each key on its own, per segment of the tensor, and reading a part of the one segment in which they end
settles equal keys, of which differences of bfloat16 models have millions. Where the sample misled, or was
too vague to count keys one by one, counting begins again with what is known: from nothing, two passes do.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from consortium.merging.kernels import EVERYTHING, NOTHING, Boundary, count_keys
from consortium.merging.portable import F32Array, U32Array

#: Fills an array with the elements ``start ..`` of a tensor; they must be finite.
Read = Callable[[int, F32Array], None]

_Span = tuple[int, int]  #: start and stop: of elements, or of keys

_KEYS: _Span = (0, 1 << 31)  #: a key is a float32 without its sign
_SAMPLE_WHOLE = 1 << 17  #: elements up to which the sample is the tensor
_SLICE = 2048  #: elements of the sample lie together to spare reads; neighbours are alike, so not too many
_SLICES_MIN, _SLICES_MAX = 32, 256
_ERRORS = 4.0  #: standard errors to either side of the sample's boundary; once in ten thousand it lies beyond
_BINS = 1 << 19  #: keys counted at a time
_COUNTERS = 1 << 20  #: of four bytes: the fewer bins, the more segments


def top_boundary(read: Read, count: int, k: int, chunk: int = 1 << 16) -> Boundary:
    """The boundary of the k elements that are largest by |x|, of equal ones those of lowest index.

    count  elements of the tensor
    k      0 .. count
    chunk  elements read at a time; changes speed and memory, not the result
    The boundary's index is that of the last equal element in the top, without limit if all equal ones are.
    Memory: 8 MiB to count, a chunk.
    """
    assert 0 <= k <= count, f"k={k} of {count} elements"
    if k == 0:
        return NOTHING
    if k == count:
        return EVERYTHING
    source = _Source(read, chunk)
    low, high = _bracket(read, count, k)
    while True:
        shift = max(0, (high - low - 1).bit_length() - _BINS.bit_length() + 1)
        num_bins = ((high - low - 1) >> shift) + 1
        segments = _split(count, chunk, _COUNTERS // num_bins)
        counts_SB = np.zeros((len(segments), num_bins), np.uint32)
        above = sum(source.count(*both, low, shift) for both in zip(segments, counts_SB, strict=True))
        reached_B = counts_SB.sum(axis=0, dtype=np.int64)[::-1]  # from the topmost bin down
        np.cumsum(reached_B, out=reached_B)
        if not above < k <= above + reached_B[-1]:
            low, high = _KEYS
            continue
        place = int(np.searchsorted(reached_B, k - above))
        bin = num_bins - 1 - place
        low += bin << shift
        high = low + (1 << shift)
        if shift == 0:
            break
    surplus = above + int(reached_B[place]) - k
    if not surplus:
        return Boundary(low, EVERYTHING.index)
    equal_S = counts_SB[:, bin].astype(np.int64)
    before_S = equal_S.cumsum() - equal_S
    wanted = int(equal_S.sum()) - surplus
    segment = int(np.flatnonzero(before_S < wanted)[-1])
    return Boundary(low, source.find(segments[segment], low, wanted - int(before_S[segment])))


class _Source:
    """The tensor, read in pieces into one buffer."""

    def __init__(self, read: Read, chunk: int) -> None:
        self._read = read
        self._buffer_N = np.empty(chunk, np.float32)

    def count(self, span: _Span, counts_B: U32Array, low: int, shift: int) -> int:
        return sum(count_keys(x_N, low, shift, counts_B) for _, x_N in self._pieces(span))

    def find(self, span: _Span, key: int, number: int) -> int:
        """The index of the ``number``-th element, counted from one, that has this key."""
        for start, x_N in self._pieces(span):
            places = np.flatnonzero(x_N.view(np.uint32) & np.uint32(0x7FFFFFFF) == key)
            if number <= places.size:
                return start + int(places[number - 1])
            number -= places.size
        raise AssertionError(f"the tensor changed while it was read: {number} elements of key {key} are gone")

    def _pieces(self, span: _Span) -> Iterator[tuple[int, F32Array]]:
        for start in range(*span, self._buffer_N.size):
            x_N = self._buffer_N[: span[1] - start]
            self._read(start, x_N)
            yield start, x_N


def _bracket(read: Read, count: int, k: int) -> _Span:
    """Keys among which the k-th largest element's very probably is, judged by slices spread evenly.

    Slices differ more than their elements would by chance (a row of an embedding may hardly have moved), so
    the standard error is that of their counts, as in cluster sampling (Cochran 1977, chapter 9).
    """
    if count <= _SAMPLE_WHOLE:
        slices, length = 1, count
    else:
        slices, length = min(max(count >> 16, _SLICES_MIN), _SLICES_MAX), _SLICE
    sample_SL = np.empty((slices, length), np.float32)
    for number, slice_L in enumerate(sample_SL):
        read(number * (count - length) // max(slices - 1, 1), slice_L)
    keys_SL = sample_SL.view(np.uint32)
    keys_SL &= np.uint32(0x7FFFFFFF)
    keys = keys_SL.reshape(-1).copy()
    rank = keys.size - (keys.size * k + count - 1) // count  # ascending, of the sample's boundary
    keys.partition(rank)
    margin = 0
    if slices > 1:
        above_S = np.count_nonzero(keys_SL > keys[rank], axis=1)
        margin = 1 + int(_ERRORS * (slices * float(np.var(above_S, ddof=1))) ** 0.5 + _ERRORS)
    first, last = max(rank - margin, 0), min(rank + margin, keys.size - 1)
    keys.partition((first, last))
    low = int(keys[first]) if rank >= margin else _KEYS[0]
    high = int(keys[last]) + 1 if rank + margin < keys.size else _KEYS[1]
    return low, high


def _split(count: int, chunk: int, most: int) -> list[_Span]:
    """At most so many segments, of whole chunks, alike in length."""
    length = math.ceil(math.ceil(count / chunk) / most) * chunk
    return [(start, min(start + length, count)) for start in range(0, count, length)]
