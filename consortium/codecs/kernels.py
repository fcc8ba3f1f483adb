"""Which codecs run: those in C if they were built from this source, else NumPy's. Same bytes."""

import os
from typing import Protocol

from consortium.codecs import portable
from consortium.codecs.native import NativeCodecs
from consortium.codecs.portable import I8Array, U8Array, U16Array
from consortium.errors import BadInput
from consortium.tensors import F32Array

_VARIABLE = "SPRACHBUND_KERNELS"  #: native, portable or auto


class Codecs(Protocol):
    """What ``portable`` and ``native`` both are; ``portable`` says what each function does."""

    def encode_int8(
        self,
        after_N: F32Array,
        before_N: F32Array,
        residual_N: F32Array,
        codes_N: I8Array,
        scales_B: F32Array,
        /,
    ) -> int: ...

    def encode_int4(
        self,
        after_N: F32Array,
        before_N: F32Array,
        residual_N: F32Array,
        packed_H: U8Array,
        scales_B: F32Array,
        /,
    ) -> int: ...

    def encode_topk(
        self,
        after_N: F32Array,
        before_N: F32Array,
        residual_N: F32Array,
        kept: int,
        codes_K: I8Array,
        offsets_K: U16Array,
        scales_C: F32Array,
        /,
    ) -> int: ...

    def decode_int8(self, codes_N: I8Array, scales_B: F32Array, start: int, out_N: F32Array, /) -> bool: ...

    def decode_int4(self, packed_H: U8Array, scales_B: F32Array, start: int, out_N: F32Array, /) -> bool: ...

    def decode_topk(
        self,
        codes_K: I8Array,
        offsets_K: U16Array,
        scales_C: F32Array,
        kept: int,
        left: int,
        start: int,
        out_N: F32Array,
        /,
    ) -> bool: ...


def choose(wish: str) -> Codecs:
    """Raises BadInput for a wish that is none, or for native where there is none."""
    if wish not in ("auto", "native", "portable"):
        raise BadInput(f"{_VARIABLE}={wish}: it may be auto, native or portable; set one of them")
    if wish == "portable":
        return portable
    try:
        return NativeCodecs()
    except ImportError as error:
        if wish == "native":
            raise BadInput(f"{_VARIABLE}=native: {error}") from error
        return portable


WISH = os.environ.get(_VARIABLE, "auto")
KERNELS: Codecs = choose(WISH)
