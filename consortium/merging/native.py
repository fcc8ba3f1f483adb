"""The kernels in C: the functions of ``portable``, which documents them, with the same bits and no lock.

Importing it raises ImportError, with the reason, where they were not built or not from the source that lies
here. Every array must be contiguous, of the right type and size: C would not notice.
"""

import ctypes
import hashlib
import sys
import threading
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from consortium.merging.portable import (
    BLOCK,
    UNITS,
    Boundary,
    F32Array,
    F64Array,
    I64Array,
    U16Array,
    U32Array,
)

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


def _load() -> ctypes.CDLL:
    if sys.byteorder != "little":
        raise ImportError("the kernels in C are for little-endian machines")
    here = Path(__file__).parent
    built = [path for suffix in EXTENSION_SUFFIXES if (path := here / f"_kernels{suffix}").exists()]
    if not built:
        raise ImportError("the kernels in C were not built; install again where there is a C compiler")
    try:
        library = ctypes.CDLL(str(built[0]))
    except OSError as error:
        raise ImportError(f"the kernels in C cannot be loaded ({error}); install again") from error
    library.kernels_source.restype = ctypes.c_char_p
    source = here / "kernels.c"
    if (
        source.exists()
        and library.kernels_source().decode() != hashlib.sha256(source.read_bytes()).hexdigest()
    ):
        raise ImportError(f"{built[0].name} was built from another kernels.c; install again")
    return library


_library = _load()
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
_apply_step = _function("apply_step", "-", "ppdpl")
_keep_window = _function("keep_window", "-", "plilil")
_keep_random = _function("keep_random", "-", "pllku")
_keep_ranked = _function("keep_ranked", "-", "plllkddipp")
_elect = _function("elect", "d", "pllpppii")
_median = _function("median", "-", "pllp")
_trimmed_mean = _function("trimmed_mean", "-", "plllp")
_variance = _function("variance", "-", "pllp")
_gram = _function("gram", "-", "plllp")
_abs_sum = _function("abs_sum", "-", "pllp")
_count_keys = _function("count_keys", "l", "pluipl")
_draw32 = _function("draw32", "-", "kppl")


def decode_bf16(raw_N: U16Array, out_N: F32Array) -> None:
    _decode_bf16(_at(raw_N, np.uint16), _at(out_N, np.float32, raw_N.size), raw_N.size)


def encode_bf16(x_N: F32Array, out_N: U16Array) -> None:
    _encode_bf16(_at(x_N, np.float32), _at(out_N, np.uint16, x_N.size), x_N.size)


def first_non_finite(x_N: F32Array) -> int:
    return int(_first_non_finite(_at(x_N, np.float32), x_N.size))


def grid_add(total_N: F64Array, x_N: F32Array, factor: float) -> float:
    return float(_grid_add(_at(total_N, np.float64, x_N.size), _at(x_N, np.float32), factor, x_N.size))


def apply_step(theta_N: F32Array, merged_N: F64Array, factor: float, out_N: F32Array) -> None:
    size = theta_N.size
    _apply_step(
        _at(theta_N, np.float32),
        _at(merged_N, np.float64, size),
        factor,
        _at(out_N, np.float32, size),
        size,
    )


def keep_window(x_N: F32Array, start: int, top: Boundary, without: Boundary) -> None:
    size = x_N.size
    _keep_window(_at(x_N, np.float32), size, *_limit(top, start, size), *_limit(without, start, size))


def _limit(top: Boundary, start: int, size: int) -> tuple[int, int]:
    """The key that is compared, and before which position one equal to it is in the top."""
    if top.bits > 0x7FFFFFFF:  # more than any key
        return 0x7FFFFFFF, 0
    return top.bits, min(max(top.index - start + 1, 0), size)


def keep_random(x_N: F32Array, start: int, key: int, chance: float) -> None:
    address, threshold = _at(x_N, np.float32), int(min(max(chance, 0.0), 1.0) * 2.0**32)
    if threshold < 1 << 32:
        _keep_random(address, x_N.size, start, key, threshold)


def keep_ranked(x_RC: F32Array, row0: int, key: int, density: float, epsilon: float, rescale: bool) -> None:
    num_rows, num_columns = x_RC.shape
    scratch: npt.NDArray[np.uint64] | None = getattr(_local, "scratch", None)
    if scratch is None or scratch.size < 3 * num_columns:
        scratch = _local.scratch = np.empty(
            3 * num_columns, np.uint64
        )  # sorting needs it; kept: see ``tensors``
    entries = _at(scratch, np.uint64)
    _keep_ranked(
        _at(x_RC, np.float32),
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
    by_count: bool = False,
    normalize: bool = True,
) -> float:
    num_rows, size = rows_KN.shape
    factors_K, weights_K = factors_K * UNITS, np.rint(weights_K * UNITS)
    return float(
        _elect(
            _at(rows_KN, np.float32),
            num_rows,
            size,
            _at(factors_K, np.float64, num_rows),
            _at(weights_K, np.float64, num_rows),
            _at(out_N, np.float64, size),
            by_count,
            normalize,
        )
    )


def median(rows_KN: F32Array, out_N: F64Array) -> None:
    _median(*_rows(rows_KN), _at(out_N, np.float64, rows_KN.shape[1]))


def trimmed_mean(rows_KN: F32Array, trim: int, out_N: F64Array) -> None:
    _trimmed_mean(*_rows(rows_KN), trim, _at(out_N, np.float64, rows_KN.shape[1]))


def variance(rows_KN: F32Array, out_N: F32Array) -> None:
    _variance(*_rows(rows_KN), _at(out_N, np.float32, rows_KN.shape[1]))


def gram(rows_KN: F32Array, block: int = BLOCK) -> F64Array:
    num_rows, size = rows_KN.shape
    sums = np.empty((-(-size // block), num_rows * (num_rows + 1) // 2))
    _gram(_at(rows_KN, np.float32), num_rows, size, block, _at(sums, np.float64))
    return sums


def abs_sum(x_N: F32Array, block: int = BLOCK) -> F64Array:
    sums = np.empty(-(-x_N.size // block))
    _abs_sum(_at(x_N, np.float32), x_N.size, block, _at(sums, np.float64))
    return sums


def count_keys(x_N: F32Array, low: int, shift: int, counts_B: U32Array) -> int:
    return int(
        _count_keys(_at(x_N, np.float32), x_N.size, low, shift, _at(counts_B, np.uint32), counts_B.size)
    )


def draw32(key: int, index_N: I64Array) -> U32Array:
    drawn_N = np.empty(index_N.size, np.uint32)
    _draw32(key, _at(index_N, np.int64), _at(drawn_N, np.uint32), index_N.size)
    return drawn_N


def _rows(rows_KN: F32Array) -> tuple[int, int, int]:
    num_rows, size = rows_KN.shape
    assert 0 < num_rows <= _ROWS_MAX, f"{num_rows} rows, 1 to {_ROWS_MAX} can be sorted"
    return _at(rows_KN, np.float32), num_rows, size


def _at(array: npt.NDArray[Any], dtype: type[np.generic], size: int | None = None) -> int:
    """The address of an array that C may use."""
    assert array.flags.c_contiguous and array.dtype == dtype, f"{array.dtype} {array.strides}, want {dtype}"
    assert size is None or array.size == size, f"{array.size} elements, want {size}"
    return array.ctypes.data
