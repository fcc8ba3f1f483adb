"""How one big file gets to the site, or from there: from the byte where the last try broke, and verified.

Neither rsync nor sftp is asked. rsync is not on every login node, and what it is good at, finding what differs,
brings nothing where a file is named by its digest; sftp resumes by size alone and hashes nothing, so a shell
has to verify after it. ``dd`` and ``tail`` are everywhere. What it costs is the digests at both ends: 256 MiB over
the loopback on a busy machine of two cores took 8.9 s to the site and 6.0 s from there, an rsync that verifies
nothing 3.4 s.
"""

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO

from consortium.canonical import Fact
from consortium.errors import Broken, Corrupt, Unavailable
from consortium.files import disk_errors, make_folder, move_into_place
from site_agent.ssh.connection import Connection
from site_agent.ssh.scripts import BLOCK, FETCH, SEAL, SEND
from site_agent.ssh.session import Session, write_all

_CHUNK = 1 << 18
_STALLED_SECONDS = 300.0  # after the last byte is written: for the site's disk to take it
_HASH_SECONDS = 3600.0  # a 100 GB file on a slow login node
_NOT_WHOLE, _ANOTHER = 10, 11  # exit codes of SEAL
_TRIES = 3  # after broken lines, within one call; the launcher comes again anyway

Count = Callable[[int], None]  #: told of bytes as they pass


class Sent(Fact):
    """A file of this side."""

    path: str
    sha256: str
    size: int


def send(
    connection: Connection, transfer: Connection, root: str, file: Sent, offset: int, count: Count
) -> None:
    """Bring ``file`` into the site's cache.

    transfer  carries the bytes; ``connection`` asks and verifies
    offset    what is there already, in bytes
    Raises Unavailable if the line broke again and again, Corrupt if the bytes change on the way.
    """
    mismatches = 0
    for _ in range(_TRIES):
        start = offset // BLOCK * BLOCK
        if start < file.size:
            _stream(transfer, root, file, start, count)
        sealed = connection.run(SEAL, [root, file.sha256, str(file.size)], timeout=_HASH_SECONDS)
        if sealed.rc == 0:
            return
        if sealed.rc == _ANOTHER:  # a part whose node lost its power may have a hole; it is gone now
            mismatches += 1
        elif sealed.rc != _NOT_WHOLE:
            raise Unavailable(f"{connection.host}: {root}/cache cannot be written: {_words(sealed.err)}")
        if mismatches == 2:
            raise Corrupt(
                f"{file.path}: arrives at {transfer.host} with another digest; has it changed here meanwhile?"
            )
        offset = _part_size(connection, root, file)
    raise Unavailable(
        f"{transfer.host}: the connection breaks again and again; {file.path} goes on from there"
    )


def fetch(
    connection: Connection, root: str, place: str, target: Path, sha256: str, size: int, count: Count
) -> None:
    """Bring file ``place`` (below the site's ``jobs/``) to ``target``; what lies in its part is not fetched again.

    Raises Unavailable if the line broke, Corrupt if the bytes are not those that the site hashed; then the next
    try begins anew.
    """
    part = target.with_name(f"{target.name}.part")
    with disk_errors(part):
        make_folder(part.parent)
        if target.exists():
            return
        with open(part, "ab") as file:
            _receive(connection, root, place, file, size, count)
            file.flush()
            os.fsync(file.fileno())
        if digest_of_file(part) != sha256:
            part.unlink()
            raise Corrupt(f"{connection.host}: {place} arrives with another digest than it has there")
        move_into_place(part, target)


def digest_of_file(path: Path) -> str:
    with disk_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- inside


def _stream(transfer: Connection, root: str, file: Sent, start: int, count: Count) -> None:
    with (
        transfer.session(SEND, [root, file.sha256, str(start // BLOCK)]) as session,
        disk_errors(Path(file.path)),
    ):
        with open(file.path, "rb") as source:
            source.seek(start)
            _copy_in(session, source, count)
        try:
            session.process.wait(timeout=_STALLED_SECONDS)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{transfer.host}: takes no more bytes; see its quota and disks") from None


def _copy_in(session: Session, source: IO[bytes], count: Count) -> None:
    """All that is left of ``source``; a line that breaks ends it, and whoever asks how much arrived goes on."""
    try:
        while data := source.read(_CHUNK):
            write_all(session.stdin, data)
            count(len(data))
        session.stdin.close()
    except BrokenPipeError:
        return


def _part_size(connection: Connection, root: str, file: Sent) -> int:
    said = connection.run('wc -c <"$1/cache/$2.part" 2>/dev/null || echo 0', [root, file.sha256])
    try:
        return int(said.out)
    except ValueError:
        raise Broken(f"{connection.host}: wc says {said.out!r} where a number belongs") from None


def _receive(connection: Connection, root: str, place: str, file: IO[bytes], size: int, count: Count) -> None:
    for _ in range(_TRIES):
        offset = file.seek(0, os.SEEK_END)
        if offset > size:
            file.truncate(0)
            offset = 0
        wanted = size - offset
        with connection.session(FETCH, [root, place, str(offset + 1)]) as session:
            if wanted and session.skip_to_output():
                while wanted and (data := os.read(session.stdout.fileno(), min(_CHUNK, wanted))):
                    file.write(data)
                    count(len(data))
                    wanted -= len(data)
        if not wanted:
            return
    raise Unavailable(
        f"{connection.host}: the connection broke while {place} was fetched; it goes on from there"
    )


def _words(err: bytes) -> str:
    return err.decode(errors="replace").strip()[-300:] or "no reason given"
