"""What may be asked of a store of blobs, wherever it keeps them: on a disk, or in object storage.

A blob is named by the sha256 of its bytes, and is there only when it is whole, verified and durable where the store
keeps it. What an owner is still sending is a partial; it lies on the disk of whoever receives it, and nobody else
can see or touch it. All methods may be called from several threads; those that read or write bytes may take as long
as the bytes do, so not from an event loop.
"""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from consortium.ids import Digest
from consortium.manifests import FileRef


class Blobs(Protocol):
    """``store.BlobStore`` keeps them in a folder, ``store_s3.S3BlobStore`` in a bucket."""

    # ---- whole blobs

    def has(self, digest: Digest) -> bool: ...

    def path(self, digest: Digest) -> Path:
        """A local file with the blob's bytes, to be read and never written. Unavailable if it is not here.

        A store in a bucket fetches it first, verified; it stays for an hour after its last use, at least.
        """
        ...

    def size(self, digest: Digest) -> int:
        """Bytes of a whole blob. Raises Unavailable if it is not here."""
        ...

    def digests(self) -> list[Digest]:
        """All whole blobs, sorted."""
        ...

    def stored_at(self, digest: Digest) -> float:
        """When the blob was stored, in seconds since the epoch by the store's clock; Unavailable if it is not here."""
        ...

    def renew(self, digest: Digest) -> bool:
        """Whether the blob is here; it then counts as stored now, so that no cleaning takes it away."""
        ...

    def remove(self, digest: Digest, stored_before: float = math.inf) -> int:
        """Delete a blob, and what says that somebody delivered it; the bytes that it had, 0 if it was not here.

        stored_before  only if it was not stored (once more) since
        """
        ...

    def read_bytes(self, digest: Digest, limit: int) -> bytes:
        """A small blob, verified. Raises BadInput above ``limit`` bytes, Corrupt if its bytes changed."""
        ...

    def verify(self, digest: Digest) -> FileRef:
        """Read the whole blob again where it is kept; Corrupt if its bytes are no longer those of its name."""
        ...

    def put_bytes(self, data: bytes) -> FileRef: ...

    def put_file(self, path: Path, link: bool = False) -> FileRef:
        """Take in a file. ``link``: it may become a hard link to the blob, and is not changed any more."""
        ...

    def copy_to(self, digest: Digest, target: Path, link: bool = False) -> None:
        """Put a blob under another name too: a copy that may be edited, or with ``link`` a read-only link."""
        ...

    # ---- partial blobs

    def received(self, digest: Digest, owner: str) -> int:
        """Bytes of this owner's partial that need not be sent again."""
        ...

    def delivered(self, digest: Digest, owner: str) -> bool:
        """Whether the blob is whole here and this owner sent every byte of it."""
        ...

    def deliveries(self) -> list[tuple[Digest, str]]:
        """Who sent every byte of which blob, sorted."""
        ...

    def note_delivery(self, digest: Digest, owner: str) -> None:
        """Note that this owner once sent every byte of the blob; for who moves a store."""
        ...

    def append(self, digest: Digest, owner: str, offset: int, data: bytes) -> int:
        """Add ``data`` at ``offset``, which must be where the partial ends; returns where it ends now."""
        ...

    def finish(self, digest: Digest, owner: str, size: int) -> FileRef:
        """Make a partial of exactly ``size`` bytes a whole blob: verified, durable, visible."""
        ...

    def partials(self) -> list[tuple[Digest, str, float]]:
        """What is being sent: blob, owner, and when the last of it came, in seconds since the epoch; sorted."""
        ...

    def sweep(self, before: float) -> int:
        """Delete what a crash left half written, if it is older; how many files."""
        ...

    def discard(self, digest: Digest, owner: str) -> None:
        """Delete this owner's partial, if there is one."""
        ...

    def require_room(self, size: int) -> None:
        """Raise DiskFull at once if ``size`` more bytes cannot fit."""
        ...

    def make_room(self, owner: str, keep: int, busy: Collection[Digest] = ()) -> None:
        """Discard this owner's oldest partials until ``keep`` are left, none of ``busy``: those are being written."""
        ...
