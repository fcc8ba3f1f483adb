"""What documents a site's text holds, and which of them are held out.

``.txt``      a document is a paragraph, between blank lines; in a file without blank lines it is a line
``.jsonl``    a document is a line: HPLT v1.2 to v4, or any object with a text field and what else it likes
``.parquet``  a document is a row: FineWeb2 and its like

``.zst`` (many frames, as HPLT writes them) and ``.gz`` are seen through. Text is kept as it is: no
normalisation, no stripping of white space inside. What cannot be read is counted, never fatal.
"""

import gzip
import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, cast

import msgspec
import zstandard

from consortium.errors import BadInput, Corrupt
from consortium.files import disk_errors
from site_agent.config import Text

LINE_BYTES_MAX = 64 << 20  # of one JSON line or paragraph; the longest documents of web crawls are a few MB
DEFAULT_ID_FIELD = "id"

Format = Literal["txt", "jsonl", "parquet"]
_FORMATS: dict[str, Format] = {".txt": "txt", ".jsonl": "jsonl", ".parquet": "parquet"}
_PACKED = (".zst", ".gz")


class Document(NamedTuple):
    id: str | None  #: what its translations share; None: its source has no ids
    text: str

    @property
    def digest(self) -> bytes:
        """sha256 of the UTF-8 text, 32 bytes: the document's name in manifests and scores."""
        return hashlib.sha256(self.text.encode()).digest()


@dataclass
class Faults:
    """What could not be read, for the operator."""

    counts: Counter[str] = field(default_factory=Counter)
    first: str = ""  #: place and kind of the first

    def add(self, path: Path, number: int, kind: str) -> None:
        self.first = self.first or f"{path}:{number}: {kind}"
        self.counts[kind] += 1


def is_heldout(document_key: str, split_seed: int, share: float) -> bool:
    """Whether the document is for evaluation only: the same answer at every site and in every language.

    document_key  the id where there is one, so that a translation never leaks what another language holds
                  out; else the hex digest of the text
    share         0 to 1; a larger one holds out the same documents and more
    """
    drawn = hashlib.sha256(f"{split_seed}\n{document_key}".encode()).digest()
    return int.from_bytes(drawn[:8], "big") < share * 2**64


def files_of(source: Text) -> list[tuple[Path, Format]]:
    """The files of a source, sorted by path. Raises BadInput if there are none that can be read as text."""
    place = Path(source.path)
    wanted = None if source.format == "auto" else source.format
    if place.is_file():
        kind = wanted or _format_of(place)
        if kind is None:
            endings = ", ".join(_FORMATS)
            raise BadInput(
                f"{place}: cannot tell its format from the name; use {endings}, or write `format:`"
            )
        return [(place, kind)]
    if not place.is_dir():
        raise BadInput(f"{place}: no such file or folder; correct `path:` of the {source.language} text")
    with disk_errors(place):
        visible = sorted(
            path
            for path in place.rglob("*")
            if not any(part.startswith(".") for part in path.relative_to(place).parts) and path.is_file()
        )
    found = [(path, kind) for path in visible if (kind := _format_of(path)) and kind == (wanted or kind)]
    if not found:
        endings = ", ".join(name for name, kind in _FORMATS.items() if kind == (wanted or kind))
        raise BadInput(
            f"{place}: holds no {endings} file (or .zst or .gz of one); correct `path:` or `format:`"
        )
    return found


def read(source: Text, faults: Faults) -> Iterator[Document]:
    """The documents of a source, in a fixed order: by path, then as they stand in the file.

    Raises BadInput if there is nothing to read, Corrupt if a compressed or Parquet file is broken.
    """
    for path, kind in files_of(source):
        if kind == "parquet":
            yield from _parquet(path, source, faults)
        elif kind == "jsonl":
            yield from _json_lines(path, source, faults)
        else:
            yield from _paragraphs(path, faults)


def _format_of(path: Path) -> Format | None:
    inner = path.with_suffix("") if path.suffix in _PACKED else path
    return _FORMATS.get(inner.suffix)


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    file = open(path, "rb")
    if path.suffix != ".zst":
        return file
    stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=True)
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20))


def _lines(path: Path) -> Iterator[bytes]:
    """Lines with their ends; of one over the limit, only so much that it can be seen to be over the limit."""
    with disk_errors(path):
        try:
            with _open(path) as file:
                while line := file.readline(LINE_BYTES_MAX + 1):
                    rest = line
                    while len(line) > LINE_BYTES_MAX and rest and not rest.endswith(b"\n"):
                        rest = file.readline(LINE_BYTES_MAX)
                    yield line
        except (zstandard.ZstdError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Corrupt(f"{path}: cannot be decompressed ({error}); fetch the file again") from error


def _json_lines(path: Path, source: Text, faults: Faults) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        if len(line) > LINE_BYTES_MAX:
            faults.add(path, number, "line too long")
            continue
        try:
            record = msgspec.json.decode(line)
        except UnicodeDecodeError:
            faults.add(path, number, "not UTF-8")
            continue
        except (msgspec.DecodeError, RecursionError):
            faults.add(path, number, "not JSON")
            continue
        if not isinstance(record, dict):
            faults.add(path, number, "not an object")
            continue
        document = _document(record.get(source.text_field), record.get(source.id_field or DEFAULT_ID_FIELD))
        if document is None:
            faults.add(path, number, f"no {source.text_field!r}")
            continue
        yield document


def _document(text: object, name: object) -> Document | None:
    if not isinstance(text, str) or not text.strip():
        return None
    return Document(str(name) if isinstance(name, (str, int)) and name != "" else None, text)


def _parquet(path: Path, source: Text, faults: Faults) -> Iterator[Document]:
    import pyarrow as pa  # 0.3 s that other formats need not pay
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            id_field = source.id_field or DEFAULT_ID_FIELD
            if source.text_field not in file.schema_arrow.names:
                known = ", ".join(file.schema_arrow.names)
                raise BadInput(f"{path}: has no column {source.text_field!r} but {known}; set `text_field:`")
            columns = [name for name in (source.text_field, id_field) if name in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    document = _document(row.get(source.text_field), row.get(id_field))
                    if document is None:
                        faults.add(path, number, f"no {source.text_field!r}")
                    else:
                        yield document
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise Corrupt(f"{path}: cannot be read as Parquet ({error}); fetch the file again") from error


def _paragraphs(path: Path, faults: Faults) -> Iterator[Document]:
    has_blank_lines = any(not line.strip() for line in _lines(path))
    block: list[bytes] = []
    size = start = 0
    for number, line in enumerate(_lines(path), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) > LINE_BYTES_MAX:
            faults.add(path, number, "line too long")
            line = b""
        ends = not line.strip()
        if not ends:
            start = start or number
            block.append(line.rstrip(b"\r\n"))
            size += len(line)
        if block and (ends or not has_blank_lines or size > LINE_BYTES_MAX):
            yield from _paragraph(path, start, block, faults)
            block, size, start = [], 0, 0
    if block:
        yield from _paragraph(path, start, block, faults)


def _paragraph(path: Path, number: int, lines: list[bytes], faults: Faults) -> Iterator[Document]:
    try:
        text = b"\n".join(lines).decode()
    except UnicodeDecodeError:
        faults.add(path, number, "not UTF-8")
        return
    yield Document(None, text)
