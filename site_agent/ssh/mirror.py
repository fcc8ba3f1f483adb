"""What a job wrote at the site, asked for and made the same here: records, logs, progress, the names of the rest."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from consortium.errors import Corrupt
from consortium.files import disk_errors, make_folder, write_bytes_atomically
from site_agent.ssh.frames import Frame, frames

_VANISHING = ("CONTINUE", "failure.json")  #: taken away by the job; others only by the agent


def question(job: str, directory: Path) -> str:
    """What PULL is to tell of one job directory, given what is here."""
    with disk_errors(directory):
        grown = [directory / "progress.jsonl", *sorted(directory.glob("log*.txt"))]
        offsets = [f"O {path.stat().st_size} {path.name}\n" for path in grown if path.exists()]
    return "".join([f"J {job}\n", *offsets, "E\n"])


def by_job(answer: bytes, jobs: Sequence[str]) -> Iterable[tuple[str, list[Frame]]]:
    """The frames of each job directory that is there, in the order it was asked for."""
    groups: list[tuple[bool, list[Frame]]] = []
    for frame in frames(answer):
        if frame.kind == "J":
            groups.append((frame.name == "y", []))
        elif groups:
            groups[-1][1].append(frame)
    for job, (is_there, found) in zip(jobs, groups, strict=True):
        if is_there:
            yield job, found


def mirror(directory: Path, found: Sequence[Frame]) -> None:
    """Make the copy here say what the site's job directory says."""
    with disk_errors(directory):
        for frame in found:
            path = directory / checked(frame.name)
            if frame.kind == "A" and (frame.data or not frame.offset):
                with open(path, "r+b" if path.exists() else "wb") as file:
                    file.truncate(frame.offset)
                    file.seek(frame.offset)
                    file.write(frame.data)
            elif frame.kind == "W" and not (path.exists() and path.read_bytes() == frame.data):
                write_bytes_atomically(path, frame.data)
            elif frame.kind == "P" and not path.exists():
                make_folder(path.parent)
                path.touch()
        names = {frame.name for frame in found}
        gone = [directory / name for name in _VANISHING if name not in names]
        stop = directory / "STOP"  # with words in it, it is the batch script's; empty, the agent's wish
        if "STOP" not in names and stop.exists() and stop.stat().st_size:
            gone.append(stop)
        checkpoints = directory / "checkpoint"
        gone += [
            path for path in checkpoints.rglob("*.json") if str(path.relative_to(directory)) not in names
        ]
        for path in gone:
            path.unlink(missing_ok=True)


def checked(name: str) -> str:
    """A relative name as it may come from the site. Raises Corrupt for one that leads elsewhere."""
    parts = Path(name).parts
    if not parts or name.startswith("/") or ".." in parts or os.path.normpath(name) != name:
        raise Corrupt(f"the site names a file {name!r}, which does not lie in the job directory")
    return name
