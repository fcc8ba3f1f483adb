"""How Slurm's commands are run and where job directories lie: on this machine here, elsewhere behind SSH."""

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from consortium.canonical import Fact
from consortium.errors import Unavailable
from consortium.files import disk_errors, sync_folder, write_bytes_atomically

#: A dead controller holds ``squeue`` for 18 s at a MessageTimeout of 10 s; sites set up to 60 s.
COMMAND_SECONDS = 90.0
#: One language, and times as epoch seconds whatever the zone of the host.
ENVIRONMENT = {"LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}

_NOT_FOUND = 127  # of sh(1)
_STEERING = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SRUN_", "SALLOC_", "SINFO_")
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER")


class Completed(Fact):
    """What a command said before it ended by itself."""

    rc: int
    out: str
    err: str

    def in_one_line(self) -> str:
        """For people."""
        words = " ".join((self.err or self.out).split())[:500]
        return words or f"exit code {self.rc} without a word"


class Commands(Protocol):
    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = COMMAND_SECONDS) -> Completed:
        """Run one command, without a shell, with ``ENVIRONMENT``.

        timeout  seconds
        Raises Unavailable if it took longer or the connection broke; it may have had its effect all the same.
        One that is not there ends with 127, as in a shell.
        """


class JobFiles(Protocol):
    """Job directories of the agent as the batch system sees them. Paths are the agent's own."""

    def place(self, directory: Path) -> str:
        """The path of the job directory on the nodes."""

    def push(self, directory: Path) -> None:
        """Make the directory whole there. Raises Unavailable, or DiskFull."""

    def pull(self, directories: Sequence[Path]) -> Mapping[Path, str]:
        """Bring what the jobs wrote: small files, and ``result/`` once it is there. Raises Unavailable.

        Returns the directories whose result is there but not whole here yet, and a sentence on how far it is.
        """

    def write(self, directory: Path, name: str, data: bytes) -> None:
        """Make a small file hold ``data`` here and there, atomically. Raises Unavailable, or DiskFull."""

    def remove(self, directory: Path, name: str) -> None:
        """Take a file away here and there; that it is gone already does no harm."""


class LocalCommands:
    """Satisfies ``Commands`` with processes of this machine."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._environment = environment

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = COMMAND_SECONDS) -> Completed:
        inherited = _without_slurms_own(os.environ if self._environment is None else self._environment)
        try:
            ended = subprocess.run(
                list(argv),
                input=stdin,
                capture_output=True,
                timeout=timeout,
                check=False,
                env={**inherited, **ENVIRONMENT},
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{argv[0]} did not answer within {timeout:.0f} s; try again later") from error
        except OSError as error:
            why = f"{argv[0]} cannot be run: {error.strerror}; check that it is installed and on PATH"
            return Completed(rc=_NOT_FOUND, out="", err=why)
        return Completed(
            rc=ended.returncode,
            out=ended.stdout.decode(errors="replace"),
            err=ended.stderr.decode(errors="replace"),
        )


def _without_slurms_own(environment: Mapping[str, str]) -> dict[str, str]:
    """What steers Slurm's commands is ours to say.

    An agent that runs in a Slurm job itself would hand its own SLURM_* to every job, ``--export=NONE`` or not, and
    SQUEUE_STATES or SBATCH_ACCOUNT in a login shell would filter and change answers.
    """
    return {
        name: value for name, value in environment.items() if name in _KEPT or not name.startswith(_STEERING)
    }


class LocalFiles:
    """Satisfies ``JobFiles`` where agent and nodes see one file system under the same paths."""

    def place(self, directory: Path) -> str:
        return str(directory.resolve())

    def push(self, directory: Path) -> None:
        """Nothing to move; what is there must be seen by other hosts, so its names are made durable."""
        with disk_errors(directory):
            sync_folder(directory)

    def pull(self, directories: Sequence[Path]) -> Mapping[Path, str]:
        return {}

    def write(self, directory: Path, name: str, data: bytes) -> None:
        """What is there already stays as it is: how old a STOP is, people and agents read from its file."""
        path = directory / name
        with disk_errors(path), contextlib.suppress(FileNotFoundError):
            if path.read_bytes() == data:
                return
        write_bytes_atomically(path, data)

    def remove(self, directory: Path, name: str) -> None:
        with disk_errors(directory / name), contextlib.suppress(FileNotFoundError):
            (directory / name).unlink()
