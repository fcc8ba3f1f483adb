"""Backup, restore and garbage where the ledger lies in PostgreSQL and the artifacts in a bucket."""

import time
from pathlib import Path

import pytest
from postgres_server import Server
from real_coordinator import Consortium
from replicas import Replicas

from consortium.canonical import replace
from consortium.errors import Unavailable
from consortium.ids import Digest
from coordinator.backup import back_up, restore
from coordinator.cleaning import clean
from coordinator.driver import replay
from coordinator.ledgers import open_ledger
from coordinator.moving import move_blobs, move_ledger
from coordinator.stores import Places, open_store, places_in, places_of
from coordinator.verification import verify
from policies.keeping import Keep

pytestmark = [pytest.mark.slow]

PASSPHRASE = "a sentence that nobody guesses"
HOUR = 3600.0


@pytest.fixture
def elsewhere(completed: Consortium, tmp_path: Path, postgres: Server, storage: str) -> Places:
    """A consortium that has ended a campaign; its home holds only keys."""
    copy = completed.copy_to(tmp_path / "consortium")
    return places_in(
        Replicas(copy.folder, 1, postgres.new_ledger(), f"s3://blobs/{tmp_path.name}", storage).config
    )


def told(places: Places) -> tuple[str, bytes]:
    with open_ledger(places.ledger, read_only=True) as ledger:
        return ledger.head.hash, replay(ledger, from_snapshot=False).snapshot()


def test_a_backup_of_database_and_bucket_is_restored_to_a_disk_and_moved_back(
    elsewhere: Places, postgres: Server, storage: str, tmp_path: Path
) -> None:
    first = back_up(elsewhere, tmp_path / "out", time.time(), passphrase=PASSPHRASE)
    again = back_up(elsewhere, tmp_path / "out", time.time(), passphrase=PASSPHRASE)
    assert first.new_blobs == first.blobs == again.blobs > 0 == again.new_blobs
    home = tmp_path / "restored"
    assert restore(tmp_path / "out", home, PASSPHRASE) == again
    assert (home / "ledger.key").exists()
    assert told(places_of(home)) == told(elsewhere)
    report = verify(home, rebuild=False)
    assert report.ok, report.problems
    there = Places(
        home=str(home),
        ledger=postgres.new_ledger(),
        store=f"s3://blobs/{tmp_path.name}-again",
        s3_endpoint=storage,
        s3_cache_bytes=1 << 30,
    )
    move_ledger(str(home / "ledger.sqlite"), there.ledger)
    move_blobs(open_store(places_of(home)), open_store(there))
    assert told(there) == told(elsewhere)
    assert open_store(there).digests() == open_store(elsewhere).digests()


def test_a_blob_that_is_missing_in_the_bucket_ends_the_backup_unfinished(
    elsewhere: Places, tmp_path: Path
) -> None:
    store = open_store(elsewhere)
    with open_ledger(elsewhere.ledger, read_only=True) as ledger:
        head = replay(ledger).campaigns["demo"].head  # type: ignore[index]
    assert head is not None
    store.remove(head)
    with pytest.raises(Unavailable, match="that the ledger names are missing"):
        back_up(elsewhere, tmp_path / "out", time.time())
    assert not (tmp_path / "out" / "backup.json").exists()


def test_of_a_bucket_only_what_nobody_names_is_removed_and_only_while_nobody_leads(
    elsewhere: Places, tmp_path: Path
) -> None:
    store, garbage = open_store(elsewhere), set[Digest]()
    before = set(store.digests())
    for number in range(3):
        ref = store.put_bytes(f"litter {number}".encode())
        store.note_delivery(ref.digest, "sofia")
        garbage.add(ref.digest)
    later = time.time() + 1000 * HOUR
    assert not clean(elsewhere, time.time()).removed, "all of it is too young"
    assert set(clean(elsewhere, later, dry_run=True).removed) == garbage
    with open_ledger(elsewhere.ledger), pytest.raises(Unavailable, match="another coordinator"):
        clean(elsewhere, later)
    assert set(open_store(elsewhere).digests()) == before | garbage
    assert set(clean(elsewhere, later).removed) == garbage
    store = open_store(elsewhere)
    assert set(store.digests()) == before
    assert not garbage & {digest for digest, _ in store.deliveries()}
    made = back_up(elsewhere, tmp_path / "out", time.time())
    assert made.blobs == len(before)
    restore(tmp_path / "out", tmp_path / "home")
    assert verify(tmp_path / "home", rebuild=False).ok


def test_a_rule_lets_go_of_what_lies_in_a_bucket(elsewhere: Places) -> None:
    store, later = open_store(elsewhere), time.time() + 1000 * HOUR
    before, rule = set(store.digests()), replace(elsewhere, keep=Keep(contributions_versions=1))
    with open_ledger(elsewhere.ledger), pytest.raises(Unavailable, match="another coordinator"):
        clean(rule, later)
    planned = clean(rule, later, dry_run=True)
    assert planned.let_go > 0 and set(store.digests()) == before
    done = clean(rule, later)
    assert done.removed == planned.removed and done.let_go == len(done.removed)
    assert set(open_store(elsewhere).digests()) == before - set(done.removed)
    assert not clean(rule, later).removed
