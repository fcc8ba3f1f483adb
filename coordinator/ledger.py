"""What happened, in order, so that nobody can change it unseen: the hash-chained ledger.

    hash(n) = sha256(hash(n - 1) || entry(n))        hash(0) = 32 zero bytes
    entry(n) = canonical JSON {schema, seq, at, prev, event}

An append is durable when it returns (SQLite, WAL, synchronous=FULL). Triggers refuse changes through SQL; the
chain, the signed checkpoints and those that sites keep reveal changes made any other way. The ledger knows
nothing of what events mean: the core encodes and decodes them. One process writes at a time.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput, Broken
from consortium.ids import digest_of
from consortium.signing import Checkpoint
from coordinator.ledger_file import Lease, connect, sqlite_errors, transaction

ENTRY_SCHEMA = 1
GENESIS = "00" * 32


class Entry(Fact):
    """What is hashed."""

    schema: int
    seq: int  #: 1 is the first
    at: float  #: seconds since the epoch, coordinator's clock
    prev: str  #: hash of the entry before
    event: dict[str, Any]  #: tagged by ``kind``


class Recorded(Fact):
    """An entry with the very bytes that were hashed, and their hash."""

    seq: int
    at: float
    event: dict[str, Any]
    entry: bytes
    hash: str


class Snapshot(Fact):
    """A stored fold of all events up to ``seq``; derived, so it may be thrown away."""

    seq: int
    hash: str  #: of the entry at ``seq``
    state: bytes


class Head(Fact):
    seq: int  #: 0: nothing yet
    hash: str


class Ledger:
    """The ledger in one file. Methods may be called from any thread."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        """Open, and create if need be. A writer holds the ledger alone until ``close`` or its process ends.

        Raises Unavailable if another coordinator holds it, BadInput for a newer schema or another kind of
        file, Broken if its last entry does not fit the chain.
        """
        self._path = path
        self._lock = threading.RLock()
        self._lease = None if read_only else Lease(path.with_name(path.name + ".lock"))
        try:
            self._db = connect(path, read_only)
            try:
                with sqlite_errors(path):
                    self.head = self._last()
                if self.head.seq:
                    next(self.read(self.head.seq))
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            if self._lease:
                self._lease.release()
            raise

    def close(self) -> None:
        with self._lock:
            self._db.close()
            if self._lease:
                self._lease.release()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- events

    def append(self, events: Sequence[Fact | dict[str, Any]], at: float) -> list[Recorded]:
        """Write down ``events``, all or none; they are durable when this returns.

        events  tagged by ``kind``, as the core's events are
        at      seconds since the epoch
        Raises DiskFull or Unavailable (nothing was written), Broken if somebody else wrote meanwhile.
        """
        with self._lock, sqlite_errors(self._path):
            with transaction(self._db):
                head = self._last()
                if head != self.head:
                    raise Broken(
                        f"{self._path}: this coordinator wrote up to entry {self.head.seq}, the file ends at "
                        f"{head.seq}; another one writes to the same ledger: stop both, then start one"
                    )
                recorded = []
                for event in events:
                    recorded.append(_record(head, event, at))
                    head = Head(seq=recorded[-1].seq, hash=recorded[-1].hash)
                rows = [(r.seq, r.at, r.event["kind"], r.entry, r.hash) for r in recorded]
                self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
            self.head = head
        return recorded

    def read(self, from_seq: int = 1) -> Iterator[Recorded]:
        """All entries from ``from_seq`` on, each checked against the chain. Broken names a bad one."""
        seq, before = max(1, from_seq), GENESIS
        if seq > 1:
            rows = self._rows("SELECT hash FROM events WHERE seq = ?", seq - 1)
            before = rows[0][0] if rows else GENESIS
        query = "SELECT seq, at, kind, entry, hash FROM events WHERE seq >= ? ORDER BY seq LIMIT 500"
        while rows := self._rows(query, seq):
            for row in rows:
                entry, problems = examine(row, seq, before)
                if entry is None or problems:
                    raise Broken(f"{self._path}: entry {seq}: {problems[0]}; run `sprachbund verify`")
                yield Recorded(seq=seq, at=entry.at, event=entry.event, entry=row[3], hash=row[4])
                seq, before = seq + 1, row[4]

    # ---- snapshots and checkpoints

    def save_snapshot(self, state: bytes, at: Head) -> None:
        """Keep the fold of all events up to ``at`` in place of the older one."""
        with self._lock, sqlite_errors(self._path), transaction(self._db):
            self._db.execute("DELETE FROM snapshots")
            self._db.execute(
                "INSERT INTO snapshots VALUES (?, ?, ?, ?)", (at.seq, at.hash, state, digest_of(state))
            )

    def snapshot(self) -> Snapshot | None:
        """The snapshot, if there is one, it is whole and lies on the chain; None: replay from the start."""
        rows = self._rows(
            "SELECT s.seq, s.hash, s.state, s.digest FROM snapshots s JOIN events e USING (seq, hash)"
        )
        whole = [row for row in rows if digest_of(row[2]) == row[3]]
        return Snapshot(seq=whole[0][0], hash=whole[0][1], state=whole[0][2]) if whole else None

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a signed head; the same one twice does no harm."""
        with self._lock, sqlite_errors(self._path), transaction(self._db):
            if checkpoint != self.checkpoint():
                self._db.execute(
                    "INSERT INTO checkpoints VALUES (?, ?, ?, ?)",
                    (checkpoint.sequence, checkpoint.head, checkpoint.signature, checkpoint.public_key),
                )

    def checkpoint(self) -> Checkpoint | None:
        """The newest signed head."""
        rows = self._rows(
            "SELECT seq, head, signature, public_key FROM checkpoints ORDER BY seq DESC LIMIT 1"
        )
        return checkpoint_of(rows[0]) if rows else None

    # ---- inside

    def _rows(self, query: str, *values: int) -> list[Any]:
        with self._lock, sqlite_errors(self._path):
            return self._db.execute(query, values).fetchall()

    def _last(self) -> Head:
        row = self._db.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        return Head(seq=row[0], hash=row[1]) if row else Head(seq=0, hash=GENESIS)


def chain(before: str, entry: bytes) -> str:
    """The hash of ``entry`` after one whose hash is ``before``; both as 64 hex digits."""
    return hashlib.sha256(bytes.fromhex(before) + entry).hexdigest()


def examine(row: Sequence[Any], seq: int, before: str) -> tuple[Entry | None, list[str]]:
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


def checkpoint_of(row: Sequence[Any]) -> Checkpoint:
    """The checkpoint in a row (seq, head, signature, public_key)."""
    return Checkpoint(sequence=row[0], head=row[1], signature=row[2], public_key=row[3])


def _record(head: Head, event: Fact | dict[str, Any], at: float) -> Recorded:
    """The entry that writes ``event`` down after ``head``."""
    seq = head.seq + 1
    data = encode({"schema": ENTRY_SCHEMA, "seq": seq, "at": float(at), "prev": head.hash, "event": event})
    entry = decode(data, Entry, "event")
    if not isinstance(entry.event.get("kind"), str):
        raise BadInput(f"event with the fields {sorted(entry.event)}: expected a tag named 'kind'")
    return Recorded(seq=seq, at=entry.at, event=entry.event, entry=data, hash=chain(head.hash, data))
