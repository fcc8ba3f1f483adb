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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from consortium.canonical import Fact, decode, digest_of_fact, encode
from consortium.errors import BadInput, Corrupt
from consortium.files import disk_errors, write_bytes_atomically
from consortium.ids import Digest
from site_agent.config import Text
from site_agent.data import records
from site_agent.data.documents import Document, columns_of, document_of, is_said_to_be, shown_tag
from site_agent.data.records import Format, Record
from site_agent.data.streams import FileState, Stream, changed, state_of
from site_agent.packed import Tokens, dtype_for
from site_agent.text import files_of, is_heldout

FORMAT = 2  # raised when the same text would give other tokens or another layout
SEGMENT_BYTES = 64 << 20  # of decompressed text: 20 s of a process; lost if it is killed
PLACES_MAX = 5  # faults that are told with their place

_SMALL_PART = 8  # files below this part of a segment share a unit
_UNIT_FILES = 1000  # of small files at most
_BATCH_DOCUMENTS, _BATCH_BYTES = 256, 2 << 20  # tokenised at a time
_TAGS_MAX = 50  # languages counted in a segment by their name
_HEAD = struct.Struct("<Q")
# What in UTF-8 is a control character, but for tab, line feed and carriage return
_CONTROLS = bytes([*range(9), 11, 12, *range(14, 32), 127])

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


class UnitReader:
    """Walks a unit once, forwards, and makes the segments it is asked for on its way.

    Each segment asked for must lie after the one before; what lies between is passed over undecoded.
    """

    def __init__(
        self,
        unit: Unit,
        words: Words | None,
        split: Split,
        encode_texts: Encode | None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.unit, self._size = unit, segment_bytes
        self._words, self._split, self._encode = words, split, encode_texts
        self._walker: Generator[tuple[Record, Path, Format], None, None] | None = None
        self._records: Iterator[tuple[Record, Path, Format]] = iter(())
        self._raw = 0  # bytes read of the files that are done
        self._stream: Stream | None = None
        self._state: FileState | None = None

    def make(self, number: int, path: Path) -> Head | None:
        """Write segment ``number`` to ``path``; None, and nothing written, if the unit ends before it.

        Raises Corrupt or Unavailable for a file that cannot be read to the end, or changes meanwhile.
        """
        try:
            made = self._make(number, path)
        except BaseException:
            self.close()
            raise
        if made is None or made.is_last:
            self.close()
        return made

    def close(self) -> None:
        """Let go of the file that is open; the reader makes nothing more."""
        if self._walker is not None:
            self._walker.close()

    def _make(self, number: int, path: Path) -> Head | None:
        begin, end = number * self._size, (number + 1) * self._size
        if self._walker is None:
            self._records = self._walker = self._walk(begin)
        first = next((found for found in self._records if found[0].offset >= begin), None)
        if first is None and number:
            return None
        before = self._position()
        filling = _Filling(self._words, self._split, self._encode)
        following = None
        for found in itertools.chain([first] if first else [], self._records):
            if found[0].offset >= end:
                following = found
                self._records = itertools.chain([found], self._records)
                break
            filling.add(*found, self.unit.source)
        self._check()
        read_bytes = max(0, self._position() - before)
        head, data = filling.close(is_last=following is None, read_bytes=read_bytes)
        write_bytes_atomically(path, data)
        return head

    def documents(self) -> Iterator[Document]:
        """All documents of the unit, from its begin, as they stand in its files, repeated ones too."""
        filling = _Filling(None, self._split, None)
        for found in self._walk(0):
            document = filling.accepted(*found, self.unit.source)
            if document is not None:
                yield document

    def _check(self) -> None:
        """That the file being read is still the one that was planned with, open and by its name."""
        if self._stream is not None and self._state is not None:
            self._stream.check(self._state)
            if state_of(self._stream.path) != self._state:
                raise changed(self._stream.path)

    def _position(self) -> int:
        return self._raw + (self._stream.raw_position if self._stream else 0)

    def _walk(self, begin: int) -> Generator[tuple[Record, Path, Format], None, None]:
        offset = 0
        for state, kind in self.unit.files:
            path = Path(state.path)
            if kind == "parquet":
                for record in records.rows(state, columns_of(self.unit.source), begin - offset):
                    yield record._replace(offset=offset + record.offset), path, kind
                offset += records.rows_bytes(path)
            else:
                with Stream(path) as self._stream:
                    self._state = state
                    self._check()
                    for record in _records_of(path, kind, self._stream):
                        yield record._replace(offset=offset + record.offset), path, kind
                    offset += self._stream.made
                    self._check()
                self._stream = None
            self._raw += state.size


def _records_of(path: Path, kind: Format, stream: Stream) -> Iterator[Record]:
    if kind == "txt":
        return records.paragraphs(path, stream)
    return records.warc(stream) if kind == "wet" else records.lines(stream)


@dataclass
class _Filling:
    """A segment while it is made."""

    words: Words | None
    split: Split
    encode: Encode | None
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    found: dict[bytes, list[int]] = field(default_factory=dict)  # digest -> bytes, held out
    tokens: dict[bytes, Tokens] = field(default_factory=dict)
    waiting: list[tuple[bytes, str]] = field(default_factory=list)
    waiting_bytes: int = 0

    def add(self, record: Record, path: Path, kind: Format, source: Text) -> None:
        document = self.accepted(record, path, kind, source)
        if document is not None:
            self._keep(document)

    def accepted(self, record: Record, path: Path, kind: Format, source: Text) -> Document | None:
        """The document of a record if it is one that is wanted; counts why not."""
        if kind == "jsonl" and record.payload is not None and not record.payload.strip():
            return None
        document = document_of(record, kind, source)
        if isinstance(document, str):
            self.faults[document] += 1
            if len(self.places) < PLACES_MAX:
                self.places.append(f"{path}:{record.number}: {document}")
            return None
        return document if self._is_wanted(document, source) else None

    def _is_wanted(self, document: Document, source: Text) -> bool:
        if document.tag:
            self.counts["said"] += 1
            if not is_said_to_be(document.tag, source.language):
                tag = shown_tag(document.tag)
                self.others[tag if tag in self.others or len(self.others) < _TAGS_MAX else "..."] += 1
                if source.other_languages == "drop":
                    self.passed_over["another language"] += 1
                    return False
        if document.opted_out:
            self.passed_over["opted out" if source.opted_out == "drop" else "opted out, kept"] += 1
            return source.opted_out == "keep"
        return True

    def _keep(self, document: Document) -> None:
        data = document.text.encode()
        digest = document.digest
        key = digest.hex() if document.id is None else document.id
        held = is_heldout(key, self.split.seed, self.split.heldout_share)
        self.counts["documents"] += 1
        self.counts["control"] += len(data) != len(data.translate(None, _CONTROLS))
        if digest in self.found:
            self.found[digest][1] |= held
            return
        self.found[digest] = [len(data), held]
        if self.encode is not None:
            self.waiting.append((digest, document.text))
            self.waiting_bytes += len(data)
            if len(self.waiting) == _BATCH_DOCUMENTS or self.waiting_bytes > _BATCH_BYTES:
                self._tokenise()

    def _tokenise(self) -> None:
        if not self.waiting or self.encode is None or self.words is None:
            return
        encoded = self.encode([text for _, text in self.waiting])
        for (digest, _), ids in zip(self.waiting, encoded, strict=True):
            self.tokens[digest] = np.asarray([*ids, self.words.eos], self.words.dtype)
        self.waiting, self.waiting_bytes = [], 0

    def close(self, is_last: bool, read_bytes: int) -> tuple[Head, bytes]:
        self._tokenise()
        order = sorted(self.found)
        tokens = [self.tokens[digest] for digest in order] if self.words else []
        head = Head(
            documents=len(order),
            tokens=sum(len(one) for one in tokens),
            dtype=self.words.dtype.str if self.words else "",
            is_last=is_last,
            read_bytes=read_bytes,
            findings=Findings(
                documents=self.counts["documents"],
                faults=dict(self.faults),
                first_faults=tuple(self.places),
                control_characters=self.counts["control"],
                said=self.counts["said"],
                other_languages=dict(self.others),
                passed_over=dict(self.passed_over),
            ),
        )
        said = encode(head)
        columns = (
            b"".join(order),
            np.asarray([self.found[digest][0] for digest in order], "<u4").tobytes(),
            np.asarray([len(one) for one in tokens] if tokens else [0] * len(order), "<u4").tobytes(),
            np.asarray([self.found[digest][1] for digest in order], "u1").tobytes(),
            *(one.tobytes() for one in tokens),
        )
        return head, b"".join((_HEAD.pack(len(said)), said, *columns))


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
