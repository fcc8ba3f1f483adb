"""The ledger in one SQLite file: the engine that needs nothing but a disk.

An append is durable when it returns (SQLite, WAL, synchronous=FULL). Triggers refuse changes through SQL; the
chain (``chain.py``), the signed checkpoints and those that sites keep reveal changes made any other way. The
ledger knows nothing of what events mean: the core encodes and decodes them. One process writes at a time.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import LiteralString

from consortium.errors import SprachbundError
from coordinator.chain import GENESIS, Entry, Head, Recorded, Row, Snapshot, chain, examine
from coordinator.ledger_file import Lease, connect, sqlite_errors, transaction
from coordinator.ledger_place import Place
from coordinator.ledger_tables import TableLedger, Value

__all__ = ["GENESIS", "Entry", "Head", "Ledger", "Recorded", "Snapshot", "chain", "examine"]


class Ledger(TableLedger):
    """The ledger in one file. Methods may be called from any thread."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        """Open, and create if need be. A writer holds the ledger alone until ``close`` or its process ends.

        Raises Unavailable if another coordinator holds it, BadInput for a newer schema, another kind of file or
        one with two names, Broken if its last entry does not fit the chain, or the file was replaced under a writer.
        """
        super().__init__()
        self._path = path
        real = path.resolve()  # one lock, whatever links lead here
        self._lease = None if read_only else Lease(real.with_name(real.name + ".lock"))
        try:
            self._file = None if read_only else Place(real)
            self._db = connect(path, read_only)
            try:
                self._go_to_end()
                if self._file:
                    self._file.note()
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            if self._lease:
                self._lease.release()
            raise

    def close(self) -> None:
        with self._lock:
            self._file = None
            self._db.close()
            if self._lease:
                self._lease.release()

    @property
    def place(self) -> str:
        return str(self._path)

    def still_mine(self) -> None:
        """The lock on the file ends with this process; Broken if the file itself was replaced or changed."""
        with self._lock:
            if self._file:
                self._file.require_same(self._is_whole, self._db.backup)

    def _is_whole(self) -> bool:
        """Whether the file, read anew from its first entry to its last, is what was written to it."""
        try:
            with Ledger(self._path, read_only=True) as again:
                return again.head == self.head and sum(1 for _ in again.read()) == self.head.seq
        except SprachbundError:
            return False

    def _rows(self, query: LiteralString, *values: Value) -> Sequence[Row]:
        with self._lock, sqlite_errors(self._path):
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self.still_mine()
        with sqlite_errors(self._path), transaction(self._db):
            yield
        if self._file:
            self._file.note_written()

    def _do(self, statement: LiteralString, rows: Sequence[Sequence[Value]]) -> None:
        self._db.executemany(statement, rows)
