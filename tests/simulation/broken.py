"""Breaks the product in this process, before it is imported: one small mistake in one module's text.

No file is changed: the module's source is read, mended for the worse, and compiled under the module's name. Where the
product is imported already (to be forked, which is far cheaper), the functions that differ get their new code.
"""

import gc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import NamedTuple


class Mistake(NamedTuple):
    name: str
    module: str
    right: str  #: stands exactly once in the module
    wrong: str


class _Mistaken(SourceFileLoader):
    def __init__(self, name: str, path: str, mistake: Mistake) -> None:
        super().__init__(name, path)
        self._mistake = mistake

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path).decode()
        right = self._mistake.right
        assert source.count(right) == 1, f"{self._mistake.name}: {right!r} is not exactly once in {fullname}"
        return self.source_to_code(source.replace(right, self._mistake.wrong), path)  # type: ignore[no-any-return]


class _Finder(MetaPathFinder):
    def __init__(self, mistake: Mistake) -> None:
        self._mistake = mistake

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._mistake.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None and spec.origin is not None, f"{fullname} is not there"
        return importlib.util.spec_from_loader(fullname, _Mistaken(fullname, spec.origin, self._mistake))


def missing(mistake: Mistake) -> str:
    """Why the mistake cannot be made: its text is not exactly once in its module; "": it can."""
    if mistake.right == mistake.wrong:
        return ""
    spec = importlib.util.find_spec(mistake.module)
    if spec is None or spec.origin is None:
        return f"{mistake.name}: there is no module {mistake.module}"
    count = Path(spec.origin).read_text().count(mistake.right)
    return "" if count == 1 else f"{mistake.name}: {mistake.right!r} is {count} times in {mistake.module}"


def make(mistake: Mistake) -> None:
    """From here on, whoever imports the module gets the broken one. One without a difference makes none."""
    if mistake.right == mistake.wrong:
        return
    assert mistake.module not in sys.modules, f"{mistake.module} is imported already"
    sys.meta_path.insert(0, _Finder(mistake))


def swap(mistake: Mistake) -> bool:
    """Make it in a process that has imported the module. False: not all of it is within functions; none is made."""
    module = sys.modules[mistake.module]
    path = str(module.__file__)
    source = Path(path).read_text()
    assert source.count(mistake.right) == 1, f"{mistake.name}: {mistake.right!r} is not exactly once"
    right, wrong = (
        list(_parts(compile(text, path, "exec")))
        for text in (source, source.replace(mistake.right, mistake.wrong))
    )
    if [_outside(one) for one in right] != [_outside(one) for one in wrong]:
        return False
    new = {
        (old.co_qualname, old.co_firstlineno): other
        for old, other in zip(right, wrong, strict=True)
        if old != other and _is_function(old)
    }
    known = [one for one in gc.get_objects() if isinstance(one, FunctionType)]
    found = {
        one: new[place]
        for one in known
        if one.__code__.co_filename == path
        and (place := (one.__code__.co_qualname, one.__code__.co_firstlineno)) in new
    }
    if {one.__code__.co_firstlineno for one in found} != {line for _, line in new}:
        return False
    for one, code in found.items():
        one.__code__ = code
    return True


def _is_function(code: CodeType) -> bool:
    return bool(code.co_flags & 0x02)  # CO_NEWLOCALS: neither a module's text nor a class's


def _parts(code: CodeType) -> Iterator[CodeType]:
    """A module's text, its classes', and its outermost functions and methods, in their order."""
    yield code
    if not _is_function(code):
        for one in code.co_consts:
            if isinstance(one, CodeType):
                yield from _parts(one)


def _outside(code: CodeType) -> object:
    """Of a text that is no function all that it does by itself; of a function its name."""
    if _is_function(code):
        return code.co_qualname
    own = tuple(None if isinstance(one, CodeType) else one for one in code.co_consts)
    return code.co_qualname, code.co_code, code.co_names, own
