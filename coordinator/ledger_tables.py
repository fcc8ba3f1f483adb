"""What every engine does with a ledger's tables: one order of columns, one way to append, to read and to keep.

An engine says how it is reached, how a query is put to it, and who may write (``ledger.py``: a file;
``ledger_postgres.py``: a database). In what is asked here ``?`` stands for a value.
"""

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import LiteralString, Self

from consortium.canonical import Fact
from consortium.ids import digest_of
from consortium.signing import Checkpoint
from coordinator.chain import (
    GENESIS,
    Head,
    Recorded,
    Row,
    Snapshot,
    check_row,
    check_succession,
    checkpoint_of,
    other_writer,
    row_of,
    write_down,
)

Value = int | float | str | bytes

_PAGE = 500
_EVENTS: LiteralString = "SELECT seq, at, kind, entry, hash FROM events"
_CHECKPOINTS: LiteralString = "SELECT seq, head, signature, public_key FROM checkpoints ORDER BY seq"


class TableLedger(ABC):
    """A ledger in tables: see ``chain.AnyLedger``. Methods may be called from any thread."""

    head: Head

    def __init__(self) -> None:
        self._lock = threading.RLock()  #: around all that is asked of the engine

    def _go_to_end(self) -> None:
        """Know the head. Raises Broken if its entry does not fit the chain."""
        self.head = self.last()
        if self.head.seq:
            next(self.read(self.head.seq))

    # ---- an engine's own

    @property
    @abstractmethod
    def place(self) -> str: ...

    @abstractmethod
    def still_mine(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _rows(self, query: LiteralString, *values: Value) -> Sequence[Row]:
        """What the tables answer."""

    @abstractmethod
    def _writing(self) -> contextlib.AbstractContextManager[None]:
        """A transaction of whoever may write: all that is done inside, or nothing; durable when it ends."""

    @abstractmethod
    def _do(self, statement: LiteralString, rows: Sequence[Sequence[Value]]) -> None:
        """``statement`` once for each of ``rows``, within ``_writing``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- events

    def append(self, events: Sequence[Fact | dict[str, object]], at: float) -> list[Recorded]:
        with self._lock:
            recorded = write_down(self.head, events, at)  # before the transaction, which others may wait for
            self._write(recorded)
        return recorded

    def adopt(self, recorded: Sequence[Recorded]) -> None:
        with self._lock:
            check_succession(self.head, recorded, self.place)
            self._write(recorded)

    def last(self) -> Head:
        rows = self._rows("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1")
        return Head(seq=rows[0][0], hash=rows[0][1]) if rows else Head(seq=0, hash=GENESIS)

    def read(self, from_seq: int = 1) -> Iterator[Recorded]:
        seq, before = max(1, from_seq), GENESIS
        if seq > 1:
            rows = self._rows("SELECT hash FROM events WHERE seq = ?", seq - 1)
            before = rows[0][0] if rows else GENESIS
        while rows := self._rows(f"{_EVENTS} WHERE seq >= ? ORDER BY seq LIMIT {_PAGE}", seq):
            for row in rows:
                yield check_row(row, seq, before, self.place)
                seq, before = seq + 1, row[4]

    # ---- snapshots and checkpoints

    def save_snapshot(self, state: bytes, at: Head) -> None:
        with self._lock, self._writing():
            self._do("DELETE FROM snapshots", [()])
            self._do(
                "INSERT INTO snapshots VALUES (?, ?, ?, ?)", [(at.seq, at.hash, state, digest_of(state))]
            )

    def snapshot(self) -> Snapshot | None:
        rows = self._rows(
            "SELECT s.seq, s.hash, s.state, s.digest FROM snapshots s JOIN events e USING (seq, hash)"
        )
        whole = [row for row in rows if digest_of(row[2]) == row[3]]
        return Snapshot(seq=whole[0][0], hash=whole[0][1], state=whole[0][2]) if whole else None

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        with self._lock, self._writing():
            if checkpoint != self.checkpoint():
                row = checkpoint.sequence, checkpoint.head, checkpoint.signature, checkpoint.public_key
                self._do("INSERT INTO checkpoints VALUES (?, ?, ?, ?)", [row])

    def checkpoint(self) -> Checkpoint | None:
        rows = self._rows(f"{_CHECKPOINTS} DESC LIMIT 1")
        return checkpoint_of(rows[0]) if rows else None

    def checkpoints(self) -> list[Checkpoint]:
        return [checkpoint_of(row) for row in self._rows(_CHECKPOINTS)]

    # ---- inside

    def _write(self, recorded: Sequence[Recorded]) -> None:
        with self._writing():
            head = self.last()
            if head != self.head:
                raise other_writer(self.place, self.head, head)
            self._do("INSERT INTO events VALUES (?, ?, ?, ?, ?)", [row_of(entry) for entry in recorded])
        if recorded:
            self.head = Head(seq=recorded[-1].seq, hash=recorded[-1].hash)


class TableEvidence(ABC):
    """What lies in the tables, as it is: see ``chain.Evidence``."""

    @abstractmethod
    def flaws(self) -> Iterator[str]: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _rows(self, query: LiteralString) -> Iterator[Row]:
        """What the tables answer, row after row, however many there are."""

    def events(self) -> Iterator[Row]:
        return self._rows(f"{_EVENTS} ORDER BY seq")

    def checkpoints(self) -> Iterator[Row]:
        return self._rows(_CHECKPOINTS)

    def snapshots(self) -> Iterator[Row]:
        return self._rows("SELECT seq, hash, state, digest FROM snapshots")
