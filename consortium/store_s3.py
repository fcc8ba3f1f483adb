"""Where blobs lie when no disk is large or safe enough: in an S3 bucket, with a folder as spool and cache.

    bucket/prefix/blobs/<digest>                a whole blob; it counts as stored only once it is there
    bucket/prefix/deliveries/<owner>/<digest>   empty; this owner once sent every byte of it
    folder/                                     a ``BlobStore``: uploads in progress, and blobs used lately

The folder may be lost at any time: uploads that were under way are sent again, and nothing else happens. Several
coordinators may share one bucket, each with a folder of its own.
"""

import contextlib
import hashlib
import math
import threading
import time
from collections.abc import Collection
from pathlib import Path

from consortium import ids
from consortium.bucket import Bucket, Found
from consortium.errors import Corrupt, Unavailable
from consortium.ids import Digest, is_digest, is_owner, no_owner
from consortium.manifests import FileRef
from consortium.store import BlobStore

_FETCH = "store.fetch"  # owner of partials that come from the bucket: no site's name has a dot, and "store" is no role
_READ_BYTES = 8 << 20
_KNOWN_SECONDS = 30.0  # how long "it is in the bucket" is believed without asking again
IN_USE_SECONDS = 3600.0  #: a file that was asked for within this time stays in the cache, full or not


class S3BlobStore:
    """See ``blobs.Blobs``."""

    def __init__(
        self, bucket: Bucket, folder: Path, cache_bytes: int, in_use_seconds: float = IN_USE_SECONDS
    ) -> None:
        """cache_bytes: how much of ``folder`` blobs that are not in use may fill."""
        self._bucket = bucket
        self._local = BlobStore(folder)
        self._cache_bytes = cache_bytes
        self._in_use_seconds = in_use_seconds
        self._known: dict[Digest, tuple[float, Found]] = {}
        self._sizes: dict[Digest, int] = {}  # of what was hashed here
        self._used: dict[Digest, float] = {}
        self._fetching: dict[Digest, threading.Lock] = {}
        self._lock = threading.Lock()

    # ---- whole blobs

    def has(self, digest: Digest) -> bool:
        return self._find(digest) is not None

    def path(self, digest: Digest) -> Path:
        """The blob in the cache, fetched and verified if need be.

        Unavailable if the bucket has none, or other bytes: it is the bucket that is broken, and nobody who sent them.
        """
        size = self.size(digest)
        with self._lock:
            fetching = self._fetching.setdefault(digest, threading.Lock())
        with fetching:
            if not self._local.has(digest):
                self._make_space(size)
                self._fetch(digest, size)
            self._used[digest] = time.monotonic()
            return self._local.path(digest)

    def size(self, digest: Digest) -> int:
        """As it was when this process stored, fetched or verified it, or as it lies in the cache.

        Of others it is the storage's word, until ``path`` or ``verify`` has read the bytes.
        """
        found = self._known_to_be_there(digest)
        if (size := self._sizes.get(digest)) is None and self._local.has(digest):
            size = self._local.size(digest)
        return found.size if size is None else size

    def digests(self) -> list[Digest]:
        return sorted(Digest(name) for name in self._bucket.names("blobs") if is_digest(name))

    def stored_at(self, digest: Digest) -> float:
        return self._known_to_be_there(digest).stored_at

    def renew(self, digest: Digest) -> bool:
        """Asked of the bucket itself; nobody cleans one while a coordinator runs."""
        self._known.pop(digest, None)
        return self.has(digest)

    def remove(self, digest: Digest, stored_before: float = math.inf) -> int:
        """A bucket cannot look and delete at once: whoever gives ``stored_before`` keeps everybody from storing."""
        self._known.pop(digest, None)
        found = self._find(digest)
        if found is not None and found.stored_at >= stored_before:
            return 0
        for mark in list(self._bucket.names("deliveries")):
            if mark.endswith(f"/{digest}"):
                self._bucket.remove(f"deliveries/{mark}")
        self._bucket.remove(_blob(digest))
        self._known.pop(digest, None)
        self._sizes.pop(digest, None)
        self._local.remove(digest)
        return found.size if found else 0

    def read_bytes(self, digest: Digest, limit: int) -> bytes:
        self.path(digest)  # what the bucket says of its size is not believed: a sender may be blamed for it
        return self._local.read_bytes(digest, limit)

    def verify(self, digest: Digest) -> FileRef:
        """Reads what the bucket has, past the cache."""
        size, sha256, done = self.size(digest), hashlib.sha256(), 0
        while wanted := min(_READ_BYTES, size - done):
            data = self._bucket.read(_blob(digest), done, wanted)
            sha256.update(data)
            done += len(data)
            if len(data) < wanted:
                break
        if sha256.hexdigest() != digest:
            raise Corrupt(
                f"{self._bucket.url}/{_blob(digest)}: expected sha256 {digest}, got {sha256.hexdigest()}; the bytes "
                "changed, restore the object"
            )
        self._sizes[digest] = done
        return FileRef(digest=digest, size=done)

    def put_bytes(self, data: bytes) -> FileRef:
        return self._keep(self._local.put_bytes(data))

    def put_file(self, path: Path, link: bool = False) -> FileRef:
        return self._keep(self._local.put_file(path, link))

    def copy_to(self, digest: Digest, target: Path, link: bool = False) -> None:
        self.path(digest)
        self._local.copy_to(digest, target, link)

    # ---- partial blobs

    def received(self, digest: Digest, owner: str) -> int:
        """Also all of a blob that came whole and is not in the bucket yet: then only ``finish`` is missing."""
        if self._local.delivered(digest, owner):
            return self._local.size(digest)
        return self._local.received(digest, owner)

    def delivered(self, digest: Digest, owner: str) -> bool:
        return self._bucket.find(_delivery(digest, owner)) is not None and self.has(digest)

    def deliveries(self) -> list[tuple[Digest, str]]:
        marks = (mark.partition("/") for mark in self._bucket.names("deliveries"))
        return sorted(
            (Digest(name), owner) for owner, _, name in marks if is_digest(name) and is_owner(owner)
        )

    def note_delivery(self, digest: Digest, owner: str) -> None:
        self._bucket.put(_delivery(digest, owner), b"")

    def append(self, digest: Digest, owner: str, offset: int, data: bytes) -> int:
        return self._local.append(digest, owner, offset, data)

    def finish(self, digest: Digest, owner: str, size: int) -> FileRef:
        """Verified here, then brought into the bucket; whole there when this returns."""
        if self.delivered(digest, owner):
            self._local.discard(digest, owner)
            return FileRef(digest=digest, size=size)
        ref = self._keep(self._local.finish(digest, owner, size))
        self.note_delivery(digest, owner)
        return ref

    def partials(self) -> list[tuple[Digest, str, float]]:
        return self._local.partials()

    def sweep(self, before: float) -> int:
        return self._local.sweep(before)

    def discard(self, digest: Digest, owner: str) -> None:
        self._local.discard(digest, owner)

    def require_room(self, size: int) -> None:
        """Of the folder: an upload passes through it."""
        self._make_space(size)
        self._local.require_room(size)

    def make_room(self, owner: str, keep: int, busy: Collection[Digest] = ()) -> None:
        self._local.make_room(owner, keep, busy)

    # ---- inside

    def _keep(self, ref: FileRef) -> FileRef:
        """Bring a blob of the cache into the bucket, unless it is there."""
        self._used[ref.digest] = time.monotonic()
        self._sizes[ref.digest] = ref.size
        self._known.pop(ref.digest, None)  # ask: somebody may have cleaned up meanwhile
        if self._find(ref.digest) is None:
            self._bucket.upload(_blob(ref.digest), self._local.path(ref.digest))
        self._make_space(0)
        return ref

    def _fetch(self, digest: Digest, size: int) -> None:
        offset = self._local.received(digest, _FETCH)
        while offset < size:
            wanted = min(_READ_BYTES, size - offset)
            data = self._bucket.read(_blob(digest), offset, wanted)
            offset = self._local.append(digest, _FETCH, offset, data)
            if len(data) < wanted:  # not asked for the rest at once: a storage may give a byte at a time
                raise Unavailable(
                    f"{self._bucket.url}/{_blob(digest)}: ends at {offset} of {size} bytes; try again"
                )
        try:
            self._sizes[digest] = self._local.finish(digest, _FETCH, size).size
        except Corrupt as error:
            self._known.pop(digest, None)
            raise Unavailable(
                f"{self._bucket.url}/{_blob(digest)}: the storage gave {size} bytes that are not those of its name; "
                "nothing was taken; if it goes on, restore the object"
            ) from error

    def _known_to_be_there(self, digest: Digest) -> Found:
        found = self._find(digest)
        if found is None:
            raise Unavailable(f"blob {digest} is not in the store; it has to be uploaded or downloaded first")
        return found

    def _find(self, digest: Digest) -> Found | None:
        asked, found = self._known.get(digest, (float("-inf"), None))
        if found is not None and time.monotonic() - asked < _KNOWN_SECONDS:
            return found
        found = self._bucket.find(_blob(digest))
        if found is None:
            self._known.pop(digest, None)
        else:
            self._known[digest] = time.monotonic(), found
        return found

    def _make_space(self, size: int) -> None:
        """Drop from the cache what was not asked for lately, the longest idle first, until ``size`` more fits.

        What has another name as well (a model that is laid out) takes no space of its own, and stays.
        """
        now, held = time.monotonic(), []
        for digest in self._local.digests():
            with contextlib.suppress(Unavailable, FileNotFoundError):
                status = self._local.path(digest).stat()
                if status.st_nlink == 1:
                    held.append((self._used.get(digest, float("-inf")), digest, status.st_size))
        excess = sum(bytes_ for _, _, bytes_ in held) + size - self._cache_bytes
        for used, digest, bytes_ in sorted(held):
            if excess <= 0 or now - used < self._in_use_seconds:
                return
            self._local.remove(digest)
            self._used.pop(digest, None)
            excess -= bytes_


def _blob(digest: Digest) -> str:
    return f"blobs/{ids.digest(digest)}"


def _delivery(digest: Digest, owner: str) -> str:
    if not is_owner(owner):
        raise no_owner(owner)
    return f"deliveries/{owner}/{ids.digest(digest)}"
