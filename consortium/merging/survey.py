"""What whole tensors are like before they are merged: dot products, boundaries, sums, streamed once each.

Everything here is the same for every chunking and any number of threads: dot products and sums are made per
block of 4096 elements in a fixed order (``kernels``), the blocks of a span are added by ``math.fsum``, which
rounds once whatever the order, and so are the spans; boundaries are exact selections.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from consortium.merging import kernels
from consortium.merging.exact import F64Array
from consortium.merging.kernels import Boundary
from consortium.merging.selection import top_boundaries
from consortium.tensors import F32Array

BLOCK = 4096  #: elements of one block; chunks are made of whole blocks
CHUNK = 1 << 17  #: elements of one step; half as many cost a tenth more in calls, more bring nothing
SPAN = 1 << 20  #: elements that a thread takes at a time, about; so many that taking costs nothing

_Out = TypeVar("_Out")


class Reader(Protocol):
    """The rows of one tensor that a method works on: weights, or deltas from the base."""

    num_rows: int
    num_elements: int
    shape: tuple[int, ...]

    def rows(self, start: int, out_KN: F32Array) -> None:
        """Fill ``out_KN`` with elements ``start ..`` of every row."""

    def row(self, k: int, start: int, out_N: F32Array) -> None:
        """Fill ``out_N`` with elements ``start ..`` of one row."""


@dataclass(frozen=True, slots=True)
class Survey:
    """One tensor, ready to be asked. Not to be asked from the pool's own threads."""

    reader: Reader
    pool: ThreadPoolExecutor
    chunk: int  #: elements of one step, whole blocks

    def gram(self) -> F64Array:
        """(K, K) dot products of the rows."""
        num_rows = self.reader.num_rows
        pairs = num_rows * (num_rows + 1) // 2
        return self._symmetric(self._sums(pairs, lambda rows_KN, _: kernels.gram(rows_KN, BLOCK)))

    def _symmetric(self, pairs_P: Sequence[float] | F64Array) -> F64Array:
        gram_KK = np.empty((self.reader.num_rows, self.reader.num_rows))
        gram_KK[np.triu_indices(len(gram_KK))] = pairs_P
        gram_KK.T[np.triu_indices(len(gram_KK))] = pairs_P
        return gram_KK

    def tops(self, counts: Sequence[Sequence[int]]) -> list[list[Boundary]]:
        """For every row, where its ``k`` largest elements end, for every k of ``counts[row]``."""

        def read(row: int, start: int, size: int) -> F32Array:
            row_N: F32Array = scratch_rows("top", 1, size)[0]
            self.reader.row(row, start, row_N)
            return row_N

        return top_boundaries(read, self.reader.num_elements, counts, self.pool, self.chunk)

    def kept_shares(self, tops: Sequence[Boundary], without: Sequence[Boundary]) -> list[float]:
        """For every row, its L1 norm over that of what it keeps: 1 where either is next to nothing."""

        def norms(rows_KN: F32Array, start: int) -> F64Array:
            before_K = [kernels.abs_sum(row_N, BLOCK) for row_N in rows_KN]
            for row_N, top, but in zip(rows_KN, tops, without, strict=True):
                kernels.keep_window(row_N, start, top, but)
            return np.stack([*before_K, *(kernels.abs_sum(row_N, BLOCK) for row_N in rows_KN)], axis=1)

        sums = self._sums(2 * self.reader.num_rows, norms)
        pairs = zip(sums[: self.reader.num_rows], sums[self.reader.num_rows :], strict=True)
        return [before / after if min(before, after) >= 1e-7 else 1.0 for before, after in pairs]

    def count_varying(self) -> int:
        """How many elements are not the same in every row."""
        counts = self._over_spans(lambda rows_KN, _: int(np.count_nonzero(_variance(rows_KN))))
        return sum(map(sum, counts))

    def variance_top(self, count: int) -> Boundary:
        """Where the ``count`` elements end that differ most between the rows."""

        def read(_: int, start: int, size: int) -> F32Array:
            rows_KN = scratch_rows("rows", self.reader.num_rows, size)
            self.reader.rows(start, rows_KN)
            return _variance(rows_KN)

        return top_boundaries(read, self.reader.num_elements, [[count]], self.pool, self.chunk)[0][0]

    def energies(self, top: Boundary | None) -> list[float]:
        """For every row the sum of squares, of the elements that differ most if ``top`` says which."""

        def squares(rows_KN: F32Array, start: int) -> F64Array:
            if top is not None:
                mask_variance(rows_KN, start, top)
            return np.concatenate([kernels.gram(row_N[None], BLOCK) for row_N in rows_KN], axis=1)

        return self._sums(self.reader.num_rows, squares)

    def line_grams(self, width: int) -> F64Array:
        """(lines, K, K): the dot products of every line, ``width`` elements long."""
        per_line = self._over_spans(lambda rows_KN, _: kernels.gram(rows_KN, width), width)
        pairs_RP = np.concatenate([part for parts in per_line for part in parts])
        return np.array([self._symmetric(pairs_P) for pairs_P in pairs_RP])

    def column_grams(self, width: int) -> F64Array:
        """(columns, K, K): the dot products of every column; lines are added in order, by one thread."""
        num_rows, step = self.reader.num_rows, max(1, self.chunk // width) * width
        total_KKC = np.zeros((num_rows, num_rows, width))
        for start in range(0, self.reader.num_elements, step):
            rows_KN = scratch_rows("rows", num_rows, min(step, self.reader.num_elements - start))
            self.reader.rows(start, rows_KN)
            lines_RKC = rows_KN.reshape(num_rows, -1, width).swapaxes(0, 1).astype(np.float64)
            for line_KC in lines_RKC:
                total_KKC += line_KC[:, None] * line_KC[None]
        return np.ascontiguousarray(total_KKC.transpose(2, 0, 1))

    def _sums(self, width: int, work: Callable[[F32Array, int], F64Array]) -> list[float]:
        """The sums of the columns of ``work(rows_KN, start)``, which is (blocks, width), over the tensor."""
        spans = list(self._over_spans(work))
        sums = ([math.fsum(column) for column in np.concatenate(parts).T] for parts in spans)
        return [math.fsum(column) for column in zip(*sums, strict=True)] or [0.0] * width

    def _over_spans(
        self, work: Callable[[F32Array, int], _Out], width: int | None = None
    ) -> Iterator[list[_Out]]:
        """``work(rows_KN, start)`` on every chunk, a list for every span, the rows being its to overwrite.

        width  of a line, where every chunk must hold whole ones
        """

        def do(span: range) -> list[_Out]:
            found = []
            for start, stop in chunks(span, self.chunk, width):
                rows_KN = scratch_rows("rows", self.reader.num_rows, stop - start)
                self.reader.rows(start, rows_KN)
                found.append(work(rows_KN, start))
            return found

        return self.pool.map(do, spans(self.reader.shape))


def total_gram(grams: Iterable[F64Array]) -> F64Array:
    """The dot products of whole models from those of their tensors; added without rounding until the end."""
    stacked_TKK = np.stack(list(grams))
    flat = [math.fsum(column) for column in stacked_TKK.reshape(len(stacked_TKK), -1).T]
    return np.array(flat).reshape(stacked_TKK.shape[1:])


def spans(shape: tuple[int, ...]) -> Iterator[range]:
    """A tensor's elements in parts of about a million: whole lines, and the same for everybody."""
    count = math.prod(shape)
    width = max(1, shape[-1]) if shape else 1
    size = max(1, SPAN // width) * width
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def chunks(span: range, chunk: int, width: int | None = None) -> Iterator[tuple[int, int]]:
    """A span in steps of ``chunk`` elements, or of as many whole lines."""
    step = chunk if width is None else max(1, chunk // width) * width
    return ((start, min(start + step, span.stop)) for start in range(span.start, span.stop, step))


def mask_variance(rows_KN: F32Array, start: int, top: Boundary) -> None:
    """Zero, in all rows, the elements that are not among those that differ most."""
    variance_N = _variance(rows_KN)
    mask_N = np.ones_like(variance_N)
    keys = variance_N.view(np.uint32)
    mask_N[(keys < top.bits) | ((keys == top.bits) & (np.arange(start, start + keys.size) > top.index))] = 0.0
    rows_KN *= mask_N


_local = threading.local()


def scratch_rows(what: str, num_rows: int, size: int) -> F32Array:
    """This thread's (num_rows, size) rows for ``what``, contiguous. Used again: fresh memory is slow."""
    buffers: dict[str, F32Array] = _local.__dict__.setdefault("buffers", {})
    if what not in buffers or buffers[what].size < num_rows * size:
        buffers[what] = np.empty(num_rows * size, np.float32)
    return buffers[what][: num_rows * size].reshape(num_rows, size)


def _variance(rows_KN: F32Array) -> F32Array:
    out_N = np.empty(rows_KN.shape[1], np.float32)
    kernels.variance(rows_KN, out_N)
    return out_N
