"""A store that somebody wants to mislead: names that are not its own, objects that nobody put there."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from consortium.bucket import Bucket, Found
from consortium.errors import BadInput, Unavailable
from consortium.ids import Digest, digest_of
from consortium.store import BlobStore
from consortium.store_s3 import S3BlobStore

SECRET = b"another site's delta"
NAME = digest_of(SECRET)


class Objects:
    """A bucket in memory."""

    url = "s3://blobs"

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def find(self, name: str) -> Found | None:
        return Found(len(self.held[name]), time.time()) if name in self.held else None

    def names(self, folder: str) -> Iterator[str]:
        yield from (
            name.removeprefix(f"{folder}/") for name in sorted(self.held) if name.startswith(f"{folder}/")
        )

    def read(self, name: str, begin: int, size: int) -> bytes:
        return self.held[name][begin : begin + size]

    def put(self, name: str, data: bytes) -> None:
        self.held[name] = data

    def remove(self, name: str) -> None:
        self.held.pop(name, None)

    def upload(self, name: str, path: Path) -> None:
        self.put(name, path.read_bytes())


@pytest.fixture
def objects() -> Objects:
    return Objects()


@pytest.fixture
def store(objects: Objects, tmp_path: Path) -> S3BlobStore:
    return S3BlobStore(cast(Bucket, objects), tmp_path / "cache", cache_bytes=1 << 30)


@pytest.mark.parametrize("site", ["fetch", "store", "bundle", "download", "coordinator"])
def test_a_site_of_any_name_has_sent_only_what_it_sent(
    store: S3BlobStore, objects: Objects, site: str
) -> None:
    """What the coordinator itself takes from the bucket passes through the same folder as what sites send."""
    objects.put(f"blobs/{NAME}", SECRET)
    assert store.path(NAME).read_bytes() == SECRET  # the coordinator needed it
    assert store.received(NAME, site) == 0
    with pytest.raises(Unavailable, match="0 of 20 bytes are here"):
        store.finish(NAME, site, len(SECRET))
    assert not store.delivered(NAME, site)
    assert store.deliveries() == []


def test_what_a_site_sends_does_not_mix_with_what_is_fetched(store: S3BlobStore, objects: Objects) -> None:
    objects.put(f"blobs/{NAME}", SECRET)
    store.append(NAME, "fetch", 0, b"garbage")
    assert store.path(NAME).read_bytes() == SECRET


FOREIGN = ("README.txt", "ab/../../etc", "A" * 64, "0" * 63, f"{NAME}.bak", "x/y/z")


def test_what_does_not_belong_into_a_bucket_is_passed_over(store: S3BlobStore, objects: Objects) -> None:
    store.append(NAME, "sofia", 0, SECRET)
    store.finish(NAME, "sofia", len(SECRET))
    for name in FOREIGN:
        objects.put(f"blobs/{name}", b"what is that?")
        objects.put(f"deliveries/{name}", b"")
        objects.put(f"deliveries/sofia/{name}", b"")
        objects.put(f"deliveries/../{NAME}", b"")
    assert store.digests() == [NAME]
    assert store.deliveries() == [(NAME, "sofia")]


def test_what_does_not_belong_into_a_folder_is_passed_over(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.append(NAME, "sofia", 0, SECRET)
    store.finish(NAME, "sofia", len(SECRET))
    other = digest_of(b"")
    store.append(other, "sofia", 0, b"half")
    for folder in (
        "blobs/ab",
        f"blobs/{NAME[:2]}",
        "deliveries/sofia",
        "partials/sofia",
        "partials/UPPER",
        "deliveries/UPPER",
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "notes.txt").write_text("mine")
        (tmp_path / folder / ("0" * 63)).write_text("mine")
    assert store.digests() == [NAME]
    assert store.deliveries() == [(NAME, "sofia")]
    assert [(digest, owner) for digest, owner, _ in store.partials()] == [(other, "sofia")]
    store.make_room("sofia", 0)
    assert store.received(other, "sofia") == 0


@pytest.mark.parametrize(
    "owner", ["..", "../sofia", "sofia/..", "", ".", "a" * 41, "sofia\n", "SOFIA", "a.b.c", "sofia/x"]
)
def test_no_owner_leads_elsewhere(store: S3BlobStore, tmp_path: Path, owner: str) -> None:
    for one in (store, BlobStore(tmp_path / "folder")):
        for call in (one.received, one.delivered, one.note_delivery, one.discard):
            with pytest.raises(BadInput, match=r"expected a name, or <role>\.<name>"):
                call(NAME, owner)  # type: ignore[operator]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "", "a" * 63, "A" * 64, f"{'a' * 64}\n", f"{'a' * 62}/."]
)
def test_no_digest_leads_elsewhere(store: S3BlobStore, tmp_path: Path, name: str) -> None:
    for one in (store, BlobStore(tmp_path / "folder")):
        for call in (one.has, one.path, one.size, one.remove, one.verify):
            with pytest.raises(BadInput, match="64 lower-case hex digits"):
                call(Digest(name))  # type: ignore[operator]
