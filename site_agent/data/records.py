"""Where one record ends and the next begins in each format: lines, paragraphs, WARC records, rows.

A record comes undecoded, with the number that an editor (or a row counter) shows for it and with its offset,
by which the work is cut into segments. A payload of None is a record over the limit.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from consortium.errors import BadInput, Corrupt
from site_agent.data.streams import FileState, Stream, changed, state_of

LINE_BYTES_MAX = (
    64 << 20
)  # of one line, paragraph or WARC block; the longest documents of crawls are a few MB

Format = Literal["txt", "jsonl", "parquet", "wet"]

_HEADER_BYTES_MAX = 1 << 16
_LINE_OVERHEAD = 48  # a line in memory, however short: millions of them may be one paragraph
_BATCH_BYTES = 4 << 20  # of rows at a time
_BATCH_ROWS = 1024
_ITEMS_MAX = 10_000  # of a list in a row: of the languages that a document is said to be in


class Record(NamedTuple):
    offset: int  #: decompressed bytes before it in its file; in Parquet about that
    number: int  #: line, WARC record or row, from 1
    payload: Any  #: bytes; of WARC (headers, bytes); of Parquet a dict of columns; or None
    fault: str = ""  #: why there is no payload


def lines(stream: Stream) -> Iterator[Record]:
    offset = number = 0
    while line := stream.readline(LINE_BYTES_MAX + 1):
        number += 1
        begin, offset = offset, offset + len(line)
        if len(line) <= LINE_BYTES_MAX:
            yield Record(begin, number, line)
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
            offset += len(line)
        yield Record(begin, number, None, "line too long")


def paragraphs(path: Path, stream: Stream) -> Iterator[Record]:
    """Text between blank lines; in a file without blank lines, its lines."""
    with Stream(path) as ahead:
        has_blank_lines = any(not record.payload.strip() for record in lines(ahead) if record.payload)
    block: list[bytes] = []
    size = offset = start = 0
    for record in lines(stream):
        line = record.payload
        if line is None:
            line = b""
        elif record.number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        ends = not line.strip()
        if not ends:
            if not block:
                offset, start = record.offset, record.number
            block.append(line.rstrip(b"\r\n"))
            size += len(line) + _LINE_OVERHEAD
        if block and (ends or not has_blank_lines or size > LINE_BYTES_MAX):
            yield Record(offset, start, b"\n".join(block))
            block, size = [], 0
        if record.payload is None:
            yield record
    if block:
        yield Record(offset, start, b"\n".join(block))


def warc(stream: Stream) -> Iterator[Record]:
    """``conversion`` records of a WET file: (lower-case header -> value, block).

    What stands where a record should begin is counted once and passed over up to the next ``WARC/``.
    Source: ISO 28500:2017 (WARC 1.1), section 4.
    """
    offset = number = 0
    is_lost = False
    while line := stream.readline(_HEADER_BYTES_MAX):
        begin, offset = offset, offset + len(line)
        if not line.strip():
            continue
        if not line.startswith(b"WARC/"):
            if not is_lost:
                number += 1
                yield Record(begin, number, None, "not a WARC record")
            is_lost = True
            continue
        is_lost = False
        number += 1
        headers, read = _headers(stream)
        offset += read
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            yield Record(begin, number, None, "bad WARC header")
            is_lost = True
            continue
        wanted = int(length)
        is_text = headers.get("warc-type") == "conversion" and wanted <= LINE_BYTES_MAX
        block = b""
        while wanted and (piece := stream.read(min(wanted, LINE_BYTES_MAX if is_text else 1 << 20))):
            block = piece if is_text else b""
            offset += len(piece)
            wanted -= len(piece)
        if wanted:
            yield Record(begin, number, None, "cut off")
        elif is_text:
            yield Record(begin, number, (headers, block))
        elif headers.get("warc-type") == "conversion":
            yield Record(begin, number, None, "line too long")


def _headers(stream: Stream) -> tuple[dict[str, str], int]:
    """Headers up to the blank line, and the bytes they took. One that makes no sense is left out."""
    found: dict[str, str] = {}
    size = 0
    while size < _HEADER_BYTES_MAX and (line := stream.readline(_HEADER_BYTES_MAX)):
        size += len(line)
        if not line.strip():
            return found, size
        name, colon, value = line.decode("utf-8", "replace").partition(":")
        if colon:
            found[name.strip().lower()] = value.strip()
    return {}, size


def rows(state: FileState, columns: Sequence[str], begin: int) -> Iterator[Record]:
    """Rows with those of the ``columns`` that the file has, text as bytes; from ``begin`` on, or a bit before."""
    import pyarrow as pa  # 0.3 s that other formats need not pay
    import pyarrow.parquet as pq

    path = Path(state.path)
    if state_of(path) != state:
        raise changed(path)
    try:
        with pq.ParquetFile(path) as file:
            about_all, schema = file.metadata, file.schema_arrow
        texts = [one.name for one in schema if one.name in columns and _is_text(one.type, pa)]
        # a text that stands once in a page's dictionary may be named by each of its rows: it is not unfolded
        with pq.ParquetFile(path, metadata=about_all, read_dictionary=texts) as file:
            known = schema.names
            if columns[0] not in known:
                raise BadInput(
                    f"{path}: has no column {columns[0]!r} but {', '.join(known)}; set `text_field:`"
                )
            wanted = [name for name in columns if name in known]
            offset = number = 0
            for group in range(file.num_row_groups):
                about = file.metadata.row_group(group)
                if about.num_rows and offset + about.total_byte_size > begin:
                    width = max(1, about.total_byte_size // about.num_rows)
                    size = max(1, min(_BATCH_ROWS, _BATCH_BYTES // width))
                    place = 0
                    for batch in file.iter_batches(size, [group], wanted, use_threads=False):
                        for row in _plain(batch, pa):
                            at = offset + about.total_byte_size * place // about.num_rows
                            place += 1
                            yield Record(at, number + place, row, "" if row else "line too long")
                offset += about.total_byte_size
                number += about.num_rows
    except (pa.ArrowException, OSError) as error:
        raise Corrupt(f"{path}: cannot be read as Parquet ({error}); fetch the file again") from error
    if state_of(path) != state:
        raise changed(path)


def rows_bytes(path: Path) -> int:
    """Bytes that all rows of a Parquet file have by its own account: the offset of what follows it."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return sum(file.metadata.row_group(index).total_byte_size for index in range(file.num_row_groups))


def _plain(batch: Any, pa: Any) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch, one in memory at a time; strings as bytes, because nobody has looked whether they are UTF-8.

    None: a value is over the limit.
    """
    for index in range(batch.num_rows):
        row = {
            name: _value(column[index], pa)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        yield None if any(value is _TOO_LONG for value in row.values()) else row


def _is_text(kind: Any, pa: Any) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    )


_TOO_LONG = object()


def _value(scalar: Any, pa: Any) -> Any:
    if pa.types.is_dictionary(scalar.type):
        scalar = scalar.value
    if isinstance(scalar, pa.ListScalar | pa.LargeListScalar) and len(scalar.values or ()) > _ITEMS_MAX:
        return _TOO_LONG
    if _is_text(scalar.type, pa):
        data = scalar.as_buffer()
        if data is not None and data.size > LINE_BYTES_MAX:
            return _TOO_LONG
        return None if data is None else data.to_pybytes()
    return scalar.as_py()
