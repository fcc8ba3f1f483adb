"""What the weights of a model are, by content: a digest for every piece, so that many threads can make them.

A piece is a tensor's elements in one span (``survey.spans``): about a million, whole lines. Its digest is
blake3 (https://github.com/BLAKE3-team/BLAKE3-specs) of its bytes as stored, little endian. The weights'
digest is made of names, dtypes, shapes and piece digests: it is the same however a model is sharded, and a
check that was cut off goes on with the next piece.
"""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
from blake3 import blake3

from consortium.canonical import Fact, decode, digest_of_fact, encode
from consortium.errors import BadInput, Corrupt
from consortium.files import disk_errors, write_bytes_atomically
from consortium.ids import Digest
from consortium.merging.survey import spans
from consortium.tensors import CHUNK, WIDTH, Checkpoint, DType

CHECKSUMS_FILE = "checksums.json"


class TensorChecksums(Fact):
    dtype: DType
    shape: tuple[int, ...]
    pieces: tuple[str, ...]  #: blake3, hexadecimal, in the order of the elements


class Checksums(Fact):
    """Of a whole model. ``digest`` names the weights."""

    schema: int = 1
    algorithm: str = "blake3"
    tensors: dict[str, TensorChecksums]

    @property
    def digest(self) -> Digest:
        return digest_of_fact(self)

    @property
    def num_pieces(self) -> int:
        return sum(len(tensor.pieces) for tensor in self.tensors.values())


class PieceHasher:
    """The digest of one piece, from its bytes in order."""

    def __init__(self) -> None:
        self._hasher = blake3()

    def update(self, stored: memoryview) -> None:
        self._hasher.update(stored)

    def hexdigest(self) -> str:
        return str(self._hasher.hexdigest())


def write_checksums(folder: Path, checksums: Checksums) -> None:
    write_bytes_atomically(folder / CHECKSUMS_FILE, encode(checksums))


def read_checksums(folder: Path) -> Checksums:
    """Raises BadInput for a folder without checksums, or with something else under their name."""
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        raise BadInput(f"{path}: is not there; only models that we merged have checksums")
    with disk_errors(path):
        return decode(path.read_bytes(), Checksums, str(path))


def piece_digest(model: Checkpoint, name: str, span: range) -> str:
    """Of what the files hold now."""
    hasher, width = PieceHasher(), WIDTH[model[name].dtype]
    raw = np.empty(min(CHUNK, len(span)) * width, np.uint8)
    for start in range(span.start, span.stop, CHUNK):
        stored = raw[: min(CHUNK, span.stop - start) * width]
        model.read_stored(name, start, stored)
        hasher.update(stored.data)
    return hasher.hexdigest()


def checksums_of(folder: Path, threads: int = 2) -> Checksums:
    """The checksums of any model folder. Reads all weights once."""
    with Checkpoint(folder) as model, ThreadPoolExecutor(threads) as pool:
        made = {
            name: [pool.submit(piece_digest, model, name, span) for span in spans(info.shape)]
            for name, info in model.items()
        }
        tensors = {
            name: TensorChecksums(
                dtype=cast(DType, model[name].dtype),
                shape=model[name].shape,
                pieces=tuple(piece.result() for piece in pieces),
            )
            for name, pieces in made.items()
        }
    return Checksums(tensors=tensors)


def checked_pieces(
    folder: Path, checksums: Checksums, done: Collection[tuple[str, int]] = (), threads: int = 2
) -> Iterator[tuple[str, int]]:
    """Compare the model in ``folder`` piece by piece; yields (tensor, first element) of each that holds.

    done     what an earlier, interrupted check yielded: skipped
    Raises Corrupt naming the first piece, in order, that does not hold, and for tensors that differ.
    """
    with Checkpoint(folder) as model, ThreadPoolExecutor(threads) as pool:
        found = {name: (info.dtype, info.shape) for name, info in model.items()}
        expected = {name: (tensor.dtype, tensor.shape) for name, tensor in checksums.tensors.items()}
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                raise Corrupt(
                    f"{folder}: tensor {name!r} is {found.get(name)}, the checksums say {expected.get(name)}; "
                    "fetch the model again"
                )

        def check(name: str, span: range, want: str) -> None:
            if piece_digest(model, name, span) != want:
                raise Corrupt(
                    f"{folder}: tensor {name!r}, elements {span.start} to {span.stop}: blake3 is not "
                    f"{want[:16]}…; fetch the model again"
                )

        waiting = [
            ((name, span.start), pool.submit(check, name, span, want))
            for name, tensor in sorted(checksums.tensors.items())
            for span, want in zip(spans(tensor.shape), tensor.pieces, strict=True)
            if (name, span.start) not in done
        ]
        for piece, future in waiting:
            future.result()
            yield piece
