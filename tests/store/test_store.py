"""Whatever is in the store is what its name says, whole, and stays so."""

import concurrent.futures
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import reaped

from consortium.errors import BadInput, Corrupt, DiskFull, SprachbundError, Unavailable
from consortium.ids import Digest, digest_of
from consortium.manifests import FileRef
from consortium.store import BlobStore, ref_of

HELLO = b"zdravo, svete"
NAME = digest_of(HELLO)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_bytes_are_found_under_their_digest(store: BlobStore, tmp_path: Path) -> None:
    assert not store.has(NAME)
    assert store.put_bytes(HELLO) == store.put_bytes(HELLO) == FileRef(digest=NAME, size=len(HELLO))
    assert store.has(NAME)
    assert store.size(NAME) == len(HELLO)
    assert store.path(NAME).read_bytes() == store.read_bytes(NAME, limit=13) == HELLO
    assert store.digests() == [NAME]
    assert files(tmp_path / "store") == [f"blobs/{NAME[:2]}/{NAME[2:]}"]
    assert not store.path(NAME).stat().st_mode & 0o222


@pytest.mark.parametrize("link", [False, True])
def test_a_file_is_taken_in_and_given_out(store: BlobStore, tmp_path: Path, link: bool) -> None:
    source, target = tmp_path / "delta", tmp_path / "job" / "base" / "model"
    source.write_bytes(HELLO)
    assert store.put_file(source, link=link) == store.put_file(source, link=link) == ref_of(source)
    assert (store.path(NAME).stat().st_ino == source.stat().st_ino) is link
    for _ in range(2):  # staging again after a crash changes nothing
        store.copy_to(NAME, target, link=link)
        assert target.read_bytes() == HELLO
        assert (target.stat().st_ino == store.path(NAME).stat().st_ino) is link
    assert sorted(path.name for path in target.parent.iterdir()) == ["model"]
    if not link:
        target.write_bytes(b"edited")
        assert store.verify(NAME).size == len(HELLO)


def test_a_link_falls_back_to_a_copy(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_file_system(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_file_system)
    (tmp_path / "delta").write_bytes(HELLO)
    assert store.put_file(tmp_path / "delta", link=True).digest == NAME
    assert store.verify(NAME).size == len(HELLO)


def test_what_is_absent_large_or_changed_is_said_so(store: BlobStore) -> None:
    with pytest.raises(Unavailable, match="is not in the store"):
        store.path(NAME)
    store.put_bytes(HELLO)
    with pytest.raises(BadInput, match="has 13 bytes; at most 12"):
        store.read_bytes(NAME, limit=12)
    store.path(NAME).chmod(0o644)
    store.path(NAME).write_bytes(b"zdravo, Svete")
    for read in (lambda: store.verify(NAME), lambda: store.read_bytes(NAME, limit=99)):
        with pytest.raises(Corrupt, match=f"expected sha256 {NAME}, got "):
            read()


@pytest.mark.parametrize("name", ["", "..", "a" * 63, "A" * 64, "../" * 21 + "x", "g" * 64, "a" * 64 + "\n"])
def test_only_a_digest_can_name_a_file(store: BlobStore, name: str) -> None:
    for use in (store.has, store.path, lambda d: store.received(d, "sofia")):
        with pytest.raises(BadInput, match="expected 64 lower-case hex digits"):
            use(Digest(name))


@pytest.mark.parametrize("owner", ["", ".", "..", "a/b", "../tirana", "Sofia", "a.b.c", "x" * 41])
def test_only_a_name_can_own_a_partial(store: BlobStore, owner: str) -> None:
    for use in (store.received, store.delivered, store.discard):
        with pytest.raises(BadInput, match="owner "):
            use(NAME, owner)
    with pytest.raises(BadInput, match="owner "):
        store.append(NAME, owner, 0, HELLO)


def test_who_goes_on_where_nothing_began_leaves_nothing_behind(store: BlobStore, tmp_path: Path) -> None:
    """Such calls cost nothing, so files of them would fill a disk with names."""
    with pytest.raises(Unavailable, match="0 bytes are here; go on from 0"):
        store.append(NAME, "sofia", 6, HELLO[6:])
    with pytest.raises(Unavailable, match="0 of 13 bytes are here"):
        store.finish(NAME, "sofia", 13)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert store._partials._begun == {}


def test_an_upload_that_waited_for_a_forgotten_one_begins_its_own(store: BlobStore) -> None:
    """Else two could write into one file at once, each with a lock and a running hash of its own."""
    store.append(NAME, "sofia", 0, HELLO[:5])
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        with store._partials.held(NAME, "sofia") as before:
            waiting = threads.submit(store.append, NAME, "sofia", 0, HELLO)
            time.sleep(0.05)
            store._partials.forget(NAME, "sofia")
        assert waiting.result() == len(HELLO)
    (now,) = store._partials._begun.values()
    assert now is not before and (before.hashed, now.hashed) == (5, len(HELLO))
    store.finish(NAME, "sofia", len(HELLO))


def test_a_partial_grows_and_becomes_a_blob(store: BlobStore, tmp_path: Path) -> None:
    assert store.append(NAME, "sofia", 0, HELLO[:5]) == 5
    with pytest.raises(Unavailable, match="5 of 13 bytes are here"):
        store.finish(NAME, "sofia", 13)
    for offset in (0, 4, 6):
        with pytest.raises(Unavailable, match="5 bytes are here; go on from 5"):
            store.append(NAME, "sofia", offset, HELLO[offset:])
    assert store.received(NAME, "sofia") == 5
    assert not store.has(NAME)
    assert store.append(NAME, "sofia", 5, HELLO[5:]) == 13
    assert not store.has(NAME)
    assert store.finish(NAME, "sofia", 13) == FileRef(digest=NAME, size=13)
    assert store.finish(NAME, "sofia", 13).size == 13  # the answer was lost, the agent asks again
    assert store.verify(NAME).size == 13
    assert store.received(NAME, "sofia") == 0
    assert files(tmp_path / "store") == [f"blobs/{NAME[:2]}/{NAME[2:]}", f"deliveries/sofia/{NAME}"]


def test_an_empty_blob_is_a_blob(store: BlobStore) -> None:
    empty = digest_of(b"")
    store.finish(empty, "sofia", 0)
    assert store.read_bytes(empty, limit=0) == b""


def test_wrong_bytes_are_deleted_and_named(store: BlobStore, tmp_path: Path) -> None:
    store.append(NAME, "sofia", 0, b"zdravo, svetu")
    got = digest_of(b"zdravo, svetu")
    with pytest.raises(Corrupt, match=f"{NAME}: expected 13 bytes .* got 13 bytes with {got}"):
        store.finish(NAME, "sofia", 13)
    store.append(NAME, "sofia", 0, HELLO + b"!")
    with pytest.raises(Corrupt, match="got 14 bytes"):
        store.finish(NAME, "sofia", 13)
    assert files(tmp_path / "store") == []
    store.append(NAME, "sofia", 0, HELLO)  # and it can be sent again
    store.finish(NAME, "sofia", 13)


def test_an_owner_never_sees_or_touches_anothers_partial(store: BlobStore) -> None:
    store.append(NAME, "sofia", 0, HELLO[:5])
    assert store.received(NAME, "tirana") == 0
    store.discard(NAME, "tirana")
    store.append(NAME, "tirana", 0, b"poison")
    assert store.received(NAME, "sofia") == 5
    store.append(NAME, "sofia", 5, HELLO[5:])
    store.finish(NAME, "sofia", 13)
    assert store.received(NAME, "tirana") == 6


def test_who_claims_a_blob_must_have_sent_all_of_it(store: BlobStore) -> None:
    store.append(NAME, "sofia", 0, HELLO)
    store.finish(NAME, "sofia", 13)
    assert store.delivered(NAME, "sofia")
    assert not store.delivered(NAME, "tirana")
    with pytest.raises(Unavailable, match="0 of 13 bytes"):
        store.finish(NAME, "tirana", 13)
    store.append(NAME, "tirana", 0, HELLO)
    store.finish(NAME, "tirana", 13)
    assert store.delivered(NAME, "tirana")
    assert store.verify(NAME).size == 13


def test_after_a_restart_the_rest_is_enough(tmp_path: Path) -> None:
    BlobStore(tmp_path).append(NAME, "sofia", 0, HELLO[:5])
    again = BlobStore(tmp_path)
    again.append(NAME, "sofia", again.received(NAME, "sofia"), HELLO[5:])
    again.finish(NAME, "sofia", 13)
    assert BlobStore(tmp_path).verify(NAME).size == 13


def test_a_partial_that_another_process_changed_is_hashed_anew(tmp_path: Path) -> None:
    first, second = BlobStore(tmp_path), BlobStore(tmp_path)
    first.append(NAME, "sofia", 0, HELLO[:5])
    second.append(NAME, "sofia", 5, HELLO[5:9])
    first.append(NAME, "sofia", 9, HELLO[9:])
    second.discard(NAME, "sofia")
    first.append(NAME, "sofia", 0, HELLO[:3])
    first.append(NAME, "sofia", 3, HELLO[3:])
    first.finish(NAME, "sofia", 13)
    assert first.verify(NAME).size == 13


def test_abandoned_uploads_make_room_oldest_first(store: BlobStore) -> None:
    names = [digest_of(bytes([number])) for number in range(4)]
    for age, name in enumerate(names):
        store.append(name, "sofia", 0, b"x")
        os.utime(store._partials.path(name, "sofia"), (age, age))
    store.append(names[0], "tirana", 0, b"x")
    store.make_room("sofia", keep=2)
    assert [store.received(name, "sofia") for name in names] == [0, 0, 1, 1]
    assert store.received(names[0], "tirana") == 1
    store.make_room("nobody", keep=2)
    store.make_room("sofia", keep=1, busy={names[2]})  # the older of the two, and being written
    assert [store.received(name, "sofia") for name in names] == [0, 0, 1, 0]


def test_a_full_disk_is_an_error_with_a_way_out_and_loses_nothing(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append(NAME, "sofia", 0, HELLO[:5])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DiskFull, match="free some space or raise the quota"):
            store.append(NAME, "sofia", 5, HELLO[5:])
        with pytest.raises(DiskFull):
            store.put_bytes(HELLO)
    assert files(tmp_path / "store") == [f"partials/sofia/{NAME}"]
    store.append(NAME, "sofia", 5, HELLO[5:])
    store.finish(NAME, "sofia", 13)


def test_many_threads_uploading_one_blob_do_no_harm(store: BlobStore) -> None:
    data = bytes(range(256)) * 400
    name, failures = digest_of(data), []

    def send(owner: str) -> None:
        try:
            while not store.delivered(name, owner):
                offset = store.received(name, owner)
                try:
                    store.append(name, owner, offset, data[offset : offset + 1024])
                    if offset + 1024 >= len(data):
                        store.finish(name, owner, len(data))
                except Unavailable:
                    pass  # somebody with our name was faster
        except SprachbundError as error:
            failures.append(error)

    threads = [threading.Thread(target=send, args=(f"site-{number % 3}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.verify(name).size == len(data)


KILLED_WHILE_WRITING = """
import sys
from pathlib import Path
from consortium.store import BlobStore
store, number = BlobStore(Path(sys.argv[1])), 0
while True:
    ref = store.put_bytes(b"%d" % number * 5000)
    print(ref.digest, flush=True)
    number += 1
"""


def test_sigkill_leaves_only_whole_blobs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)]
    with reaped(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline().strip() for _ in range(40)]
        writer.kill()
    store = BlobStore(tmp_path)
    assert set(told) <= set(store.digests())
    for digest in store.digests():
        store.verify(digest)


@given(st.lists(st.integers(0, len(HELLO)), max_size=6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_any_way_of_cutting_an_upload_ends_in_the_same_blob(
    tmp_path_factory: pytest.TempPathFactory, ends: list[int], restarts: list[bool]
) -> None:
    root = tmp_path_factory.mktemp("cut")
    store = BlobStore(root)
    for end, restart in zip([*sorted(ends), len(HELLO)], [*restarts, False], strict=False):
        offset = store.received(NAME, "sofia")
        store.append(NAME, "sofia", offset, HELLO[offset:end])
        store = BlobStore(root) if restart else store
    store.append(NAME, "sofia", store.received(NAME, "sofia"), HELLO[store.received(NAME, "sofia") :])
    assert store.finish(NAME, "sofia", len(HELLO)).digest == NAME
