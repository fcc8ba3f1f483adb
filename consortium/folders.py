"""How a whole folder of files appears at once: filled under a hidden name, synced, then renamed.

A process that is killed half-way leaves ``.<name>.<random>.partial`` beside the place, never the place
itself. Whoever fills the same place next removes it: the owner of a partial folder holds a lock on it as
long as it lives.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from consortium.errors import BadInput
from consortium.files import disk_errors, make_folder, move_into_place, sync_folder


@contextlib.contextmanager
def fresh_folder(place: Path, mode: int = 0o755) -> Iterator[Path]:
    """An empty folder to fill with fsynced files; becomes ``place`` when the block ends well, else vanishes.

    mode  of the folder itself; 0o700 for what nobody else should read
    Raises BadInput if ``place`` exists, DiskFull or Unavailable as the disk has it.
    """
    if os.path.lexists(place):
        raise BadInput(f"{place}: exists already; choose another name or remove it")
    with disk_errors(place):
        make_folder(place.parent)
        _remove_orphans(place)
        partial, lock = _own_partial(place)
        try:
            yield partial
            partial.chmod(mode)
            filled = {Path(folder) for folder, folders, files in os.walk(partial) if folders or files}
            for folder in sorted(filled | {partial}):
                sync_folder(folder)
            move_into_place(partial, place)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            os.close(lock)


def _own_partial(place: Path) -> tuple[Path, int]:
    """A fresh folder and the lock on it; another one if somebody took it for an orphan before it was locked."""
    while True:
        partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".partial", dir=place.parent))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):  # where nothing can be locked, nobody removes it
                fcntl.flock(lock, fcntl.LOCK_EX)  # who holds it removes it now
            if partial.is_dir():
                return partial, lock
            os.close(lock)


def _remove_orphans(place: Path) -> None:
    begin, end = f".{place.name}.", ".partial"
    # a pattern would have to be compiled for every name
    left = [name[len(begin) :] for name in os.listdir(place.parent) if name.startswith(begin)]
    for partial in sorted(place.with_name(begin + rest) for rest in left if rest.endswith(end)):
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if _lock(lock):
                    shutil.rmtree(partial, ignore_errors=True)
            finally:
                os.close(lock)


def _lock(folder: int) -> bool:
    """Whether nobody else holds it. A file system without locks (some Lustre mounts) keeps its orphans."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
