"""The SQLite file under the ledger: its tables, who may write to it, and what its errors mean."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, LiteralString

from consortium.errors import BadInput, Broken, DiskFull, Unavailable
from consortium.files import disk_errors, make_folder, sync_folder
from coordinator.chain import Row
from coordinator.ledger_tables import TableEvidence

SCHEMA_VERSION = 1

TABLES = (
    "CREATE TABLE schema_version (version INTEGER NOT NULL) STRICT",
    """CREATE TABLE events (seq INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL,
        entry BLOB NOT NULL, hash TEXT NOT NULL) STRICT""",
    """CREATE TABLE snapshots (seq INTEGER PRIMARY KEY, hash TEXT NOT NULL, state BLOB NOT NULL,
        digest TEXT NOT NULL) STRICT""",
    """CREATE TABLE checkpoints (seq INTEGER PRIMARY KEY, head TEXT NOT NULL, signature BLOB NOT NULL,
        public_key BLOB NOT NULL) STRICT""",
    # INSERT OR REPLACE deletes without firing delete triggers, so the next number is checked as well
    """CREATE TRIGGER events_in_order BEFORE INSERT ON events
        WHEN NEW.seq != (SELECT coalesce(max(seq), 0) + 1 FROM events)
        BEGIN SELECT raise(ABORT, 'the ledger only grows, one by one'); END""",
    """CREATE TRIGGER checkpoints_in_order BEFORE INSERT ON checkpoints
        WHEN NEW.seq <= (SELECT coalesce(max(seq), 0) FROM checkpoints)
        BEGIN SELECT raise(ABORT, 'checkpoints only grow'); END""",
    *(
        f"""CREATE TRIGGER {table}_never_{verb.lower()} BEFORE {verb} ON {table}
        BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END"""
        for table in ("events", "checkpoints")
        for verb in ("UPDATE", "DELETE")
    ),
)


class Lease:
    """The right to write. A POSIX lock ends with its process; children that outlive it do not keep it."""

    _held: ClassVar[set[Path]] = set()  # such a lock does not keep out the process that holds it

    def __init__(self, path: Path) -> None:
        with disk_errors(path):
            make_folder(path.parent)
            self._path = path.resolve()
            if self._path in self._held:
                raise Unavailable(f"{path}: this process has the ledger open already; close it first")
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise Unavailable(
                f"{path}: another coordinator (process {holder}) holds this ledger; stop it, then start again"
            ) from error
        try:
            with disk_errors(path):
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, b"%d\n" % os.getpid(), 0)
        except BaseException:
            os.close(self._file)
            raise
        self._held.add(self._path)

    def release(self) -> None:
        if self._path in self._held:
            self._held.discard(self._path)
            os.close(self._file)


def connect(path: Path, read_only: bool) -> sqlite3.Connection:
    """Open the file (a writer creates it), or say why it is no ledger that this program knows."""
    if read_only and not path.is_file():
        raise Unavailable(f"{path}: no ledger here; `sprachbund init` makes one")
    with sqlite_errors(path):
        uri = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        db.text_factory = lambda data: data.decode(errors="replace")  # the chain says better what is damaged
        try:
            if not read_only:
                _set_up(db)
                sync_folder(path.parent)
            _check_version(db, path)
        except BaseException:
            db.close()
            raise
    return db


def _set_up(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    with transaction(db):
        if not db.execute("SELECT 1 FROM sqlite_schema").fetchone():
            for statement in TABLES:
                db.execute(statement)
            db.execute("INSERT INTO schema_version VALUES (?)", (SCHEMA_VERSION,))


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'schema_version'").fetchone():
        raise BadInput(f"{path}: a database, but not a ledger of Sprachbund")
    version = db.execute("SELECT max(version) FROM schema_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise BadInput(
            f"{path}: ledger schema {version}, this program knows {SCHEMA_VERSION}; "
            "use the release of Sprachbund that wrote it, or a newer one"
        )


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All that is written inside, or nothing; durable when the block ends."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite says inside the block into our errors."""
    try:
        yield
    except UnicodeDecodeError as error:  # in SQLite's own sentence, which quotes what it found
        raise Broken(f"{path}: damaged tables; run `sprachbund verify`, then restore a good copy") from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte; the rest is detail
        if code == sqlite3.SQLITE_FULL:
            raise DiskFull(f"{path}: {error}; free some space, then start again: nothing is lost") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise Broken(f"{path}: {error}; run `sprachbund verify`, then restore a good copy") from error
        if code == sqlite3.SQLITE_CONSTRAINT:
            raise Broken(f"{path}: {error}") from error
        raise Unavailable(f"{path}: {error}; check the disk and the file's permissions") from error


class SqliteEvidence(TableEvidence):
    """What lies in a ledger file, as it is: see ``chain.Evidence``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = connect(path, read_only=True)

    def flaws(self) -> Iterator[str]:
        for (verdict,) in self._rows("PRAGMA integrity_check"):
            if verdict != "ok":
                yield f"damaged database: {verdict}"
        query = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
        with contextlib.closing(sqlite3.connect(":memory:")) as pattern:
            for statement in TABLES:
                pattern.execute(statement)
            wanted, found = set(pattern.execute(query)), set(self._rows(query))
        for row in sorted(wanted ^ found, key=repr):
            known = "is missing" if row in wanted else "does not belong here"
            yield f"{row[0]} {row[1]} {known}: {' '.join(str(row[3]).split())}"

    def close(self) -> None:
        self._db.close()

    def _rows(self, query: LiteralString) -> Iterator[Row]:
        with sqlite_errors(self._path):
            yield from self._db.execute(query)
