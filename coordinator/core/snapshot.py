"""How a state is kept as a snapshot, and read from it again.

A snapshot is MessagePack: the layout, the state in JSON without the jobs that are over, and these in packs
(``resting.py``). Which job lies in which pack the events do not tell, so two snapshots of one state may differ; states
are compared by ``State.snapshot()``.
"""

from typing import get_type_hints

import msgspec

from consortium.ids import JobId
from coordinator.core.resting import Jobs, Pack
from coordinator.core.state import LAYOUT, Job, State


class _Layout(msgspec.Struct):
    layout: int


class _Snapshot(msgspec.Struct):
    layout: int
    state: bytes
    packs: list[Pack]


#: A state of which only the jobs are there that are not over.
_Written = msgspec.defstruct(
    "_Written",
    [
        (name, dict[JobId, Job] if name == "jobs" else kind, msgspec.field(default=None))
        for name, kind in get_type_hints(State).items()
        if name in State.__struct_fields__
    ],
)


def keep(state: State) -> bytes:
    """What ``restore`` makes the state of. Its jobs that are over rest from now on."""
    packs = state.jobs.rest()
    awake = {name: getattr(state, name) for name in state.__struct_fields__ if name != "jobs"}
    awake["jobs"] = {job.id: job for job in state.jobs.awake()}
    return msgspec.msgpack.encode(_Snapshot(LAYOUT, msgspec.json.encode(awake), packs))


def is_current(kept: bytes) -> bool:
    """Whether this release's states are laid out like the snapshot."""
    try:
        return msgspec.msgpack.decode(kept, type=_Layout).layout == LAYOUT
    except msgspec.DecodeError:  # the first ones were JSON
        return False


def restore(kept: bytes) -> State:
    """The state of which ``kept`` is a snapshot. Raises msgspec.ValidationError if another release wrote it."""
    if not is_current(kept):
        raise msgspec.ValidationError("the snapshot was written by another release")
    found = msgspec.msgpack.decode(kept, type=_Snapshot)
    written = msgspec.json.decode(found.state, type=_Written)
    fields = {name: getattr(written, name) for name in State.__struct_fields__}
    jobs: dict[JobId, Job | Pack] = {
        one.id: pack for pack in found.packs for one in pack.briefs if one is not None
    }
    return State(**{**fields, "jobs": Jobs(jobs | fields["jobs"], Job)})
