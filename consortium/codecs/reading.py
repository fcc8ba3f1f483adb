"""What a delta file says, whatever its encoding: ``open_delta`` gives its elements as float32."""

from pathlib import Path
from typing import NoReturn

import numpy as np

from consortium.codecs.formats import (
    BLOCK,
    DTYPES,
    METADATA,
    PEAK,
    PIECES,
    TOPK_CHUNK,
    Layout,
    kept_before,
    pieces_of,
    read_layout,
    scale_max,
)
from consortium.codecs.kernels import KERNELS
from consortium.codecs.names import EncodingName
from consortium.errors import Corrupt
from consortium.tensors import (
    FLOATS,
    HEADER_BYTES_MAX,
    F32Array,
    TensorFile,
    TensorInfo,
    Tensors,
    scratch,
)


def open_delta(path: Path, label: str | None = None, header_bytes_max: int = HEADER_BYTES_MAX) -> Tensors:
    """The delta in a file, decoded as it is read. Arguments and errors as for ``TensorFile``.

    The header is checked here, codes and scales whenever they are read: what comes out is finite unless the
    file holds plain floats. Raises Corrupt naming the tensor, BadInput for a layout that is none.
    """
    file = TensorFile(path, label, header_bytes_max, PIECES)
    try:
        text = file.metadata.get(METADATA)
        layout = None if text is None else read_layout(text, file.label)
        plain = _plain_tensors(file, layout)
    except BaseException:
        file.close()
        raise
    return file if layout is None else CodedDelta(file, layout, plain)


def encoding_of(delta: Tensors) -> tuple[EncodingName | None, int]:
    """How a delta from ``open_delta`` is stored, and how many of 4096 elements it keeps if it is top-k.

    None if its tensors are of several dtypes, or of one that deltas are not sent in.
    """
    if isinstance(delta, CodedDelta):
        return delta.layout.encoding, delta.layout.kept
    dtypes = {info.dtype for info in delta.values()}
    return next((name for name, dtype in DTYPES.items() if dtypes == {dtype}), None), 0


class CodedDelta(Tensors):
    """A delta whose tensors are pieces; made by ``open_delta``."""

    def __init__(self, file: TensorFile, layout: Layout, plain: dict[str, TensorInfo]) -> None:
        self.label, self.layout, self._file = file.label, layout, file
        coded = {
            name: TensorInfo(name=name, dtype="F32", shape=shape, offset=file[f"{name}:codes"].offset)
            for name, shape in layout.shapes.items()
        }
        self._tensors = dict(sorted((plain | coded).items()))

    def read(self, name: str, start: int, out: F32Array) -> None:
        if name not in self.layout.shapes:
            self._file.read(name, start, out)
            return
        count = self[name].num_elements
        assert 0 <= start <= count - out.size, f"{name}: {start}+{out.size} of {count}"
        if out.size == 0:
            return
        is_good = {"int8": self._read_int8, "int4": self._read_int4, "topk": self._read_topk}
        if not is_good[self.layout.encoding](name, start, out):
            self._refuse(name, start, out.size)

    def close(self) -> None:
        self._file.close()

    def _read_int8(self, name: str, start: int, out: F32Array) -> bool:
        first, last = start // BLOCK, -(-(start + out.size) // BLOCK)
        raw = scratch(4 * (last - first) + out.size)
        scales, codes = raw[: 4 * (last - first)], raw[4 * (last - first) :]
        self._file.read_stored(f"{name}:scales", first, scales)
        self._file.read_stored(f"{name}:codes", start, codes)
        return KERNELS.decode_int8(codes.view(np.int8), scales.view("<f4"), start % BLOCK, out)

    def _read_int4(self, name: str, start: int, out: F32Array) -> bool:
        first, last = start // BLOCK, -(-(start + out.size) // BLOCK)
        stop = start + out.size
        raw = scratch(4 * (last - first) + -(-stop // 2) - start // 2)
        scales, packed = raw[: 4 * (last - first)], raw[4 * (last - first) :]
        self._file.read_stored(f"{name}:scales", first, scales)
        self._file.read_stored(f"{name}:codes", start // 2, packed)
        is_half = stop % 2 == 1 and stop == self[name].num_elements
        return KERNELS.decode_int4(packed, scales.view("<f4"), start % BLOCK, out) and not (
            is_half and packed[-1] >> 4
        )

    def _read_topk(self, name: str, start: int, out: F32Array) -> bool:
        count, kept = self[name].num_elements, self.layout.kept
        first, last = start // TOPK_CHUNK, -(-(start + out.size) // TOPK_CHUNK)
        begin = first * kept
        length = kept_before(min(last * TOPK_CHUNK, count), kept) - begin
        chunks = last - first
        raw = scratch(4 * chunks + 3 * length)
        scales, offsets, codes = np.split(raw, [4 * chunks, 4 * chunks + 2 * length])
        self._file.read_stored(f"{name}:scales", first, scales)
        self._file.read_stored(f"{name}:offsets", begin, offsets)
        self._file.read_stored(f"{name}:codes", begin, codes)
        return KERNELS.decode_topk(
            codes.view(np.int8),
            offsets.view("<u2"),
            scales.view("<f4"),
            kept,
            count - first * TOPK_CHUNK,
            start % TOPK_CHUNK,
            out,
        )

    def _refuse(self, name: str, start: int, size: int) -> NoReturn:
        """Say what is wrong in a piece that a kernel turned down."""
        peak, block = PEAK[self.layout.encoding], self.layout.block
        scales = np.empty(-(-(start + size) // block) - start // block, np.float32)
        self._file.read_stored(f"{name}:scales", start // block, scales.view(np.uint8))
        bad = scales.view(np.uint32) > scale_max(peak).view(np.uint32)
        where = f"{self.label}: tensor {name!r}, elements {start} to {start + size - 1}"
        if bad.any():
            at = int(np.argmax(bad))
            raise Corrupt(
                f"{where}: scale {start // block + at} is {scales[at]}; a scale is finite, not negative and at "
                f"most {scale_max(peak):.4g}, encode the delta again"
            )
        rule = f"codes lie in -{peak} .. {peak}"
        if self.layout.encoding == "topk":
            rule += f", offsets ascend within their chunk of {TOPK_CHUNK}"
        raise Corrupt(f"{where}: a code is out of range or out of order; {rule}, encode the delta again")


def _plain_tensors(file: TensorFile, layout: Layout | None) -> dict[str, TensorInfo]:
    """The tensors that are there as they are; all others must be the pieces that the layout asks for."""
    found = dict(file)
    for name in sorted(layout.shapes) if layout else ():
        assert layout is not None
        for piece, (dtype, count) in pieces_of(layout, name).items():
            info = found.pop(piece, None)
            if info is None or (info.dtype, info.shape) != (dtype, (count,)):
                what = "is missing" if info is None else f"is {info.dtype} {list(info.shape)}"
                raise Corrupt(
                    f"{file.label}: tensor {name!r} of shape {list(layout.shapes[name])}: {piece!r} {what}, "
                    f"{layout.encoding} needs {dtype} [{count}]; encode the delta again"
                )
        if name in found:
            raise Corrupt(f"{file.label}: tensor {name!r} is there twice, as it is and coded; leave one out")
    for name, info in found.items():
        if layout is not None and (info.dtype != "BF16" or len(info.shape) >= 2):
            raise Corrupt(
                f"{file.label}: tensor {name!r} is {info.dtype} {list(info.shape)} in a delta of {layout.encoding}; "
                "tensors of two axes and more are coded, all others BF16, encode the delta again"
            )
        if info.dtype not in FLOATS:
            raise Corrupt(
                f"{file.label}: tensor {name!r}: dtype is {info.dtype!r}, only {', '.join(FLOATS)} are trained "
                "and merged; save the file again"
            )
    return found
