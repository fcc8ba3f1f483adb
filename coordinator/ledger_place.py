"""Is the ledger's file still the one that was opened, and has it one name only.

SQLite goes on writing to a file that was moved away or deleted, and puts its pages into one over which another was
copied: what is written then is lost with the process, or damages what was put there. So before each write, and twice
a second, the file is looked at; if it is not as this process left it, what the ledger held is kept beside it under a
name of its own, and the coordinator stops. It does not start again before somebody has looked.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from consortium.errors import BadInput, Broken, SprachbundError
from consortium.files import disk_errors, move_into_place, sync_file, temporary_beside

_Looks = tuple[int, int, int, int]  # device, inode, size, nanoseconds of the last change


class Place:
    """One file and its write-ahead log, as its only writer knows them."""

    def __init__(self, path: Path) -> None:
        """Make ``path`` fit for one writer alone. Raises BadInput if it has another name, Broken if it was replaced."""
        self.path = path
        self.kept = path.with_name(path.name + ".kept")
        self._wal = path.with_name(path.name + "-wal")
        with disk_errors(path):
            if self.kept.exists():
                raise Broken(
                    f"{path}: was replaced while a coordinator ran, which kept what it had in {self.kept}; compare the "
                    f"two with `sprachbund verify`, put the right one there, and move {self.kept.name} elsewhere"
                )
            # before SQLite would make it, readable for everybody
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            found = path.stat()
            if found.st_nlink > 1:
                raise BadInput(
                    f"{path}: the file has {found.st_nlink} names (hard links); another coordinator could write to it "
                    "by the other one, past the lock; copy it, and delete the others"
                )
            if found.st_mode & 0o007:
                path.chmod(found.st_mode & 0o770)
        self._left: _Looks | None = None
        self._log: _Looks | None = None

    def note(self) -> None:
        """It is as it should be now: opened, or written to by us."""
        self._left, self._log = _look(self.path), _look(self._wal)

    def note_written(self) -> None:
        """A transaction of ours changed it. If it was replaced meanwhile, the next look says so."""
        found, log = _look(self.path), _look(self._wal)
        if _same_file(found, self._left) and _same_file(log, self._log):
            self._left, self._log = found, log

    def require_same(self, is_whole: Callable[[], bool], keep: Callable[[sqlite3.Connection], None]) -> None:
        """Raise Broken if somebody else touched the file, once what it held is kept.

        is_whole  whether the file, read anew, holds what it held: a touch harms nobody
        keep      copies the ledger, as the open connection sees it, into another
        """
        found, log = _look(self.path), _look(self._wal)
        if found == self._left and _same_file(log, self._log):
            return
        replaced = not _same_file(found, self._left) or not _same_file(log, self._log)
        if not replaced and is_whole():
            self.note()
            return
        what = "was moved, deleted or replaced" if replaced else "was changed by another program"
        raise Broken(
            f"{self.path}: {what} while the coordinator ran; {self._rescue(keep)}; nothing more is written"
        )

    def _rescue(self, keep: Callable[[sqlite3.Connection], None]) -> str:
        """Put what the open connection can still read beside the file; the sentence that says so."""
        if self.kept.exists():
            return f"what it held is in {self.kept}"
        temporary = temporary_beside(self.kept)
        trouble = ""
        try:
            os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            try:
                with contextlib.closing(sqlite3.connect(temporary)) as copy:
                    keep(copy)
            except sqlite3.Error as error:
                trouble = f", not whole ({error})"
            sync_file(temporary)
            move_into_place(temporary, self.kept)
        except (OSError, SprachbundError) as error:
            return f"what it held could not be kept ({error}): restore a backup"
        finally:
            temporary.unlink(missing_ok=True)
        return f"what it held was kept in {self.kept}{trouble}: look, then put the right one there"


def _look(path: Path) -> _Looks | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _same_file(one: _Looks | None, other: _Looks | None) -> bool:
    return (one and one[:2]) == (other and other[:2])
