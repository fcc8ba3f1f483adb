"""How a YAML file becomes one typed, immutable fact, or a list of everything that is wrong with it.

The dialect is the part of YAML 1.2 that cannot surprise: only ``true`` and ``false`` are booleans (``no`` is
Norwegian), only decimal numbers are numbers, dates are text. Anchors, aliases, tags and
repeated keys are refused; merge recipes, which others write, may have anchors, aliases and ``<<``.
Every error is BadInput with one line per problem: ``file:line: key: value; rule; way out``.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from consortium.checking import Place, problems_of, shown, spelt
from consortium.errors import BadInput, Unavailable

T = TypeVar("T")

BYTES_MAX = 4 << 20  # a campaign is 2 kB; whoever sends more has sent something else
DEPTH_MAX = 50
PROBLEMS_SHOWN = 20
ALIASED_MAX = 10_000  # values that aliases may stand for, all told; aliases of aliases grow like 2^n

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*|(?=\.[0-9]))(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


class Document:
    """A YAML file as plain values, with the line of every key and item.

    name   the file's name as the caller gave it
    value  dicts, lists, str, int, float, bool, None
    """

    def __init__(self, name: str, value: Any, lines: Mapping[Place, int]) -> None:
        self.name = name
        self.value = value
        self._lines = lines

    def where(self, place: Place) -> str:
        """``file:line`` of a place such as ``("train", "steps")``, or of what is nearest around it."""
        return f"{self.name}:{self.line(place)}"

    def line(self, place: Place) -> int:
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 1)

    def beside(self, name: str) -> str:
        """The absolute path that ``name``, written in this file, means: relative to its folder, ``~`` is home."""
        return os.path.join(os.path.dirname(os.path.abspath(self.name)), os.path.expanduser(name))

    def worded(self, place: Place, sentence: str) -> str:
        """``file:line: key: sentence``."""
        return ": ".join(part for part in (self.where(place), spelt(place), sentence) if part)

    def convert(self, kind: type[T]) -> T:
        """The fact of type ``kind`` that this document spells. Raises BadInput with all that is wrong."""
        problems = Problems(self)
        problems.check(self.value, kind)
        problems.raise_if_any()
        return msgspec.convert(self.value, kind)


class Problems:
    """Collects what is wrong with a document, so that a person sees all of it at once."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._found: list[tuple[int, str]] = []

    def add(self, place: Place, sentence: str) -> None:
        self._found.append((self._document.line(place), self._document.worded(place, sentence)))

    def check(self, value: Any, kind: Any, place: Place = ()) -> bool:
        """Whether ``value``, which stands at ``place``, is of the msgspec type ``kind``; notes what isn't."""
        before = len(self._found)
        for inner, sentence in problems_of(value, kind, place):
            self.add(inner, sentence)
        return len(self._found) == before

    def attempt(self, place: Place, parse: Callable[[str], T], value: str) -> T | None:
        """``parse(value)``; where that raises BadInput, notes it and gives None."""
        try:
            return parse(value)
        except BadInput as error:
            self.add(place, str(error))
            return None

    def raise_if_any(self) -> None:
        if self._found:
            found = [text for _, text in sorted(self._found, key=lambda one: one[0])]
            if len(found) > PROBLEMS_SHOWN:
                found[PROBLEMS_SHOWN:] = [f"... and {len(found) - PROBLEMS_SHOWN} more"]
            raise BadInput("\n".join(found))


def load(path: str | Path, kind: type[T]) -> T:
    """The fact of type ``kind`` (a msgspec Struct) in the YAML file ``path``."""
    return read(path).convert(kind)


def read(path: str | Path, aliases: bool = False) -> Document:
    """The YAML file ``path`` as plain values; raises BadInput where it is not the YAML that we accept."""
    return parse(read_bytes(path), str(path), aliases)


def read_bytes(path: str | Path) -> bytes:
    """What is in a small file that a person named."""
    try:
        with open(path, "rb") as file:
            data = file.read(BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"{path}: cannot be read ({reason}); give the path of a readable file") from error
    except OSError as error:
        raise Unavailable(f"{path}: cannot be read now ({error.strerror}); try again") from error
    if len(data) > BYTES_MAX:
        raise BadInput(f"{path}: larger than {BYTES_MAX >> 20} MiB; no file of ours is, give the right one")
    return data


def parse(data: bytes, name: str, aliases: bool = False) -> Document:
    """``read`` for bytes in memory; ``name`` stands in the errors."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{name}:{line}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    builder = _Builder(name, aliases)
    try:
        value = builder.document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{name}:{line}: not YAML: {error.problem}; check indentation and quotes") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadInput(f"{name}:{line}: control character U+{error.character:04X}; remove it") from error
    except (ValueError, OverflowError) as error:  # PyYAML lets these through for escapes such as "\UFFFFFFFF"
        raise BadInput(
            f"{name}: an escape or a directive is out of range; check everything after '\\' and '%'"
        ) from error
    document = Document(name, value, builder.lines)
    problems = Problems(document)
    for place, sentence in builder.problems:
        problems.add(place, sentence)
    problems.raise_if_any()
    return document


class _Builder:
    """Makes plain values of YAML events.

    PyYAML's own constructor speaks YAML 1.1, expands aliases and keeps the last of repeated keys, so only its
    scanner and parser are used.
    """

    def __init__(self, name: str, aliases: bool) -> None:
        self.name = name
        self.lines: dict[Place, int] = {}
        self.problems: list[tuple[Place, str]] = []
        self._aliases = aliases
        self._anchored: dict[str, Any] = {}
        self._expanded = 0  #: values that aliases have stood for so far

    def document(self, events: Iterator[Any]) -> Any:
        self._events = (event for event in events if not isinstance(event, yaml.StreamStartEvent))
        if isinstance(next(self._events), yaml.StreamEndEvent):
            raise BadInput(f"{self.name}:1: the file says nothing; write at least one 'key: value'")
        value = self._value(next(self._events), ())
        next(self._events)  # the document's end
        following = next(self._events)
        if not isinstance(following, yaml.StreamEndEvent):
            raise self._fatal(following, "a second document starts; keep one a file")
        return value

    def _fatal(self, event: Any, sentence: str) -> BadInput:
        return BadInput(f"{self.name}:{_line(event)}: {sentence}")

    def _value(self, event: Any, place: Place) -> Any:
        self.lines.setdefault(place, _line(event))
        if len(place) > DEPTH_MAX:
            raise self._fatal(event, f"nested deeper than {DEPTH_MAX}; flatten it")
        if event.anchor is not None and not self._aliases:
            self.problems.append(
                (place, f"'{event.anchor}' is an anchor or alias; we read none, write the value out")
            )
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.tag is not None:
            self.problems.append((place, f"{shown(event.tag)} is a tag; we read none, write the plain value"))
        value: Any
        if isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(place)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(place)
        else:
            value = self._scalar(event, place)
        if event.anchor is not None:
            self._anchored[event.anchor] = value
        return value

    def _alias(self, event: Any) -> Any:
        if not self._aliases:
            return None
        if event.anchor not in self._anchored:
            raise self._fatal(event, f"alias '{event.anchor}' has no anchor before it; write the value out")
        value = self._anchored[event.anchor]
        self._expanded += _num_values(value)
        if self._expanded > ALIASED_MAX:
            raise self._fatal(event, f"aliases stand for more than {ALIASED_MAX} values; write them out")
        return value

    def _sequence(self, place: Place) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, (*place, len(items))))
        return items

    def _mapping(self, place: Place) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        inherited: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._fatal(event, "a key must be one word of text; use 'key: value'")
            key = self._text(event, place)
            if key == "<<" and event.style is None and self._aliases:
                inherited = self._inherited(event, place)
                continue
            inner = (*place, key)
            if event.anchor is not None or event.tag is not None:
                self.problems.append((inner, "the key has an anchor or a tag; we read none, remove it"))
            if key in mapping:
                self.problems.append((inner, f"stands again in line {_line(event)}; keep one of them"))
            self.lines.setdefault(inner, _line(event))
            mapping[key] = self._value(next(self._events), inner)
        return {**inherited, **mapping}

    def _inherited(self, key: Any, place: Place) -> dict[str, Any]:
        """What ``<<: *one`` or ``<<: [*one, *two]`` adds to a mapping; of two, the first has the say."""
        value = self._value(next(self._events), (*place, "<<"))
        below: dict[str, Any] = {}
        for mapping in value if isinstance(value, list) else [value]:
            if not isinstance(mapping, dict):
                raise self._fatal(key, "'<<' takes a mapping, or a list of them; write the keys out")
            below = {**mapping, **below}
        return below

    def _scalar(self, event: Any, place: Place) -> Any:
        text = self._text(event, place)
        if event.style is not None:  # quoted or a block: text
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
                self.problems.append(
                    (place, f"{text[:24]} does not fit into 64 bits; write a smaller number")
                )
                return 0
            return int(text)
        if _NUMBER.fullmatch(text):
            if not math.isfinite(float(text)):
                self.problems.append((place, f"{shown(text)} is beyond any float; write a smaller number"))
                return 0.0
            return float(text)
        return text

    def _text(self, event: Any, place: Place) -> str:
        text: str = event.value
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            self.problems.append((place, "half of a surrogate pair; write the character itself"))
            return ""
        return text


def _num_values(value: Any) -> int:
    """Of a value, those inside it too; no more than the bound has to know."""
    count, todo = 0, [value]
    while todo and count <= ALIASED_MAX:
        inner = todo.pop()
        count += 1
        if isinstance(inner, dict | list):
            todo.extend(inner.values() if isinstance(inner, dict) else inner)
    return count


def _line(event: Any) -> int:
    line: int = event.start_mark.line
    return line + 1
