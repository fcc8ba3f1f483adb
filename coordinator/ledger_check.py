"""Whether a ledger file is what it was when it was written, and if not, where it was changed.

Needs nothing but the file; with the consortium's ledger key and the checkpoints that sites kept, it also
notices a ledger that was cut short or written anew.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from consortium.canonical import Fact
from consortium.errors import Corrupt, SprachbundError
from consortium.ids import digest_of
from consortium.signing import Checkpoint, verify_checkpoint
from coordinator.ledger import GENESIS, checkpoint_of, examine
from coordinator.ledger_file import TABLES, connect


class Problem(Fact):
    """Something that should not be so."""

    sequence: int  #: of the entry; 0: of the file as a whole
    what: str


def verify_chain(
    path: Path, ledger_key: bytes | None = None, seen: Iterable[Checkpoint] = ()
) -> Iterator[Problem]:
    """Everything that is wrong with the ledger at ``path``; nothing, if it is whole.

    ledger_key  Ed25519 public key (raw) that must have signed the checkpoints
    seen        checkpoints kept elsewhere, e.g. by sites
    """
    try:
        db = connect(path, read_only=True)
    except SprachbundError as error:
        yield Problem(sequence=0, what=str(error))
        return
    try:
        yield from _file_problems(db)
        heads: dict[int, str] = {}
        yield from _entry_problems(db, heads)
        for row in db.execute("SELECT seq, head, signature, public_key FROM checkpoints ORDER BY seq"):
            if [type(value) for value in row] == [int, str, bytes, bytes]:
                yield from _checkpoint_problems(checkpoint_of(row), heads, ledger_key)
            else:
                yield Problem(sequence=row[0], what="bad checkpoint: its row is damaged")
        for checkpoint in seen:
            yield from _checkpoint_problems(checkpoint, heads, ledger_key)
        for seq, hash, state, digest in db.execute("SELECT seq, hash, state, digest FROM snapshots"):
            if not isinstance(state, bytes) or digest_of(state) != digest or heads.get(seq) != hash:
                yield Problem(sequence=seq, what="the snapshot is damaged or not of this ledger; delete it")
    except (sqlite3.Error, UnicodeDecodeError) as error:
        yield Problem(sequence=0, what=f"{path}: {error}; restore a good copy")
    finally:
        db.close()


def _file_problems(db: sqlite3.Connection) -> Iterator[Problem]:
    for (verdict,) in db.execute("PRAGMA integrity_check"):
        if verdict != "ok":
            yield Problem(sequence=0, what=f"damaged database: {verdict}")
    with contextlib.closing(sqlite3.connect(":memory:")) as pattern:
        for statement in TABLES:
            pattern.execute(statement)
        query = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
        wanted, found = set(pattern.execute(query)), set(db.execute(query))
    for row in sorted(wanted ^ found, key=repr):
        known = "is missing" if row in wanted else "does not belong here"
        yield Problem(sequence=0, what=f"{row[0]} {row[1]} {known}: {' '.join(str(row[3]).split())}")


def _entry_problems(db: sqlite3.Connection, heads: dict[int, str]) -> Iterator[Problem]:
    """Problems of the entries; fills ``heads`` with each entry's stored hash."""
    seq, before = 1, GENESIS
    rows = db.execute("SELECT seq, at, kind, entry, hash FROM events ORDER BY seq")
    while True:
        try:
            row = rows.fetchone()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            yield Problem(sequence=seq, what=f"cannot be read: {error}")
            return
        if row is None:
            return
        for what in examine(row, seq, before)[1]:
            yield Problem(sequence=seq, what=what)
        # go on from what is stored, so that one change is reported once and not at every entry after it
        seq, before = row[0] + 1, str(row[4])
        heads[row[0]] = before


def _checkpoint_problems(
    checkpoint: Checkpoint, heads: dict[int, str], ledger_key: bytes | None
) -> Iterator[Problem]:
    place = checkpoint.sequence
    try:
        verify_checkpoint(checkpoint, ledger_key)
    except Corrupt as error:
        yield Problem(sequence=place, what=f"bad checkpoint: {error}")
        return
    if place not in heads:
        end = max(heads, default=0)
        yield Problem(sequence=place, what=f"was signed, but the ledger ends at {end}: entries were cut off")
    elif heads[place] != checkpoint.head:
        yield Problem(
            sequence=place,
            what=f"was signed with hash {checkpoint.head[:12]}, now it is {heads[place][:12]}: rewritten",
        )
