"""Where a job runs when there is no batch system: as a process of this machine that outlives the agent.

A life is found by a mark in its environment, which its children inherit, and by its pid with the time the
process began (so that a pid used again is not taken for it). The shell that becomes the trainer first makes
the folder ``started.<life>``. Making a folder succeeds once, so a life can start once; and an agent that
finds an intent and no process makes the folder itself, and so knows that the life will never start.
Reads ``/proc``: Linux only.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from consortium.canonical import decode, encode, replace
from consortium.errors import DiskFull, Refused, Unavailable
from consortium.files import write_bytes_atomically
from site_agent.core.facts import Cause, Seen, Sighting
from site_agent.launchers.base import LIFE_FILE, Life
from site_agent.launchers.clock import life_begins, life_ended, life_runs
from site_agent.processes import began
from site_agent.trainer.folder import CONTINUE, CONTINUE_LATER

_MODULE = ("-m", "site_agent.trainer")
TRAINER = (sys.executable, "-P", *_MODULE)  # -P: nothing in the job directory is imported

_MARK = b"SPRACHBUND_LIFE="
_START_ONCE = 'mkdir "$0" 2>/dev/null && exec "$@"'
_EXEC_SECONDS = (
    5.0  # a process within execve shows no environment for microseconds, on a busy machine for longer
)
_KEPT = (  # of the agent's environment; everything else may be a secret
    "PATH",
    "HOME",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
)


def trainer_of(ranks: int) -> tuple[str, ...]:
    """The command of a job of so many processes on this machine."""
    if ranks == 1:
        return TRAINER
    torchrun = (sys.executable, "-P", "-m", "torch.distributed.run")
    return (*torchrun, "--standalone", "--nproc-per-node", str(ranks), *_MODULE)


class LocalLauncher:
    """Satisfies ``site_agent.launchers.base.Launcher``.

    command  the program; the job directory becomes its last argument
    threads  for OpenMP, and so for torch: the bits of a CPU job depend on it
    gpus     that one job uses, for the account
    """

    def __init__(
        self,
        command: Sequence[str] = TRAINER,
        threads: int = 1,
        poll_seconds: float = 0.5,
        gpus: int = 0,
    ) -> None:
        if not Path("/proc/self/environ").exists():
            raise Refused(
                "the local launcher needs Linux's /proc; choose another launcher in the site's config"
            )
        self.poll_seconds = poll_seconds
        self._command = tuple(command)
        self._threads = threads
        self._gpus = gpus
        self._host = socket.gethostname()
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._children: dict[Path, int] = {}  # pids of the lives that this agent started
        self._exits: dict[Path, int] = {}
        self._watched: dict[Path, int] = {}  # lives that this agent saw running when it last looked

    def submit(self, directory: Path, life: int) -> None:
        directory = directory.resolve()
        if _read_life(directory).number >= life:
            return
        if self._marked([directory])[directory]:
            raise Unavailable(f"{directory}: processes of an earlier life are still there")
        (directory / CONTINUE).unlink(missing_ok=True)  # the word of the life before
        intent = Life(
            number=life,
            name=f"{directory}#{life}",
            host=self._host,
            boot=self._boot,
            submitted_at=round(time.time(), 3),
        )
        _write_life(directory, intent)
        life_begins(directory, life)
        pid = self._start(directory, intent)
        self._children[directory] = pid
        self._exits.pop(directory, None)
        _write_life(directory, replace(intent, native_id=_native_id(pid)))

    def poll(self, directories: Sequence[Path]) -> dict[Path, Sighting]:
        lives = {path: _read_life(path.resolve()) for path in directories}
        doubtful = [
            path.resolve()
            for path, life in lives.items()
            if self._is_here(life) and not _is_running(life.native_id)
        ]
        marked = self._marked(doubtful)
        # last, so that of whoever was gone a moment ago it is known how
        exits = {path: self._reap(path.resolve()) for path in directories}
        found = {path: self._look(path.resolve(), life, exits[path], marked) for path, life in lives.items()}
        for path, sighting in found.items():
            self._account(path.resolve(), lives[path].number, sighting.seen)
        return found

    def cancel(self, directory: Path) -> None:
        directory = directory.resolve()
        life = _read_life(directory)
        if not self._is_here(life):
            return
        if not life.native_id:
            _claim(directory, life.number)
        if _is_running(life.native_id):
            _kill(int(life.native_id.partition(":")[0]))
        for pid in self._marked([directory])[directory]:  # whoever is forked meanwhile falls next time
            _kill(pid)

    # ---- inside

    def _start(self, directory: Path, life: Life) -> int:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "PYTHONSAFEPATH": "1",  # what -P says, for the processes that torchrun starts
            "OMP_NUM_THREADS": str(self._threads),
            "RAYON_NUM_THREADS": str(self._threads),  # of tokenizers
            "HF_HUB_OFFLINE": "1",
            os.fsdecode(_MARK[:-1]): life.name,
        }
        claim = directory / f"started.{life.number}"
        try:
            with open(directory / "log.txt", "ab") as log:
                child = subprocess.Popen(
                    ["/bin/sh", "-c", _START_ONCE, str(claim), *self._command, str(directory)],
                    cwd=directory,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a hang-up or Ctrl-C for the agent is none for the job
                )
        except OSError as error:
            raise Unavailable(f"{directory}: cannot start a process: {error.strerror}") from error
        child.returncode = 0  # ours to reap, and no concern of Popen's: it may outlive this process
        return child.pid

    def _look(
        self, directory: Path, life: Life, exit_code: int | None, marked: dict[Path, list[int]]
    ) -> Sighting:
        if not life.number:
            return Sighting(seen=Seen.UNKNOWN, detail=f"{directory} has no readable {LIFE_FILE}")
        if life.host != self._host:
            return Sighting(seen=Seen.UNKNOWN, detail=f"it was started on {life.host}, this is {self._host}")
        if life.boot != self._boot:
            return Sighting(seen=Seen.GONE, detail=f"{life.host} was restarted", cause=Cause.NODE_FAILED)
        if directory not in marked:
            return Sighting(seen=Seen.RUNNING)
        pids = marked[directory]
        if not pids and not life.native_id:
            if _claim(directory, life.number):
                return Sighting(seen=Seen.GONE, detail="it was never started")
            pids = self._marked([directory])[directory]  # it began after the look
        if not pids and directory in self._children:  # all but dead: its exit code is not there yet
            return Sighting(seen=Seen.RUNNING)
        if not pids:
            return _gone(directory, exit_code)
        if not life.native_id:
            _write_life(directory, replace(life, native_id=_native_id(min(pids))))
        return Sighting(seen=Seen.RUNNING)

    def _account(self, directory: Path, life: int, seen: Seen) -> None:
        """Keep ``usage.json``; nothing depends on it here, so a full disk is no reason not to answer."""
        with contextlib.suppress(Unavailable, DiskFull):
            if seen is Seen.RUNNING:
                self._watched[directory] = life
                life_runs(directory, life, self._gpus)
            elif seen is Seen.GONE:
                was_seen = self._watched.pop(directory, None) == life or directory in self._exits
                life_ended(directory, life, self._gpus, was_seen)

    def _is_here(self, life: Life) -> bool:
        return (life.host, life.boot) == (self._host, self._boot)

    def _reap(self, directory: Path) -> int | None:
        """The exit code of this agent's own child, once it has one."""
        if directory in self._children:
            pid, status = os.waitpid(self._children[directory], os.WNOHANG)
            if pid:
                del self._children[directory]
                self._exits[directory] = os.waitstatus_to_exitcode(status)
        return self._exits.get(directory)

    def _marked(self, directories: Iterable[Path]) -> dict[Path, list[int]]:
        """The living processes that carry the mark of each directory, whatever the life."""
        found: dict[Path, list[int]] = {directory: [] for directory in directories}
        if not found:
            return found
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            for variable in _environment(entry.path):
                if variable.startswith(_MARK):
                    directory = Path(os.fsdecode(variable[len(_MARK) :]).rpartition("#")[0])
                    if directory in found:
                        found[directory].append(int(entry.name))
        return found


def _read_life(directory: Path) -> Life:
    try:
        return decode((directory / LIFE_FILE).read_bytes(), Life, str(directory / LIFE_FILE))
    except FileNotFoundError:
        return Life(number=0, name="", host="")


def _write_life(directory: Path, life: Life) -> None:
    write_bytes_atomically(directory / LIFE_FILE, encode(life))


def _claim(directory: Path, number: int) -> bool:
    """Whether life ``number`` had not started; then it never will."""
    try:
        (directory / f"started.{number}").mkdir()
    except FileExistsError:
        return False
    return True


def _native_id(pid: int) -> str:
    return f"{pid}:{began(pid)}"


def _is_running(native_id: str) -> bool:
    pid, _, ticks = native_id.partition(":")
    return bool(pid) and began(int(pid)) == ticks != ""


def _environment(process: str) -> list[bytes]:
    """Of one's own process; of others', and of zombies, nothing can be read.

    Waits for one that is becoming another program: whoever believes that it has none takes its life for gone.
    """
    deadline = time.monotonic() + _EXEC_SECONDS
    try:
        while not (found := Path(process, "environ").read_bytes()):
            if not _is_within_execve(process) or time.monotonic() > deadline:
                break
            time.sleep(0.001)
    except OSError:
        return []
    return found.split(b"\0")


def _is_within_execve(process: str) -> bool:
    """It has a program, which a zombie and a thread of the kernel have not, and no arguments yet."""
    os.readlink(f"{process}/exe")
    return not Path(process, "cmdline").read_bytes()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _gone(directory: Path, exit_code: int | None) -> Sighting:
    """How it ended, as far as anybody saw; the trainer's own word that it stopped outlives the agent."""
    if exit_code == CONTINUE_LATER or (directory / CONTINUE).exists():
        detail, cause = "it stopped with a training checkpoint", Cause.STOPPED
        return Sighting(seen=Seen.GONE, detail=detail, cause=cause)
    if exit_code is None:
        return Sighting(seen=Seen.GONE)
    if exit_code < 0:
        return Sighting(seen=Seen.GONE, detail=f"killed by {signal.Signals(-exit_code).name}")
    return Sighting(seen=Seen.GONE, detail=f"exit code {exit_code}", cause=Cause.FINISHED)
