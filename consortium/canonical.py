"""One spelling for every fact that is hashed, signed or stored.

Canonical JSON: UTF-8, keys sorted, no white space, shortest round-trip floats, no NaN or Infinity.
The same fact gives the same bytes in every process, under every PYTHONHASHSEED.
Facts are frozen ``msgspec.Struct`` classes; decoding checks types and says where they are wrong.
"""

import math
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import msgspec

from consortium.errors import BadInput
from consortium.ids import Digest, digest_of

T = TypeVar("T")

_NESTED = frozenset({float, dict, list, tuple})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class _FactMeta(msgspec.StructMeta):
    """Makes every subclass frozen and keyword-only, which msgspec otherwise wants said on each of them."""

    def __new__(
        mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any
    ) -> "_FactMeta":
        return super().__new__(mcls, name, bases, namespace, **{"frozen": True, "kw_only": True, **options})


if TYPE_CHECKING:
    # Type checkers take msgspec.Struct's own (positional) rules over the metaclass's; hide it from them.
    class Fact(metaclass=_FactMeta):
        """Base of everything that is written down."""

        def __init_subclass__(cls, **options: Any) -> None: ...

else:

    class Fact(msgspec.Struct, metaclass=_FactMeta):
        """Base of everything that is written down: immutable, named fields, defaults for what came later."""


def replace(fact: T, **changes: Any) -> T:
    """A copy of a fact with some fields changed."""
    return msgspec.structs.replace(fact, **changes)  # type: ignore[type-var]


def encode(fact: Any) -> bytes:
    """Canonical bytes of a fact. NaN and Infinity are refused, because JSON has no word for them."""
    plain = msgspec.to_builtins(fact, order="sorted", str_keys=True)  # JSON knows no other keys
    data = msgspec.json.encode(plain, order="sorted")
    if b"null" in data and not _is_finite(plain):  # as which msgspec spells NaN and Infinity, too
        _refuse_non_finite(plain, "$")
    return data


def decode(data: bytes, kind: type[T], what: str = "document") -> T:
    """The fact that ``data`` spells. Raises BadInput naming ``what``, the place and the rule."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{what}: {error}") from error


def digest_of_fact(fact: Any) -> Digest:
    return digest_of(encode(fact))


def _is_finite(value: Any) -> bool:
    """Whether no NaN and no Infinity is in it; of what ``to_builtins`` gives. Half of all messages pass here."""
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        value = value.values()
    elif kind is not list and kind is not tuple:
        return True
    for inner in value:
        if type(inner) in _NESTED and not _is_finite(inner):
            return False
    return True


def _refuse_non_finite(value: Any, place: str) -> None:
    """Raise BadInput that names the place."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{place}: {value} cannot be written down; only finite numbers can")
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_non_finite(inner, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _refuse_non_finite(inner, f"{place}[{index}]")
