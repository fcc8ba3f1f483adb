"""How a delta is encoded: which pieces stand for a tensor in a safetensors file, and what each may hold.

    fp32, bf16  the tensor itself, under its name
    int8   <name>:codes  I8 (N,), -127 .. 127          <name>:scales F32 (blocks of 128,)
    int4   <name>:codes  U8 (N/2 rounded up,), two codes of -7 .. 7 in each byte, the even element in the low
           half, a last half that stands for nothing is 0                 <name>:scales F32 as above
    topk   of each chunk of 4096 elements the ``kept`` largest magnitudes, of a short last chunk its share,
           rounded up: <name>:codes I8 as for int8, <name>:offsets U16 within the chunk, ascending,
           <name>:scales F32 (chunks,)

An element is code * scale in float32, and 0 where top-k kept nothing. With t the block's (for top-k: the kept)
values, scale = min(max |t| / peak, the largest scale whose peak is finite) and code = t / scale, clamped to
-peak .. peak and rounded to nearest, ties to even; peak is 127, for int4 7; a block whose scale is 0 has codes
0. Of equal magnitudes top-k keeps those of lower index. Blocks and chunks begin anew with every tensor and the
last one may be short. Tensors of fewer than two axes (norms, biases) stay bf16. What the file holds is said
once, in its metadata, as ``Layout``.

Block scales: Dettmers et al. 2022, arXiv:2110.02861; chunked top-k: Sarfi et al. 2025, arXiv:2508.15706.
"""

import functools
import math
from typing import Literal

import numpy as np

from consortium.canonical import Fact, decode
from consortium.codecs.names import CodedName, EncodingName
from consortium.errors import Corrupt
from consortium.tensor_writer import Shapes
from consortium.tensors import StoredDType

BLOCK = 128  #: elements that share a scale
TOPK_CHUNK = 4096  #: elements among which top-k chooses
DTYPES: dict[EncodingName, StoredDType] = {"bf16": "BF16", "fp32": "F32"}  #: of tensors that are not coded
PEAK: dict[CodedName, int] = {"int8": 127, "int4": 7, "topk": 127}  #: largest code
METADATA = "sprachbund.delta"  #: key of the file's metadata under which its Layout stands
PIECES: tuple[StoredDType, ...] = ("BF16", "F16", "F32", "I8", "U8", "U16")

_DIMENSIONS_MAX = 8
_ELEMENTS_MAX = 1 << 48


class Layout(Fact):
    """What a coded delta says of itself."""

    schema: Literal[1] = 1
    encoding: CodedName
    block: int  #: elements to a scale: 128, for top-k 4096
    kept: int = 0  #: top-k: elements of a whole chunk that are kept
    shapes: dict[str, tuple[int, ...]]  #: of the tensors that are coded; all others are there as they are


def layout_of(shapes: Shapes, encoding: CodedName, density: float) -> Layout:
    """How tensors of these shapes are coded; ``density`` is the share that top-k keeps, 0 to 1."""
    is_topk = encoding == "topk"
    return Layout(
        encoding=encoding,
        block=TOPK_CHUNK if is_topk else BLOCK,
        kept=kept_of_chunk(density) if is_topk else 0,
        shapes={name: tuple(shapes[name]) for name in sorted(shapes) if len(shapes[name]) >= 2},
    )


def read_layout(text: str, label: str) -> Layout:
    """The layout that a file's metadata spells. Raises BadInput or Corrupt naming what is wrong."""
    layout = decode(text.encode(), Layout, f"{label}: {METADATA}")
    is_topk = layout.encoding == "topk"
    block = TOPK_CHUNK if is_topk else BLOCK
    if layout.block != block:
        raise Corrupt(f"{label}: {layout.encoding} in blocks of {layout.block}; this reader knows {block}")
    if not (1 <= layout.kept <= TOPK_CHUNK if is_topk else layout.kept == 0):
        raise Corrupt(f"{label}: {layout.encoding} keeps {layout.kept} of {TOPK_CHUNK}; that cannot be")
    for name, shape in layout.shapes.items():
        plain = all(0 <= length < _ELEMENTS_MAX for length in shape) and 2 <= len(shape) <= _DIMENSIONS_MAX
        if not plain or math.prod(shape) >= _ELEMENTS_MAX:
            raise Corrupt(f"{label}: tensor {name[:80]!r}: shape {list(shape)[:9]} cannot be coded")
    return layout


def pieces_of(layout: Layout, name: str) -> dict[str, tuple[StoredDType, int]]:
    """Piece -> dtype and number of elements, for one coded tensor."""
    count = math.prod(layout.shapes[name])
    codes: tuple[StoredDType, int] = ("I8", count)
    pieces: dict[str, tuple[StoredDType, int]] = {}
    if layout.encoding == "int4":
        codes = "U8", -(-count // 2)
    elif layout.encoding == "topk":
        codes = "I8", kept_before(count, layout.kept)
        pieces[f"{name}:offsets"] = "U16", codes[1]
    return pieces | {f"{name}:codes": codes, f"{name}:scales": ("F32", -(-count // layout.block))}


def kept_of_chunk(density: float) -> int:
    """How many elements of a whole chunk are kept for this share, above 0 and at most 1."""
    assert 0.0 < density <= 1.0, density
    return max(1, math.floor(density * TOPK_CHUNK + 0.5))


def kept_before(count: int, kept: int) -> int:
    """How many elements top-k keeps of the first ``count``, which are whole chunks or a tensor's all."""
    chunks, rest = divmod(count, TOPK_CHUNK)
    return chunks * kept + -(-rest * kept // TOPK_CHUNK)


@functools.cache
def scale_max(peak: int) -> np.float32:
    """The largest scale whose largest element is finite."""
    scale = np.finfo(np.float32).max / np.float32(peak)
    with np.errstate(over="ignore"):
        return scale if np.isfinite(scale * np.float32(peak)) else np.nextafter(scale, np.float32(0))
