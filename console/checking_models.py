"""How a model is held against its checksums, and how far that came when it was cut off."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from consortium.canonical import Fact
from consortium.errors import BadInput
from consortium.files import disk_errors
from consortium.ids import Digest
from consortium.merging.checksums import checked_pieces, read_checksums
from consortium.tensors import WIDTH

_Piece = tuple[str, int]


class CheckedModel(Fact):
    digest: Digest  #: of the weights
    tensors: int
    pieces: int


def check_model(
    folder: Path,
    resume: Path | None,
    threads: int,
    begin: Callable[[str, int], Callable[[int], None]],
) -> CheckedModel:
    """Compare a model with its checksums.

    resume  a text file: the weights' digest, then a line a piece that holds; made when missing, gone on with
    begin   called with a name and a number of bytes; its result with the bytes that were checked
    Raises Corrupt naming the first piece that differs, BadInput for a folder without checksums or a file of
    another model's.
    """
    checksums = read_checksums(folder)
    size = sum(WIDTH[one.dtype] * math.prod(one.shape) for one in checksums.tensors.values())
    moved = begin(folder.name, size)
    with _log(resume, checksums.digest) as (done, keep):
        count = len(done)
        for piece in checked_pieces(folder, checksums, done, threads):
            keep(piece)
            count += 1
            moved(size * count // checksums.num_pieces)
    return CheckedModel(digest=checksums.digest, tensors=len(checksums.tensors), pieces=checksums.num_pieces)


@contextlib.contextmanager
def _log(path: Path | None, digest: Digest) -> Iterator[tuple[set[_Piece], Callable[[_Piece], None]]]:
    """What an earlier check found to hold, and what to call for each further piece."""
    if path is None:
        yield set(), lambda piece: None
        return
    with disk_errors(path), open(path, "a+", encoding="utf-8") as file:
        file.seek(0)
        first, *lines = file.read().split("\n")  # the last is empty, or was cut off: it does not count
        if not first:
            file.write(f"{digest}\n")
        elif first != digest:
            raise BadInput(
                f"{path}: is of weights {first[:80]}, this model's are {digest}; name another file"
            )
        done = {(name, int(start)) for start, _, name in (line.partition(" ") for line in lines[:-1])}
        if lines and lines[-1]:
            file.write("\n")

        def keep(piece: _Piece) -> None:
            file.write(f"{piece[1]} {piece[0]}\n")
            file.flush()

        yield done, keep
