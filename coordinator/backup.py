"""How a consortium's state is copied while its coordinator runs, and how it begins again from the copy.

OUT/
  backup.json      written last: how far the copy goes; what is beyond it is of a backup that was cut off
  ledger.sqlite    every entry, byte for byte, whatever engine the coordinator's ledger has
  store/           every blob, by digest
  public/          certificates, and the config
  keys.sealed      the secrets, if asked for, under a passphrase

The ledger first, then the blobs: a blob is in the store before the ledger names it, so whatever the copied entries name
is among the blobs that are listed afterwards. What a rule lets go of and ``gc`` deletes meanwhile the copied entries
still name: then the newer ones are copied, too. The next backup into the same folder copies only what is new, and
keeps what the consortium has let go of.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

from consortium.blobs import Blobs
from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput, Broken, Refused, Unavailable
from consortium.files import disk_errors, make_private_folder, write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.store import BlobStore
from coordinator.chain import AnyLedger, Head
from coordinator.cleaning import require_whole
from coordinator.core.snapshot import keep
from coordinator.core.state import State
from coordinator.driver import replay
from coordinator.ledgers import open_ledger
from coordinator.sealed_keys import open_keys, public_files, seal_keys
from coordinator.stores import Places, open_store

Progress = Callable[[str, int, int], None]  #: what, so many of so many
_BATCH = 1000  # entries of one transaction
_MANIFEST = "backup.json"


class Backup(Fact):
    """How far a copy goes."""

    schema: int = 1
    consortium: str
    made_at: float  #: seconds since the epoch
    sequence: int
    head: str
    blobs: int
    new_blobs: int = 0  #: copied by the last backup
    keys: bool = False  #: whether the secrets are in it


def back_up(
    places: Places,
    out: Path,
    now: float,
    config: Path | None = None,
    passphrase: str | None = None,
    progress: Progress = lambda what, done, all_: None,
) -> Backup:
    """Copy ledger and blobs to ``out``, which is empty, new, or an older backup of the same consortium.

    passphrase  the secrets go along, sealed by it; None: they do not
    Raises Refused if something else lies at ``out``, Unavailable if a blob that the ledger names is missing.
    """
    if out.exists() and any(out.iterdir()) and not (out / "ledger.sqlite").exists():
        raise Refused(f"{out}: holds something else than a backup; name an empty folder")
    with disk_errors(out):
        make_private_folder(out)
    for name, path in public_files(Path(places.home)).items():
        write_bytes_atomically(out / "public" / name, path.read_bytes())
    if config is not None and config.is_file():
        write_bytes_atomically(out / "public" / "coordinator.yaml", config.read_bytes())
    store, kept, new = open_store(places), BlobStore(out / "store"), 0
    head = Head(seq=0, hash="")
    while True:
        before = head
        head, state = _copy_ledger(places, out, progress)
        new += _copy_blobs(store, kept, progress)
        try:
            require_whole(state, kept.has)
            break
        except (
            Unavailable
        ):  # what the newer events let go of was deleted meanwhile: then they belong to the copy
            if head == before:
                raise
    if passphrase is not None:
        seal_keys(Path(places.home), passphrase, out / "keys.sealed")
    made = Backup(
        consortium=state.consortium,
        made_at=now,
        sequence=head.seq,
        head=head.hash,
        blobs=len(kept.digests()),
        new_blobs=new,
        keys=(out / "keys.sealed").exists(),
    )
    write_bytes_atomically(out / _MANIFEST, encode(made))
    return made


def _copy_ledger(places: Places, out: Path, progress: Progress) -> tuple[Head, State]:
    """As far as it goes now."""
    with open_ledger(places.ledger, read_only=True) as source, open_ledger(out / "ledger.sqlite") as copy:
        head = source.head
        _adopt(source, copy, head, progress)
        snapshot = source.snapshot()
        if snapshot is not None and snapshot.seq <= head.seq:
            copy.save_snapshot(snapshot.state, Head(seq=snapshot.seq, hash=snapshot.hash))
        return head, replay(copy)


def _copy_blobs(store: Blobs, kept: BlobStore, progress: Progress) -> int:
    """Those that the copy has not; how many."""
    digests, new = store.digests(), 0
    for number, digest in enumerate(digests, 1):
        if not kept.has(digest):
            try:
                kept.put_file(store.path(digest))
                new += 1
            except Unavailable:
                if store.has(digest):  # else nobody needs it, and it was cleaned away meanwhile
                    raise
        progress("blobs", number, len(digests))
    for digest, owner in store.deliveries():
        kept.note_delivery(digest, owner)
    return new


def restore(
    source: Path,
    home: Path,
    passphrase: str | None = None,
    progress: Progress = lambda what, done, all_: None,
) -> Backup:
    """Make ``home``, which must not exist, what the backup says; whole and verified, or not at all.

    Every entry is checked against the chain, every blob against its name, and that none is missing.
    passphrase  of the sealed secrets; None: the home has none, and can be read but not run
    """
    manifest = source / _MANIFEST
    if not manifest.is_file():
        raise BadInput(f"{manifest}: not there; the backup was never finished, or this is none")
    made = decode(manifest.read_bytes(), Backup, str(manifest))
    keys = {}
    if passphrase is not None:
        if not made.keys:
            raise BadInput(
                f"{source}: has no sealed keys; restore without a passphrase, put the keys in by hand"
            )
        keys = open_keys(source / "keys.sealed", passphrase)
    with fresh_folder(home, mode=0o700) as folder:
        head = Head(seq=made.sequence, hash=made.head)
        old, new = source / "ledger.sqlite", folder / "ledger.sqlite"
        with open_ledger(old, read_only=True) as kept, open_ledger(new) as ledger:
            _adopt(kept, ledger, head, progress)
            if ledger.head != head:
                raise Broken(
                    f"{source}: its ledger does not lead to entry {head.seq} {head.hash[:12]}; it was changed"
                )
            state = replay(ledger)
            ledger.save_snapshot(keep(state), head)
        blobs, store = BlobStore(source / "store"), BlobStore(folder / "store")
        digests = blobs.digests()
        for number, digest in enumerate(digests, 1):
            if store.put_file(blobs.path(digest)).digest != digest:
                raise Broken(f"{source}: blob {digest} is damaged; use another backup")
            progress("blobs", number, len(digests))
        for digest, owner in blobs.deliveries():
            store.note_delivery(digest, owner)
        require_whole(state, store.has)
        for path in sorted((source / "public").rglob("*")):
            if path.is_file():
                write_bytes_atomically(folder / path.relative_to(source / "public"), path.read_bytes())
        for name, data in sorted(keys.items()):
            write_bytes_atomically(folder / name, data, mode=0o600)
        with disk_errors(folder):
            (folder / "ledger.sqlite.lock").unlink(missing_ok=True)
    return made


def _adopt(source: AnyLedger, copy: AnyLedger, until: Head, progress: Progress) -> None:
    """Copy the entries that ``copy`` has not yet, and the checkpoints. Raises Refused if they are of two ledgers."""
    if copy.head.seq and (
        copy.head.seq > source.head.seq or next(source.read(copy.head.seq)).hash != copy.head.hash
    ):
        raise Refused(f"{copy.place}: a backup of another ledger, or of a longer one; name an empty folder")
    entries = itertools.takewhile(lambda entry: entry.seq <= until.seq, source.read(copy.head.seq + 1))
    while batch := list(itertools.islice(entries, _BATCH)):
        copy.adopt(batch)
        progress("events", copy.head.seq, until.seq)
    known = copy.checkpoint()
    for checkpoint in source.checkpoints():
        if checkpoint.sequence <= until.seq and (known is None or checkpoint.sequence > known.sequence):
            copy.save_checkpoint(checkpoint)
