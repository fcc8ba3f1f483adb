"""How a ledger goes from one engine into another, and artifacts from a disk into a bucket, and back again.

Entries are copied byte for byte, so the chain, its head and every signature over it stay what they are. What was cut
off goes on where it was. The old ones are left as they are; nothing is deleted here.
"""

import itertools
from collections.abc import Callable

from consortium.blobs import Blobs
from consortium.canonical import Fact
from consortium.errors import Broken, Refused
from coordinator.chain import AnyLedger, Head
from coordinator.ledger_check import verify_chain
from coordinator.ledgers import open_ledger, shown

Progress = Callable[[int, int], None]  #: so many of so many
_BATCH = 1000  # entries of one transaction


class Moved(Fact):
    """What lies in the new ledger now."""

    ledger: str  #: its place, without a password
    sequence: int
    head: str  #: the same as the old one's
    checkpoints: int


def move_ledger(source: str, target: str, progress: Progress = lambda done, all_: None) -> Moved:
    """Copy the ledger at ``source`` to ``target``, which is empty or has the beginning of it, and check the copy.

    No coordinator may be running on either. Raises Refused if something else lies at ``target``, Broken if the
    source does not hold, or the copy is not the same.
    """
    with open_ledger(source) as old, open_ledger(target) as new:
        _require_beginning(old, new)
        entries = old.read(new.head.seq + 1)
        while batch := list(itertools.islice(entries, _BATCH)):
            new.adopt(batch)
            progress(new.head.seq, old.head.seq)
        known = new.checkpoint()
        for checkpoint in old.checkpoints():
            if known is None or checkpoint.sequence > known.sequence:
                new.save_checkpoint(checkpoint)
        if snapshot := old.snapshot():
            new.save_snapshot(snapshot.state, Head(seq=snapshot.seq, hash=snapshot.hash))
        if new.head != old.head or new.checkpoints() != old.checkpoints():
            raise Broken(f"{new.place}: ends at {new.head.seq}, {old.place} at {old.head.seq}; move it again")
        moved = Moved(
            ledger=shown(target),
            sequence=new.head.seq,
            head=new.head.hash,
            checkpoints=len(new.checkpoints()),
        )
    for problem in verify_chain(target):
        raise Broken(f"{moved.ledger}: entry {problem.sequence}: {problem.what}; move it again")
    return moved


def _require_beginning(old: AnyLedger, new: AnyLedger) -> None:
    if not old.head.seq:
        raise Refused(f"{old.place}: this ledger is empty; there is nothing to move")
    if not new.head.seq:
        return
    there = next(old.read(new.head.seq)).hash if new.head.seq <= old.head.seq else None
    if there != new.head.hash:
        raise Refused(f"{new.place}: another ledger lies there already; name an empty place")


def move_blobs(source: Blobs, target: Blobs, progress: Progress = lambda done, all_: None) -> int:
    """Copy every blob that ``target`` has not, verified; how many there are. Who delivered which goes along."""
    digests = source.digests()
    for number, digest in enumerate(digests, 1):
        if not target.has(digest):
            target.put_file(source.path(digest))
        progress(number, len(digests))
    for digest, owner in source.deliveries():
        target.note_delivery(digest, owner)
    return len(digests)
