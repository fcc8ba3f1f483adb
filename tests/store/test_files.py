"""A file is the old one or the new one; a folder is there whole, or not at all."""

import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest

from consortium.errors import DiskFull, Unavailable
from consortium.files import write_bytes_atomically
from consortium.folders import fresh_folder


def test_bytes_are_written_whole_with_the_wanted_mode(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "job.json"
    write_bytes_atomically(path, b"one")
    write_bytes_atomically(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["job.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "job.json"
    write_bytes_atomically(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskFull, match=r"job\.json: No space left on device; free some space"):
        write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["job.json"]


def test_a_place_that_cannot_hold_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match=r"file/job\.json: File exists; check the file system"):
        write_bytes_atomically(tmp_path / "file" / "job.json", b"")


def test_the_bytes_are_on_disk_before_the_name_is_and_the_name_before_we_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(file: int) -> None:
        calls.append("fsync folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "fsync file")
        fsync(file)

    def watched_replace(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_bytes_atomically(tmp_path / "job.json", b"new")
    assert calls == ["fsync file", "rename", "fsync folder"]


@pytest.mark.parametrize("is_late", [False, True])
def test_a_folder_that_another_process_took_for_an_orphan_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """Between its making and its locking, somebody else comes to fill the same place."""
    place, moments = tmp_path / "attempt", iter([1])
    make, opens = tempfile.mkdtemp, os.open

    def removed() -> None:
        for _ in moments:
            [orphan] = tmp_path.iterdir()
            orphan.rmdir()

    def made(**words: object) -> str:
        name = make(**words)  # type: ignore[call-overload]
        if not is_late:
            removed()
        return str(name)

    def opened(path: Path, *how: int) -> int:
        descriptor = opens(path, *how)
        if is_late and path != tmp_path:
            removed()
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkdtemp", made)
        patch.setattr(os, "open", opened)
        with fresh_folder(place) as folder:
            assert folder.is_dir()
            write_bytes_atomically(folder / "job.json", b"words")
    assert [path.name for path in tmp_path.iterdir()] == ["attempt"]
    assert [path.name for path in place.iterdir()] == ["job.json"]
