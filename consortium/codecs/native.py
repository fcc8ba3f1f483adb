"""The codecs in C, through ctypes: the functions of ``portable``, which has their documentation.

ctypes lets go of the interpreter during a call, so threads run side by side.
"""

import ctypes
from pathlib import Path
from typing import Any

from consortium.codecs.formats import PEAK, scale_max
from consortium.codecs.portable import I8Array, U8Array, U16Array
from consortium.libraries import load_library
from consortium.tensors import F32Array

_SCALE_MAX = {name: float(scale_max(peak)) for name, peak in PEAK.items()}
_POINTER, _COUNT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

#: Function -> what it returns, what it takes.
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "encode_int8": (_COUNT, (_POINTER, _POINTER, _POINTER, _COUNT, _FLOAT, _POINTER, _POINTER)),
    "encode_int4": (_COUNT, (_POINTER, _POINTER, _POINTER, _COUNT, _FLOAT, _POINTER, _POINTER)),
    "encode_topk": (
        _COUNT,
        (_POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _FLOAT, _POINTER, _POINTER, _POINTER),
    ),
    "decode_int8": (ctypes.c_int32, (_POINTER, _POINTER, _COUNT, _COUNT, _FLOAT, _POINTER)),
    "decode_int4": (ctypes.c_int32, (_POINTER, _POINTER, _COUNT, _COUNT, _FLOAT, _POINTER)),
    "decode_topk": (
        ctypes.c_int32,
        (_POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _COUNT, _COUNT, _COUNT, _FLOAT, _POINTER),
    ),
}


class NativeCodecs:
    """The library beside this file. Raises ImportError, with the reason, if there is none."""

    def __init__(self) -> None:
        self._library = load_library(Path(__file__).parent, "_codecs", "codecs.c")
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments

    def encode_int8(
        self,
        after_N: F32Array,
        before_N: F32Array,
        residual_N: F32Array,
        codes_N: I8Array,
        scales_B: F32Array,
    ) -> int:
        return int(
            self._library.encode_int8(
                _at(after_N), _at(before_N), _at(residual_N), residual_N.size, _SCALE_MAX["int8"],
                _at(codes_N), _at(scales_B),
            )
        )  # fmt: skip

    def encode_int4(
        self,
        after_N: F32Array,
        before_N: F32Array,
        residual_N: F32Array,
        packed_H: U8Array,
        scales_B: F32Array,
    ) -> int:
        return int(
            self._library.encode_int4(
                _at(after_N), _at(before_N), _at(residual_N), residual_N.size, _SCALE_MAX["int4"],
                _at(packed_H), _at(scales_B),
            )
        )  # fmt: skip

    def encode_topk(
        self,
        after_N: F32Array,
        before_N: F32Array,
        residual_N: F32Array,
        kept: int,
        codes_K: I8Array,
        offsets_K: U16Array,
        scales_C: F32Array,
    ) -> int:
        return int(
            self._library.encode_topk(
                _at(after_N), _at(before_N), _at(residual_N), residual_N.size, kept, _SCALE_MAX["topk"],
                _at(codes_K), _at(offsets_K), _at(scales_C),
            )
        )  # fmt: skip

    def decode_int8(self, codes_N: I8Array, scales_B: F32Array, start: int, out_N: F32Array) -> bool:
        return bool(
            self._library.decode_int8(
                _at(codes_N), _at(scales_B), start, out_N.size, _SCALE_MAX["int8"], _at(out_N)
            )
        )

    def decode_int4(self, packed_H: U8Array, scales_B: F32Array, start: int, out_N: F32Array) -> bool:
        return bool(
            self._library.decode_int4(
                _at(packed_H), _at(scales_B), start, out_N.size, _SCALE_MAX["int4"], _at(out_N)
            )
        )

    def decode_topk(
        self,
        codes_K: I8Array,
        offsets_K: U16Array,
        scales_C: F32Array,
        kept: int,
        left: int,
        start: int,
        out_N: F32Array,
    ) -> bool:
        return bool(
            self._library.decode_topk(
                _at(codes_K), _at(offsets_K), _at(scales_C), scales_C.size, kept, left, start, out_N.size,
                _SCALE_MAX["topk"], _at(out_N),
            )
        )  # fmt: skip


def _at(array: Any) -> int:
    assert array.flags.c_contiguous, "the codecs take contiguous arrays"
    return int(array.ctypes.data)
