"""The kernels in C: the functions of ``portable``, which documents them, with the same bits and no lock.

Importing it raises ImportError, with the reason, where they were not built or not from the source that lies
here. Every array must be contiguous, of the right type and size: C would not notice.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consortium.libraries import load_library
from consortium.merging.kernels.portable import (
    BLOCK,
    UNITS,
    Boundary,
    F32Array,
    F64Array,
    I64Array,
    Row,
    Thinning,
    U16Array,
    U32Array,
)

_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)
_U16, _U32, _U64 = np.dtype(np.uint16), np.dtype(np.uint32), np.dtype(np.uint64)
_I32, _I64 = np.dtype(np.int32), np.dtype(np.int64)
_SOURCE = np.dtype([("offset", np.int64), ("file", np.int32), ("kind", np.int32)])
_STEP = np.dtype(
    [
        ("before", _SOURCE),
        *[(name, np.float64) for name in ("rate", "momentum")],
        *[("nesterov", np.int64), ("kept", np.uint64)],
    ]
)
_THINNING = np.dtype(
    [("top_index", np.int64), ("without_index", np.int64), ("key", np.uint64)]
    + [(name, np.uint32) for name in ("top_bits", "without_bits", "threshold")]
    + [("how", np.int32)]
)
_PIECE_BYTES, _TILE_BYTES = 4 << 15, 4 << 9  # as kernels.c reads and works
FILES_MAX = 256  # as kernels.c has room for
_ROWS_MAX = 8192  #: rows that are sorted; C keeps at least one column of them on its stack
_LETTERS = {
    "p": ctypes.c_void_p,
    "l": ctypes.c_int64,
    "i": ctypes.c_int,
    "u": ctypes.c_uint32,
    "k": ctypes.c_uint64,
    "d": ctypes.c_double,
    "-": None,
}


_library = load_library(Path(__file__).parent, "_kernels", "kernels.c")
_local = threading.local()


def _function(name: str, result: str, arguments: str) -> Callable[..., Any]:
    function = getattr(_library, name)
    function.restype = _LETTERS[result]
    function.argtypes = [_LETTERS[letter] for letter in arguments]
    return function  # type: ignore[no-any-return]


_decode_bf16 = _function("decode_bf16", "-", "ppl")
_encode_bf16 = _function("encode_bf16", "-", "ppl")
_first_non_finite = _function("first_non_finite", "l", "pl")
_grid_add = _function("grid_add", "d", "ppdl")
_sum_rows = _function("sum_rows", "-", "pppppl" + "pl")
_sum_rows_onto = _function("sum_rows_onto", "-", "pppppl" + "dppl")
_sum_files_onto = _function("sum_files_onto", "i", "plpppdipiplp")
_merge_files_onto = _function("merge_files_onto", "i", "plpplippidiiplpp")
_read_rows = _function("read_rows", "i", "plppplp")
_subtract_bf16 = _function("subtract_bf16", "l", "pppl")
_sgd_step = _function("sgd_step", "-", "ppdpddippl")
_scale_to = _function("scale_to", "-", "pdpl")
_apply_step = _function("apply_step", "-", "ppdpl")
_keep_window = _function("keep_window", "-", "plilil")
_keep_random = _function("keep_random", "-", "pllku")
_keep_ranked = _function("keep_ranked", "-", "plllkddipp")
_elect = _function("elect", "d", "pllpppi")
_median = _function("median", "-", "pllp")
_trimmed_mean = _function("trimmed_mean", "-", "plllp")
_variance = _function("variance", "-", "pllp")
_gram = _function("gram", "-", "plllp")
_abs_sum = _function("abs_sum", "-", "pllp")
_count_keys = _function("count_keys", "l", "pluipu")
_draw32 = _function("draw32", "-", "kppl")


def decode_bf16(raw_N: U16Array, out_N: F32Array) -> None:
    _decode_bf16(_at(raw_N, _U16), _at(out_N, _F32, raw_N.size), raw_N.size)


def encode_bf16(x_N: F32Array, out_N: U16Array) -> None:
    _encode_bf16(_at(x_N, _F32), _at(out_N, _U16, x_N.size), x_N.size)


def first_non_finite(x_N: F32Array) -> int:
    return int(_first_non_finite(_at(x_N, _F32), x_N.size))


def grid_add(total_N: F64Array, x_N: F32Array, factor: float) -> float:
    return float(_grid_add(_at(total_N, _F64, x_N.size), _at(x_N, _F32), factor, x_N.size))


def sum_rows(
    rows: Sequence[Row], base_N: F32Array | None, factors: Sequence[float], total_N: F64Array
) -> list[float]:
    given, peaks_K = _addends(rows, base_N, factors, total_N.size)
    _sum_rows(*given, _at(total_N, _F64), total_N.size)
    return [float(peak) for peak in peaks_K.view(np.float32)]


def sum_rows_onto(
    rows: Sequence[Row],
    base_N: F32Array | None,
    factors: Sequence[float],
    scale: float,
    theta_N: F32Array | None,
    out_N: F32Array,
) -> list[float]:
    size = out_N.size
    given, peaks_K = _addends(rows, base_N, factors, size)
    theta = None if theta_N is None else _at(theta_N, _F32, size)
    _sum_rows_onto(*given, scale, theta, _at(out_N, _F32), size)
    return [float(peak) for peak in peaks_K.view(np.float32)]


def _addends(
    rows: Sequence[Row], base_N: F32Array | None, factors: Sequence[float], size: int
) -> tuple[tuple[Any, ...], npt.NDArray[np.int32]]:
    peaks_K = np.zeros(len(rows), np.int32)
    places = (ctypes.c_void_p * len(rows))()
    kinds = (ctypes.c_uint8 * len(rows))()
    for k, (values_N, is_relative) in enumerate(rows):
        is_stored = values_N.dtype == _U16
        places[k] = _at(values_N, _U16 if is_stored else _F32, size)
        kinds[k] = is_stored + 2 * is_relative
        assert base_N is not None or not is_relative
    base = None if base_N is None else _at(base_N, _F32, size)
    weights = (ctypes.c_double * len(rows))(*factors)
    return (places, kinds, base, weights, _at(peaks_K, _I32), len(rows)), peaks_K


class FileRow(NamedTuple):
    """A row that lies in a file: descriptor, offset of its first element in bytes, bfloat16 or float32."""

    file: int
    offset: int
    is_bf16: bool
    is_relative: bool


_NO_BASE = FileRow(-1, 0, False, False)


class MomentumStep(NamedTuple):
    """The outer step of a whole span, see ``sgd_step``."""

    before: FileRow | None  #: the momentum that the last step left
    rate: float
    momentum: float
    nesterov: bool
    kept_N: F32Array  #: filled with the momentum to keep


def sum_files_onto(
    rows: Sequence[FileRow],
    base: FileRow | None,
    factors: Sequence[float],
    scale: float,
    onto_base: bool,
    out_N: F32Array | U16Array,
    step: MomentumStep | None = None,
) -> list[float] | None:
    """``sum_rows_onto`` of rows in files; out in float32, or bfloat16 as stored if it is uint16.

    step  what is made of the sum, if it is not just added to the base
    Returns the peaks; None if a byte could not be read, or base or momentum are not finite.
    """
    peaks_K = np.zeros(len(rows), np.int32)
    stored = out_N.dtype == _U16
    table = None if step is None else _step(step, out_N.size)
    is_read = _sum_files_onto(
        *_sources(rows, base),
        (ctypes.c_double * len(rows))(*factors),
        _at(peaks_K, _I32),
        *(scale, onto_base, None if table is None else table.ctypes.data, stored),
        *(_at(out_N, _U16 if stored else _F32), out_N.size, _raw((len(rows) + 2) * _PIECE_BYTES)),
    )
    return [float(peak) for peak in peaks_K.view(np.float32)] if is_read else None


def _step(step: MomentumStep, size: int) -> npt.NDArray[Any]:
    before = _source(step.before or _NO_BASE)
    kept = _at(step.kept_N, _F32, size)
    return np.array([(before, step.rate, step.momentum, step.nesterov, kept)], _STEP)


def merge_files_onto(
    rows: Sequence[FileRow],
    base: FileRow | None,
    thinnings: Sequence[Thinning],
    start: int,
    election: tuple[F64Array, F64Array, bool] | None,
    scale: float,
    onto_base: bool,
    out_N: F32Array | U16Array,
) -> float | None:
    """A whole merge of rows in files, from element ``start`` of their tensor on: thinned, merged, scaled, added.

    election  factors, weights and normalize of ``elect``; None: the ``median``
    Returns the largest |x| that was left to merge; None if a byte could not be read, or is not finite.
    """
    factors_K, weights_K, normalize = election or (np.zeros(0), np.zeros(0), False)
    factors_K, weights_K = factors_K * UNITS, np.rint(weights_K * UNITS)
    table = np.array([_thinned(one) for one in thinnings], _THINNING)
    peak = np.zeros(1)
    stored = out_N.dtype == _U16
    is_read = _merge_files_onto(
        *_sources(rows, base),
        *(table.ctypes.data, start, election is None),
        *(_at(factors_K, _F64), _at(weights_K, _F64), normalize, scale, onto_base, stored),
        *(_at(out_N, _U16 if stored else _F32), out_N.size),
        *(_raw(len(rows) * (_PIECE_BYTES + _TILE_BYTES) + _PIECE_BYTES), _at(peak, _F64)),
    )
    return float(peak[0]) if is_read else None


def _thinned(one: Thinning) -> tuple[int, int, int, int, int, int, int]:
    if one.window is not None:
        top, without = one.window
        return top.index, without.index, 0, top.bits, without.bits, 0, 1
    if one.draw is not None:
        key, chance = one.draw
        threshold = int(min(max(chance, 0.0), 1.0) * 2.0**32)
        return 0, 0, key, 0, 0, min(threshold, 0xFFFFFFFF), 2 if threshold < 1 << 32 else 0
    return (0,) * 7


def read_rows(rows: Sequence[FileRow], base: FileRow | None, out_KN: F32Array, base_N: F32Array) -> bool:
    """Fill ``out_KN`` with rows in files, relative ones less the base, and ``base_N`` with the base, if any.

    Returns whether every byte could be read and all is finite.
    """
    size = out_KN.shape[1]
    assert len(rows) == len(out_KN)
    return bool(
        _read_rows(
            *_sources(rows, base), _at(out_KN, _F32), _at(base_N, _F32, size), size, _raw(_PIECE_BYTES)
        )
    )


def _sources(rows: Sequence[FileRow], base: FileRow | None) -> tuple[Any, int, Any]:
    assert len(rows) <= FILES_MAX and (base is not None or not any(row.is_relative for row in rows))
    given = [*rows, base or _NO_BASE]
    table = np.array([_source(row) for row in given], _SOURCE)
    first = table.ctypes.data
    keeping = ctypes.c_void_p(first)
    keeping.table = table  # type: ignore[attr-defined]  # as long as C looks at it
    return keeping, len(rows), first + _SOURCE.itemsize * len(rows)


def _source(row: FileRow) -> tuple[int, int, int]:
    return row.offset, row.file, row.is_bf16 + 2 * row.is_relative


def _raw(size: int) -> int:
    """The address of this thread's room of so many bytes."""
    room: npt.NDArray[np.uint8] | None = getattr(_local, "room", None)
    if room is None or room.size < size:
        room = _local.room = np.empty(size, np.uint8)
    return room.ctypes.data


def subtract_bf16(raw_N: U16Array, base_N: F32Array, out_N: F32Array) -> bool:
    size = raw_N.size
    return bool(
        _subtract_bf16(_at(raw_N, _U16), _at(base_N, _F32, size), _at(out_N, _F32, size), size) < 0x7F800000
    )


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
    size = theta_N.size
    _sgd_step(
        _at(theta_N, _F32),
        _at(merged_N, _F64, size),
        scale,
        None if before_N is None else _at(before_N, _F32, size),
        rate,
        momentum,
        nesterov,
        _at(next_N, _F32, size),
        _at(kept_N, _F32, size),
        size,
    )


def scale_to(merged_N: F64Array, factor: float, out_N: F32Array) -> None:
    _scale_to(_at(merged_N, _F64), factor, _at(out_N, _F32, merged_N.size), merged_N.size)


def apply_step(theta_N: F32Array, merged_N: F64Array, factor: float, out_N: F32Array) -> None:
    size = theta_N.size
    _apply_step(
        _at(theta_N, _F32),
        _at(merged_N, _F64, size),
        factor,
        _at(out_N, _F32, size),
        size,
    )


def keep_window(x_N: F32Array, start: int, top: Boundary, without: Boundary) -> None:
    size = x_N.size
    _keep_window(_at(x_N, _F32), size, *_limit(top, start, size), *_limit(without, start, size))


def _limit(top: Boundary, start: int, size: int) -> tuple[int, int]:
    """The key that is compared, and before which position one equal to it is in the top."""
    if top.bits > 0x7FFFFFFF:  # more than any key
        return 0x7FFFFFFF, 0
    return top.bits, min(max(top.index - start + 1, 0), size)


def keep_random(x_N: F32Array, start: int, key: int, chance: float) -> None:
    address, threshold = _at(x_N, _F32), int(min(max(chance, 0.0), 1.0) * 2.0**32)
    if threshold < 1 << 32:
        _keep_random(address, x_N.size, start, key, threshold)


def keep_ranked(x_RC: F32Array, row0: int, key: int, density: float, epsilon: float, rescale: bool) -> None:
    num_rows, num_columns = x_RC.shape
    scratch: npt.NDArray[np.uint64] | None = getattr(_local, "scratch", None)
    if scratch is None or scratch.size < 3 * num_columns:
        scratch = _local.scratch = np.empty(
            3 * num_columns, np.uint64
        )  # sorting needs it; kept: see ``tensors``
    entries = _at(scratch, _U64)
    _keep_ranked(
        _at(x_RC, _F32),
        num_rows,
        num_columns,
        row0,
        key,
        density,
        epsilon,
        rescale,
        entries,
        entries + 16 * num_columns,
    )


def elect(
    rows_KN: F32Array,
    factors_K: F64Array,
    weights_K: F64Array,
    out_N: F64Array,
    normalize: bool = True,
) -> float:
    num_rows, size = rows_KN.shape
    factors_K, weights_K = factors_K * UNITS, np.rint(weights_K * UNITS)
    return float(
        _elect(
            _at(rows_KN, _F32),
            num_rows,
            size,
            _at(factors_K, _F64, num_rows),
            _at(weights_K, _F64, num_rows),
            _at(out_N, _F64, size),
            normalize,
        )
    )


def median(rows_KN: F32Array, out_N: F64Array) -> None:
    _median(*_rows(rows_KN), _at(out_N, _F64, rows_KN.shape[1]))


def trimmed_mean(rows_KN: F32Array, trim: int, out_N: F64Array) -> None:
    _trimmed_mean(*_rows(rows_KN), trim, _at(out_N, _F64, rows_KN.shape[1]))


def variance(rows_KN: F32Array, out_N: F32Array) -> None:
    _variance(*_rows(rows_KN), _at(out_N, _F32, rows_KN.shape[1]))


def gram(rows_KN: F32Array, block: int = BLOCK) -> F64Array:
    num_rows, size = rows_KN.shape
    sums = np.empty((-(-size // block), num_rows * (num_rows + 1) // 2))
    _gram(_at(rows_KN, _F32), num_rows, size, block, _at(sums, _F64))
    return sums


def abs_sum(x_N: F32Array, block: int = BLOCK) -> F64Array:
    sums = np.empty(-(-x_N.size // block))
    _abs_sum(_at(x_N, _F32), x_N.size, block, _at(sums, _F64))
    return sums


def count_keys(x_N: F32Array, low: int, shift: int, counts_B: U32Array) -> int:
    return int(_count_keys(_at(x_N, _F32), x_N.size, low, shift, _at(counts_B, _U32), counts_B.size))


def draw32(key: int, index_N: I64Array) -> U32Array:
    drawn_N = np.empty(index_N.size, np.uint32)
    _draw32(key, _at(index_N, _I64), _at(drawn_N, _U32), index_N.size)
    return drawn_N


def _rows(rows_KN: F32Array) -> tuple[int, int, int]:
    num_rows, size = rows_KN.shape
    assert 0 < num_rows <= _ROWS_MAX, f"{num_rows} rows, 1 to {_ROWS_MAX} can be sorted"
    return _at(rows_KN, _F32), num_rows, size


def _at(array: npt.NDArray[Any], dtype: np.dtype[Any], size: int | None = None) -> int:
    """The address of an array that C may use."""
    assert array.dtype == dtype and array.flags.c_contiguous, f"{array.dtype} {array.strides}, want {dtype}"
    assert size is None or array.size == size, f"{array.size} elements, want {size}"
    if array.size and array.flags.writeable:  # a quarter of the time of array.ctypes.data
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    return array.ctypes.data
