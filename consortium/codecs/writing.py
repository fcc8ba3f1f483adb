"""How a delta gets to disk in a lossy encoding, and what it leaves unsaid, which the next delta says.

Error feedback: with D = trained - base and the residual e, the file holds c = Q(D + e) and e becomes D + e - c.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from consortium import canonical
from consortium.codecs.formats import METADATA, kept_before, layout_of, pieces_of
from consortium.codecs.kernels import KERNELS
from consortium.codecs.names import CodedName
from consortium.codecs.portable import U8Array
from consortium.errors import BadInput
from consortium.tensor_writer import Shapes, TensorWriter
from consortium.tensors import F32Array, StoredDType, encode


class CodedWriter:
    """A delta file in pieces; it appears whole when the ``with`` block ends well.

    density  share of the elements that top-k keeps
    Raises DiskFull or Unavailable.
    """

    def __init__(self, path: Path, shapes: Shapes, encoding: CodedName, density: float) -> None:
        self._layout = layout_of(shapes, encoding, density)
        sizes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, StoredDType] = {}
        for name in shapes:
            if name not in self._layout.shapes:
                sizes[name], dtypes[name] = tuple(shapes[name]), "BF16"
                continue
            for piece, (dtype, count) in pieces_of(self._layout, name).items():
                sizes[piece], dtypes[piece] = (count,), dtype
        text = canonical.encode(self._layout).decode()
        self._writer = TensorWriter(path, sizes, dtypes, {METADATA: text})

    def write(
        self, name: str, start: int, after_N: F32Array, before_N: F32Array, residual_N: F32Array
    ) -> None:
        """Put elements ``start ..`` of a tensor in place, once each; ``residual_N`` becomes what is left.

        The arrays are contiguous; every piece of a tensor but its last is a multiple of 4096 elements.
        Raises BadInput if (after - before) + residual is not finite.
        """
        if name not in self._layout.shapes:
            bad = self._write_bf16(name, start, after_N, before_N, residual_N)
        elif self._layout.encoding == "topk":
            bad = self._write_topk(name, start, after_N, before_N, residual_N)
        else:
            bad = self._write_blocks(name, start, after_N, before_N, residual_N)
        if bad >= 0:
            raise BadInput(
                f"the trained model: tensor {name!r} differs from the base by more than a float holds at element "
                f"{start + bad}; train again with a lower learning rate or tighter clipping"
            )

    def is_in_blocks(self, name: str) -> bool:
        """Whether a tensor is stored as int8 or int4, so that ``write_blocks`` may write it."""
        return name in self._layout.shapes and self._layout.encoding != "topk"

    def write_blocks(self, name: str, start: int, codes: U8Array, scales_B: F32Array) -> None:
        """Put elements ``start ..`` in place that were coded elsewhere, to the codecs' bytes; as ``write``."""
        at = start if self._layout.encoding == "int8" else start // 2
        self._writer.write_stored(f"{name}:codes", at, codes)
        self._writer.write_stored(f"{name}:scales", start // self._layout.block, scales_B)

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def _write_bf16(
        self, name: str, start: int, after_N: F32Array, before_N: F32Array, residual_N: F32Array
    ) -> int:
        with np.errstate(over="ignore", invalid="ignore"):
            residual_N += after_N - before_N
        stored = encode(residual_N, "BF16")
        said = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
        finite = np.isfinite(said)  # the largest floats would round to infinity
        if not finite.all():
            return int(np.argmin(finite))
        self._writer.write_stored(name, start, stored)
        residual_N -= said
        return -1

    def _write_blocks(
        self, name: str, start: int, after_N: F32Array, before_N: F32Array, residual_N: F32Array
    ) -> int:
        count = residual_N.size
        scales_B = np.empty(-(-count // self._layout.block), np.float32)
        if self._layout.encoding == "int8":
            codes = np.empty(count, np.uint8)
            bad = KERNELS.encode_int8(after_N, before_N, residual_N, codes.view(np.int8), scales_B)
        else:
            codes = np.empty(-(-count // 2), np.uint8)
            bad = KERNELS.encode_int4(after_N, before_N, residual_N, codes, scales_B)
        if bad < 0:
            self.write_blocks(name, start, codes, scales_B)
        return bad

    def _write_topk(
        self, name: str, start: int, after_N: F32Array, before_N: F32Array, residual_N: F32Array
    ) -> int:
        block, kept = self._layout.block, self._layout.kept
        size = kept_before(residual_N.size, kept)
        codes_K, offsets_K = np.empty(size, np.int8), np.empty(size, np.uint16)
        scales_C = np.empty(-(-residual_N.size // block), np.float32)
        bad = KERNELS.encode_topk(after_N, before_N, residual_N, kept, codes_K, offsets_K, scales_C)
        if bad < 0:
            begin = kept_before(start, kept)
            self._writer.write_stored(f"{name}:codes", begin, codes_K)
            self._writer.write_stored(f"{name}:offsets", begin, offsets_K)
            self._writer.write_stored(f"{name}:scales", start // block, scales_C)
        return bad
