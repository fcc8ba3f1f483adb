"""Where blobs lie on a disk, named by their digest.

    blobs/ab/cdef...            whole, verified, read-only; the name is the sha256 of the bytes
    partials/<owner>/<digest>   what an owner has sent so far: ``partials.py``
    deliveries/<owner>/<digest> empty; says that this owner once sent every byte of that blob

A blob appears under its name only when it is whole, verified and durable. Two uploaders of one blob do no
harm: the second proves that it has the bytes, too. All methods may be called from several threads and
several processes.
"""

import contextlib
import fcntl
import hashlib
import math
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from consortium import ids
from consortium.errors import BadInput, Corrupt, DiskFull, Unavailable
from consortium.files import (
    disk_errors,
    make_folder,
    make_private_folder,
    move_into_place,
    sync_file,
    sync_folder,
    temporary_beside,
    write_bytes_atomically,
)
from consortium.ids import Digest, is_digest
from consortium.manifests import FileRef
from consortium.partials import Partials, by_owner, of_owner

_READ_BYTES = 1 << 20
_READ_ONLY = 0o444  # as git does: a stray editor cannot change what the name promises


class BlobStore:
    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._deliveries = root / "deliveries"
        with disk_errors(root):
            make_private_folder(root, tighten=False)
            make_folder(self._blobs)
            self._partials = Partials(root / "partials")

    # ---- whole blobs

    def has(self, digest: Digest) -> bool:
        return os.path.isfile(self._place(digest))

    def path(self, digest: Digest) -> Path:
        """The file of a whole blob, to be read and never written. Raises Unavailable if it is not here."""
        path = self._place(digest)
        if not os.path.isfile(path):
            raise Unavailable(f"blob {digest} is not in the store; it has to be uploaded or downloaded first")
        return path

    def size(self, digest: Digest) -> int:
        """Bytes of a whole blob."""
        return self.path(digest).stat().st_size

    def digests(self) -> list[Digest]:
        """All whole blobs, sorted."""
        found = (path.parent.name + path.name for path in self._blobs.glob("[0-9a-f][0-9a-f]/*"))
        return sorted(Digest(name) for name in found if is_digest(name))

    def stored_at(self, digest: Digest) -> float:
        """When the blob was stored, or stored once more; seconds since the epoch."""
        return self.path(digest).stat().st_mtime

    def renew(self, digest: Digest) -> bool:
        """Whether the blob is here; it then counts as stored now, so that no cleaning takes it away."""
        return self._renewed(self._place(digest))

    def remove(self, digest: Digest, stored_before: float = math.inf) -> int:
        """Delete a blob, and what says that somebody delivered it; the bytes that it had, 0 if it was not here.

        stored_before  only if it was not stored (once more) since; nobody can do so while it is looked at and deleted
        """
        place = self._place(digest)
        with disk_errors(place), contextlib.suppress(FileNotFoundError), self._alone(fcntl.LOCK_EX):
            found = place.stat()
            if found.st_mtime >= stored_before:
                return 0
            size = found.st_size
            for mark in self._deliveries.glob(f"*/{digest}"):
                mark.unlink(missing_ok=True)
            place.unlink()
            sync_folder(place.parent)
            return size
        return 0

    def read_bytes(self, digest: Digest, limit: int) -> bytes:
        """A small blob, verified. Raises BadInput above ``limit`` bytes, Corrupt if the disk changed it."""
        path = self.path(digest)
        size = path.stat().st_size
        if size > limit:
            raise BadInput(f"blob {digest} has {size} bytes; at most {limit} are allowed here")
        with disk_errors(path):
            data = path.read_bytes()
        _same(digest, ids.digest_of(data), str(path))
        return data

    def verify(self, digest: Digest) -> FileRef:
        """Read the whole blob again; Corrupt if its bytes are no longer those of its name."""
        path = self.path(digest)
        ref = ref_of(path)
        _same(digest, ref.digest, str(path))
        return ref

    def put_bytes(self, data: bytes) -> FileRef:
        ref = FileRef(digest=ids.digest_of(data), size=len(data))
        target = self._place(ref.digest)
        if not self._renewed(target):
            with self._new_file(target) as temporary:
                temporary.write_bytes(data)
        return ref

    def put_file(self, path: Path, link: bool = False) -> FileRef:
        """Take in a file.

        link  share its bytes by a hard link where the file system allows it: no copy, but the file becomes
              read-only and must not be changed any more
        """
        ref = ref_of(path)
        target = self._place(ref.digest)
        if not self._renewed(target):
            with self._new_file(target) as temporary:
                _link_or_copy(path, temporary, link)
                if not link:  # the source may have changed between the two readings
                    _same(ref.digest, ref_of(temporary).digest, str(path))
        return ref

    def copy_to(self, digest: Digest, target: Path, link: bool = False) -> None:
        """Put a blob under another name too: a copy that may be edited, or with ``link`` a read-only link."""
        with disk_errors(target):
            make_folder(target.parent)
            temporary = temporary_beside(target)
            try:
                _link_or_copy(self.path(digest), temporary, link)
                os.replace(temporary, target)
            finally:  # also after a rename onto a link to the same bytes, which does nothing
                temporary.unlink(missing_ok=True)

    # ---- partial blobs

    def received(self, digest: Digest, owner: str) -> int:
        """Bytes of this owner's partial; 0 if there is none, or no more because the blob is whole."""
        return self._partials.received(digest, owner)

    def delivered(self, digest: Digest, owner: str) -> bool:
        """Whether the blob is whole here and this owner sent every byte of it; then it counts as stored now."""
        return self._delivery(digest, owner).is_file() and self._renewed(self._place(digest))

    def deliveries(self) -> list[tuple[Digest, str]]:
        """Who sent every byte of which blob, sorted."""
        return sorted((Digest(mark.name), mark.parent.name) for mark in by_owner(self._deliveries))

    def note_delivery(self, digest: Digest, owner: str) -> None:
        """Note that this owner once sent every byte of the blob; for who moves a store."""
        write_bytes_atomically(self._delivery(digest, owner), b"")

    def append(self, digest: Digest, owner: str, offset: int, data: bytes) -> int:
        """Add ``data`` at ``offset``, which must be where the partial ends; returns where it ends now.

        Not durable before ``finish``; what a crash takes away is sent again. Raises Unavailable if ``offset``
        is elsewhere (ask ``received`` and go on from there), DiskFull.
        """
        return self._partials.append(digest, owner, offset, data)

    def finish(self, digest: Digest, owner: str, size: int) -> FileRef:
        """Make a partial of exactly ``size`` bytes a whole blob: verified, durable, visible.

        Raises Unavailable while bytes are missing, Corrupt (and deletes the partial) if they are wrong.
        """
        target = self._place(digest)
        with self._partials.held(digest, owner) as partial:
            if not self.delivered(digest, owner):
                with self._partials.verified(partial, digest, owner, size) as file:
                    self.note_delivery(digest, owner)
                    if not self._renewed(target):
                        os.fchmod(file, _READ_ONLY)
                        os.utime(file)  # stored now, whenever its last byte came
                        os.fsync(file)
                        make_folder(target.parent)
                        move_into_place(self._partials.path(digest, owner), target)
                # an older blob of the same bytes was cleaned away just now, and its marks with it
                if not self._delivery(digest, owner).is_file():
                    self.note_delivery(digest, owner)
            self._partials.forget(digest, owner)
        return FileRef(digest=digest, size=size)

    def partials(self) -> list[tuple[Digest, str, float]]:
        """What is being sent: blob, owner, and when the last of it came, in seconds since the epoch; sorted."""
        return self._partials.all()

    def sweep(self, before: float) -> int:
        """Delete what a crash left half written, if it is older; how many files."""
        count = 0
        for path in self._blobs.glob("[0-9a-f][0-9a-f]/.*.tmp"):
            with contextlib.suppress(FileNotFoundError):  # it was being written just now
                if path.stat().st_mtime < before:
                    path.unlink()
                    count += 1
        return count

    def discard(self, digest: Digest, owner: str) -> None:
        """Delete this owner's partial, if there is one."""
        self._partials.discard(digest, owner)

    def require_room(self, size: int) -> None:
        """Raise DiskFull at once if ``size`` more bytes cannot fit, rather than after most of them came."""
        free = shutil.disk_usage(self._blobs).free
        if free < size:
            raise DiskFull(
                f"{self._blobs}: {free} bytes are free, {size} are needed; free some space, try again"
            )

    def make_room(self, owner: str, keep: int, busy: Collection[Digest] = ()) -> None:
        """Discard this owner's oldest partials until ``keep`` are left, none of ``busy``: those are being written."""
        self._partials.make_room(owner, keep, busy)

    # ---- inside

    def _place(self, digest: Digest) -> Path:
        ids.digest(digest)
        return self._blobs.joinpath(digest[:2], digest[2:])

    def _delivery(self, digest: Digest, owner: str) -> Path:
        return of_owner(self._deliveries, digest, owner)

    def _renewed(self, target: Path) -> bool:
        """Whether the blob is here already; it then counts as stored now, so that no cleaning takes it away."""
        if not os.path.isfile(target):
            return False
        with contextlib.suppress(FileNotFoundError), self._alone(fcntl.LOCK_SH):
            os.utime(target)
            return True
        return False

    @contextlib.contextmanager
    def _alone(self, kind: int) -> Iterator[None]:
        """Against who cleans up, of any process of this machine; a crash frees it. Where nothing can be locked (some
        Lustre mounts) nothing can be removed, either.
        """
        lock = os.open(self._blobs, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.ExitStack() as able:
                if kind == fcntl.LOCK_SH:
                    able.enter_context(contextlib.suppress(OSError))
                fcntl.flock(lock, kind)
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def _new_file(self, target: Path) -> Iterator[Path]:
        """A temporary name to fill; on success it becomes ``target``, durable and read-only."""
        with disk_errors(target):
            make_folder(target.parent)
            temporary = temporary_beside(target)
            try:
                yield temporary
                temporary.chmod(_READ_ONLY)
                os.utime(temporary)  # stored now, however old the file is that it is a link to
                sync_file(temporary)
                move_into_place(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)


def ref_of(path: Path) -> FileRef:
    """Digest and size of a file, read in pieces."""
    sha256, size = hashlib.sha256(), 0
    with disk_errors(path), open(path, "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise BadInput(f"{path}: not a regular file; only files can be stored")
        # most files are small, and a megabyte that nobody needs is zeroed page by page
        buffer = bytearray(min(_READ_BYTES, found.st_size + 1))
        while count := file.readinto(buffer):
            sha256.update(memoryview(buffer)[:count])
            size += count
    return FileRef(digest=Digest(sha256.hexdigest()), size=size)


def ref_of_section(path: Path, begin: int, size: int) -> FileRef:
    """The same for at most ``size`` bytes of a file from ``begin`` on."""
    sha256, done = hashlib.sha256(), 0
    with disk_errors(path), open(path, "rb", buffering=0) as file:
        while done < size and (data := os.pread(file.fileno(), min(_READ_BYTES, size - done), begin + done)):
            sha256.update(data)
            done += len(data)
    return FileRef(digest=Digest(sha256.hexdigest()), size=done)


def _link_or_copy(source: Path, target: Path, link: bool) -> None:
    if link:
        with contextlib.suppress(OSError):  # another file system, or one without hard links: copy
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _same(want: str, got: str, place: str) -> None:
    if got != want:
        raise Corrupt(f"{place}: expected sha256 {want}, got {got}; the bytes changed, fetch them again")
