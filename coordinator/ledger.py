"""The ledger in one SQLite file: the engine that needs nothing but a disk.

An append is durable when it returns (SQLite, WAL, synchronous=FULL). Triggers refuse changes through SQL; the
chain (``chain.py``), the signed checkpoints and those that sites keep reveal changes made any other way. The
ledger knows nothing of what events mean: the core encodes and decodes them. One process writes at a time.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import LiteralString

from coordinator.chain import GENESIS, Entry, Head, Recorded, Row, Snapshot, chain, examine
from coordinator.ledger_file import Lease, connect, sqlite_errors, transaction
from coordinator.ledger_tables import TableLedger, Value

__all__ = ["GENESIS", "Entry", "Head", "Ledger", "Recorded", "Snapshot", "chain", "examine"]


class Ledger(TableLedger):
    """The ledger in one file. Methods may be called from any thread."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        """Open, and create if need be. A writer holds the ledger alone until ``close`` or its process ends.

        Raises Unavailable if another coordinator holds it, BadInput for a newer schema or another kind of
        file, Broken if its last entry does not fit the chain.
        """
        super().__init__()
        self._path = path
        self._lease = None if read_only else Lease(path.with_name(path.name + ".lock"))
        try:
            self._db = connect(path, read_only)
            try:
                self._go_to_end()
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

    @property
    def place(self) -> str:
        return str(self._path)

    def still_mine(self) -> None:
        """Always so: the lock on the file ends with this process, not before."""

    def _rows(self, query: LiteralString, *values: Value) -> Sequence[Row]:
        with self._lock, sqlite_errors(self._path):
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with sqlite_errors(self._path), transaction(self._db):
            yield

    def _do(self, statement: LiteralString, rows: Sequence[Sequence[Value]]) -> None:
        self._db.executemany(statement, rows)
