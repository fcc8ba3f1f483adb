"""Where the k largest elements of a tensor's rows end: exactly, without sorting or holding them.

Rows are the same tensor of several models; all their boundaries are found together, so that what the rows
share (the base) is read once. A sample says near which key each boundary lies, and how wide to look. One pass
then counts the keys near it, each key on its own, per segment of the tensor. Of equal keys differences of
bfloat16 models have millions: the counts of those that the sample saw are noted part by part, and reading
the one part (of a key it did not see: the segment) in which they end settles them. Where the sample misled, or
was too vague to count keys one by one, counting begins again with what is known: from nothing, two passes do.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from consortium.merging.kernels import EVERYTHING, NOTHING, Boundary, count_keys
from consortium.merging.kernels.portable import F32Array, I64Array, U32Array

#: (row, start, size): these elements of a row, finite; the memory may be that of the thread's last call, and is
#: the caller's to overwrite
Read = Callable[[int, int, int], F32Array]

_Span = tuple[int, int]  #: start and stop: of elements, or of keys

_KEYS: _Span = (0, 1 << 31)  #: a key is a float32 without its sign
_SIGN = np.uint32(_KEYS[1] - 1)
_HELD = 1 << 17  #: elements of a row that is held and partitioned
_SLICE = 2048  #: elements of the sample lie together to spare reads; neighbours are alike, so not too many
_SLICES_MIN, _SLICES_MAX = 32, 256
_SAMPLES = 1 << 21  #: elements of the samples held at a time, of several rows
_COARSE = 14  #: bits of a key that the sample does not resolve: a 512th of the element, less than its error
_ERRORS = 4.0  #: standard errors to either side of the sample's boundary; once in ten thousand it lies beyond
_BINS = 1 << 20  #: keys counted one by one for one boundary
_BINS_BITS = 16  #: if there are more, one of so many bits' bins is found first
_NOTED = 1024  #: keys of the sample, for one boundary; usually it saw some hundred
_PARTS = 128  #: of a tensor
_COUNTERS = 1 << 22  #: of four bytes, at a time; the fewer bins, the more boundaries and segments


@dataclass(slots=True)
class _Quest:
    """The search for one boundary, which very probably is among the keys ``low .. high - 1``."""

    row: int
    k: int
    low: int
    high: int
    seen_M: U32Array  #: keys of the sample that are among them

    @property
    def shift(self) -> int:
        """Bits of a key that are not resolved."""
        width = self.high - self.low
        return 0 if width <= _BINS else (width - 1).bit_length() - _BINS_BITS

    @property
    def num_bins(self) -> int:
        return ((self.high - self.low - 1) >> self.shift) + 1

    @property
    def noted_M(self) -> U32Array:
        """The bins whose counts are noted part by part."""
        if self.shift:
            return self.seen_M[:0]
        seen_M = self.seen_M[(self.seen_M >= self.low) & (self.seen_M < self.high)]
        return seen_M - np.uint32(self.low)


def top_boundaries(
    read: Read, count: int, wanted: Sequence[Sequence[int]], pool: ThreadPoolExecutor, chunk: int = 1 << 17
) -> list[list[Boundary]]:
    """For every row the boundaries of the k elements that are largest by |x|, of equal ones of lowest index.

    count   elements of a row
    wanted  for every row some k, each 0 .. count
    pool    whose threads read and count segments of the tensor; not to be called from one of them
    chunk   elements read at a time; changes speed and memory, not the result
    A boundary's index is that of the last equal element in the top, without limit if all equal ones are.
    Memory: 16 MiB to count, what ``read`` needs.
    """
    found: dict[tuple[int, int], Boundary] = {}
    ranks: dict[int, list[int]] = {}
    for row, ks in enumerate(wanted):
        for k in sorted(set(ks)):
            assert 0 <= k <= count, f"k={k} of {count} elements"
            if 0 < k < count:
                ranks.setdefault(row, []).append(k)
            else:
                found[row, k] = EVERYTHING if k else NOTHING
    if count <= _HELD:
        for row, ks in ranks.items():
            found.update({(row, k): top for k, top in zip(ks, _held(read(row, 0, count), ks), strict=True)})
    else:
        source = _Source(read, count, chunk, pool)
        quests = source.quests(ranks)
        while quests:
            batch = _batch(quests)
            quests = quests[len(batch) :]
            for quest, top in zip(batch, source.count(batch), strict=True):
                if top is None:
                    quests.append(quest)
                else:
                    found[quest.row, quest.k] = top
    return [[found[row, k] for k in ks] for row, ks in enumerate(wanted)]


def _held(x_N: F32Array, ks: Sequence[int]) -> list[Boundary]:
    keys_N = x_N.view(np.uint32) & _SIGN
    partitioned_N = np.partition(keys_N, [keys_N.size - k for k in ks])
    return [_among(keys_N, int(partitioned_N[keys_N.size - k]), k) for k in ks]


def _among(keys_N: U32Array, bits: int, k: int) -> Boundary:
    equal_N = np.flatnonzero(keys_N == bits)
    number = k - int(np.count_nonzero(keys_N > bits))
    return Boundary(bits, EVERYTHING.index if number == equal_N.size else int(equal_N[number - 1]))


def _batch(quests: Sequence[_Quest]) -> list[_Quest]:
    """The first of them, as many rows' as can be counted at a time in two segments."""
    batch: list[_Quest] = []
    for _, of_row in groupby(quests, lambda quest: quest.row):
        more = [*batch, *of_row]
        if batch and 2 * sum(quest.num_bins for quest in more) > _COUNTERS:
            break
        batch = more
    return batch


class _Tally:
    """What one pass counts for one boundary."""

    def __init__(self, quest: _Quest, num_segments: int) -> None:
        self.quest = quest
        self.counts_SB = np.zeros((num_segments, quest.num_bins), np.uint32)
        self.above_S = np.zeros(num_segments, np.int64)
        self.noted_M = quest.noted_M
        self.reached_PM = np.zeros((_PARTS, self.noted_M.size), np.uint32)  #: the segment's counts so far

    def add(self, x_N: F32Array, segment: int, part: int) -> None:
        counts_B = self.counts_SB[segment]
        self.above_S[segment] += count_keys(x_N, self.quest.low, self.quest.shift, counts_B)
        self.reached_PM[part] = counts_B[self.noted_M]


def _place(counts_S: I64Array, number: int) -> tuple[int, int]:
    """In which part the ``number``-th element is, and the how manieth of it; counted from one."""
    before_S = counts_S.cumsum() - counts_S
    place = int(np.flatnonzero(before_S < number)[-1])
    return place, number - int(before_S[place])


class _Source:
    """A tensor's rows, read in pieces."""

    def __init__(self, read: Read, count: int, chunk: int, pool: ThreadPoolExecutor) -> None:
        self._read, self._size, self._chunk, self._pool = read, count, chunk, pool
        self._part = -(-count // (chunk * _PARTS)) * chunk

    def quests(self, ranks: dict[int, list[int]]) -> list[_Quest]:
        """Where to look for the boundaries, judged by slices spread evenly."""
        slices = min(max(self._size >> 16, _SLICES_MIN), _SLICES_MAX)
        together = max(1, _SAMPLES // (slices * _SLICE))
        rows = list(ranks)
        found = []
        for group in (rows[first : first + together] for first in range(0, len(rows), together)):
            sample_KSL = np.empty((len(group), slices, _SLICE), np.float32)

            def fill(numbers: range, group: list[int] = group, sample_KSL: F32Array = sample_KSL) -> None:
                for number in numbers:
                    start = number * (self._size - _SLICE) // (slices - 1)
                    for row, sample_SL in zip(group, sample_KSL, strict=True):
                        sample_SL[number] = self._read(row, start, _SLICE)

            def judge(row: int, sample_SL: F32Array) -> list[_Quest]:
                return _quests(row, sample_SL, self._size, ranks[row])

            list(self._pool.map(fill, (range(first, slices, 4) for first in range(4))))
            found += [quest for of_row in self._pool.map(judge, group, sample_KSL) for quest in of_row]
        return found

    def count(self, quests: list[_Quest]) -> list[Boundary | None]:
        """One pass: the boundaries that it settles; the others' quests know better where to look."""
        num_bins = sum(quest.num_bins for quest in quests)
        # the more segments, the less to read again for equal keys, but the more counters to add
        worthwhile = math.isqrt(self._size * len(quests) // num_bins)
        segments = self._segments(max(2, min(worthwhile, _COUNTERS // num_bins) & ~1))
        tallies = [_Tally(quest, len(segments)) for quest in quests]
        by_row = [(row, list(of_row)) for row, of_row in groupby(tallies, lambda tally: tally.quest.row)]

        def count(segment: int) -> None:
            for start, size in self._pieces(segments[segment]):
                for row, of_row in by_row:
                    x_N = self._read(row, start, size)
                    for tally in of_row:
                        tally.add(x_N, segment, start // self._part)

        def settle(tally: _Tally) -> Boundary | None:
            return self._settle(tally, segments)

        list(self._pool.map(count, range(len(segments))))
        return list(self._pool.map(settle, tallies))

    def _settle(self, tally: _Tally, segments: list[_Span]) -> Boundary | None:
        quest, above = tally.quest, int(tally.above_S.sum())
        reached_B = tally.counts_SB.sum(axis=0, dtype=np.int64)[::-1]  # from the topmost bin down
        np.cumsum(reached_B, out=reached_B)
        if not above < quest.k <= above + reached_B[-1]:
            quest.low, quest.high = _KEYS
            return None
        place = int(np.searchsorted(reached_B, quest.k - above))
        bin, shift = reached_B.size - 1 - place, quest.shift
        quest.low += bin << shift
        quest.high = quest.low + (1 << shift)
        if shift:
            return None
        surplus = above + int(reached_B[place]) - quest.k
        if not surplus:
            return Boundary(quest.low, EVERYTHING.index)
        equal_S = tally.counts_SB[:, bin].astype(np.int64)
        number = int(equal_S.sum()) - surplus
        segment, number = _place(equal_S, number)
        start, stop = segments[segment]
        noted = np.flatnonzero(tally.noted_M == bin)
        if noted.size:
            reached_P = tally.reached_PM[start // self._part : -(-stop // self._part), noted[0]].astype(
                np.int64
            )
            part, number = _place(np.concatenate([reached_P[:1], reached_P[1:] - reached_P[:-1]]), number)
            start += part * self._part
        return Boundary(quest.low, self._find(quest, (start, stop), number))

    def _find(self, quest: _Quest, span: _Span, number: int) -> int:
        """The index of the ``number``-th element, counted from one, that has the key ``quest.low``."""
        for start, size in self._pieces(span):
            x_N = self._read(quest.row, start, size)
            places = np.flatnonzero(x_N.view(np.uint32) & _SIGN == quest.low)
            if number <= places.size:
                return start + int(places[number - 1])
            number -= places.size
        raise AssertionError(
            f"row {quest.row} changed while it was read: {number} of key {quest.low} are gone"
        )

    def _pieces(self, span: _Span) -> Iterator[tuple[int, int]]:
        return ((start, min(self._chunk, span[1] - start)) for start in range(*span, self._chunk))

    def _segments(self, most: int) -> list[_Span]:
        """At most so many, of whole parts, alike in length."""
        length = -(-self._size // (self._part * most)) * self._part
        return [(start, min(start + length, self._size)) for start in range(0, self._size, length)]


def _quests(row: int, sample_SL: F32Array, count: int, ks: Sequence[int]) -> list[_Quest]:
    """Keys among which the k-th largest elements' very probably are.

    Slices differ more than their elements would by chance (a row of an embedding may hardly have moved), so
    the standard error is that of their counts, as in cluster sampling (Cochran 1977, chapter 9).
    """
    counts_B = np.zeros(_KEYS[1] >> _COARSE, np.uint32)
    count_keys(sample_SL.reshape(-1), 0, _COARSE, counts_B)
    reached_B = np.cumsum(counts_B[::-1], dtype=np.int64)  # from the topmost bin down
    keys_SL = sample_SL.view(np.uint32) & _SIGN

    def start_of(rank: int) -> int:
        """Of the bin in which is the sample's element of this rank, counted from one, from the largest."""
        return (counts_B.size - 1 - int(np.searchsorted(reached_B, rank))) << _COARSE

    def spread(key: int) -> float:
        return float(np.var(np.count_nonzero(keys_SL >= key, axis=1), ddof=1))

    quests = []
    for k in ks:
        rank = (sample_SL.size * k + count - 1) // count
        key = start_of(rank)
        variance = max(spread(key), spread(key + (1 << _COARSE)))
        margin = 1 + int(_ERRORS * (len(sample_SL) * variance) ** 0.5 + _ERRORS)
        low = start_of(rank + margin) if rank + margin <= sample_SL.size else _KEYS[0]
        high = start_of(rank - margin) + (1 << _COARSE) if rank > margin else _KEYS[1]
        seen_M = np.unique(keys_SL[(keys_SL >= low) & (keys_SL < high)])[:_NOTED].copy()
        quests.append(_Quest(row, k, low, high, seen_M))
    return quests
