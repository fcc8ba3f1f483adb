"""What a safetensors file or a Hugging Face checkpoint holds: read in pieces, never trusted.

A file is 8 bytes of header length, a JSON header ``{name: {dtype, shape, data_offsets}}``, and the tensors'
bytes without gaps (format: https://huggingface.co/docs/safetensors). It may come from anyone, so the header
is checked against the file before a byte of data is read. Our own reader, because a merge of models that do
not fit in memory wants ranges of tensors in buffers that it uses again: first touch of fresh memory costs
five times as much as the reading.
"""

import itertools
import json
import math
import os
import threading
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import numpy as np
import numpy.typing as npt

from consortium.errors import Corrupt
from consortium.files import disk_errors
from consortium.merging import kernels

F32Array = npt.NDArray[np.float32]
DType = Literal["BF16", "F16", "F32"]
#: Integers: pieces of encoded deltas, and stored sums.
StoredDType = Literal["BF16", "F16", "F32", "I8", "U8", "U16", "I64"]

#: Bytes of one element.
WIDTH: dict[StoredDType, int] = {"BF16": 2, "F16": 2, "F32": 4, "I8": 1, "U8": 1, "U16": 2, "I64": 8}
FLOATS: tuple[StoredDType, ...] = ("BF16", "F16", "F32")  #: what models are made of
CHUNK = (
    1 << 16
)  #: elements read at a time: a base, four deltas and some float64 rows stay in a 2 MiB L2 cache
HEADER_BYTES_MAX = 100_000_000  #: the format's own limit
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_NAME_MAX = 512
_DIMENSIONS_MAX = 8
_ELEMENTS_MAX = 1 << 48


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    name: str
    dtype: StoredDType
    shape: tuple[int, ...]
    offset: int  #: of its first byte, from the start of the file

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * WIDTH[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    tensors: dict[str, TensorInfo]  #: sorted by name
    metadata: dict[str, str]


def read_header(
    path: Path,
    label: str | None = None,
    bytes_max: int = HEADER_BYTES_MAX,
    dtypes: Collection[StoredDType] = FLOATS,
) -> Header:
    """The header of a safetensors file, checked against the file's size.

    label   what messages call the file; its path if None
    dtypes  that tensors may have
    Raises Corrupt naming the file and the tensor, Unavailable if the file cannot be read.
    """
    with disk_errors(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return _read_header(file.fileno(), size, label or str(path), bytes_max, dtypes)


class Tensors(Mapping[str, TensorInfo]):
    """Named tensors on disk, sorted by name; their elements come out as float32. Reading is thread-safe."""

    label: str  #: what messages call the place
    _tensors: dict[str, TensorInfo]

    def __getitem__(self, name: str) -> TensorInfo:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self._tensors.items()}

    @abstractmethod
    def read(self, name: str, start: int, out: F32Array) -> None:
        """Fill ``out`` (contiguous, one axis) with elements ``start ..`` of a tensor in C order.

        Raises Corrupt if the file became shorter, Unavailable if the disk fails.
        """

    def place(self, name: str) -> tuple[int, TensorInfo] | None:
        """The open file in which a tensor lies as its info says; None if it has to be made."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of the files; after this nothing can be read."""

    def pieces(self, name: str) -> Iterator[tuple[int, F32Array]]:
        """``(start, elements)`` over a tensor; the array is overwritten by the next piece."""
        count = self[name].num_elements
        buffer = np.empty(min(count, CHUNK), np.float32)
        for start in range(0, count, CHUNK):
            piece = buffer[: min(CHUNK, count - start)]
            self.read(name, start, piece)
            yield start, piece

    def array(self, name: str) -> F32Array:
        """A whole tensor, in its shape, in fresh memory."""
        out = np.empty(self[name].num_elements, np.float32)
        self.read(name, 0, out)
        return out.reshape(self[name].shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TensorFile(Tensors):
    """One safetensors file. Arguments and errors as for ``read_header``."""

    def __init__(
        self,
        path: Path,
        label: str | None = None,
        header_bytes_max: int = HEADER_BYTES_MAX,
        dtypes: Collection[StoredDType] = FLOATS,
    ) -> None:
        self.path = path
        self.label = label or str(path)
        with disk_errors(path):
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with disk_errors(path):
                size = os.fstat(self._file).st_size
                header = _read_header(self._file, size, self.label, header_bytes_max, dtypes)
        except BaseException:
            os.close(self._file)
            raise
        self._tensors = header.tensors
        self.metadata = header.metadata

    def read(self, name: str, start: int, out: F32Array) -> None:
        info = self._tensors[name]
        assert 0 <= start <= info.num_elements - out.size, (
            f"{name}: {start}+{out.size} of {info.num_elements}"
        )
        raw = out.view(np.uint8) if info.dtype == "F32" else scratch(out.size * WIDTH[info.dtype])
        self.read_stored(name, start, raw)
        if info.dtype == "BF16":
            kernels.decode_bf16(raw.view("<u2"), out)
        elif info.dtype == "F16":
            out[:] = raw.view("<f2")

    def read_stored(self, name: str, start: int, out: npt.NDArray[np.uint8]) -> None:
        """Fill ``out`` with bytes as they are stored, from element ``start`` of a tensor on."""
        info = self._tensors[name]
        with disk_errors(self.path):
            _fill(self._file, info.offset + start * WIDTH[info.dtype], out, self.label)

    def place(self, name: str) -> tuple[int, TensorInfo] | None:
        return self._file, self._tensors[name]

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Checkpoint(Tensors):
    """A model in Hugging Face layout: ``model.safetensors``, or an index and its shards, as one mapping.

    Raises Corrupt for a missing, repeated or unlisted tensor and for an index that points outside the folder.
    """

    def __init__(self, directory: Path, label: str | None = None) -> None:
        self.directory = directory
        self.label = label or str(directory)
        self._files: list[TensorFile] = []
        self._place: dict[str, TensorFile] = {}
        try:
            for name, expected in self._plan().items():
                self._add(TensorFile(directory / name, f"{self.label}/{name}"), expected)
        except BaseException:
            self.close()
            raise
        self._tensors = {name: self._place[name][name] for name in sorted(self._place)}

    def _plan(self) -> dict[str, set[str] | None]:
        """Shard -> the tensors it must hold (None: whatever it holds)."""
        single, index = self.directory / SINGLE_FILE, self.directory / INDEX_FILE
        if single.exists() and index.exists():
            raise Corrupt(
                f"{self.label}: has both {SINGLE_FILE} and {INDEX_FILE}; remove the one that is stale"
            )
        if single.exists():
            return {SINGLE_FILE: None}
        if not index.exists():
            raise Corrupt(
                f"{self.label}: has neither {SINGLE_FILE} nor {INDEX_FILE}; save the model as safetensors"
            )
        where = f"{self.label}/{INDEX_FILE}"
        with disk_errors(index), open(index, "rb") as file:
            text = file.read(HEADER_BYTES_MAX + 1)
        if len(text) > HEADER_BYTES_MAX:
            raise Corrupt(f"{where}: exceeds the {HEADER_BYTES_MAX} bytes allowed; save the model again")
        weight_map = _strict_json(text, where).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise Corrupt(f"{where}: weight_map must map tensor names to shards; save the model again")
        by_shard: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            plain = isinstance(shard, str) and shard.endswith(".safetensors") and shard.isprintable()
            if not plain or "/" in shard or "\\" in shard or shard.startswith("."):
                raise Corrupt(
                    f"{where}: tensor {name!r} is said to lie in {shard!r}; shards lie beside the index"
                )
            by_shard.setdefault(shard, set()).add(name)
        return {shard: by_shard[shard] for shard in sorted(by_shard)}

    def _add(self, file: TensorFile, expected: set[str] | None) -> None:
        self._files.append(file)
        if expected is not None:
            for name in sorted(expected.symmetric_difference(file)):
                fault = "is missing, the index lists it" if name in expected else "is not in the index"
                raise Corrupt(f"{file.label}: tensor {name!r} {fault}; fetch the checkpoint again")
        self._place.update((name, file) for name in file)

    def read(self, name: str, start: int, out: F32Array) -> None:
        self._place[name].read(name, start, out)

    def read_stored(self, name: str, start: int, out: npt.NDArray[np.uint8]) -> None:
        self._place[name].read_stored(name, start, out)

    def place(self, name: str) -> tuple[int, TensorInfo] | None:
        return self._place[name].place(name)

    def close(self) -> None:
        for file in self._files:
            file.close()


def encode(values: F32Array, dtype: DType) -> npt.NDArray[Any]:
    """The elements as stored: F32 as is, BF16 and F16 rounded to nearest, ties to even; NaN stays NaN."""
    if dtype == "F32":
        return values.astype("<f4", copy=False)
    if dtype == "F16":
        return values.astype("<f2")
    values = np.ascontiguousarray(values)
    stored = np.empty(values.shape, "<u2")
    kernels.encode_bf16(values, stored)
    return stored


_local = threading.local()


def scratch(num_bytes: int) -> npt.NDArray[np.uint8]:
    """This thread's buffer for undecoded bytes; the next call gives the same memory out again."""
    buffer: npt.NDArray[np.uint8] | None = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < num_bytes:
        buffer = _local.buffer = np.empty(num_bytes, np.uint8)
    return buffer[:num_bytes]


def _fill(file: int, offset: int, raw: npt.NDArray[np.uint8], label: str) -> None:
    view, done = raw.data, 0
    while done < raw.size:
        count = os.preadv(file, [view[done:]], offset + done)
        if not count:
            raise Corrupt(f"{label}: ended at byte {offset + done} while it was read; fetch the file again")
        done += count


def _read_header(file: int, size: int, label: str, bytes_max: int, dtypes: Collection[StoredDType]) -> Header:
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if size < 8 or length > size - 8:
        raise Corrupt(
            f"{label}: {size} bytes cannot hold a header of {length}; the file is cut off or no safetensors"
        )
    if length > bytes_max:
        raise Corrupt(f"{label}: a header of {length} bytes exceeds the {bytes_max} allowed; split the model")
    text = np.empty(length, np.uint8)
    _fill(file, 8, text, label)
    entries = _strict_json(text.tobytes(), label)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Corrupt(f"{label}: __metadata__ must map text to text; save the file again")
    tensors = {name: _tensor_info(name, entries[name], 8 + length, label, dtypes) for name in sorted(entries)}
    end, before = 8 + length, "the header"
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.num_bytes)):
        if info.offset != end:
            fault = "overlaps" if info.offset < end else "leaves a gap after"
            raise Corrupt(f"{label}: tensor {info.name!r} {fault} {before}; tensors must follow each other")
        end, before = info.offset + info.num_bytes, repr(info.name)
    if end != size:
        raise Corrupt(f"{label}: its tensors end at byte {end}, the file at {size}; fetch the file again")
    return Header(tensors=tensors, metadata=metadata)


def _tensor_info(
    name: str, entry: Any, data_start: int, label: str, dtypes: Collection[StoredDType]
) -> TensorInfo:
    def fault(why: str) -> NoReturn:
        raise Corrupt(f"{label}: tensor {name[:80]!r}: {why}; save the file again")

    if not 0 < len(name) <= _NAME_MAX or not name.isprintable():
        fault(f"a name has 1 to {_NAME_MAX} printable characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        fault("its entry must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    known = next((one for one in dtypes if one == dtype), None)
    if known is None:
        fault(f"dtype is {str(dtype)[:20]!r}, only {', '.join(dtypes)} are trained and merged")
    if not _are_counts(shape) or len(shape) > _DIMENSIONS_MAX:
        fault(f"shape must be at most {_DIMENSIONS_MAX} counts")
    if not _are_counts(offsets) or len(offsets) != 2:
        fault("data_offsets must be [begin, end]")
    begin, end = offsets
    info = TensorInfo(name=name, dtype=known, shape=tuple(shape), offset=data_start + begin)
    if end - begin != info.num_bytes:
        fault(f"{dtype} of shape {shape} takes {info.num_bytes} bytes, the header gives it {end - begin}")
    return info


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < _ELEMENTS_MAX for item in value)


def _strict_json(text: bytes, label: str) -> dict[str, Any]:
    """A JSON object in which no name occurs twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = sorted(name for name, _ in pairs)
            twice = next(a for a, b in itertools.pairwise(names) if a == b)
            raise Corrupt(
                f"{label}: {twice[:80]!r} is written twice; every tensor has one entry, save the file again"
            )
        return found

    def constant(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON")

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{label}: not a JSON header ({error}); fetch the file again") from error
    if not isinstance(parsed, dict):
        raise Corrupt(f"{label}: its JSON must be an object; fetch the file again")
    return parsed
