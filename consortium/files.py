"""How bytes reach the disk so that a crash leaves the old file or the new one, never half of one.

Write beside the final name, fsync, rename, fsync the folder: after the function returns, the file survives
a power cut; before it returns, a reader sees what was there before.
"""

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from pathlib import Path

from consortium.errors import DiskFull, Unavailable

_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_sync_file_range = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_BYTES = 16 << 10  # at once, of a file that is expected to be smaller


class DiskErrors:
    """What ``disk_errors`` gives: a class, since a generator would cost as much as what it guards."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in _FULL:
            raise DiskFull(
                f"{self._path}: {error.strerror}; free some space or raise the quota, then try again"
            ) from error
        raise Unavailable(
            f"{self._path}: {error.strerror or error}; check the file system and its permissions"
        ) from error


def disk_errors(path: Path) -> DiskErrors:
    """Turn an OSError inside the block into DiskFull or Unavailable that names ``path`` and the way out."""
    return DiskErrors(path)


def temporary_beside(path: Path) -> Path:
    """A fresh hidden name in the folder of ``path``: a rename from there stays on one file system."""
    return path.with_name(_hidden(path.name))


def read_small(path: str | os.PathLike[str]) -> bytes:
    """All of a file that is small, with as few questions to the system as there can be.

    An agent reads a dozen such files at each look, and a ``Path`` that opens one costs three times as much.
    Raises OSError, as ``open`` does.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(file, _READ_BYTES):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(file)


def write_bytes_atomically(path: Path, data: bytes, mode: int = 0o644, makes_folders: bool = True) -> None:
    """Make ``path`` hold exactly ``data``, durably and all at once; folders are made as needed.

    mode           permission bits from the first instant (0o600 for keys), less the umask.
    makes_folders  False: into a folder that somebody else may take away; without it nothing is written
    Raises DiskFull or Unavailable; then nothing has changed.
    """
    with disk_errors(path):
        folder, name = os.path.split(path)  # plain strings: a Path costs as much as the disk
        if makes_folders and not os.path.isdir(folder):
            make_folder(path.parent)
        temporary = f"{folder}/{_hidden(name)}" if folder else _hidden(name)
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            try:
                left = memoryview(data)
                while left:
                    left = left[os.write(file, left) :]
                os.fsync(file)
            finally:
                os.close(file)
            move_into_place(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def move_into_place(temporary: str | Path, path: Path) -> None:
    """Rename a file or folder whose bytes are already fsynced, and make the new name durable."""
    os.replace(temporary, path)
    sync_folder(os.path.dirname(path) or ".")


def make_folder(path: Path) -> None:
    """Make ``path`` and what is missing above it; each new name is durable."""
    if os.path.isdir(path):
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def make_private_folder(path: Path, tighten: bool = True) -> None:
    """Make ``path`` as a folder for its owner alone, and what is missing above it.

    tighten  take the rights of others (not the group's: somebody gave them on purpose) from one that is there already
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_folder(path.parent)
    elif tighten and (mode := stat.S_IMODE(path.stat().st_mode)) & 0o007:
        path.chmod(mode & ~0o007)


def start_writeback(file: int, offset: int, length: int) -> None:
    """Have the system begin to write a range of an open file to disk, without waiting; promises nothing.

    An fsync after gigabytes waits for the disk alone; begun early, the disk works beside the processor. Where
    the system has no sync_file_range(2), nothing happens.
    """
    if _sync_file_range is not None:
        _sync_file_range(file, offset, length, _SYNC_FILE_RANGE_WRITE)


def sync_file(path: Path) -> None:
    """fsync a file that somebody else wrote."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: str | Path) -> None:
    """fsync a folder, so that the names in it survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hidden(name: str) -> str:
    return f".{name[:64]}.{secrets.token_hex(6)}.tmp"
