"""What a site's text is cut into, so that many processes can prepare it and a killed one loses little.

A *unit* is a large file, or some small ones that follow each other; a *segment* is what begins within 64 MiB
of a unit's decompressed bytes. What was found in a segment is one file, whole or not there: documents sorted
by digest, each text once, with their tokens. Which process made it makes no difference to its bytes::

    u64 length of the head, head (canonical JSON), then of n documents, sorted by digest:
    n x 32 bytes digests, n x u32 UTF-8 bytes, n x u32 tokens, n x u8 held out, and the tokens
"""

import itertools
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from consortium.canonical import Fact, decode, digest_of_fact, encode
from consortium.errors import BadInput, Corrupt
from consortium.files import disk_errors
from consortium.ids import Digest
from site_agent.config import Text
from site_agent.data.records import Format
from site_agent.data.streams import FileState, state_of
from site_agent.packed import Tokens, dtype_for
from site_agent.text import files_of

FORMAT = 2  # raised when the same text would give other tokens or another layout
SEGMENT_BYTES = 64 << 20  # of decompressed text: 20 s of a process; lost if it is killed
PLACES_MAX = 5  # faults that are told with their place

_SMALL_PART = 8  # files below this part of a segment share a unit
_UNIT_FILES = 1000  # of small files at most
_HEAD = struct.Struct("<Q")

Encode = Callable[[list[str]], list[list[int]]]


class Words(Fact):
    """The tokenizer, as far as prepared text depends on it."""

    digest: Digest
    eos: int
    vocabulary_size: int

    @property
    def dtype(self) -> np.dtype[np.uint16] | np.dtype[np.int32]:
        return dtype_for(self.vocabulary_size)

    @property
    def mark(self) -> list[str | int]:
        """What the bytes depend on: a vocabulary padded to another size within the dtype gives the same."""
        return [self.digest, self.eos, self.dtype.str]


class Split(Fact):
    """Which documents are held out."""

    heldout_share: float
    seed: int


class Unit(Fact):
    """Files that are cut into segments together; all of one language and access."""

    source: Text
    files: tuple[tuple[FileState, Format], ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(state.size for state, _ in self.files)

    def key(self, words: Words | None, split: Split, segment_bytes: int) -> str:
        """The name of its segments: changes with all that they depend on, and with nothing else."""
        depends = [
            FORMAT,
            segment_bytes,
            reading_of(self.source),
            self.files,
            words.mark if words else None,
            split,
        ]
        return digest_of_fact(depends)[:32]


class Findings(Fact):
    """What was seen on the way; numbers add up over segments, whatever their order."""

    documents: int = 0  #: that were kept, repeated ones too
    faults: dict[str, int] = msgspec.field(default_factory=dict)  #: kind -> records that are no document
    first_faults: tuple[str, ...] = ()  #: ``file:number: kind`` of the first few
    control_characters: int = 0  #: documents that hold some; kept as they are
    said: int = 0  #: documents that say in which language they are
    other_languages: dict[str, int] = msgspec.field(default_factory=dict)  #: tag -> documents that say it
    passed_over: dict[str, int] = msgspec.field(
        default_factory=dict
    )  #: reason -> documents left out on purpose


class Head(Fact):
    """What a segment's file begins with."""

    documents: int
    tokens: int
    dtype: str  #: "" without a tokenizer
    is_last: bool  #: the unit ends here
    read_bytes: int  #: of the files on disk, about
    findings: Findings


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment's file, its columns mapped."""

    head: Head
    digests_N: npt.NDArray[np.bytes_]
    bytes_N: npt.NDArray[np.uint32]
    lengths_N: npt.NDArray[np.uint32]
    heldout_N: npt.NDArray[np.bool_]
    tokens: Tokens


def reading_of(source: Text) -> list[str | None]:
    """What of an entry of ``text`` decides which documents it has; its licence and the like do not."""
    return [
        source.language,
        source.access,
        source.format,
        source.text_field,
        source.id_field,
        source.other_languages,
        source.opted_out,
    ]


def units_of(sources: Iterable[Text], segment_bytes: int = SEGMENT_BYTES) -> tuple[Unit, ...]:
    """The units of some sources, in the order of the sources and of their files' paths."""
    found: list[Unit] = []
    for source in sources:
        group: list[tuple[FileState, Format]] = []
        size = 0
        for path, kind in files_of(source):
            state = state_of(path)
            is_small = state.size <= segment_bytes // _SMALL_PART
            if group and not (is_small and len(group) < _UNIT_FILES and size + state.size <= segment_bytes):
                found.append(Unit(source=source, files=tuple(group)))
                group, size = [], 0
            group.append((state, kind))
            size += state.size if is_small else segment_bytes
        found.append(Unit(source=source, files=tuple(group)))
    return tuple(found)


def segment_path(folder: Path, key: str, number: int) -> Path:
    return folder / f"{key}-{number:06d}.segment"


def packed_segment(head: Head, columns: Iterable[bytes]) -> bytes:
    """The bytes of a segment's file."""
    said = encode(head)
    return b"".join((_HEAD.pack(len(said)), said, *columns))


def read_head(path: Path) -> Head:
    """What a segment's file says of itself. Raises Corrupt if it is none."""
    with disk_errors(path), open(path, "rb") as file:
        (size,) = _HEAD.unpack(file.read(_HEAD.size).ljust(_HEAD.size, b"\0"))
        said = file.read(min(size, 1 << 20))
    try:
        return decode(said, Head, str(path))
    except BadInput as error:
        raise _not_ours(path) from error


def map_segment(path: Path) -> Segment:
    """Raises Corrupt if it is not what its head says, Unavailable if it is not there."""
    head = read_head(path)
    with disk_errors(path):
        data: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
    n = head.documents
    width = np.dtype(head.dtype).itemsize if head.dtype else 0
    (said,) = _HEAD.unpack_from(data[: _HEAD.size].tobytes())
    ends = list(itertools.accumulate((_HEAD.size + said, 32 * n, 4 * n, 4 * n, n, width * head.tokens)))
    if ends[-1] != data.size:
        raise _not_ours(path)
    digests, sizes, lengths, held, tokens = (data[a:b] for a, b in itertools.pairwise(ends))
    return Segment(
        head=head,
        digests_N=digests.view("S32"),
        bytes_N=np.frombuffer(sizes, "<u4"),
        lengths_N=np.frombuffer(lengths, "<u4"),
        heldout_N=held.view("?"),
        tokens=np.frombuffer(tokens, head.dtype or "<u2"),
    )


def findings_of(parts: Sequence[Findings]) -> Findings:
    """The sum of some findings, in the order of their places."""
    return Findings(
        documents=sum(part.documents for part in parts),
        faults=_sum(part.faults for part in parts),
        first_faults=tuple(itertools.islice((at for part in parts for at in part.first_faults), PLACES_MAX)),
        control_characters=sum(part.control_characters for part in parts),
        said=sum(part.said for part in parts),
        other_languages=_sum(part.other_languages for part in parts),
        passed_over=_sum(part.passed_over for part in parts),
    )


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _not_ours(path: Path) -> Corrupt:
    return Corrupt(f"{path}: is no segment of prepared text; remove it, it will be made again")
