"""How a version is made by a process of its own, which the next coordinator finds again if this one dies.

    work/making/<digest of the work>/
      order.json    what to make, and where its parts lie
      wanted        touched while a coordinator waits for it; taken away once nobody wants it any more
      said          what the process had to say
      model/        the version's files: appears whole
      result.json   what was made, or why nothing can be; comes last
    work/making/<digest of the work>.lock

The same work gives the same bytes, so whoever finds a result of its work takes it, once every byte of it was compared
with what the result says. As soon as the process is begun the lock is its alone, and let go by its end, however that
comes, and by nothing else. So no work is done twice at once on one machine, and a coordinator that dies every half
minute still gets a base that takes a minute.
"""

import contextlib
import enum
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from consortium.canonical import decode, digest_of_fact, encode
from consortium.errors import BadInput, Unavailable
from consortium.files import disk_errors, make_folder
from consortium.manifests import VersionManifest
from consortium.versions import verify_directory
from coordinator.making_process import MODEL, ORDER, RESULT, SAID, WANTED, Order, Result

MARK = "SPRACHBUND_MAKING"  #: in the environment of such a process: its folder
_LOOK_SECONDS = 0.05
_RENEW_SECONDS = 5.0
_END_SECONDS = 10.0  # for a process to notice that it is not wanted


class Interest(enum.Enum):
    """What somebody who asked for a version thinks of it now."""

    WANTED = "waits for it"
    LEFT = "goes away, and who comes next may want it"
    NONE = "does not want it any more"


@dataclass(frozen=True, slots=True)
class Made:
    folder: Path  #: the model's, with the outer state beside
    manifest: VersionManifest


def always() -> Interest:
    return Interest.WANTED


@contextlib.contextmanager
def made(
    program: str, order: Order, folder: Path, interest: Callable[[], Interest] = always
) -> Iterator[Made]:
    """What ``order`` asks for, as long as the block lasts; if that fails it stays for the next who asks.

    program   the module that makes it, given a folder
    folder    of all that is being made
    interest  asked again and again while the process works
    Raises BadInput if it can never be made; Unavailable if the process fell, or is not wanted any more.
    """
    place = folder / digest_of_fact(order.work)
    with disk_errors(place):
        lock, result = _awaited(program, order, place, interest)
    try:
        if result.manifest is None:
            _discard(place)
            raise BadInput(result.refusal)
        yield Made(place / MODEL, result.manifest)
        _discard(place)
    finally:
        os.close(lock)
        _reap()


def _awaited(program: str, order: Order, place: Path, interest: Callable[[], Interest]) -> tuple[int, Result]:
    """The lock, and what was made: by a process that is begun here, unless one is at work."""
    begun: subprocess.Popen[bytes] | None = None
    renewed = 0.0
    _reap()
    try:
        while (now := interest()) is Interest.WANTED:
            if (lock := _lock(place)) is not None:
                with contextlib.ExitStack() as held:
                    held.callback(os.close, lock)
                    result = _result(place, order, compare=begun is None)
                    status = None if begun is None else begun.wait()  # it let go of the lock
                    if result is not None:
                        held.pop_all()
                        return lock, result
                    if status is not None:
                        raise _failure(program, place, status)
                    begun = _begin(program, order, place, lock)
            if time.monotonic() - renewed > _RENEW_SECONDS:
                renewed = time.monotonic()
                with contextlib.suppress(OSError):  # a full disk; or whoever wanted it before took it away
                    os.utime(place / WANTED)
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:  # whoever verifies by hand
        _call_off(place)
        raise
    if now is Interest.NONE:
        _call_off(place)
    raise Unavailable(f"{program}: whoever waited for what it makes {now.value}")


def _lock(place: Path) -> int | None:
    """The lock, or None while somebody else holds it."""
    path = place.with_name(place.name + ".lock")
    make_folder(place)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(path)):
            return lock
    except (BlockingIOError, FileNotFoundError):  # held; or done with, between two looks
        pass
    except OSError:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _result(place: Path, order: Order, compare: bool) -> Result | None:
    """What was made of this order, if it is whole.

    compare  it was made under an earlier coordinator: the disk may have lost some of it since
    """
    try:
        result = decode((place / RESULT).read_bytes(), Result, RESULT)
        if result.work != digest_of_fact(order.work):
            return None
        if result.manifest is not None and compare:
            verify_directory(result.manifest, place / MODEL)
    except (FileNotFoundError, BadInput):
        return None
    return result


def _begin(program: str, order: Order, place: Path, lock: int) -> subprocess.Popen[bytes]:
    """Nothing of what an earlier one left is used."""
    shutil.rmtree(place)
    make_folder(place)
    (place / ORDER).write_bytes(encode(order))  # who reads it falls with this machine: no need to sync
    (place / WANTED).touch()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", MARK: str(place)}
    with open(place / SAID, "wb") as said:
        begun = subprocess.Popen(
            [sys.executable, "-m", program, str(place)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=(lock,),
            start_new_session=True,  # a Ctrl-C is for the coordinator, which then says what it wants
            env=environment,
        )
    _begun.add(begun)
    return begun


_begun: set[subprocess.Popen[bytes]] = set()


def _reap() -> None:
    """Forget the processes that ended after whoever began them had gone away."""
    for process in list(_begun):
        if process.poll() is not None:
            _begun.discard(process)


def _failure(program: str, place: Path, status: int) -> Unavailable:
    said = (place / SAID).read_text(errors="replace").strip().splitlines()
    return Unavailable(f"{program} ended with {status}: {said[-1] if said else 'no message'}")


def _call_off(place: Path) -> None:
    """The process ends, and nothing of it stays; what it leaves if it takes too long is for a cleaning."""
    with contextlib.suppress(OSError):
        (place / WANTED).unlink(missing_ok=True)
        until = time.monotonic() + _END_SECONDS
        while time.monotonic() < until:
            if (lock := _lock(place)) is not None:
                _discard(place)
                os.close(lock)
                break
            time.sleep(_LOOK_SECONDS)
    _reap()


def unclaimed(folder: Path, before: float) -> list[Path]:
    """What was being made below ``folder``, or was made, and taken by no coordinator: not touched since ``before``."""
    places = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(path for path in places if path.stat().st_mtime < before)


def forget(place: Path) -> None:
    """Remove what nobody claimed, unless somebody is at it."""
    with disk_errors(place):
        if (lock := _lock(place)) is not None:
            _discard(place)
            os.close(lock)


def _discard(place: Path) -> None:
    """Under its lock, which goes last."""
    shutil.rmtree(place)
    place.with_name(place.name + ".lock").unlink()
