"""Tokens of many documents in one file: Megatron's ``.bin/.idx`` pair, written and memory-mapped.

``.bin`` holds the tokens, document after document, each ended by EOS. ``.idx`` says where each begins:
9 bytes ``MMIDIDX\\0\\0``, u64 version 1, u8 dtype (8: uint16, 4: int32), u64 sequences, u64 document marks,
then int32 lengths, int64 byte offsets, int64 marks 0 .. n.
Source: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from consortium.errors import Corrupt
from consortium.files import disk_errors

Tokens = npt.NDArray[Any]  #: uint16 or int32

_MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<9sQBQQ")
_CODES: dict[np.dtype[Any], int] = {np.dtype("<u2"): 8, np.dtype("<i4"): 4}
_DTYPES: dict[int, np.dtype[Any]] = {code: dtype for dtype, code in _CODES.items()}

_CHUNK = 1 << 20  # bytes or numbers at a time


def dtype_for(vocabulary_size: int) -> np.dtype[Any]:
    return np.dtype("<u2") if vocabulary_size <= 1 << 16 else np.dtype("<i4")


class PackedWriter:
    """Documents become ``<stem>.bin`` and ``<stem>.idx``; they come sorted by document digest.

    Sorted, so that the same documents give the same bytes whatever files they came in. Memory is bounded.
    """

    def __init__(self, stem: Path, dtype: np.dtype[Any]) -> None:
        self._stem, self._dtype = stem, dtype
        self._lengths_path = stem.with_suffix(".lengths")
        self._lengths = open(self._lengths_path, "w+b")
        self._file: BinaryIO = open(stem.with_suffix(".bin"), "wb", _CHUNK)
        self._documents = 0

    def add(self, documents: Sequence[npt.ArrayLike]) -> None:
        """Some documents, the EOS of each included."""
        arrays = [np.asarray(tokens, self._dtype) for tokens in documents]
        self._file.write(b"".join(array.data for array in arrays))
        self._lengths.write(np.asarray([array.size for array in arrays], "<i4").tobytes())
        self._documents += len(arrays)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file, self._lengths:
            if kind is None:
                _sync(self._file)
                self._write_index()
        self._lengths_path.unlink()

    def _write_index(self) -> None:
        with open(self._stem.with_suffix(".idx"), "wb", _CHUNK) as index:
            index.write(_HEAD.pack(_MAGIC, 1, _CODES[self._dtype], self._documents, self._documents + 1))
            for lengths in self._chunks():
                index.write(lengths.tobytes())
            offset = 0
            for lengths in self._chunks():
                ends = offset + np.cumsum(lengths, dtype=np.int64)
                index.write(((ends - lengths) * self._dtype.itemsize).astype("<i8").tobytes())
                offset = int(ends[-1])
            for begin in range(0, self._documents + 1, _CHUNK):
                marks = np.arange(begin, min(begin + _CHUNK, self._documents + 1), dtype="<i8")
                index.write(marks.tobytes())
            _sync(index)

    def _chunks(self) -> Iterator[npt.NDArray[np.int32]]:
        self._lengths.seek(0)
        while data := self._lengths.read(4 * _CHUNK):
            yield np.frombuffer(data, "<i4")


class Packed:
    """A pair on disk, memory-mapped. Raises Corrupt if index and tokens do not fit each other.

    tokens   (N,) all of them
    lengths  (documents,) tokens of each document, EOS included
    """

    def __init__(self, stem: Path) -> None:
        path = stem.with_suffix(".idx")
        with disk_errors(path):
            raw = _map(path, np.dtype(np.uint8))
        if raw.size < _HEAD.size:
            raise Corrupt(f"{path}: {raw.size} bytes are no index; delete the folder, it will be made again")
        magic, version, code, count, marks = _HEAD.unpack(raw[: _HEAD.size].tobytes())
        expected = _HEAD.size + count * 12 + marks * 8
        if magic != _MAGIC or version != 1 or code not in _DTYPES or raw.size != expected:
            raise Corrupt(
                f"{path}: not a Megatron index of uint16 or int32; delete the folder, it will be made again"
            )
        self.lengths = np.frombuffer(raw, "<i4", count, _HEAD.size)
        self.tokens: Tokens = _map(stem.with_suffix(".bin"), _DTYPES[code])
        if int(self.lengths.sum(dtype=np.int64)) != self.tokens.size:
            raise Corrupt(f"{path}: lists {self.lengths.sum()} tokens, the .bin holds {self.tokens.size}")

    def __len__(self) -> int:
        return len(self.lengths)

    def documents(self) -> list[Tokens]:
        """Each document's tokens, EOS included, in order of document digest."""
        return np.split(self.tokens, np.cumsum(self.lengths)[:-1]) if len(self) else []


def num_sequences(num_tokens: int, sequence_tokens: int) -> int:
    """Sequences in one epoch: every token is predicted once (the last sequence runs on into the first)."""
    return -(-num_tokens // sequence_tokens)


def sequence(tokens: Tokens, index: int, sequence_tokens: int) -> Tokens:
    """Sequence ``index`` of an epoch: the first ``sequence_tokens`` are the context, the last the targets.

    Returns ``sequence_tokens`` + 1 tokens.
    """
    begin = index * sequence_tokens
    piece = tokens[begin : begin + sequence_tokens + 1]
    if piece.size <= sequence_tokens:
        piece = tokens[np.arange(begin, begin + sequence_tokens + 1) % tokens.size]
    return piece


def _map(path: Path, dtype: np.dtype[Any]) -> Tokens:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, "r")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
