"""Whether a ledger is what it was when it was written, and if not, where it was changed.

Needs nothing but the file, or the database; with the consortium's ledger key and the checkpoints that sites kept,
it also notices a ledger that was cut short or written anew.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from consortium.canonical import Fact
from consortium.errors import Corrupt, SprachbundError
from consortium.ids import digest_of
from consortium.signing import Checkpoint, verify_checkpoint
from coordinator.chain import GENESIS, Evidence, checkpoint_of, examine
from coordinator.ledgers import evidence


class Problem(Fact):
    """Something that should not be so."""

    sequence: int  #: of the entry; 0: of the file as a whole
    what: str


def verify_chain(
    where: Path | str, ledger_key: bytes | None = None, seen: Iterable[Checkpoint] = ()
) -> Iterator[Problem]:
    """Everything that is wrong with the ledger at ``where``; nothing, if it is whole.

    where       a file, or a PostgreSQL address as in the coordinator's config
    ledger_key  Ed25519 public key (raw) that must have signed the checkpoints
    seen        checkpoints kept elsewhere, e.g. by sites
    """
    try:
        found = evidence(where)
    except SprachbundError as error:
        yield Problem(sequence=0, what=str(error))
        return
    try:
        for flaw in found.flaws():
            yield Problem(sequence=0, what=flaw)
        heads: dict[int, str] = {}
        yield from _entry_problems(found, heads)
        for row in found.checkpoints():
            if [type(value) for value in row] == [int, str, bytes, bytes]:
                yield from _checkpoint_problems(checkpoint_of(row), heads, ledger_key)
            else:
                yield Problem(sequence=row[0], what="bad checkpoint: its row is damaged")
        for checkpoint in seen:
            yield from _checkpoint_problems(checkpoint, heads, ledger_key)
        for seq, hash, state, digest in found.snapshots():
            if not isinstance(state, bytes) or digest_of(state) != digest or heads.get(seq) != hash:
                yield Problem(sequence=seq, what="the snapshot is damaged or not of this ledger; delete it")
    except SprachbundError as error:
        yield Problem(sequence=0, what=str(error))
    finally:
        found.close()


def _entry_problems(found: Evidence, heads: dict[int, str]) -> Iterator[Problem]:
    """Problems of the entries; fills ``heads`` with each entry's stored hash."""
    seq, before = 1, GENESIS
    rows = found.events()
    while True:
        try:
            row = next(rows, None)
        except SprachbundError as error:
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
