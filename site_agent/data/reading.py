"""How a unit is read once, forwards, and segments are made of what it holds."""

import itertools
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from consortium.files import write_bytes_atomically
from site_agent.config import Text
from site_agent.data import records
from site_agent.data.documents import Document, columns_of, document_of, is_said_to_be, shown_tag
from site_agent.data.records import Format, Record
from site_agent.data.segments import (
    PLACES_MAX,
    SEGMENT_BYTES,
    Encode,
    Findings,
    Head,
    Split,
    Unit,
    Words,
    packed_segment,
)
from site_agent.data.streams import FileState, Stream, changed, state_of
from site_agent.packed import Tokens
from site_agent.text import is_heldout

_BATCH_DOCUMENTS, _BATCH_BYTES = 256, 2 << 20  # tokenised at a time
_TAGS_MAX = 50  # languages counted in a segment by their name
# What in UTF-8 is a control character, but for tab, line feed and carriage return
_CONTROLS = bytes([*range(9), 11, 12, *range(14, 32), 127])


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
        columns = (
            b"".join(order),
            np.asarray([self.found[digest][0] for digest in order], "<u4").tobytes(),
            np.asarray([len(one) for one in tokens] if tokens else [0] * len(order), "<u4").tobytes(),
            np.asarray([self.found[digest][1] for digest in order], "u1").tobytes(),
            *(one.tobytes() for one in tokens),
        )
        return head, packed_segment(head, columns)
