"""Tokens of many documents in one file: Megatron's ``.bin/.idx`` pair, written and memory-mapped.

``.bin`` holds the tokens, document after document, each ended by EOS. ``.idx`` says where each begins:
9 bytes ``MMIDIDX\\0\\0``, u64 version 1, u8 dtype (8: uint16, 4: int32), u64 sequences, u64 document marks,
then int32 lengths, int64 byte offsets, int64 marks 0 .. n.
Source: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

import os
import struct
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


def dtype_for(vocabulary_size: int) -> np.dtype[Any]:
    return np.dtype("<u2") if vocabulary_size <= 1 << 16 else np.dtype("<i4")


class PackedWriter:
    """Documents in any order become ``<stem>.bin`` and ``<stem>.idx``, sorted by document digest.

    Sorted, so that the same documents give the same bytes whatever files they came in.
    """

    def __init__(self, stem: Path, dtype: np.dtype[Any]) -> None:
        self._stem, self._dtype = stem, dtype
        self._unsorted = stem.with_suffix(".unsorted")
        self._file: BinaryIO = open(self._unsorted, "wb")
        self._digests: list[bytes] = []
        self._lengths: list[int] = []

    def add(self, digest: bytes, tokens: npt.ArrayLike) -> None:
        """One document, its EOS included."""
        array = np.asarray(tokens, self._dtype)
        self._file.write(array.tobytes())
        self._digests.append(digest)
        self._lengths.append(array.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            self._sort()
        self._unsorted.unlink()

    def _sort(self) -> None:
        order = sorted(range(len(self._digests)), key=self._digests.__getitem__)
        lengths = np.asarray(self._lengths, np.int64)
        begins = np.cumsum(lengths) - lengths
        tokens = _map(self._unsorted, self._dtype)
        with open(self._stem.with_suffix(".bin"), "wb") as packed:
            for index in order:
                packed.write(tokens[begins[index] : begins[index] + lengths[index]].tobytes())
            _sync(packed)
        sizes = lengths[order] if order else lengths
        offsets = (np.cumsum(sizes) - sizes) * self._dtype.itemsize
        with open(self._stem.with_suffix(".idx"), "wb") as index_file:
            index_file.write(_HEAD.pack(_MAGIC, 1, _CODES[self._dtype], len(order), len(order) + 1))
            index_file.write(sizes.astype("<i4").tobytes())
            index_file.write(offsets.astype("<i8").tobytes())
            index_file.write(np.arange(len(order) + 1, dtype="<i8").tobytes())
            _sync(index_file)


class Packed:
    """A pair on disk, memory-mapped. Raises Corrupt if index and tokens do not fit each other.

    tokens   (N,) all of them
    lengths  (documents,) tokens of each document, EOS included
    """

    def __init__(self, stem: Path) -> None:
        path = stem.with_suffix(".idx")
        with disk_errors(path):
            raw = path.read_bytes()
        if len(raw) < _HEAD.size:
            raise Corrupt(f"{path}: {len(raw)} bytes are no index; delete the folder, it will be made again")
        magic, version, code, count, marks = _HEAD.unpack_from(raw)
        expected = _HEAD.size + count * 12 + marks * 8
        if magic != _MAGIC or version != 1 or code not in _DTYPES or len(raw) != expected:
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
