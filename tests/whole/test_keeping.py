"""A consortium's state is copied while it works, begins again from the copy, and loses its garbage and nothing else."""

import asyncio
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from cut_off import cut_off_at_removal
from real_coordinator import SITES, Consortium, campaign, job_state
from scripted_sites import ScriptedSite, at_work, introduce

from consortium.errors import BadInput, Broken, Refused, Unavailable
from consortium.ids import Digest, digest_of
from consortium.store import BlobStore
from coordinator.backup import back_up, restore
from coordinator.cleaning import Cleaned, clean
from coordinator.driver import replay
from coordinator.ledger import Ledger
from coordinator.stores import Places, places_in
from coordinator.verification import verify

PASSPHRASE = "a sentence that nobody guesses"
HOUR = 3600.0
GRACE_HOURS = 60.0 / HOUR  # far longer than it takes here from a stored blob to the event that names it


def places(consortium: Consortium) -> Places:
    return places_in(consortium.config)


def versions(consortium: Consortium) -> dict[str, str]:
    with Ledger(consortium.home / "ledger.sqlite", read_only=True) as ledger:
        state = replay(ledger)
    return {one.name: one.digest for each in state.campaigns.values() for one in each.versions.values()}


async def finish(consortium: Consortium) -> None:
    async with consortium.running(), consortium.admin() as admin:
        async with at_work(*(ScriptedSite(consortium, name) for name in SITES)):
            assert (await admin.until_ended("demo")).status == "completed"


def old(path: Path, hours: float = 1000.0) -> Path:
    at = time.time() - hours * HOUR
    os.utime(path, (at, at))
    return path


async def test_a_round_goes_on_from_a_backup_to_the_same_versions(
    consortium: Consortium, completed: Consortium, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "backup"
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        first = await asyncio.to_thread(back_up, places(consortium), out, time.time(), None, PASSPHRASE)
        await admin.submit_and_wait(campaign(base))
        async with at_work(ScriptedSite(consortium, "sofia")):
            await admin.until(
                lambda view: job_state(view, "demo_r1-train-sofia") == "done", "one delta is in"
            )
        second = await asyncio.to_thread(back_up, places(consortium), out, time.time(), None, PASSPHRASE)
    assert first.keys and first.new_blobs == first.blobs
    assert 0 < second.new_blobs < second.blobs, "what is there is not copied again"
    shutil.rmtree(consortium.home)
    elsewhere = Consortium(tmp_path / "elsewhere")
    shutil.copytree(consortium.folder / "sites", elsewhere.folder / "sites")
    made = restore(out, elsewhere.home, PASSPHRASE)
    assert made == second
    await finish(elsewhere)
    assert versions(elsewhere) == versions(completed)
    report = verify(elsewhere.home)
    assert report.ok, report.problems
    assert set(report.versions) == {"demo/v0", "demo/v1", "demo/v2"} or "demo/v2" in report.versions


def test_without_a_passphrase_no_secret_leaves(rested: Consortium, tmp_path: Path) -> None:
    made = back_up(places(rested), tmp_path / "out", time.time())
    assert not made.keys
    assert not list((tmp_path / "out").rglob("*.key")) and not (tmp_path / "out" / "keys.sealed").exists()
    restore(tmp_path / "out", tmp_path / "home")
    assert not list((tmp_path / "home").rglob("*.key"))
    assert verify(tmp_path / "home", rebuild=False).ok
    with pytest.raises(BadInput, match="no sealed keys"):
        restore(tmp_path / "out", tmp_path / "other", PASSPHRASE)


def test_another_passphrase_opens_nothing(rested: Consortium, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="take 12 or more"):
        back_up(places(rested), tmp_path / "out", time.time(), passphrase="short")
    back_up(places(rested), tmp_path / "out", time.time(), passphrase=PASSPHRASE)
    assert PASSPHRASE.encode() not in (tmp_path / "out" / "keys.sealed").read_bytes()
    with pytest.raises(BadInput, match="not the passphrase"):
        restore(tmp_path / "out", tmp_path / "home", PASSPHRASE + "?")
    assert not (tmp_path / "home").exists()


def test_what_was_changed_in_a_backup_is_not_restored(rested: Consortium, tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    back_up(places(rested), out, time.time())
    blob = max((out / "store" / "blobs").glob("*/*"), key=lambda path: path.stat().st_size)
    whole = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Broken, match="is damaged"):
        restore(out, home)
    blob.unlink()
    with pytest.raises(Unavailable, match="that the ledger names are missing"):
        restore(out, home)
    blob.write_bytes(whole)
    manifest = (out / "backup.json").read_text()
    (out / "backup.json").write_text(manifest.replace('"head":"', '"head":"0')[:-1] + "}")
    with pytest.raises(Broken, match="does not lead to entry"):
        restore(out, home)
    (out / "backup.json").unlink()
    with pytest.raises(BadInput, match="never finished"):
        restore(out, home)
    assert not home.exists()


def test_a_backup_is_of_one_consortium(rested: Consortium, consortium: Consortium, tmp_path: Path) -> None:
    back_up(places(rested), tmp_path / "out", time.time())
    with pytest.raises(Refused, match="backup of another ledger"):
        back_up(places(consortium), tmp_path / "out", time.time())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letters.txt").write_text("private")
    with pytest.raises(Refused, match="something else than a backup"):
        back_up(places(rested), tmp_path / "full", time.time())


def test_a_backup_that_was_cut_off_restores_as_the_one_before(rested: Consortium, tmp_path: Path) -> None:
    """Its ledger is further than its manifest."""
    out = tmp_path / "out"
    made = back_up(places(rested), out, time.time())
    with Ledger(rested.home / "ledger.sqlite") as ledger:
        last = next(ledger.read(ledger.head.seq))
        more = ledger.append([last.event], last.at + 1.0)
    with Ledger(out / "ledger.sqlite") as copy:
        copy.adopt(more)
    assert restore(out, tmp_path / "home") == made
    assert verify(tmp_path / "home", rebuild=False).ok


# --- garbage --------------------------------------------------------------------------------------------


def left_behind(consortium: Consortium) -> set[Path]:
    """Models laid out, what was being made, and files that are half written."""
    work, store = consortium.home / "work", consortium.home / "store"
    return {*work.glob("versions/*"), *work.glob("making/*"), *store.glob("blobs/*/.*.tmp")}


def litter(consortium: Consortium) -> set[Digest]:
    """Blobs that nobody names, an abandoned upload and what a crash left; all of long ago."""
    store, found = BlobStore(consortium.home / "store"), set()
    for number in range(5):
        ref = store.put_bytes(f"litter {number}".encode())
        store.note_delivery(ref.digest, "sofia")
        found.add(ref.digest)
    for digest in store.digests():
        old(store.path(digest))
    store.append(digest_of(b"never finished"), "ohrid", 0, b"never")
    for path in (consortium.home / "store" / "partials").glob("*/*"):
        old(path)
    (consortium.home / "work" / "making" / digest_of(b"nobody came for it") / "model").mkdir(parents=True)
    half = next((consortium.home / "store" / "blobs").glob("*/*")).parent / ".half.0123456789ab.tmp"
    half.write_bytes(b"half")
    for left in left_behind(consortium):
        old(left)
    return found


def gc(consortium: Consortium, **options: object) -> Cleaned:
    return clean(places(consortium), time.time(), GRACE_HOURS, **options)  # type: ignore[arg-type]


def test_only_what_nobody_names_goes_and_the_past_still_holds(rested: Consortium) -> None:
    garbage = litter(rested)
    before = BlobStore(rested.home / "store").digests()
    left = left_behind(rested)
    planned = gc(rested, dry_run=True)
    assert BlobStore(rested.home / "store").digests() == before and left_behind(rested) == left
    done = gc(rested)
    assert set(done.removed) == set(planned.removed) == garbage
    assert (done.partials, done.young, done.leftovers) == (1, 0, len(left))
    assert not left_behind(rested)
    store = BlobStore(rested.home / "store")
    assert set(store.digests()) == set(before) - garbage
    assert not garbage & {digest for digest, _ in store.deliveries()} and not store.partials()
    report = verify(rested.home)
    assert report.ok, report.problems
    assert not gc(rested).removed


def test_a_cleaning_that_was_cut_off_is_finished_by_the_next(rested: Consortium) -> None:
    def between_the_marks_and_the_blob(store: BlobStore, digest: Digest) -> None:
        for mark in store._deliveries.glob(f"*/{digest}"):
            mark.unlink()

    garbage = litter(rested)
    with cut_off_at_removal(3, between_the_marks_and_the_blob):
        gc(rested)
    assert len(garbage & set(BlobStore(rested.home / "store").digests())) == 3
    assert verify(rested.home, rebuild=False).ok
    gc(rested)
    assert not garbage & set(BlobStore(rested.home / "store").digests())


async def test_a_campaign_under_constant_cleaning_makes_the_same_versions(
    consortium: Consortium, completed: Consortium, base: Path
) -> None:
    removed: set[Digest] = set()
    over = threading.Event()

    def tidy() -> None:
        while not over.is_set():
            removed.update(gc(consortium).removed)

    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base))
        garbage = litter(consortium)
        tidying = asyncio.create_task(asyncio.to_thread(tidy))
        try:
            async with at_work(*(ScriptedSite(consortium, name) for name in SITES)):
                assert (await admin.until_ended("demo")).status == "completed"
        finally:
            over.set()
            await tidying
    assert removed >= garbage
    assert versions(consortium) == versions(completed)
    assert verify(consortium.home).ok


def test_who_stores_a_blob_while_it_is_cleaned_away_still_has_it(tmp_path: Path) -> None:
    """The same bytes as garbage of long ago, stored at the very moment that the garbage is found to be old."""
    store, mine = BlobStore(tmp_path), BlobStore(tmp_path)
    for number in range(200):
        data = f"blob {number}".encode()
        ref = store.put_bytes(data)
        old(store.path(ref.digest))
        start = threading.Barrier(2)

        def removes(digest: Digest = ref.digest, start: threading.Barrier = start) -> None:
            start.wait()
            store.remove(digest, stored_before=time.time() - HOUR)

        other = threading.Thread(target=removes)
        other.start()
        start.wait()
        if number % 2:
            mine.put_bytes(data)
        else:
            mine.append(ref.digest, "sofia", 0, data)
            mine.finish(ref.digest, "sofia", len(data))
        other.join()
        assert mine.has(ref.digest)
        assert number % 2 or mine.delivered(ref.digest, "sofia")
