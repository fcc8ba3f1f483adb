"""What a ledger is, wherever it is kept: entries in a hash chain, and what may be asked of whoever keeps them.

    hash(n) = sha256(hash(n - 1) || entry(n))        hash(0) = 32 zero bytes
    entry(n) = canonical JSON {schema, seq, at, prev, event}

The chain is the same in SQLite (``ledger.py``) and in PostgreSQL (``ledger_postgres.py``), byte for byte, so that
one can be moved into the other and its head stays. Nothing here knows what events mean.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, Self

import msgspec

from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput, Broken
from consortium.signing import Checkpoint

ENTRY_SCHEMA = 1
GENESIS = "00" * 32

Row = Sequence[Any]  #: as stored; of events: (seq, at, kind, entry, hash)


class Entry(Fact):
    """What is hashed."""

    schema: int
    seq: int  #: 1 is the first
    at: float  #: seconds since the epoch, coordinator's clock
    prev: str  #: hash of the entry before
    event: dict[str, Any]  #: tagged by ``kind``


class _Kind(msgspec.Struct):
    kind: str


class _Frame(msgspec.Struct):
    """An entry without what happened in it."""

    schema: int
    seq: int
    at: float
    prev: str
    event: _Kind


_FRAME = msgspec.json.Decoder(_Frame)


class Recorded(Fact):
    """An entry with the very bytes that were hashed, and their hash."""

    seq: int
    at: float
    kind: str  #: of the event
    entry: bytes
    hash: str

    @property
    def event(self) -> dict[str, Any]:
        """What happened, as plain data."""
        return decode(self.entry, Entry, "entry").event


class Snapshot(Fact):
    """A stored fold of all events up to ``seq``; derived, so it may be thrown away."""

    seq: int
    hash: str  #: of the entry at ``seq``
    state: bytes


class Head(Fact):
    seq: int  #: 0: nothing yet
    hash: str


class AnyLedger(Protocol):
    """A ledger that is open. Methods may be called from any thread.

    Whoever opened it to write writes alone: until ``close``, until the process ends, or, where another machine may
    take over, until ``still_mine`` says otherwise.
    """

    head: Head

    @property
    def place(self) -> str:
        """Where it is kept, as people may see it: never with a password."""
        ...

    def append(self, events: Sequence[Fact | dict[str, Any]], at: float) -> list[Recorded]:
        """Write down ``events``, all or none; they are durable when this returns.

        events  tagged by ``kind``, as the core's events are
        at      seconds since the epoch
        Raises DiskFull or Unavailable (nothing was written, or nobody knows: read the ledger anew), Broken if
        somebody else wrote meanwhile.
        """
        ...

    def adopt(self, recorded: Sequence[Recorded]) -> None:
        """Write down entries of another ledger, byte for byte, all or none; Broken if they do not follow the head."""
        ...

    def last(self) -> Head:
        """Where the ledger ends, looked up anew: past ``head`` if a write that failed was done after all."""
        ...

    def read(self, from_seq: int = 1) -> Iterator[Recorded]:
        """All entries from ``from_seq`` on, each checked against the chain. Broken names a bad one."""
        ...

    def save_snapshot(self, state: bytes, at: Head) -> None:
        """Keep the fold of all events up to ``at`` in place of the older one."""
        ...

    def snapshot(self) -> Snapshot | None:
        """The snapshot, if there is one, it is whole and lies on the chain; None: replay from the start."""
        ...

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a signed head; the same one twice does no harm."""
        ...

    def checkpoint(self) -> Checkpoint | None:
        """The newest signed head."""
        ...

    def checkpoints(self) -> list[Checkpoint]:
        """All signed heads, the oldest first."""
        ...

    def still_mine(self) -> None:
        """Raise Unavailable if this process may no longer write: it has to stop serving and open anew."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Evidence(Protocol):
    """What lies in a ledger, as it is, for whoever checks it. Damage that cannot be read raises Broken."""

    def flaws(self) -> Iterator[str]:
        """What is wrong with the tables themselves."""
        ...

    def events(self) -> Iterator[Row]:
        """(seq, at, kind, entry, hash) in order of seq."""
        ...

    def checkpoints(self) -> Iterator[Row]:
        """(seq, head, signature, public_key) in order of seq."""
        ...

    def snapshots(self) -> Iterator[Row]:
        """(seq, hash, state, digest)."""
        ...

    def close(self) -> None: ...


def chain(before: str, entry: bytes) -> str:
    """The hash of ``entry`` after one whose hash is ``before``; both as 64 hex digits."""
    return hashlib.sha256(bytes.fromhex(before) + entry).hexdigest()


def write_down(head: Head, events: Iterable[Fact | dict[str, Any]], at: float) -> list[Recorded]:
    """The entries that put ``events`` after ``head``. Raises BadInput for an event that is none."""
    recorded = []
    for event in events:
        recorded.append(_record(head, event, at))
        head = Head(seq=recorded[-1].seq, hash=recorded[-1].hash)
    return recorded


def row_of(recorded: Recorded) -> tuple[int, float, str, bytes, str]:
    """How an entry is stored."""
    return recorded.seq, recorded.at, recorded.kind, recorded.entry, recorded.hash


def check_row(row: Row, seq: int, before: str, place: str) -> Recorded:
    """The entry in a row that has to be number ``seq`` after the hash ``before``. Raises Broken.

    That its JSON is canonical is left to ``examine``, which takes ten times as long: another spelling has another hash.
    """
    with contextlib.suppress(TypeError, ValueError):  # msgspec's errors are such; what is wrong, examine says
        frame = _FRAME.decode(row[3])
        said = frame.seq, frame.at, frame.event.kind
        if (
            said == tuple(row[:3])
            and (frame.schema, frame.seq, frame.prev) == (ENTRY_SCHEMA, seq, before)
            and chain(before, row[3]) == row[4]
        ):
            return Recorded(seq=seq, at=frame.at, kind=frame.event.kind, entry=row[3], hash=row[4])
    problems = examine(row, seq, before)[1]
    raise Broken(f"{place}: entry {seq}: {[*problems, 'unreadable'][0]}; run `sprachbund verify`")


def check_succession(head: Head, recorded: Iterable[Recorded], place: str) -> None:
    """Raise Broken unless the entries follow ``head``, one after the other."""
    seq, before = head.seq, head.hash
    for entry in recorded:
        seq += 1
        if problems := examine(row_of(entry), seq, before)[1]:
            raise Broken(f"{place}: entry {seq}: {problems[0]}; run `sprachbund verify`")
        before = entry.hash


def other_writer(place: str, mine: Head, found: Head) -> Broken:
    """What to say when entries are there that this process has not written."""
    return Broken(
        f"{place}: this coordinator wrote up to entry {mine.seq}, the ledger ends at {found.seq}; another one "
        "writes to the same ledger: stop both, then start one"
    )


def examine(row: Row, seq: int, before: str) -> tuple[Entry | None, list[str]]:
    """What a stored row (seq, at, kind, entry, hash) says, and all that is wrong with it.

    seq, before  the number and the previous hash that the chain demands
    """
    number, at, kind, data, digest = row
    if not isinstance(data, bytes) or not isinstance(digest, str):
        return None, ["its row is damaged"]
    problems = []
    if number != seq:
        problems.append(f"its number is {number}; entries are missing")
    try:
        if chain(before, data) != digest:
            problems.append(f"its hash {digest[:12]} does not fit its bytes after {before[:12]}")
    except ValueError:
        problems.append("the hash before it is not a hash")
    try:
        entry = decode(data, Entry, "its bytes")
    except BadInput as error:
        return None, [*problems, str(error)]
    if encode(entry) != data:
        problems.append("its JSON is not canonical")
    if entry.schema != ENTRY_SCHEMA:
        problems.append(f"its schema is {entry.schema}, this program knows {ENTRY_SCHEMA}")
    if entry.seq != number:
        problems.append(f"its bytes say that it is entry {entry.seq}")
    if entry.prev != before:
        problems.append(f"it says that it follows {entry.prev[:12]}, but the hash before it is {before[:12]}")
    if (at, kind) != (entry.at, entry.event.get("kind")):
        problems.append(f"its row says {kind} at {at}, its bytes {entry.event.get('kind')} at {entry.at}")
    return entry, problems


def checkpoint_of(row: Row) -> Checkpoint:
    """The checkpoint in a row (seq, head, signature, public_key)."""
    return Checkpoint(sequence=row[0], head=row[1], signature=row[2], public_key=row[3])


def _record(head: Head, event: Fact | dict[str, Any], at: float) -> Recorded:
    """The entry that writes ``event`` down after ``head``."""
    seq = head.seq + 1
    data = encode({"schema": ENTRY_SCHEMA, "seq": seq, "at": float(at), "prev": head.hash, "event": event})
    entry = decode(data, Entry, "event")
    if not isinstance(entry.event.get("kind"), str):
        raise BadInput(f"event with the fields {sorted(entry.event)}: expected a tag named 'kind'")
    return Recorded(seq=seq, at=entry.at, kind=entry.event["kind"], entry=data, hash=chain(head.hash, data))
