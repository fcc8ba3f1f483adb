"""Whether a plain value is of a msgspec type; if not, all that is wrong, each with its place and a way out.

``msgspec.convert`` stops at the first error and gives no help; this walk over the same type goes on.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec.inspect as mi

Place = tuple[str | int, ...]  #: ("text", 0, "path") is text[0].path
Problem = tuple[Place, str]


def problems_of(value: Any, kind: Any, place: Place = ()) -> Iterator[Problem]:
    """All that keeps ``value`` (plain) from being a ``kind`` (any type that msgspec knows)."""
    yield from _walk(value, mi.type_info(kind), place)


def spelt(place: Place) -> str:
    """``("text", 0, "path")`` as ``text[0].path``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_short(part)}" for part in place).lstrip(".")


def shown(value: Any) -> str:
    """A value as a person would write it in YAML, short."""
    if isinstance(value, str):
        return repr(_short(value))
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else str(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, or else the allowed words, for the end of a message."""
    allowed = sorted(known)
    close = difflib.get_close_matches(word[:80], allowed, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"write one of: {', '.join(allowed)}" if allowed else "remove it"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _walk(value: Any, kind: mi.Type, place: Place) -> Iterator[Problem]:
    match kind:
        case mi.AnyType():
            pass
        case mi.Metadata(type=inner, extra_json_schema=extra):
            hint = (extra or {}).get("description")
            for where, sentence in _walk(value, inner, place):
                yield where, f"{shown(value)} is not what we expect here; write {hint}" if hint else sentence
        case mi.UnionType(types=types):
            yield from _walk_union(value, types, place)
        case mi.StructType():
            yield from _walk_struct(value, kind, place)
        case mi.DictType(value_type=inner):
            if not isinstance(value, dict):
                yield place, _wrong(value, kind)
                return
            for key in value:
                yield from _walk(value[key], inner, (*place, key))
        case mi.VarTupleType(item_type=inner) | mi.ListType(item_type=inner):
            if not isinstance(value, list) or not _long_enough(value, kind):
                yield place, _wrong(value, kind)
                return
            for index, item in enumerate(value):
                yield from _walk(item, inner, (*place, index))
        case mi.EnumType() | mi.LiteralType():
            allowed = _choices(kind)
            if not any(type(value) is type(choice) and value == choice for choice in allowed):
                words = ", ".join(str(choice) for choice in allowed)
                yield place, f"{shown(value)} is not one of the choices; write one of: {words}"
        case _:
            if not _fits(value, kind):
                yield place, _wrong(value, kind)


def _walk_union(value: Any, types: tuple[mi.Type, ...], place: Place) -> Iterator[Problem]:
    if value is None and any(isinstance(one, mi.NoneType) for one in types):
        return
    solid = [one for one in types if not isinstance(one, mi.NoneType)]
    if len(solid) == 1:
        yield from _walk(value, solid[0], place)
    elif all(any(True for _ in _walk(value, one, place)) for one in solid):
        expected = " or ".join(_expected(one) for one in solid)
        yield place, f"{shown(value)} is not what we expect here; write {expected}"


def _walk_struct(value: Any, kind: mi.StructType, place: Place) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield place, _wrong(value, kind)
        return
    names = [field.encode_name for field in kind.fields]
    for key in value:
        if key not in names:
            yield (*place, key), f"unknown key; {nearest(key, set(names) - value.keys())}"
    missing = [field for field in kind.fields if field.required and field.encode_name not in value]
    for field in missing:
        yield (
            place,
            f"{field.encode_name!r} is missing; add '{field.encode_name}:' with {_expected(field.type)}",
        )
    for field in kind.fields:
        if field.encode_name in value:
            yield from _walk(value[field.encode_name], field.type, (*place, field.encode_name))


def _choices(kind: mi.EnumType | mi.LiteralType) -> list[Any]:
    return list(kind.values) if isinstance(kind, mi.LiteralType) else [member.value for member in kind.cls]


def _fits(value: Any, kind: mi.Type) -> bool:
    match kind:
        case mi.BoolType():
            return isinstance(value, bool)
        case mi.IntType():
            return isinstance(value, int) and not isinstance(value, bool) and _in_range(value, kind)
        case mi.FloatType():
            return isinstance(value, int | float) and not isinstance(value, bool) and _in_range(value, kind)
        case mi.StrType(pattern=pattern):
            if not isinstance(value, str) or not _long_enough(value, kind):
                return False
            return pattern is None or re.search(pattern, value) is not None
        case _:
            raise TypeError(f"{type(kind).__name__} cannot be checked; teach consortium/checking.py")


def _long_enough(value: str | list[Any], kind: mi.StrType | mi.VarTupleType | mi.ListType) -> bool:
    return (kind.min_length or 0) <= len(value) and (kind.max_length is None or len(value) <= kind.max_length)


def _in_range(value: float, kind: mi.IntType | mi.FloatType) -> bool:
    return (
        (kind.ge is None or value >= kind.ge)
        and (kind.gt is None or value > kind.gt)
        and (kind.le is None or value <= kind.le)
        and (kind.lt is None or value < kind.lt)
    )


def _wrong(value: Any, kind: mi.Type) -> str:
    what = shown(value) + (" (text)" if isinstance(value, str) and not isinstance(kind, mi.StrType) else "")
    return f"{what} does not fit; write {_expected(kind)}{_hint(value, kind)}"


def _hint(value: Any, kind: mi.Type) -> str:
    """What people write who know YAML 1.1, or a quoting habit."""
    if not isinstance(value, str):
        return " in quotes" if isinstance(kind, mi.StrType) and isinstance(value, int | float) else ""
    if isinstance(kind, mi.BoolType):
        return " (yes, no, on and off are text)"
    if isinstance(kind, mi.IntType | mi.FloatType) and re.search("[0-9]", value):
        return ", in decimal digits without quotes, '_' or units"
    return ""


def _expected(kind: mi.Type) -> str:
    match kind:
        case mi.Metadata(type=inner, extra_json_schema=extra):
            return str((extra or {}).get("description") or _expected(inner))
        case mi.UnionType(types=types):
            return " or ".join(_expected(one) for one in types if not isinstance(one, mi.NoneType))
        case mi.StructType() | mi.DictType():
            return "a mapping"
        case mi.VarTupleType() | mi.ListType():
            return "a list" + _lengths(kind, "item")
        case mi.BoolType():
            return "true or false"
        case mi.IntType():
            return "a whole number" + _bounds(kind)
        case mi.FloatType():
            return "a number" + _bounds(kind)
        case mi.StrType(pattern=pattern):
            return "text" + (f" that matches {pattern}" if pattern else "") + _lengths(kind, "character")
        case mi.EnumType() | mi.LiteralType():
            return "one of: " + ", ".join(str(choice) for choice in _choices(kind))
        case _:
            return "a value"


def _lengths(kind: mi.StrType | mi.VarTupleType | mi.ListType, of: str) -> str:
    bounds = (("at least", kind.min_length), ("at most", kind.max_length))
    parts = [f"{word} {bound}" for word, bound in bounds if bound is not None]
    plural = "" if parts[-1:] == ["at least 1"] else "s"
    return f" ({' and '.join(parts)} {of}{plural})" if parts else ""


def _bounds(kind: mi.IntType | mi.FloatType) -> str:
    parts = [
        f"{word} {bound}"
        for word, bound in (
            ("at least", kind.ge),
            ("above", kind.gt),
            ("at most", kind.le),
            ("below", kind.lt),
        )
        if bound is not None
    ]
    return f" ({' and '.join(parts)})" if parts else ""
