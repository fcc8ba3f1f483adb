"""How the rows of one tensor come off the disk: as weights or as deltas from the base, whichever is wanted."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from consortium.errors import Refused
from consortium.merging import kernels
from consortium.merging.exact import F64Array, Factors, require_ranges
from consortium.merging.kernels import Row, Thinning
from consortium.merging.operands import Operand, read_finite
from consortium.merging.plan import TensorPlan
from consortium.merging.survey import CHUNK, scratch_rows
from consortium.tensors import WIDTH, Checkpoint, DType, F32Array, TensorFile, TensorInfo, Tensors

if kernels.CHOSEN == "native":
    from consortium.merging.kernels import native

BF16Array = npt.NDArray[np.uint16]  #: as stored
StoredArray = BF16Array | F32Array


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
        self._files = None if self._scales else self._all_in_files()

    def rows(self, start: int, out_KN: F32Array) -> None:
        if self._files is not None:
            base_N = scratch_rows("base", 1, out_KN.shape[1])[0]
            _local.held = None
            rows, base = self._files.at(start)
            if native.read_rows(rows, base, out_KN, base_N):
                _local.held = (self, start, base_N.size) if base else None
                return
        for k, out_N in enumerate(out_KN):  # or to find out what is wrong
            self.row(k, start, out_N)

    def sum_files(self, factors: Factors, span: range, onto_base: bool, dtype: DType) -> StoredArray | None:
        """A whole span of theta + the weighted sum, as it is stored, in this thread's buffer, if that can be had.

        None where inputs have to be made, not read, and where anything is wrong: ``sum_onto`` says what.
        """
        return self._sum_files(factors, span, onto_base, dtype, None)

    def step_files(
        self,
        factors: Factors,
        span: range,
        dtype: DType,
        before: tuple[int, TensorInfo] | None,
        outer: tuple[float, float, bool],
        kept_N: F32Array,
    ) -> StoredArray | None:
        """The same after a step of momentum SGD.

        before  file and tensor of the momentum that the last step left
        outer   rate, momentum, nesterov
        kept_N  filled with the momentum to keep
        """
        if kernels.CHOSEN != "native":
            return None
        row = None if before is None else _file_row(*before, False, span.start)
        return self._sum_files(factors, span, True, dtype, native.MomentumStep(row, *outer, kept_N))

    def _sum_files(
        self, factors: Factors, span: range, onto_base: bool, dtype: DType, step: "native.MomentumStep | None"
    ) -> StoredArray | None:
        if self._files is None or dtype == "F16":
            return None
        out_N, (rows, base) = _stored_span(len(span), dtype), self._files.at(span.start)
        place = (factors.in_units, factors.scale_of_units, onto_base, out_N)
        peaks = native.sum_files_onto(rows, base, *place, step)
        if peaks is None:
            return None
        require_ranges(peaks, factors)
        return out_N

    def merge_files(
        self,
        thinnings: Sequence[Thinning],
        election: tuple[F64Array, F64Array, bool] | None,
        scale: float,
        span: range,
        onto_base: bool,
        dtype: DType,
    ) -> tuple[StoredArray, float] | None:
        """The same for a merge by election, or by the median if ``election`` is None; and the peak of ``elect``."""
        if self._files is None or dtype == "F16":
            return None
        out_N, (rows, base) = _stored_span(len(span), dtype), self._files.at(span.start)
        peak = native.merge_files_onto(rows, base, thinnings, span.start, election, scale, onto_base, out_N)
        return None if peak is None else (out_N, peak)

    def sum_onto(self, factors: Factors, start: int, theta_N: F32Array | None, out_N: F32Array) -> None:
        """out = theta + the weighted sum of the rows from ``start`` on, rounded once; theta is 0 if None."""
        rows, base_N = self._addends(start, out_N.size)
        scale = factors.scale_of_units
        self._require(
            kernels.sum_rows_onto(rows, base_N, factors.in_units, scale, theta_N, out_N), factors, start
        )

    def weighted_sum(self, factors: Factors, start: int, out_N: F64Array) -> float:
        """``exact.weighted_sum`` of the rows from ``start`` on."""
        rows, base_N = self._addends(start, out_N.size)
        self._require(kernels.sum_rows(rows, base_N, factors.in_units, out_N), factors, start)
        return factors.scale_of_units

    def _addends(self, start: int, size: int) -> tuple[list[Row], F32Array | None]:
        """The rows, as their files have them where that will do, and the base that some are relative to."""
        rows, base_N = [], None
        for k, buffer_N in enumerate(scratch_rows("rows", self.num_rows, size)):
            raw_N = self._stored(k, start, buffer_N)
            if raw_N is None:
                self.row(k, start, buffer_N)
                rows.append(Row(buffer_N, is_relative=False))
                continue
            is_relative = self._relative and not self._sources[k][0].is_delta
            if is_relative:
                base_N = self.base(start, size)
            rows.append(Row(raw_N, is_relative))
        return rows, base_N

    def _require(self, peaks: Sequence[float], factors: Factors, start: int) -> None:
        try:
            require_ranges(peaks, factors)
        except Refused:
            size = min(CHUNK, self.num_elements - start)
            for k in range(self.num_rows):
                self.row(k, start, scratch_rows("row", 1, size)[0])  # raises BadInput where it is NaN
            raise

    def _stored(self, k: int, start: int, buffer_N: F32Array) -> BF16Array | None:
        """A row as its file has it, in the memory of ``buffer_N``, not looked through; None if it must be made."""
        if self._with_base or self._scales is not None:
            return None
        operand, name = self._sources[k]
        file = operand.tensors
        if not isinstance(file, TensorFile | Checkpoint) or (operand.is_delta and not self._relative):
            return None
        if file[name].dtype != "BF16":
            return None
        raw_N = buffer_N.view("<u2")[: buffer_N.size]
        file.read_stored(name, start, raw_N.view(np.uint8))
        return raw_N

    def _all_in_files(self) -> "_Files | None":
        if kernels.CHOSEN != "native" or len(self._sources) > native.FILES_MAX:
            return None
        rows: list[tuple[int, TensorInfo, bool]] = []
        base = None
        if self._base is not None and self._base_name is not None and (self._relative or self._with_base):
            base = self._base.place(self._base_name)
        for operand, name in self._sources:
            place = operand.tensors.place(name)
            if place is None or place[1].dtype == "F16" or (operand.is_delta and not self._relative):
                return None
            rows.append((*place, self._relative and not operand.is_delta))
        if base is not None and base[1].dtype == "F16":
            return None
        if self._with_base:
            return None if base is None else _Files([(*base, False), *rows], None)
        return _Files(rows, base)

    def row(self, k: int, start: int, out_N: F32Array) -> None:
        if self._with_base:
            if k == 0:
                out_N[:] = self.base(start, out_N.size)
                return
            k -= 1
        operand, name = self._sources[k]
        if self._relative and not operand.is_delta:
            self._difference(k, start, out_N)
        else:
            read_finite(operand.tensors, name, start, out_N)
            if operand.is_delta and not self._relative:
                np.add(out_N, self.base(start, out_N.size), out=out_N)
        if self._scales is not None and self._scales[k] != 1.0:
            out_N *= np.float32(self._scales[k])

    def _difference(self, k: int, start: int, out_N: F32Array) -> None:
        """out = row - base, in float32."""
        base_N = self.base(start, out_N.size)
        raw_N = self._stored(k, start, scratch_rows("stored", 1, out_N.size)[0])
        if raw_N is not None and kernels.subtract_bf16(raw_N, base_N, out_N):
            return
        read_finite(self._sources[k][0].tensors, self._sources[k][1], start, out_N)
        np.subtract(out_N, base_N, out=out_N)

    def base(self, start: int, size: int) -> F32Array:
        """Elements of the base, in this thread's buffer; read once for all the rows of a chunk."""
        assert self._base is not None and self._base_name is not None
        theta_N: F32Array = scratch_rows("base", 1, size)[0]
        if getattr(_local, "held", None) != (self, start, size):
            _local.held = None
            read_finite(self._base, self._base_name, start, theta_N)
            _local.held = (self, start, size)
        return theta_N


@dataclass(frozen=True, slots=True)
class _Files:
    """Where the rows lie: file, tensor, whether relative to the base; and where the base lies."""

    rows: Sequence[tuple[int, TensorInfo, bool]]
    base: tuple[int, TensorInfo] | None

    def at(self, start: int) -> tuple[list["native.FileRow"], "native.FileRow | None"]:
        """The same from element ``start`` on."""
        rows = [_file_row(file, info, is_relative, start) for file, info, is_relative in self.rows]
        return rows, _file_row(*self.base, False, start) if self.base else None


def _file_row(file: int, info: TensorInfo, is_relative: bool, start: int) -> "native.FileRow":
    offset = info.offset + start * WIDTH[info.dtype]
    return native.FileRow(file, offset, info.dtype == "BF16", is_relative)


def _stored_span(size: int, dtype: DType) -> StoredArray:
    """This thread's buffer for a span as it is stored."""
    buffer_N: F32Array = scratch_rows("stored span", 1, size)[0]
    return buffer_N if dtype == "F32" else buffer_N.view("<u2")[:size]


_local = threading.local()
