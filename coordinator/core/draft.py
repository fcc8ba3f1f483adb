"""How a state is copied so that what is decided upon the copy leaves the state as it was.

Only what changes in place is copied: facts, tuples and packs of jobs that rest are shared. It takes as long as there
are sites, campaigns and jobs that do not rest, and not as long as the past is.
"""

import copy
import functools
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from coordinator.core.resting import Jobs, Pack
from coordinator.core.state import Job, State


def draft(state: State) -> State:
    """A copy of ``state`` that can be changed without it, its index included."""
    changing = _parts(State)
    fields = {
        name: _twin(getattr(state, name)) if name in changing else getattr(state, name)
        for name in State.__struct_fields__
        if name != "jobs"
    }
    kept: dict[Any, Job | Pack] = {
        name: job if isinstance(job, Pack) else _twin(job) for name, job in dict.items(state.jobs)
    }
    made = State(**fields, jobs=Jobs(kept, Job))
    made.__dict__["_index"] = state.index.over(made.jobs)
    return made


def _twin(value: Any) -> Any:
    """The same value, with no struct or dictionary in it that the original has as well and that may change."""
    if isinstance(value, dict):
        return {name: _twin(one) for name, one in value.items()} if value else {}
    kind: Any = type(value)
    if not _changes(kind):
        return value
    made = copy.copy(value)
    for name in _parts(kind):
        setattr(made, name, _twin(getattr(value, name)))
    return made


@functools.cache
def _parts(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """Fields of a struct in which something changes in place."""
    return tuple(name for name, hint in get_type_hints(kind).items() if _changes(hint))


@functools.cache
def _changes(hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if not isinstance(kind, type) or kind is UnionType:
        return any(_changes(one) for one in get_args(hint))
    if issubclass(kind, msgspec.Struct):
        return not kind.__struct_config__.frozen
    return issubclass(kind, dict)
