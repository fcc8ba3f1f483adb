"""How the rows of one tensor come off the disk: as weights or as deltas from the base, whichever is wanted."""

import math
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from consortium.errors import Refused
from consortium.merging.exact import F64Array, Factors, StoredRow, weighted_sum
from consortium.merging.operands import Operand, read_finite
from consortium.merging.plan import TensorPlan
from consortium.merging.survey import scratch_rows
from consortium.tensors import Checkpoint, F32Array, TensorFile, Tensors


class TensorReader:
    """The rows of one tensor: of every source, in the plan's order, with the base before them if asked for.

    relative   deltas from the base (else weights)
    with_base  the base is row 0 (weights only)
    scales     what each row is multiplied by after it was read (norm clipping)
    """

    def __init__(
        self,
        plan: TensorPlan,
        base: Tensors | None,
        operands: Sequence[Operand],
        relative: bool,
        with_base: bool = False,
        scales: Sequence[float] | None = None,
    ) -> None:
        assert not (relative and with_base)
        self.shape = plan.shape
        self.num_elements = math.prod(plan.shape)
        self._base, self._base_name = base, plan.base
        self._sources = [(operands[position], name) for position, name in plan.sources]
        self._scales = [scales[position] for position, _ in plan.sources] if scales else None
        self._relative, self._with_base = relative, with_base
        self.num_rows = len(self._sources) + with_base

    def rows(self, start: int, out_KN: F32Array) -> None:
        for k, out_N in enumerate(out_KN):
            self.row(k, start, out_N)

    def weighted_sum(self, factors: Factors, start: int, out_N: F64Array) -> float:
        """``exact.weighted_sum`` of the rows from ``start`` on, one after the other in one buffer."""
        row_N = scratch_rows("row", 1, out_N.size)[0]
        try:
            return weighted_sum(self._each(start, row_N), factors, out_N)
        except Refused:
            for k in range(self.num_rows):
                self.row(k, start, row_N)  # raises BadInput where it is not size but NaN
            raise

    def _each(self, start: int, row_N: F32Array) -> Iterator[F32Array | StoredRow]:
        for k in range(self.num_rows):
            stored = self._stored_row(k, start, row_N)
            if stored is None:
                self.row(k, start, row_N)
            yield row_N if stored is None else stored

    def _stored_row(self, k: int, start: int, row_N: F32Array) -> StoredRow | None:
        """A row as its file has it, not looked through, in the memory of ``row_N``; None if it must be made."""
        if self._with_base or self._scales is not None:
            return None
        operand, name = self._sources[k]
        file = operand.tensors
        if not isinstance(file, TensorFile | Checkpoint) or operand.is_delta != self._relative:
            return None
        if file[name].dtype != "BF16":
            return None
        raw_N = row_N.view("<u2")[: row_N.size]
        file.read_stored(name, start, raw_N.view(np.uint8))
        return StoredRow(raw_N)

    def row(self, k: int, start: int, out_N: F32Array) -> None:
        if self._with_base:
            if k == 0:
                out_N[:] = self.base(start, out_N.size)
                return
            k -= 1
        operand, name = self._sources[k]
        read_finite(operand.tensors, name, start, out_N)
        if operand.is_delta and not self._relative:
            np.add(out_N, self.base(start, out_N.size), out=out_N)
        elif self._relative and not operand.is_delta:
            np.subtract(out_N, self.base(start, out_N.size), out=out_N)
        if self._scales is not None and self._scales[k] != 1.0:
            out_N *= np.float32(self._scales[k])

    def base(self, start: int, size: int) -> F32Array:
        """Elements of the base, in this thread's buffer; read once for all the rows of a chunk."""
        assert self._base is not None and self._base_name is not None
        theta_N: F32Array = scratch_rows("base", 1, size)[0]
        if getattr(_local, "held", None) != (self, start, size):
            _local.held = None
            read_finite(self._base, self._base_name, start, theta_N)
            _local.held = (self, start, size)
        return theta_N


_local = threading.local()
