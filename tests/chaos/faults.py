"""Which faults can fall on a consortium of real processes, and how each is made, and ends, without anybody's help.

Every fault is a function of (arena, daemon, dice): it strikes, lasts as long as the dice say, heals what it did to
disk, line, clock or file, and returns one sentence. What the daemon does about it is the daemon's business.
"""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from arena import COORDINATOR, Arena, can_fake_time, can_mount

from console.client import ask
from consortium.errors import SprachbundError
from consortium.identity import Authority, signing_request
from consortium.ids import SiteName
from site_agent.identity import SiteIdentity

Fault = Callable[[Arena, str, random.Random], str]


class Missed(Exception):
    """There was nothing to hit; not counted."""


def site_of(daemon: str) -> str:
    return daemon.removeprefix("agent-")


# --- processes ----------------------------------------------------------------------------------------


def kill(arena: Arena, daemon: str, dice: random.Random) -> str:
    if daemon == COORDINATOR:
        arena.wait_until_recorded()
    with arena.kept_down(daemon):
        time.sleep(pause := dice.uniform(0.0, 2.0))
    if daemon == COORDINATOR:
        arena.wait_until_recorded()
    return f"SIGKILL, started again after {pause:.1f} s"


def freeze(arena: Arena, daemon: str, dice: random.Random) -> str:
    seconds = dice.uniform(0.5, 6.0)
    _freeze([arena.processes[daemon].pid], seconds)
    return f"SIGSTOP for {seconds:.1f} s"


def restart(arena: Arena, daemon: str, dice: random.Random) -> str:
    with arena.lock:
        arena.down.add(daemon)
        process = arena.processes[daemon]
    process.terminate()
    try:
        status = process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
        arena.problems.append(f"{daemon} did not end within 60 s of SIGTERM")
    with arena.lock:
        arena.start_daemon(daemon)
        arena.down.discard(daemon)
    return f"SIGTERM, ended with {status}, started again"


def kill_job(arena: Arena, daemon: str, dice: random.Random) -> str:
    """A trainer of a site; at the coordinator a process that merges or makes a base, whichever life began it."""
    pids = _some_job(arena, daemon)
    os.kill(pid := dice.choice(pids), signal.SIGKILL)
    return f"SIGKILL of its job's process {pid}"


def freeze_job(arena: Arena, daemon: str, dice: random.Random) -> str:
    pids, seconds = _some_job(arena, daemon), dice.uniform(0.5, 4.0)
    _freeze(pids, seconds)
    return f"SIGSTOP of its job for {seconds:.1f} s"


def _some_job(arena: Arena, daemon: str) -> list[int]:
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        with contextlib.suppress(KeyError):
            if pids := _jobs(arena, daemon):
                return pids
        time.sleep(0.1)
    raise Missed


def _jobs(arena: Arena, daemon: str) -> list[int]:
    return arena.makers() if daemon == COORDINATOR else arena.trainers_of(site_of(daemon))


def _freeze(pids: list[int], seconds: float) -> None:
    for number, pause in ((signal.SIGSTOP, seconds), (signal.SIGCONT, 0.0)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(pause)


# --- the line -----------------------------------------------------------------------------------------


def cut(arena: Arena, daemon: str, dice: random.Random) -> str:
    arena.lines[site_of(daemon)].cut()
    return "every connection cut"


def cut_after(arena: Arena, daemon: str, dice: random.Random) -> str:
    arena.lines[site_of(daemon)].cut_after(count := dice.randrange(1, 300_000))
    return f"cut after {count} more bytes"


def stall(arena: Arena, daemon: str, dice: random.Random) -> str:
    with _line(arena, daemon, seconds := dice.uniform(1.0, 8.0)) as line:
        line.stall()
    return f"nothing passed for {seconds:.1f} s"


def delay(arena: Arena, daemon: str, dice: random.Random) -> str:
    each = dice.uniform(0.05, 0.5)
    with _line(arena, daemon, seconds := dice.uniform(2.0, 8.0)) as line:
        line.delay_seconds = each
    return f"each piece {each:.2f} s late for {seconds:.1f} s"


def refuse(arena: Arena, daemon: str, dice: random.Random) -> str:
    with _line(arena, daemon, seconds := dice.uniform(1.0, 8.0)) as line:
        line.refuses = True
        line.cut()
    return f"nobody reached for {seconds:.1f} s"


def corrupt(arena: Arena, daemon: str, dice: random.Random) -> str:
    line = arena.lines[site_of(daemon)]
    before = line.damaged
    line.corrupt()
    until = time.monotonic() + 8.0
    while line.damaged == before and time.monotonic() < until:
        time.sleep(0.05)
    if line.damaged == before:
        line.heal()
        raise Missed
    return "one bit changed"


@contextlib.contextmanager
def _line(arena: Arena, daemon: str, seconds: float) -> Iterator[object]:
    line = arena.lines[site_of(daemon)]
    try:
        yield line
        time.sleep(seconds)
    finally:
        line.heal()


# --- the disk -----------------------------------------------------------------------------------------


def fill_disk(arena: Arena, daemon: str, dice: random.Random) -> str:
    filler, seconds = arena.homes[daemon] / "filler", dice.uniform(1.0, 6.0)
    try:
        written = 0
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        written += file.write(bytes(size))
        time.sleep(seconds)
    finally:
        filler.unlink(missing_ok=True)
    return f"full ({written >> 10} KiB of nothing) for {seconds:.1f} s"


def read_only_disk(arena: Arena, daemon: str, dice: random.Random) -> str:
    """Nobody may hold a file open for writing when it begins, so daemon and jobs are killed first."""
    home, seconds = arena.homes[daemon], dice.uniform(2.0, 6.0)
    with arena.kept_down(daemon):
        _end_jobs(arena, daemon)
        _remount(home, "ro")
    try:
        time.sleep(seconds)
    finally:
        _remount(home, "rw")
    return f"read-only for {seconds:.1f} s, from its start on"


def tear_writes(arena: Arena, daemon: str, dice: random.Random) -> str:
    """Killed, and what was being written is left as a crash leaves it: shorter, longer, or half there."""
    home, torn = arena.homes[daemon], 0
    if daemon == COORDINATOR:
        arena.wait_until_recorded()
    with arena.kept_down(daemon):
        _end_jobs(arena, daemon)
        for path in sorted(home.rglob("*")):
            if path.is_file() and ("partials" in path.parts or path.name.endswith(".tmp")):
                torn += 1
                os.truncate(path, dice.randrange(path.stat().st_size + 1))
        folders = sorted(path for path in home.rglob("*") if path.is_dir())
        for folder in dice.sample(folders, min(3, len(folders))):
            torn += 1
            (folder / f".torn.{dice.randbytes(6).hex()}.tmp").write_bytes(dice.randbytes(1000))
        wal = home / "ledger.sqlite-wal"
        if wal.is_file():  # half a frame that nobody was told of
            torn += 1
            with open(wal, "ab") as file:
                file.write(dice.randbytes(dice.randrange(1, 4000)))
    if daemon == COORDINATOR:
        arena.wait_until_recorded()
    return f"SIGKILL, {torn} torn writes"


def lose_blob(arena: Arena, daemon: str, dice: random.Random) -> str:
    """A blob of a site's cache is gone for good. One of the coordinator's comes back: nobody else has it."""
    store = arena.homes[daemon] / ("store/blobs" if daemon == COORDINATOR else "blobs")
    blobs = sorted(path for path in store.glob("*/*") if not path.name.startswith("."))
    if not blobs:
        raise Missed
    path = dice.choice(blobs)
    if daemon != COORDINATOR:
        path.unlink(missing_ok=True)
        return f"blob {path.parent.name}{path.name[:6]} deleted"
    seconds, aside = dice.uniform(0.5, 4.0), arena.workdir / f"aside-{path.name}"
    shutil.copy2(path, aside)
    path.unlink()
    try:
        time.sleep(seconds)
    finally:
        with contextlib.suppress(OSError):  # the disk may be full meanwhile: then later
            _put_back(aside, path)
    return f"blob {path.parent.name}{path.name[:6]} away for {seconds:.1f} s"


def _put_back(aside: Path, path: Path) -> None:
    beside = path.with_name(f".{path.name[:8]}.back.tmp")
    shutil.copy2(aside, beside)
    os.replace(beside, path)
    aside.unlink()


def _remount(home: Path, how: str) -> None:
    until = time.monotonic() + 30.0
    while True:
        done = subprocess.run(["mount", "-o", f"remount,{how}", home], capture_output=True, check=False)
        if done.returncode == 0:
            return
        if time.monotonic() > until:
            raise OSError(errno.EBUSY, done.stderr.decode(), str(home))
        time.sleep(0.1)


def _end_jobs(arena: Arena, daemon: str) -> None:
    until = time.monotonic() + 10.0
    while (pids := _jobs(arena, daemon)) and time.monotonic() < until:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


# --- certificates and clocks --------------------------------------------------------------------------


def expire_certificate(arena: Arena, daemon: str, dice: random.Random) -> str:
    """A daemon starts with a certificate that is over. The coordinator's is issued anew, by itself.

    An agent whose certificate is over has nobody to ask for another; it says so and ends, until it has its own again.
    """
    home, seconds = arena.homes[daemon], dice.uniform(2.0, 6.0)
    year_ago = time.time() - 500 * 86400.0
    authority = Authority.load(arena.home / "authority")
    if daemon == COORDINATOR:
        arena.wait_until_recorded()
        with arena.kept_down(daemon):
            expired = authority.coordinator(["127.0.0.1", "localhost"], year_ago)
            (home / "server.pem").write_bytes(expired.certificate)
            (home / "server.key").write_bytes(expired.key)
        return "its certificate had expired"
    place, aside = home / "identity" / "site.pem", arena.workdir / f"aside-{daemon}.pem"
    with arena.kept_down(daemon):
        shutil.copy2(place, aside)
        identity = SiteIdentity.load(home)
        request = signing_request(SiteName(site_of(daemon)), identity.key)
        past = authority.site(request, SiteName(site_of(daemon)), year_ago, 30)
        SiteIdentity(identity.trust, identity.key, past).save(home)
        arena.excused.add(daemon)
    time.sleep(seconds)
    with arena.kept_down(daemon):
        shutil.copy2(aside, place)
        arena.excused.discard(daemon)
    return f"an expired certificate for {seconds:.1f} s"


def suspend(arena: Arena, daemon: str, dice: random.Random) -> str:
    """The site's certificate counts for nothing until the admin takes the site back."""
    site, seconds = site_of(daemon), dice.uniform(0.5, 4.0)
    _tell(arena, site, "suspend")
    time.sleep(seconds)
    _tell(arena, site, "resume")
    return f"suspended for {seconds:.1f} s"


def _tell(arena: Arena, site: str, word: str) -> None:
    until = time.monotonic() + 120.0
    while True:
        try:
            ask(arena.admin, lambda coordinator: coordinator.set_site(site, word, "a storm"))
            return
        except SprachbundError:
            if time.monotonic() > until:
                raise
            time.sleep(1.0)


def wrong_clock(arena: Arena, daemon: str, dice: random.Random) -> str:
    """An hour ahead or behind, from a restart to the next."""
    wrong, seconds = dice.choice((-3600, 3600)), dice.uniform(4.0, 10.0)
    if daemon == COORDINATOR:
        arena.wait_until_recorded()
    with arena.kept_down(daemon):
        arena.clocks[daemon] = wrong
    time.sleep(seconds)
    with arena.kept_down(daemon):
        arena.clocks.pop(daemon)
    if daemon == COORDINATOR:
        arena.wait_until_recorded()
    return f"clock {wrong:+d} s for {seconds:.1f} s"


_PROCESSES: tuple[Fault, ...] = (kill, freeze, restart, kill_job, freeze_job)
_LINES: tuple[Fault, ...] = (cut, cut_after, stall, delay, refuse, corrupt)
_DISKS: tuple[Fault, ...] = (fill_disk, read_only_disk, tear_writes, lose_blob)


def faults_for(daemon: str) -> tuple[list[Fault], dict[str, str]]:
    """What can fall on a daemon, in a fixed order; and what cannot on this machine, with the reason."""
    found = [*_PROCESSES, *(() if daemon == COORDINATOR else _LINES), *_DISKS, expire_certificate]
    found += [] if daemon == COORDINATOR else [suspend]
    found += [wrong_clock]
    missing: dict[str, str] = {}
    if not can_mount():
        missing |= dict.fromkeys(("fill_disk", "read_only_disk"), "only root can mount a small disk")
    if not can_fake_time():
        missing["wrong_clock"] = "libfaketime is not installed (Debian: apt-get install faketime)"
    return [fault for fault in found if fault.__name__ not in missing], missing
