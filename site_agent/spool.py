"""Where a site keeps its attempts, one directory each, and what such a directory says.

    spool/<job>/<attempt>/
        job.json       the assignment, verbatim         job.sig      the coordinator's signature of it
        site.json      written last by staging          life.json    the launcher's note of the newest start
        progress.jsonl, checkpoint/, result/, failure.json, log.txt  the trainer's
        lives.jsonl    a line a launch                  usage.json   what was used so far: the launcher's
        STOP, FINISH   the agent's wish that it leaves, or delivers what it has
        ended.json     how it ended, to be reported
    spool/broken/      what could not be read: moved aside for a person, never deleted, never in the way

All that an agent knows of its jobs it knows from here: a new agent, and a person with ``ls``, know as much.
"""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from consortium import ids
from consortium.canonical import decode, encode, replace
from consortium.errors import BadInput, Unavailable
from consortium.files import disk_errors, make_folder, move_into_place, read_small, write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.ids import AttemptId
from consortium.jobs import Assignment, Train
from site_agent import record
from site_agent.core.facts import AttemptFiles, Ended, Meant, Progress, Seen, Usage
from site_agent.launchers.base import LIFE_FILE, USAGE_FILE, Life
from site_agent.trainer.folder import FINISH, STOP, Failure

_TAIL_BYTES = 8192  # a progress line is below 1 kB
BROKEN = "broken"  #: below the spool: what could not be read


class Spool:
    """The attempts below ``root``; logs of dropped ones go to ``logs`` beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._logs = root.parent / "logs"
        self._assignments: dict[AttemptId, Assignment] = {}
        self._directories: dict[AttemptId, Path] = {}
        with disk_errors(root):
            make_folder(root)
            make_folder(self._logs)
            for leftover in root.glob(".dropped.*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def directory(self, attempt: AttemptId) -> Path:
        found = self._directories.get(attempt)
        if found is None:
            found = self.root / ids.job_of(ids.attempt_id(attempt)) / attempt
            self._directories[attempt] = found
        return found

    def assignment(self, attempt: AttemptId) -> Assignment:
        """What ``job.json`` says; it never changes. Raises BadInput if it is not this attempt's."""
        if attempt not in self._assignments:
            path = f"{self.directory(attempt)}/job.json"
            found = decode(_read(path), Assignment, path)
            if found.attempt != attempt:
                raise BadInput(f"{path}: belongs to attempt {found.attempt}")
            self._assignments[attempt] = found
        return self._assignments[attempt]

    def create(self, attempt: AttemptId, job: bytes, signature: bytes) -> Path:
        """The attempt's directory with ``job.json`` and its signature; all at once, and only once."""
        directory = self.directory(attempt)
        if not directory.is_dir():
            with fresh_folder(directory) as folder:
                write_bytes_atomically(folder / "job.json", job)
                write_bytes_atomically(folder / "job.sig", signature)
        return directory

    def places(self) -> tuple[str, ...]:
        """Where attempts lie, sorted. Raises Unavailable if the file system does not answer."""
        with disk_errors(self.root):
            jobs = [job for job in _visible(str(self.root)) if not job.endswith(f"/{BROKEN}")]
            return tuple(place for job in jobs for place in _attempts(job))

    def begun(self, places: Sequence[str]) -> tuple[AttemptId, ...]:
        """Of which of these a life was begun; of no other can a launcher know anything. Raises Unavailable."""
        found = []
        with disk_errors(self.root):
            for place in places:
                with contextlib.suppress(BadInput):  # the look that follows says so, and moves it aside
                    attempt = self._attempt_at(place)
                    if LIFE_FILE in _names(place) and _life(place).number:
                        found.append(attempt)
        return tuple(found)

    def look(self, places: Sequence[str] | None = None) -> tuple[tuple[AttemptFiles, ...], tuple[str, ...]]:
        """Every attempt, sorted, and a sentence on each thing that was moved to ``spool/broken``.

        places  where they lie, if that has been asked just now
        Raises Unavailable if the file system does not answer; then nothing is known, and nothing was changed.
        """
        found: list[AttemptFiles] = []
        complaints: list[str] = []
        places = self.places() if places is None else places
        with disk_errors(self.root):
            for place in places:
                try:
                    found.append(self._look_at(place))
                except BadInput as error:
                    if os.path.lexists(place):  # else another agent of this home has dropped it meanwhile
                        complaints.append(f"{error}; moved to {self._set_aside(Path(place))}")
        return tuple(found), tuple(complaints)

    def ask_to_stop(self, attempt: AttemptId) -> None:
        wish, now = self.directory(attempt) / STOP, time.time()
        with disk_errors(wish), contextlib.suppress(FileExistsError):
            wish.touch(exist_ok=False)
            os.utime(wish, (now, now))  # by this clock, which its age is told by, not by the file system's

    def ask_to_finish(self, attempt: AttemptId) -> None:
        with disk_errors(self.directory(attempt)):
            (self.directory(attempt) / FINISH).touch()

    def begin_life(self, attempt: AttemptId, life: int) -> None:
        """Take back what the life before was asked for, and note where this one begins."""
        directory = self.directory(attempt)
        with disk_errors(directory):
            for wish in (STOP, FINISH):
                (directory / wish).unlink(missing_ok=True)
            record.note_launch(directory, life)

    def send_away(self, attempt: AttemptId, why: str, meant: Meant) -> None:
        """Note why the newest life is about to be asked to leave, or killed."""
        directory = self.directory(attempt)
        with disk_errors(directory):
            life = _life(str(directory))
            record.note_sent_away(directory, life.number, why, meant)

    def watch(self, files: AttemptFiles, seen: Seen) -> AttemptFiles:
        """The same with how long a running life has been quiet."""
        directory = self.directory(files.attempt)
        try:
            with disk_errors(directory):
                if seen is Seen.RUNNING:
                    return replace(files, quiet_seconds=record.quiet_seconds(directory, files.lives))
                if seen is not Seen.UNKNOWN:
                    record.forget_quiet(directory)
        except Unavailable:
            if os.path.lexists(directory):  # else another agent of this home has dropped it meanwhile
                raise
        return files

    def end(self, attempt: AttemptId, ended: Ended) -> None:
        """Raises Unavailable, too, if another agent of this home has dropped it meanwhile."""
        write_bytes_atomically(self.directory(attempt) / "ended.json", encode(ended), makes_folders=False)

    def drop(self, attempt: AttemptId) -> None:
        """Delete the directory. The log stays for people, in ``logs/<attempt>.txt``."""
        directory = self.directory(attempt)
        with disk_errors(directory):
            _keep_logs(directory, self._logs / f"{attempt}.txt")
            dropped = self.root / f".dropped.{attempt}.{secrets.token_hex(4)}"
            with contextlib.suppress(FileNotFoundError):
                os.replace(directory, dropped)  # at once: half of a directory would look broken
            shutil.rmtree(dropped, ignore_errors=True)
            with contextlib.suppress(OSError):  # other attempts of the job are still there
                directory.parent.rmdir()
        self._forget(attempt)

    # ---- inside

    def _attempt_at(self, place: str) -> AttemptId:
        """Whose directory it is. Raises BadInput if it is nobody's, or holds another's assignment."""
        attempt = ids.attempt_id(place.rpartition("/")[2])
        if place != str(self.directory(attempt)):
            raise BadInput(f"{place}: is not where {attempt} belongs")
        self.assignment(attempt)
        return attempt

    def _look_at(self, place: str) -> AttemptFiles:
        """``place`` and all below it are plain strings: an agent looks often, and paths cost as much as the disk."""
        attempt = self._attempt_at(place)
        work = self.assignment(attempt).work
        there = _names(place)  # one question to the file system, and then only for what is there
        life = _life(place) if LIFE_FILE in there else None
        has_saved = life is not None and "checkpoint" in there
        checkpoint, has_partial = record.checkpoint_of(place) if has_saved else (0, False)
        ended = f"{place}/ended.json"
        return AttemptFiles(
            attempt=attempt,
            staged="site.json" in there,
            lives=life.number if life else 0,
            native_id=life.native_id if life else "",
            has_result="result" in there,
            failure=_failure(f"{place}/failure.json") if "failure.json" in there else "",
            stopping_seconds=_age_seconds(f"{place}/{STOP}") if STOP in there else None,
            finishing=FINISH in there,
            progress=_newest_progress(f"{place}/progress.jsonl") if "progress.jsonl" in there else None,
            checkpoint=checkpoint,
            text_bytes=record.text_bytes_of(place) if has_saved else 0,
            has_partial=has_partial,
            can_finish=isinstance(work, Train),
            launches=record.read_launches(place) if life and record.LIVES_FILE in there else (),
            usage=_usage(f"{place}/{USAGE_FILE}") if USAGE_FILE in there else None,
            ended=decode(_read(ended), Ended, ended) if "ended.json" in there else None,
        )

    def _set_aside(self, place: Path) -> Path:
        target = self.root / BROKEN / f"{place.name}.{secrets.token_hex(4)}"
        make_folder(target.parent)
        move_into_place(place, target)
        with contextlib.suppress(ValueError, BadInput):
            self._forget(ids.attempt_id(place.name))
        return target

    def _forget(self, attempt: AttemptId) -> None:
        self._assignments.pop(attempt, None)
        self._directories.pop(attempt, None)


def _keep_logs(directory: Path, target: Path) -> None:
    """The newest life's log, whole: log.txt, or from a batch system log.<life>.txt; older ones told why they ended."""
    logs = [directory / "log.txt", *directory.glob("log.*.txt")]
    logs.sort(key=lambda path: (len(path.name), path.name))
    for log in logs:
        with contextlib.suppress(FileNotFoundError):
            os.replace(log, target)


def _visible(folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in sorted(os.listdir(folder)) if not name.startswith(".")]


def _attempts(job: str) -> list[str]:
    """What lies in a job's folder; the thing itself if it is no folder, nothing if it is gone."""
    try:
        return _visible(job)
    except NotADirectoryError:
        return [job]
    except FileNotFoundError:
        return []


def _names(directory: str) -> frozenset[str]:
    """What lies in it. Raises BadInput if it is no folder, or gone."""
    try:
        return frozenset(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadInput(f"{directory}: {error.strerror}") from error


def _life(directory: str) -> Life:
    path = f"{directory}/{LIFE_FILE}"
    return decode(_read(path), Life, path)


def _read(path: str) -> bytes:
    try:
        return read_small(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise BadInput(f"{path}: {error.strerror}") from error


def _age_seconds(path: str) -> float | None:
    try:
        return max(0.0, time.time() - os.stat(path).st_mtime)
    except FileNotFoundError:
        return None


def _newest_progress(path: str) -> Progress | None:
    """The last whole line that can be read; a trainer may be in the middle of the next."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        lines = os.pread(file, _TAIL_BYTES, max(0, os.fstat(file).st_size - _TAIL_BYTES)).split(b"\n")[:-1]
    finally:
        os.close(file)
    for line in reversed(lines):
        with contextlib.suppress(BadInput):
            return decode(line, Progress)
    return None


def _usage(path: str) -> Usage | None:
    """None if there is none yet, or none that can be read: the launcher writes it anew."""
    with contextlib.suppress(BadInput):
        return decode(_read(path), Usage, path)
    return None


def _failure(path: str) -> str:
    try:
        return decode(_read(path), Failure, path).sentence or "the trainer failed without a word"
    except BadInput as error:
        return f"the trainer failed, but its reason cannot be read: {error}"
