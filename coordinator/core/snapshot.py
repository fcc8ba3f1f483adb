"""How a state is read from the snapshot that was written of it."""

from typing import get_type_hints

import msgspec

from consortium.ids import JobId
from coordinator.core.resting import Jobs
from coordinator.core.state import LAYOUT, Job, State


class _Layout(msgspec.Struct):
    layout: int = 1  #: the first had no name


#: A state whose jobs are not read yet.
_Written = msgspec.defstruct(
    "_Written",
    [
        (name, dict[JobId, msgspec.Raw] if name == "jobs" else kind, msgspec.field(default=None))
        for name, kind in get_type_hints(State).items()
        if name in State.__struct_fields__
    ],
)


def is_current(snapshot: bytes) -> bool:
    """Whether this release's states are laid out like the snapshot."""
    return msgspec.json.decode(snapshot, type=_Layout).layout == LAYOUT


def restore(snapshot: bytes) -> State:
    """The state that ``snapshot`` spells. Raises msgspec.ValidationError if another release wrote it."""
    if not is_current(snapshot):
        raise msgspec.ValidationError("the snapshot was written by another release")
    written = msgspec.json.decode(snapshot, type=_Written)
    fields = {name: getattr(written, name) for name in State.__struct_fields__}
    return State(**{**fields, "jobs": Jobs(fields["jobs"], Job)})
