"""Can the site's home be trusted with files: space, inodes, quota, and what the file system promises."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from consortium.errors import DiskFull, Unavailable
from consortium.files import disk_errors, sync_folder, write_bytes_atomically
from site_agent.doctor.check import Check, check, warning

FREE_BYTES_MIN = 5 << 30  # a small base model, a training checkpoint and a delta
FREE_INODES_MIN = 10_000  # an attempt takes some hundred
_QUOTA_SECONDS = 15.0
_NETWORK = (
    "lustre",
    "gpfs",
    "nfs",
    "nfs4",
    "beegfs",
    "cephfs",
    "ceph",
    "fuse",
    "smb",
    "cifs",
    "9p",
    "wekafs",
)


def disk_checks(home: Path) -> Iterator[Check]:
    yield check("home", lambda: promises(home), "make the folder writable for this user, or change `home`")
    yield check("space", lambda: _space(home), "free some space, or move `home` to a larger file system")
    yield check("inodes", lambda: _inodes(home), "delete many small files, or have the quota raised")
    yield from quota(home)
    kind, mount = filesystem(home, Path("/proc/self/mounts").read_text())
    if kind.startswith(_NETWORK):
        yield warning(
            "file system",
            f"{mount} is {kind}, shared between hosts",
            "the agent is made for that and needs no locks; where scratch is purged, move `home` or keep it in use",
        )
    elif kind:
        yield Check(name="file system", is_good=True, detail=f"{mount} is {kind}, of this host")


def promises(home: Path) -> str:
    """Write, fsync, rename, read back, and make a name once: what every file of the agent rests on."""
    probe = home / f".doctor.{os.getpid()}"
    try:
        with disk_errors(probe):
            write_bytes_atomically(probe, b"old")
            write_bytes_atomically(probe, b"new")
            if (found := probe.read_bytes()) != b"new":
                raise Unavailable(f"{probe}: has {found[:20]!r} after it was replaced by b'new'")
            try:
                os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                raise Unavailable(f"{probe}: O_EXCL made a name that was there; use another file system")
            _links(probe, probe.with_name(f"{probe.name}.link"))
            sync_folder(home)
    finally:
        probe.unlink(missing_ok=True)
        probe.with_name(f"{probe.name}.link").unlink(missing_ok=True)
    return f"{home}: write, fsync, rename, fsync of the folder, O_EXCL and hard links do what they promise"


def _links(probe: Path, link: Path) -> None:
    """A hard link succeeds once: by that one Slurm job of two comes to own a life."""
    try:
        os.link(probe, link)
    except OSError as error:
        raise Unavailable(
            f"{link}: no hard link can be made here ({error.strerror}); use another file system"
        ) from error
    with contextlib.suppress(FileExistsError):
        os.link(probe, link)
        raise Unavailable(f"{link}: a second link of one name was made; use another file system")
    if not os.path.samefile(probe, link):
        raise Unavailable(f"{link}: is another file than the one it was linked to; use another file system")


def _space(home: Path) -> str:
    free = shutil.disk_usage(home).free
    if free < FREE_BYTES_MIN:
        raise DiskFull(f"{free / 1e9:.1f} GB are free, a job may need {FREE_BYTES_MIN / 1e9:.1f}")
    return f"{free / 1e9:.0f} GB are free"


def _inodes(home: Path) -> str:
    found = os.statvfs(home)
    if found.f_files == 0:
        return "this file system does not count inodes"
    if found.f_favail < FREE_INODES_MIN:
        raise DiskFull(f"{found.f_favail} inodes are free, at least {FREE_INODES_MIN} are wanted")
    return f"{found.f_favail} inodes are free"


def quota(home: Path) -> Iterator[Check]:
    """What the site's own quota command says, where there is one; it is shown, not judged."""
    kind, _ = filesystem(home, Path("/proc/self/mounts").read_text())
    is_lustre = kind.startswith("lustre")
    command = (
        ["lfs", "quota", "-q", "-u", str(os.getuid()), str(home)] if is_lustre else ["quota", "-s", "-w"]
    )
    if shutil.which(command[0]) is None:
        return
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_QUOTA_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield warning("quota", f"{command[0]} did not answer: {error}", "ask the site's help desk")
        return
    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]
    over = any("*" in line for line in lines)  # source: quota(1), lfs-quota(1): an exceeded limit has a star
    said = "; ".join(lines[-3:]) or "no quota"
    yield Check(
        name="quota",
        is_good=not over,
        detail=said,
        way_out="free some space or have the quota raised" if over else "",
        exit_code=DiskFull.exit_code if over else 0,
    )


def filesystem(path: Path, mounts: str) -> tuple[str, str]:
    """Kind and mount point of the file system that ``path`` lies on; source: proc_mounts(5). "" if unknown."""
    resolved = path.resolve()
    best = ("", "")
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        mount = fields[1].replace("\\040", " ")
        if (resolved == Path(mount) or Path(mount) in resolved.parents) and len(mount) >= len(best[1]):
            best = (fields[2], mount)
    return best
