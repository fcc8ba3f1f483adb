"""What runs in the real Slurm's tests: a stand-in for the trainer, launchers as agents make them, and looks at both."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster import Cluster

from consortium.canonical import replace
from policies.site_profile import SiteProfile
from site_agent.core.facts import Seen, Sighting
from site_agent.launchers.slurm.commands import COMMAND_SECONDS, Completed, LocalCommands, LocalFiles
from site_agent.launchers.slurm.launcher import SlurmLauncher
from site_agent.launchers.slurm.verdict import Patience

#: Keeps the trainer's promises: begins, heeds STOP with a training checkpoint and CONTINUE, ends as ``go`` says.
JOB = """
import os, pathlib, sys, time
directory = pathlib.Path(sys.argv[1])
life = os.environ["SPRACHBUND_LIFE"]
def beat():
    with open(directory / "beats", "a") as file:
        file.write(life + "\\n")
print("hello from", life, flush=True)
(directory / "environment").write_text("\\n".join(sorted(os.environ)))
beat()
with open(directory / "began", "a") as file:  # last of all: who sees it may look for the rest, or end this
    file.write(f"{life} {os.getpid()}\\n")
while not (directory / "go").exists():
    time.sleep(0.02)
    beat()
    if (directory / "STOP").exists() and not (directory / "deaf").exists():
        number = len(list(directory.glob("checkpoint/step-*"))) + 1
        (directory / "checkpoint" / f"step-{number:08}").mkdir(parents=True)
        (directory / "CONTINUE").touch()
        sys.exit(75)
sys.exit(int((directory / "go").read_text() or 0))
"""
PATIENCE = Patience(answers=2, requeue_seconds=30.0, intent_seconds=3.0, lost_seconds=6.0)
#: where accounting is away, and nobody need wait for it
WITHOUT_ACCOUNTS = replace(PATIENCE, account_seconds=5.0)
_WAIT_SECONDS = 240.0  # for what takes seconds here


class CountedCommands(LocalCommands):
    """Commands for one cluster; counts them by name."""

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__(environment)
        self.names: list[str] = []

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = COMMAND_SECONDS) -> Completed:
        self.names.append(argv[0])
        return super().run(argv, stdin=stdin, timeout=timeout)


class Jobs:
    """Job directories below ``folder``, and the launchers of agents that come one after the other."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.program = folder / "stand_in.py"
        self.program.write_text(JOB)
        self.made: list[Path] = []

    def profile(self, **changes: object) -> SiteProfile:
        usual: dict[str, object] = {
            "account": "site",
            "partition": "gpu",
            "cpus_per_task": 1,
            "memory": "100M",
            "walltime_minutes": 5,
            "signal_seconds": 30,
            "poll_seconds": 0.3,
        }
        return SiteProfile(**{**usual, **changes})  # type: ignore[arg-type]

    def launcher(
        self,
        commands: LocalCommands | None = None,
        command: Sequence[str] = (),
        patience: Patience = PATIENCE,
        **changes: object,
    ) -> SlurmLauncher:
        """One with no memory of the others. ``changes``: of the profile."""
        return SlurmLauncher(
            self.profile(**changes),
            commands or LocalCommands(self.cluster.environment),
            LocalFiles(),
            command or (sys.executable, str(self.program)),
            patience=patience,
        )

    def directory(self, name: str = "job.a1") -> Path:
        path = self.folder / "spool" / name
        path.mkdir(parents=True)
        self.made.append(path)
        return path

    def begun(self, launcher: SlurmLauncher, directory: Path, life: int = 1) -> str:
        """Submit, wait for the start; the Slurm job's id."""
        before = len(starts(directory))
        launcher.submit(directory, life)
        until(lambda: len(starts(directory)) > before, "the start")
        return self.id_of(directory)

    def id_of(self, directory: Path) -> str:
        """The Slurm job that owns the newest life that has begun."""
        newest = max(directory.glob("owner.*"), key=lambda path: int(path.suffix[1:]))
        return newest.read_text().strip()

    def node_of(self, id_: str) -> str:
        return self.cluster.run("squeue", "-hj", id_, "-o", "%N").strip()

    def accounted(self, id_: str) -> list[str]:
        """The states of all of a Slurm job's lives, by sacct."""
        said = self.cluster.run("sacct", "-nXPD", "-j", id_, "-o", "State")
        return [line.split()[0] for line in said.splitlines() if line]

    def clear(self) -> None:
        launcher = self.launcher()
        for directory in self.made:
            let_go(directory)
            launcher.cancel(directory)


def let_go(directory: Path, code: int = 0) -> None:
    """The job ends with this exit code."""
    (directory / "going").write_text(str(code))
    (directory / "going").rename(directory / "go")


def starts(directory: Path) -> list[str]:
    """``life.restart`` of every start, in their order."""
    try:
        return [line.split()[0] for line in (directory / "began").read_text().splitlines()]
    except FileNotFoundError:
        return []


def look(launcher: SlurmLauncher, directory: Path) -> Sighting:
    return launcher.poll([directory])[directory]


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {_WAIT_SECONDS:g} s"
        time.sleep(0.05)


def until_gone(launcher: SlurmLauncher, directory: Path) -> Sighting:
    """The first sighting that says GONE."""
    last: list[Sighting] = []

    def gone() -> bool:
        last.append(look(launcher, directory))
        return last[-1].seen is Seen.GONE

    until(gone, "the end")
    return last[-1]
