"""Where blobs lie, named by their digest, and how half of one waits for the rest.

    blobs/ab/cdef...            whole, verified, read-only; the name is the sha256 of the bytes
    partials/<owner>/<digest>   what an owner has sent so far; nobody else can see or touch it
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
import re
import shutil
import stat
import threading
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
from consortium.ids import Digest
from consortium.manifests import FileRef

_READ_BYTES = 1 << 20
_OWNER = re.compile(r"[a-z0-9-]{1,40}(\.[a-z0-9-]{1,40})?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_READ_ONLY = 0o444  # as git does: a stray editor cannot change what the name promises


class _Partial:
    """The running hash of one owner's upload of one blob, and how far it reaches."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sha256 = hashlib.sha256()
        self.hashed = 0

    def catch_up(self, file: int) -> int:
        """Size of the open partial; hashes what this process has not seen of it (after a restart: all)."""
        size = os.fstat(file).st_size
        if size < self.hashed:
            self.sha256, self.hashed = hashlib.sha256(), 0
        while self.hashed < size:
            data = os.pread(file, min(_READ_BYTES, size - self.hashed), self.hashed)
            if not data:
                break
            self.sha256.update(data)
            self.hashed += len(data)
        return self.hashed


class BlobStore:
    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._partials_root = root / "partials"
        self._deliveries = root / "deliveries"
        self._partials: dict[tuple[str, Digest], _Partial] = {}
        self._lock = threading.Lock()
        with disk_errors(root):
            make_private_folder(root, tighten=False)
            make_folder(self._blobs)
            make_folder(self._partials_root)

    # ---- whole blobs

    def has(self, digest: Digest) -> bool:
        return self._place(digest).is_file()

    def path(self, digest: Digest) -> Path:
        """The file of a whole blob, to be read and never written. Raises Unavailable if it is not here."""
        path = self._place(digest)
        if not path.is_file():
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
        with contextlib.suppress(FileNotFoundError):
            return self._own(self._partials_root, digest, owner).stat().st_size
        return 0

    def delivered(self, digest: Digest, owner: str) -> bool:
        """Whether the blob is whole here and this owner sent every byte of it; then it counts as stored now."""
        return self._own(self._deliveries, digest, owner).is_file() and self._renewed(self._place(digest))

    def deliveries(self) -> list[tuple[Digest, str]]:
        """Who sent every byte of which blob, sorted."""
        return sorted((Digest(mark.name), mark.parent.name) for mark in _named(self._deliveries))

    def note_delivery(self, digest: Digest, owner: str) -> None:
        """Note that this owner once sent every byte of the blob; for who moves a store."""
        write_bytes_atomically(self._own(self._deliveries, digest, owner), b"")

    def append(self, digest: Digest, owner: str, offset: int, data: bytes) -> int:
        """Add ``data`` at ``offset``, which must be where the partial ends; returns where it ends now.

        Not durable before ``finish``; what a crash takes away is sent again. Raises Unavailable if ``offset``
        is elsewhere (ask ``received`` and go on from there), DiskFull.
        """
        path = self._own(self._partials_root, digest, owner)
        with self._held(digest, owner) as partial, disk_errors(path):
            self._require_begun(path, digest, owner, offset, _elsewhere(digest, offset, 0))
            with _open_partial(path) as file:
                return self._append(file, partial, digest, offset, data)

    def _append(self, file: int, partial: _Partial, digest: Digest, offset: int, data: bytes) -> int:
        size = partial.catch_up(file)
        if offset != size:
            raise _elsewhere(digest, offset, size)
        written = 0
        while written < len(data):
            written += os.pwrite(file, memoryview(data)[written:], size + written)
        partial.sha256.update(data)
        partial.hashed += len(data)
        return partial.hashed

    def finish(self, digest: Digest, owner: str, size: int) -> FileRef:
        """Make a partial of exactly ``size`` bytes a whole blob: verified, durable, visible.

        Raises Unavailable while bytes are missing, Corrupt (and deletes the partial) if they are wrong.
        """
        ref = FileRef(digest=digest, size=size)
        target = self._place(digest)
        path = self._own(self._partials_root, digest, owner)
        with self._held(digest, owner) as partial:
            if self.delivered(digest, owner):
                self._forget(digest, owner)
                return ref
            self._require_begun(path, digest, owner, size, _unfinished(digest, 0, size))
            with disk_errors(path), _open_partial(path) as file:
                held = partial.catch_up(file)
                if held < size:
                    raise _unfinished(digest, held, size)
                got = partial.sha256.hexdigest()
                if held > size or got != digest:
                    self._forget(digest, owner)
                    raise Corrupt(
                        f"blob {digest}: expected {size} bytes with this sha256, got {held} bytes with "
                        f"{got}; the upload was deleted, send it again from the start"
                    )
                self.note_delivery(digest, owner)
                if not self._renewed(target):
                    os.fchmod(file, _READ_ONLY)
                    os.utime(file)  # stored now, whenever its last byte came
                    os.fsync(file)
                    make_folder(target.parent)
                    move_into_place(path, target)
            if not self._own(self._deliveries, digest, owner).is_file():
                self.note_delivery(digest, owner)  # an older blob of the same bytes was cleaned away just now
            self._forget(digest, owner)
        return ref

    def partials(self) -> list[tuple[Digest, str, float]]:
        """What is being sent: blob, owner, and when the last of it came, in seconds since the epoch; sorted."""
        found = []
        for path in _named(self._partials_root):
            with contextlib.suppress(FileNotFoundError):
                found.append((Digest(path.name), path.parent.name, path.stat().st_mtime))
        return sorted(found)

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
        with self._held(digest, owner):
            self._forget(digest, owner)

    def require_room(self, size: int) -> None:
        """Raise DiskFull at once if ``size`` more bytes cannot fit, rather than after most of them came."""
        free = shutil.disk_usage(self._blobs).free
        if free < size:
            raise DiskFull(
                f"{self._blobs}: {free} bytes are free, {size} are needed; free some space, try again"
            )

    def make_room(self, owner: str, keep: int, busy: Collection[Digest] = ()) -> None:
        """Discard this owner's oldest partials until ``keep`` are left, none of ``busy``: those are being written."""
        folder = self._own(self._partials_root, ids.digest_of(b""), owner).parent
        with disk_errors(folder), contextlib.suppress(FileNotFoundError):
            own = [path for path in folder.iterdir() if is_digest(path.name)]
            idle = [path for path in own if path.name not in busy]
            for path in sorted(idle, key=lambda path: path.stat().st_mtime_ns)[: max(0, len(own) - keep)]:
                self.discard(Digest(path.name), owner)

    # ---- inside

    def _place(self, digest: Digest) -> Path:
        ids.digest(digest)
        return self._blobs / digest[:2] / digest[2:]

    def _renewed(self, target: Path) -> bool:
        """Whether the blob is here already; it then counts as stored now, so that no cleaning takes it away."""
        if not target.is_file():
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

    def _own(self, folder: Path, digest: Digest, owner: str) -> Path:
        if not is_owner(owner):
            raise no_owner(owner)
        return folder / owner / ids.digest(digest)

    @contextlib.contextmanager
    def _held(self, digest: Digest, owner: str) -> Iterator[_Partial]:
        """This upload for this thread alone; what was forgotten while we waited for it is not it any more."""
        while True:
            with self._lock:
                partial = self._partials.setdefault((owner, digest), _Partial())
            with partial.lock:
                if self._partials.get((owner, digest)) is partial:
                    yield partial
                    return

    def _require_begun(
        self, path: Path, digest: Digest, owner: str, offset: int, trouble: Unavailable
    ) -> None:
        """Who goes on with an upload that is not here leaves nothing behind."""
        if offset and not path.exists():
            self._forget(digest, owner)
            raise trouble

    def _forget(self, digest: Digest, owner: str) -> None:
        path = self._own(self._partials_root, digest, owner)
        with disk_errors(path):
            path.unlink(missing_ok=True)
        with self._lock:
            self._partials.pop((owner, digest), None)

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


def is_digest(name: str) -> bool:
    """Whether a file's or an object's name is a blob's; other names are somebody else's, and left alone."""
    return _DIGEST.fullmatch(name) is not None


def is_owner(name: str) -> bool:
    return _OWNER.fullmatch(name) is not None


def no_owner(name: str) -> BadInput:
    return BadInput(f"owner {name[:80]!r} of an upload: expected a name, or <role>.<name>")


def _named(folder: Path) -> Iterator[Path]:
    """``<owner>/<digest>`` below a folder."""
    return (path for path in folder.glob("*/*") if is_digest(path.name) and is_owner(path.parent.name))


def ref_of(path: Path) -> FileRef:
    """Digest and size of a file, read in pieces."""
    sha256, size = hashlib.sha256(), 0
    buffer = bytearray(_READ_BYTES)
    with disk_errors(path), open(path, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadInput(f"{path}: not a regular file; only files can be stored")
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


def _unfinished(digest: Digest, held: int, size: int) -> Unavailable:
    return Unavailable(f"blob {digest}: {held} of {size} bytes are here; send the rest")


def _elsewhere(digest: Digest, offset: int, size: int) -> Unavailable:
    return Unavailable(
        f"blob {digest}: data came for offset {offset}, but {size} bytes are here; go on from {size}"
    )


@contextlib.contextmanager
def _open_partial(path: Path) -> Iterator[int]:
    make_folder(path.parent)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def _link_or_copy(source: Path, target: Path, link: bool) -> None:
    if link:
        with contextlib.suppress(OSError):  # another file system, or one without hard links: copy
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _same(want: str, got: str, place: str) -> None:
    if got != want:
        raise Corrupt(f"{place}: expected sha256 {want}, got {got}; the bytes changed, fetch them again")
