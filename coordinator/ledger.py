"""The ledger in one SQLite file: the engine that needs nothing but a disk.

An append is durable when it returns (SQLite, WAL, synchronous=FULL). Triggers refuse changes through SQL; the
chain (``chain.py``), the signed checkpoints and those that sites keep reveal changes made any other way. The
ledger knows nothing of what events mean: the core encodes and decodes them. One process writes at a time.
"""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from consortium.canonical import Fact
from consortium.ids import digest_of
from consortium.signing import Checkpoint
from coordinator.chain import (
    GENESIS,
    Entry,
    Head,
    Recorded,
    Snapshot,
    chain,
    check_row,
    check_succession,
    checkpoint_of,
    examine,
    other_writer,
    row_of,
    write_down,
)
from coordinator.ledger_file import Lease, connect, sqlite_errors, transaction

__all__ = ["GENESIS", "Entry", "Head", "Ledger", "Recorded", "Snapshot", "chain", "examine"]


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

    @property
    def place(self) -> str:
        return str(self._path)

    def still_mine(self) -> None:
        """Always so: the lock on the file ends with this process, not before."""

    # ---- events

    def append(self, events: Sequence[Fact | dict[str, Any]], at: float) -> list[Recorded]:
        """Write down ``events``, all or none; they are durable when this returns.

        events  tagged by ``kind``, as the core's events are
        at      seconds since the epoch
        Raises DiskFull or Unavailable (nothing was written), Broken if somebody else wrote meanwhile.
        """
        with self._lock:
            recorded = write_down(self.head, events, at)
            self._write(recorded)
        return recorded

    def adopt(self, recorded: Sequence[Recorded]) -> None:
        """Write down entries of another ledger, byte for byte, all or none; Broken if they do not follow the head."""
        with self._lock:
            check_succession(self.head, recorded, self.place)
            self._write(recorded)

    def read(self, from_seq: int = 1) -> Iterator[Recorded]:
        """All entries from ``from_seq`` on, each checked against the chain. Broken names a bad one."""
        seq, before = max(1, from_seq), GENESIS
        if seq > 1:
            rows = self._rows("SELECT hash FROM events WHERE seq = ?", seq - 1)
            before = rows[0][0] if rows else GENESIS
        query = "SELECT seq, at, kind, entry, hash FROM events WHERE seq >= ? ORDER BY seq LIMIT 500"
        while rows := self._rows(query, seq):
            for row in rows:
                yield check_row(row, seq, before, self.place)
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

    def checkpoints(self) -> list[Checkpoint]:
        """All signed heads, the oldest first."""
        rows = self._rows("SELECT seq, head, signature, public_key FROM checkpoints ORDER BY seq")
        return [checkpoint_of(row) for row in rows]

    # ---- inside

    def _write(self, recorded: Sequence[Recorded]) -> None:
        with sqlite_errors(self._path), transaction(self._db):
            head = self._last()
            if head != self.head:
                raise other_writer(self.place, self.head, head)
            self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", map(row_of, recorded))
        if recorded:
            self.head = Head(seq=recorded[-1].seq, hash=recorded[-1].hash)

    def _rows(self, query: str, *values: int) -> list[Any]:
        with self._lock, sqlite_errors(self._path):
            return self._db.execute(query, values).fetchall()

    def _last(self) -> Head:
        row = self._db.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        return Head(seq=row[0], hash=row[1]) if row else Head(seq=0, hash=GENESIS)
