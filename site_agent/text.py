"""What files of text a site has, and which documents are held out.

``.txt``      a document is a paragraph, between blank lines; in a file without blank lines it is a line
``.jsonl``    a document is a line: HPLT v1.2 to v4, or any object with a text field and what else it likes
``.parquet``  a document is a row: FineWeb2 and its like
``.wet``      a document is a ``conversion`` record: Common Crawl

``.zst`` (many frames, as HPLT writes them) and ``.gz`` are seen through. Text is kept as it is: no
normalisation, no stripping of white space inside. What cannot be read is counted, never fatal.
"""

import hashlib
from pathlib import Path

from consortium.errors import BadInput
from consortium.files import disk_errors
from site_agent.config import Text
from site_agent.data.records import Format

_FORMATS: dict[str, Format] = {".txt": "txt", ".jsonl": "jsonl", ".parquet": "parquet", ".wet": "wet"}
_PACKED = (".zst", ".gz")


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


def _format_of(path: Path) -> Format | None:
    inner = path.with_suffix("") if path.suffix in _PACKED else path
    return _FORMATS.get(inner.suffix)
