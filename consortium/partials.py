"""How half of a blob waits for the rest: what each owner has sent so far, and the hash of it.

    <folder>/<owner>/<digest>   what an owner has sent so far; nobody else can see or touch it

An owner is a site, or ``<role>.<name>``. All methods may be called from several threads and several processes.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

from consortium import ids
from consortium.errors import Corrupt, Unavailable
from consortium.files import disk_errors, make_folder
from consortium.ids import Digest, is_digest, is_owner, no_owner

_READ_BYTES = 1 << 20


class Partial:
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


class Partials:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._begun: dict[tuple[str, Digest], Partial] = {}
        self._lock = threading.Lock()
        make_folder(folder)

    def path(self, digest: Digest, owner: str) -> Path:
        return of_owner(self._folder, digest, owner)

    def received(self, digest: Digest, owner: str) -> int:
        """Bytes of this owner's partial; 0 if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return self.path(digest, owner).stat().st_size
        return 0

    def append(self, digest: Digest, owner: str, offset: int, data: bytes) -> int:
        """Add ``data`` at ``offset``, which must be where the partial ends; returns where it ends now.

        Not durable before it is whole and taken; what a crash takes away is sent again. Raises Unavailable if
        ``offset`` is elsewhere (ask ``received`` and go on from there), DiskFull.
        """
        path = self.path(digest, owner)
        with self.held(digest, owner) as partial, disk_errors(path):
            self._require_begun(path, digest, owner, offset, _elsewhere(digest, offset, 0))
            with _opened(path) as file:
                return self._append(file, partial, digest, offset, data)

    def _append(self, file: int, partial: Partial, digest: Digest, offset: int, data: bytes) -> int:
        size = partial.catch_up(file)
        if offset != size:
            raise _elsewhere(digest, offset, size)
        written = 0
        while written < len(data):
            written += os.pwrite(file, memoryview(data)[written:], size + written)
        partial.sha256.update(data)
        partial.hashed += len(data)
        return partial.hashed

    @contextlib.contextmanager
    def held(self, digest: Digest, owner: str) -> Iterator[Partial]:
        """This upload for this thread alone; what was forgotten while we waited for it is not it any more."""
        while True:
            with self._lock:
                partial = self._begun.setdefault((owner, digest), Partial())
            with partial.lock:
                if self._begun.get((owner, digest)) is partial:
                    yield partial
                    return

    @contextlib.contextmanager
    def verified(self, partial: Partial, digest: Digest, owner: str, size: int) -> Iterator[int]:
        """The open file of a partial that is held, all ``size`` bytes of it those of its name; not durable yet.

        Raises Unavailable while bytes are missing, Corrupt (and deletes the partial) if they are wrong.
        """
        path = self.path(digest, owner)
        self._require_begun(path, digest, owner, size, _unfinished(digest, 0, size))
        with disk_errors(path), _opened(path) as file:
            held = partial.catch_up(file)
            if held < size:
                raise _unfinished(digest, held, size)
            got = partial.sha256.hexdigest()
            if held > size or got != digest:
                self.forget(digest, owner)
                raise Corrupt(
                    f"blob {digest}: expected {size} bytes with this sha256, got {held} bytes with "
                    f"{got}; the upload was deleted, send it again from the start"
                )
            yield file

    def forget(self, digest: Digest, owner: str) -> None:
        """Delete a partial that is held, if there is one."""
        path = self.path(digest, owner)
        with disk_errors(path):
            path.unlink(missing_ok=True)
        with self._lock:
            self._begun.pop((owner, digest), None)

    def discard(self, digest: Digest, owner: str) -> None:
        """Delete this owner's partial, if there is one."""
        with self.held(digest, owner):
            self.forget(digest, owner)

    def make_room(self, owner: str, keep: int, busy: Collection[Digest] = ()) -> None:
        """Discard this owner's oldest partials until ``keep`` are left, none of ``busy``: those are being written."""
        folder = self.path(ids.digest_of(b""), owner).parent
        with disk_errors(folder), contextlib.suppress(FileNotFoundError):
            own = [path for path in folder.iterdir() if is_digest(path.name)]
            idle = [path for path in own if path.name not in busy]
            for path in sorted(idle, key=lambda path: path.stat().st_mtime_ns)[: max(0, len(own) - keep)]:
                self.discard(Digest(path.name), owner)

    def all(self) -> list[tuple[Digest, str, float]]:
        """What is being sent: blob, owner, and when the last of it came, in seconds since the epoch; sorted."""
        found = []
        for path in by_owner(self._folder):
            with contextlib.suppress(FileNotFoundError):
                found.append((Digest(path.name), path.parent.name, path.stat().st_mtime))
        return sorted(found)

    def _require_begun(
        self, path: Path, digest: Digest, owner: str, offset: int, trouble: Unavailable
    ) -> None:
        """Who goes on with an upload that is not here leaves nothing behind."""
        if offset and not path.exists():
            self.forget(digest, owner)
            raise trouble


def of_owner(folder: Path, digest: Digest, owner: str) -> Path:
    """``<owner>/<digest>`` below a folder; BadInput if one of them is no name."""
    if not is_owner(owner):
        raise no_owner(owner)
    return folder.joinpath(owner, ids.digest(digest))


def by_owner(folder: Path) -> Iterator[Path]:
    """All that is named ``<owner>/<digest>`` below a folder."""
    return (path for path in folder.glob("*/*") if is_digest(path.name) and is_owner(path.parent.name))


def _unfinished(digest: Digest, held: int, size: int) -> Unavailable:
    return Unavailable(f"blob {digest}: {held} of {size} bytes are here; send the rest")


def _elsewhere(digest: Digest, offset: int, size: int) -> Unavailable:
    return Unavailable(
        f"blob {digest}: data came for offset {offset}, but {size} bytes are here; go on from {size}"
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    make_folder(path.parent)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield file
    finally:
        os.close(file)
