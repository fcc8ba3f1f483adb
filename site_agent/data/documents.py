"""What document a record is: its text, its id, the language it says it is in, whether its owner opted out.

Fields of the data sets that we know: HPLT v1.2 ``document_lang``; v2 and v3 ``lang`` (best first); v4 also
``openlid_v3``, ``glotlid_v3``, ``openlid_v2`` with a ``lang`` list each; FineWeb2 ``language`` and
``language_script``; Common Crawl WET ``WARC-Identified-Content-Language``. Opt-outs by robots.txt: v2
``robots`` and v3 ``robotstxt`` (a word), v4 ``allowed``. All may be missing, and others be there.
"""

import functools
import hashlib
from typing import Any, NamedTuple

import msgspec

from consortium.errors import BadInput
from consortium.ids import Language
from policies.languages import Languages, load_languages
from site_agent.config import Text
from site_agent.data.records import Format, Record

DOCUMENT_BYTES_MAX = 16 << 20  # of one document's UTF-8 text; a long novel has 3 MB
DEFAULT_ID_FIELD = "id"

_TAG_MAX = 24  # of a language's tag, as it is counted; it may be anything
_LANGUAGE_FIELDS = ("lang", "document_lang", "language")
_DETECTORS = ("openlid_v3", "openlid-v3", "glotlid_v3", "glotlid-v3", "openlid_v2", "openlid-v2")
_ROBOTS_FIELDS = ("robots", "robotstxt", "allowed")
_SCRIPT_FIELD = "language_script"
KNOWN_FIELDS = (*_LANGUAGE_FIELDS, _SCRIPT_FIELD, *_DETECTORS, *_ROBOTS_FIELDS)

_OPT_OUTS = frozenset({"disallowed", "disallow", "forbidden", "denied", "false"})


class Document(NamedTuple):
    id: str | None  #: what its translations share; None: its source has no ids
    text: str
    tag: str = ""  #: the language it says it is in, as it says it
    opted_out: bool = False  #: it says that robots.txt forbids it

    @property
    def digest(self) -> bytes:
        """sha256 of the UTF-8 text, 32 bytes: the document's name in manifests and scores."""
        return hashlib.sha256(self.text.encode()).digest()


@functools.lru_cache(64)
def columns_of(source: Text) -> tuple[str, ...]:
    """Columns of a Parquet file that say something to us, the text's first."""
    return tuple(dict.fromkeys((source.text_field, source.id_field or DEFAULT_ID_FIELD, *KNOWN_FIELDS)))


def document_of(record: Record, kind: Format, source: Text) -> Document | str:
    """The document, or in a few words why it is none."""
    if record.payload is None:
        return record.fault
    if kind == "txt":
        return _plain(record.payload)
    if kind == "wet":
        return _converted(*record.payload)
    fields = record.payload if kind == "parquet" else _parsed(record.payload, columns_of(source))
    return fields if isinstance(fields, str) else _from_fields(fields, source)


def is_said_to_be(tag: str, language: Language) -> bool:
    """Whether a data set's tag can mean the language: ``ekk_Latn`` is et, ``hbs`` can be hr."""
    return _meanings(tag, language)


def shown_tag(tag: str) -> str:
    """A tag as it is counted: short, and of letters, digits and '-_' only."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "?" for c in tag[:_TAG_MAX])


@functools.cache
def _languages() -> Languages:
    return load_languages()


@functools.lru_cache(4096)
def _meanings(tag: str, language: Language) -> bool:
    known = _languages()
    word = tag.replace("_", "-").split("-")[0].lower()
    if word in known.ambiguous:
        return language in known.ambiguous[word]
    try:
        return known.normalise(tag) == language
    except BadInput:
        return False


@functools.lru_cache(8)
def _decoder(columns: tuple[str, ...]) -> msgspec.json.Decoder[msgspec.Struct]:
    """Reads the columns that say something to us, and passes over everything else in a line."""
    names = {f"f{index}": column for index, column in enumerate(columns)}
    kind = msgspec.defstruct("Fields", [(name, Any, None) for name in names], rename=names)
    return msgspec.json.Decoder(kind)


def _parsed(line: bytes, columns: tuple[str, ...]) -> dict[str, Any] | str:
    try:
        found = _decoder(columns).decode(line)
    except msgspec.ValidationError:
        return "not an object"
    except UnicodeDecodeError:
        return "not UTF-8"
    except (msgspec.DecodeError, RecursionError):
        return "not JSON"
    return dict(zip(columns, msgspec.structs.astuple(found), strict=True))


def _plain(data: bytes) -> Document | str:
    if len(data) > DOCUMENT_BYTES_MAX:
        return "document too large"
    try:
        return Document(None, data.decode())
    except UnicodeDecodeError:
        return "not UTF-8"


def _converted(headers: dict[str, str], block: bytes) -> Document | str:
    found = _plain(block)
    if isinstance(found, str):
        return found
    if not found.text.strip():
        return "empty"
    tag = headers.get("warc-identified-content-language", "").partition(",")[0].strip()
    return Document(headers.get("warc-record-id") or None, found.text, tag)


def _from_fields(fields: dict[str, Any], source: Text) -> Document | str:
    text = fields.get(source.text_field)
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError:
            return "not UTF-8"
    if not isinstance(text, str):
        return f"no {source.text_field!r}"
    if not text.strip():
        return "empty"
    if len(text) > DOCUMENT_BYTES_MAX or 4 * len(text) > DOCUMENT_BYTES_MAX < len(text.encode()):
        return "document too large"
    name = _word(fields.get(source.id_field or DEFAULT_ID_FIELD))
    return Document(name or None, text, _tag(fields), _is_opted_out(fields))


def _tag(fields: dict[str, Any]) -> str:
    for field in _LANGUAGE_FIELDS:
        value = fields.get(field)
        word = _word(value[0] if isinstance(value, list) and value else value)
        if word:
            script = _word(fields.get(_SCRIPT_FIELD)) if field == "language" else ""
            return f"{word}_{script}" if script else word
    for field in _DETECTORS:
        value = fields.get(field)
        tags = value.get("lang") if isinstance(value, dict) else None
        if isinstance(tags, list) and tags and (word := _word(tags[0])):
            return word
    return ""


def _is_opted_out(fields: dict[str, Any]) -> bool:
    words = [word for field in _ROBOTS_FIELDS if (word := _word(fields.get(field)))]
    return fields.get("allowed") is False or any(word.lower() in _OPT_OUTS for word in words)


def _word(value: object) -> str:
    """A string, or an integer as one (ids are), else nothing."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
