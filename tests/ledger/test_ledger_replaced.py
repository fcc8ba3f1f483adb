"""Somebody touches the ledger's file while a coordinator writes to it: noticed, stopped, nothing lost."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from consortium.canonical import Fact
from consortium.errors import BadInput, Broken, Unavailable
from coordinator.ledger import Ledger


class Noted(Fact, tag=True, tag_field="kind"):
    number: int


def write(ledger: Ledger, *numbers: int) -> None:
    ledger.append([Noted(number=number) for number in numbers], 1.0)


def numbers(path: Path) -> list[int]:
    with Ledger(path, read_only=True) as ledger:
        return [entry.event["number"] for entry in ledger.read()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "ledger.sqlite"


@pytest.fixture
def older(path: Path, tmp_path: Path) -> Path:
    """A copy of the ledger as it was after two entries."""
    with Ledger(path) as ledger:
        write(ledger, 1, 2)
    shutil.copyfile(path, tmp_path / "older.sqlite")
    return tmp_path / "older.sqlite"


def by_mv(older: Path, path: Path) -> None:
    os.replace(older, path)


def by_cp(older: Path, path: Path) -> None:
    shutil.copyfile(older, path)


def by_rm(older: Path, path: Path) -> None:
    path.unlink()


def by_rm_of_the_log(older: Path, path: Path) -> None:
    path.with_name(path.name + "-wal").unlink()


@pytest.mark.parametrize("happens", [by_mv, by_rm, by_rm_of_the_log])
def test_a_file_that_was_replaced_is_noticed_and_what_was_acknowledged_is_kept(
    older: Path, path: Path, happens: object
) -> None:
    ledger = Ledger(path)
    write(ledger, *range(3, 200))
    happens(older, path)  # type: ignore[operator]
    with pytest.raises(
        Broken, match=r"ledger\.sqlite: was .* while the coordinator ran; what it held was kept in"
    ):
        ledger.still_mine()
    with pytest.raises(Broken, match="nothing more is written"):
        write(ledger, 999)
    ledger.close()
    kept = path.with_name("ledger.sqlite.kept")
    assert numbers(kept) == list(range(1, 200))
    assert kept.stat().st_mode & 0o777 == 0o600

    with pytest.raises(Broken, match="was replaced while a coordinator ran, which kept what it had in"):
        Ledger(path)  # its supervisor starts it again
    path.unlink(missing_ok=True)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.replace(kept, path)  # what the sentence says
    with Ledger(path) as ledger:
        write(ledger, 200)
    assert numbers(path) == list(range(1, 201))


def test_after_its_log_was_written_back_too(older: Path, path: Path) -> None:
    """A copy destroys the pages that SQLite had written back: nobody is told anything more, a backup has to help."""
    with Ledger(path) as ledger:
        write(ledger, *range(3, 3000))
        with sqlite3.connect(path) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        other.close()
        ledger.still_mine()  # read anew, it is whole
        write(ledger, 3000)
        by_cp(older, path)
        with pytest.raises(Broken, match="was changed by another program while the coordinator ran"):
            write(ledger, 3001)
    assert path.with_name("ledger.sqlite.kept").exists()


def test_a_copy_of_what_the_file_held_anyway_harms_nobody(older: Path, path: Path) -> None:
    with Ledger(path) as ledger:
        write(ledger, *range(3, 200))  # in its log still
        by_cp(older, path)
        write(ledger, 200)
    assert numbers(path) == list(range(1, 201))


def test_a_touch_harms_nobody(older: Path, path: Path) -> None:
    with Ledger(path) as ledger:
        os.utime(path)
        write(ledger, 3)
        path.chmod(0o640)
        write(ledger, 4)
    assert numbers(path) == [1, 2, 3, 4]
    assert not path.with_name("ledger.sqlite.kept").exists()


def test_a_second_name_does_not_lead_past_the_lock(older: Path, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    other.symlink_to(path)
    with Ledger(path):
        with pytest.raises(Unavailable, match="has the ledger open already"):
            Ledger(other)
    other.unlink()
    os.link(path, other)
    for name in (other, path):
        with pytest.raises(BadInput, match=r"the file has 2 names \(hard links\)"):
            Ledger(name)
    assert numbers(other) == [1, 2]  # reading harms nobody
    other.unlink()
    with Ledger(path) as ledger:
        write(ledger, 3)


def test_nobody_else_reads_a_ledger(path: Path) -> None:
    before = os.umask(0)
    try:
        with Ledger(path) as ledger:
            write(ledger, 1)
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert set(modes) == {"ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "ledger.sqlite.lock"}
    assert set(modes.values()) == {0o600}
    path.chmod(0o664)  # a release before this one made it so
    with Ledger(path):
        assert path.stat().st_mode & 0o777 == 0o660
