"""Blobs in object storage: whole, verified and durable, or not there at all."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_server import s3_server

from consortium.bucket import Bucket
from consortium.errors import BadInput, Corrupt, Unavailable
from consortium.ids import Digest, digest_of
from consortium.store import BlobStore
from consortium.store_s3 import S3BlobStore

PART = 5 << 20  # the smallest that S3 takes
HELLO = "Здраво, свете".encode()
NAME = digest_of(HELLO)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as running:
        yield running


_numbers = itertools.count()


@pytest.fixture
def bucket(endpoint: str) -> Bucket:
    return Bucket(f"s3://blobs/test-{next(_numbers)}", endpoint, part_bytes=PART)


@pytest.fixture
def store(bucket: Bucket, tmp_path: Path) -> S3BlobStore:
    return S3BlobStore(bucket, tmp_path / "cache", cache_bytes=1 << 30)


def send(store: S3BlobStore, data: bytes, owner: str = "sofia") -> Digest:
    digest = digest_of(data)
    offset = store.received(digest, owner)
    while offset < len(data):
        offset = store.append(digest, owner, offset, data[offset : offset + (1 << 20)])
    store.finish(digest, owner, len(data))
    return digest


def test_a_blob_of_many_parts_is_found_by_another_coordinator(
    store: S3BlobStore, bucket: Bucket, tmp_path: Path
) -> None:
    data = os.urandom(2 * PART + 12345)
    digest = send(store, data)
    other = S3BlobStore(bucket, tmp_path / "other", cache_bytes=1 << 30)
    assert (other.has(digest), other.size(digest), other.digests()) == (True, len(data), [digest])
    assert other.delivered(digest, "sofia") and not other.delivered(digest, "ohrid")
    assert other.path(digest).read_bytes() == data
    assert other.verify(digest).size == len(data)
    assert other.stored_at(digest) == pytest.approx(store.stored_at(digest), abs=1)


def test_an_upload_grows_on_the_disk_and_is_there_only_when_it_is_in_the_bucket(store: S3BlobStore) -> None:
    assert store.append(NAME, "sofia", 0, HELLO[:5]) == 5
    assert (store.received(NAME, "sofia"), store.received(NAME, "ohrid")) == (5, 0)
    assert not store.has(NAME)
    with pytest.raises(Unavailable, match="5 of 24 bytes are here"):
        store.finish(NAME, "sofia", len(HELLO))
    store.append(NAME, "sofia", 5, HELLO[5:])
    assert store.finish(NAME, "sofia", len(HELLO)).digest == NAME
    assert store.read_bytes(NAME, 100) == HELLO
    with pytest.raises(BadInput, match="at most 3 are allowed"):
        store.read_bytes(NAME, 3)
    with pytest.raises(Unavailable, match="not in the store"):
        store.path(digest_of(b"absent"))


def test_wrong_bytes_never_reach_the_bucket(store: S3BlobStore, bucket: Bucket) -> None:
    store.append(NAME, "sofia", 0, HELLO[:-1] + b"!")
    with pytest.raises(Corrupt, match="send it again from the start"):
        store.finish(NAME, "sofia", len(HELLO))
    assert list(bucket.names("blobs")) == []
    assert store.received(NAME, "sofia") == 0


def test_what_the_bucket_refused_is_not_acknowledged_and_not_sent_twice(
    store: S3BlobStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append(NAME, "sofia", 0, HELLO)

    def refuse(name: str, path: Path) -> None:
        raise Unavailable("no way to the storage")

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "upload", refuse)
        with pytest.raises(Unavailable, match="no way"):
            store.finish(NAME, "sofia", len(HELLO))
        with pytest.raises(Unavailable, match="no way"):
            store.put_bytes(HELLO)
    assert not store.has(NAME) and not store.delivered(NAME, "sofia")
    assert store.received(NAME, "sofia") == len(HELLO)  # so the site has nothing left to send
    store.finish(NAME, "sofia", len(HELLO))
    assert store.has(NAME) and store.delivered(NAME, "sofia")


UPLOAD = """
import os, signal, sys
from pathlib import Path
from consortium.bucket import Bucket
bucket = Bucket(sys.argv[1], sys.argv[2], part_bytes=5 << 20)
send, sent = bucket._client.upload_part, 0
def upload_part(**words):
    global sent
    if sent == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    sent += 1
    return send(**words)
bucket._client.upload_part = upload_part
bucket.upload("blobs/thing", Path(sys.argv[3]))
"""


def test_after_sigkill_the_parts_that_arrived_are_not_sent_again(
    bucket: Bucket, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "thing"
    path.write_bytes(os.urandom(3 * PART + 77))
    killed = subprocess.run([sys.executable, "-c", UPLOAD, bucket.url, endpoint, path], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert bucket.find("blobs/thing") is None  # parts alone are not visible
    sent: list[int] = []
    send = bucket._client.upload_part

    def counting(**words: object) -> object:
        sent.append(words["PartNumber"])  # type: ignore[arg-type]
        return send(**words)

    monkeypatch.setattr(bucket._client, "upload_part", counting)
    bucket.upload("blobs/thing", path)
    assert sent == [3, 4]
    assert bucket.read("blobs/thing", 0, 4 * PART) == path.read_bytes()


def test_bytes_that_changed_in_the_bucket_are_noticed_and_a_cache_does_not_hide_them(
    store: S3BlobStore, bucket: Bucket, tmp_path: Path
) -> None:
    digest = send(store, HELLO)
    bucket.put(f"blobs/{digest}", HELLO[:-1] + b"!")
    with pytest.raises(Corrupt, match="restore the object"):
        store.verify(digest)
    fresh = S3BlobStore(bucket, tmp_path / "fresh", cache_bytes=1 << 30)
    with pytest.raises(Unavailable, match="gave 24 bytes that are not"):
        fresh.path(digest)
    assert list((tmp_path / "fresh" / "blobs").glob("*/*")) == []


def test_a_fetch_that_was_cut_goes_on_where_it_was(
    store: S3BlobStore, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consortium.store_s3._READ_BYTES", 1000)
    data = os.urandom(3500)
    digest = send(store, data)
    other = S3BlobStore(bucket, tmp_path / "other", cache_bytes=1 << 30)
    read, begins = bucket.read, []

    def cut(name: str, begin: int, size: int) -> bytes:
        begins.append(begin)
        if len(begins) == 3:
            raise Unavailable("cut")
        return read(name, begin, size)

    monkeypatch.setattr(bucket, "read", cut)
    with pytest.raises(Unavailable, match="cut"):
        other.path(digest)
    assert other.path(digest).read_bytes() == data
    assert begins == [0, 1000, 2000, 2000, 3000]


def test_the_cache_keeps_to_its_bound_but_for_what_is_in_use(bucket: Bucket, tmp_path: Path) -> None:
    def cached(store: S3BlobStore, *digests: Digest) -> list[bool]:
        return [store._local.has(digest) for digest in digests]

    idle = S3BlobStore(bucket, tmp_path / "idle", cache_bytes=2500, in_use_seconds=-1.0)
    first, second, third = (send(idle, os.urandom(1000)) for _ in range(3))
    assert cached(idle, first, second, third) == [False, True, True]
    assert len(idle.path(first).read_bytes()) == 1000  # from the bucket; the longest idle makes room
    assert cached(idle, first, second, third) == [True, False, True]
    busy = S3BlobStore(bucket, tmp_path / "busy", cache_bytes=2500)
    assert [busy.path(digest).is_file() for digest in (first, second, third)] == [True] * 3
    assert cached(busy, first, second, third) == [True] * 3


@pytest.fixture
def local(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "local")


@pytest.mark.parametrize("kind", ["local", "store"])
def test_a_removed_blob_is_gone_with_its_deliveries_and_may_come_again(
    kind: str, request: pytest.FixtureRequest
) -> None:
    store = request.getfixturevalue(kind)
    before = send(store, HELLO)
    assert store.remove(before) == len(HELLO)
    assert (store.has(before), store.delivered(before, "sofia"), store.digests()) == (False, False, [])
    assert store.remove(before) == 0
    send(store, HELLO)
    assert store.delivered(before, "sofia") and store.path(before).read_bytes() == HELLO


@pytest.mark.parametrize(
    "url", ["http://x/y", "s3://", "s3://bucket/x?endpoint=1", "s3://user:secret@bucket/x"]
)
def test_what_is_no_bucket_is_said_without_a_secret(url: str) -> None:
    with pytest.raises(BadInput, match="write s3://bucket/prefix") as refusal:
        Bucket(url)
    assert "secret" not in str(refusal.value)


def test_who_does_not_answer_is_named(tmp_path: Path, endpoint: str) -> None:
    make: Callable[..., Bucket] = Bucket
    with pytest.raises(Unavailable, match=r"s3://nowhere: blobs/x.*NoSuchBucket"):
        make("s3://nowhere", endpoint).put("blobs/x", b"")
