"""A version is made once, by a process that outlives any number of coordinators, and taken when it is whole."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slow_maker import PROGRAM, SlowOrder, Work

from consortium.canonical import digest_of_fact, encode, replace
from consortium.errors import BadInput, Unavailable
from coordinator.making import Interest, made
from coordinator.making_process import MODEL, RESULT

PATIENCE_SECONDS = 120.0
ROOT = Path(__file__).parents[2]


def until(so: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not so():
        assert time.monotonic() < end, what
        time.sleep(0.01)


class Yard:
    """One folder in which things are made, and its order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.order = SlowOrder(work=Work(text="tere"), yard=str(folder))
        self.lives: list[subprocess.Popen[str]] = []

    @property
    def making(self) -> Path:
        return self.folder / "making"

    @property
    def place(self) -> Path:
        return self.making / digest_of_fact(self.order.work)

    @property
    def begun(self) -> list[int]:
        """The process of each beginning."""
        log = self.folder / "begun"
        return [int(line) for line in log.read_text().split()] if log.exists() else []

    def go(self) -> None:
        (self.folder / "go").touch()

    def until_begun(self, times: int = 1) -> None:
        until(lambda: len(self.begun) == times, f"begun {times} times")

    def life(self) -> subprocess.Popen[str]:
        """A coordinator that wants it."""
        order = self.folder / "asked.json"
        order.write_bytes(encode(self.order))
        words = [sys.executable, str(ROOT / "tests/slow_maker.py"), str(order), str(self.making)]
        self.lives.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        return self.lives[-1]

    def is_free(self) -> bool:
        """Whether nobody makes anything here."""
        return not any(_lives(pid) for pid in self.begun)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    monkeypatch.chdir(ROOT)
    here = Yard(tmp_path)
    yield here
    here.go()
    for life in here.lives:
        life.kill()
        with life:  # waits, and closes its pipe
            pass
    until(here.is_free, "nothing goes on after the test")


def test_no_life_is_as_long_as_the_work_and_it_is_done_once(yard: Yard) -> None:
    for number in range(3):  # the first begins it, the others find it at work
        life = yard.life()
        yard.until_begun()
        if number:
            touched = (yard.place / "wanted").stat().st_mtime_ns
            until(lambda: (yard.place / "wanted").stat().st_mtime_ns != touched, "a life asks for it")  # noqa: B023
        life.kill()
        life.wait()
    assert os.getsid(yard.begun[0]) == yard.begun[0]  # what a terminal sends to its coordinator is not for it
    yard.go()  # and it ends while there is no coordinator at all
    until(yard.is_free, "made")
    told, _ = yard.life().communicate(timeout=PATIENCE_SECONDS)
    assert len(yard.begun) == 1
    assert list(yard.making.iterdir()) == []
    with made(PROGRAM, yard.order, yard.folder / "undisturbed") as version:
        assert told.strip() == version.manifest.digest
    assert len(yard.begun) == 2


def test_one_that_is_killed_is_made_anew(yard: Yard) -> None:
    yard.go()
    with (
        pytest.raises(Unavailable, match="ended with -9"),
        made(PROGRAM, replace(yard.order, falls=True), yard.making),
    ):
        pass
    assert list(yard.place.glob(".model.*.partial"))
    with made(PROGRAM, yard.order, yard.making) as version:
        assert {path.name for path in version.folder.parent.iterdir()} == {
            "model", "order.json", "result.json", "said", "wanted",
        }  # fmt: skip
    assert len(yard.begun) == 2


@contextlib.contextmanager
def left(yard: Yard) -> Iterator[Path]:
    """A result that a coordinator did not live to take."""
    life = yard.life()
    yard.until_begun()
    life.kill()
    yard.go()
    until(yard.is_free, "made")
    yield yard.place


@pytest.mark.parametrize("harm", ["torn", "lost", "foreign", "nonsense", "none"])
def test_only_what_is_whole_and_was_asked_for_is_taken(yard: Yard, harm: str) -> None:
    with left(yard) as place:
        model, result = place / MODEL / "model.bin", place / RESULT
        if harm == "torn":
            model.write_text("ter")
        elif harm == "lost":
            model.unlink()
        elif harm == "foreign":
            other = digest_of_fact(Work(text="tervist"))
            result.write_bytes(result.read_bytes().replace(place.name.encode(), other.encode()))
        elif harm == "nonsense":
            result.write_bytes(result.read_bytes()[:-9])
    with made(PROGRAM, yard.order, yard.making) as version:
        assert (version.folder / "model.bin").read_text() == "tere"
    assert len(yard.begun) == (1 if harm == "none" else 2)


def test_what_can_never_be_made_is_told_by_whichever_coordinator_lives(yard: Yard) -> None:
    yard.order = replace(yard.order, work=Work(text="tere", refused="no such word"))
    with left(yard):
        pass
    with pytest.raises(BadInput, match="no such word"), made(PROGRAM, yard.order, yard.making):
        pass
    assert len(yard.begun) == 1
    assert list(yard.making.iterdir()) == []


def test_who_does_not_want_it_any_more_ends_it(yard: Yard) -> None:
    """Also a process that an earlier coordinator began."""
    life = yard.life()
    yard.until_begun()
    life.kill()
    asked = iter([Interest.WANTED] * 3)
    with (
        pytest.raises(Unavailable, match="does not want it any more"),
        made(PROGRAM, yard.order, yard.making, lambda: next(asked, Interest.NONE)),
    ):
        pass
    until(yard.is_free, "ended")
    assert list(yard.making.iterdir()) == []


def test_who_only_goes_away_leaves_it_to_the_next(yard: Yard) -> None:
    def interest() -> Interest:
        return Interest.LEFT if yard.begun else Interest.WANTED

    with pytest.raises(Unavailable, match="who comes next"), made(PROGRAM, yard.order, yard.making, interest):
        pass
    assert _lives(yard.begun[0])
    yard.go()
    with made(PROGRAM, yard.order, yard.making):
        pass
    assert len(yard.begun) == 1


def test_one_that_nobody_asks_for_ends_by_itself(yard: Yard) -> None:
    yard.order = replace(yard.order, alone_seconds=0.0)
    life = yard.life()
    yard.until_begun()
    life.kill()
    until(yard.is_free, "ended")
    assert not (yard.place / RESULT).exists()


def test_a_work_that_is_begun_is_not_begun_again_beside_it(yard: Yard) -> None:
    """Not even while its process stands still."""
    life = yard.life()
    yard.until_begun()
    life.kill()
    os.kill(yard.begun[0], signal.SIGSTOP)
    lives = [yard.life(), yard.life()]
    try:
        touched = (yard.place / "wanted").stat().st_mtime_ns
        until(lambda: (yard.place / "wanted").stat().st_mtime_ns != touched, "a life asks for it")
        assert len(yard.begun) == 1
    finally:
        os.kill(yard.begun[0], signal.SIGCONT)
    lives[1].kill()
    yard.go()
    told, _ = lives[0].communicate(timeout=PATIENCE_SECONDS)
    assert len(told.strip()) == 64 and len(yard.begun) == 1
