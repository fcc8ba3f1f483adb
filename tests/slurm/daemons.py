"""How is a daemon started, found alive by its pid file, waited for and stopped, and a command run beside it?"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from proc_files import kill

PATIENCE_SECONDS = 240.0  #: for what takes seconds here
PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


class ClusterFailed(Exception):
    """It did not come up, or not down; the message names the step and the log to read."""


class Daemons:
    """Those with a pid file ``<name>.pid`` in ``root/run``; the program is the name's part before a ``-``."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root = root
        self.run_dir = root / "run"
        self.environment = environment

    def run(self, *argv: str, check: bool = True) -> str:
        """A command's output. Raises ClusterFailed with its words if ``check`` and it failed."""
        done = subprocess.run(
            argv,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            cwd="/",
        )
        if check and done.returncode:
            raise ClusterFailed(
                f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip() or done.stdout}"
            )
        return done.stdout

    def start(self, name: str, *argv: str, **extra: str) -> None:
        """Start what forks into the background by itself, and wait for its pid file. ``extra``: environment."""
        with open(self.root / "log" / "start.log", "ab") as log:
            done = subprocess.run(
                argv,
                env={**self.environment, **extra},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                timeout=PATIENCE_SECONDS,
            )
        if done.returncode:
            raise ClusterFailed(f"{name}: exit {done.returncode}; see {self.root}/log")
        self.wait(PATIENCE_SECONDS, f"{name}.pid", lambda: self.alive(name))

    def pid(self, name: str) -> int:
        """Of the daemon that a pid file means, if it is that daemon still; 0 if not."""
        try:
            pid = int((self.run_dir / f"{name}.pid").read_text())
            told = Path(f"/proc/{pid}/stat").read_text()
        except (OSError, ValueError):
            return 0
        program, _, rest = told.partition("(")[2].rpartition(")")
        is_zombie = rest.split()[0] == "Z"  # a child of this process that nobody has asked about
        return pid if program == name.partition("-")[0] and not is_zombie else 0

    def alive(self, name: str) -> bool:
        return bool(self.pid(name))

    def stop(self, name: str, sign: signal.Signals = signal.SIGTERM) -> None:
        """Gone when this returns, by KILL after a minute; nothing if it is not there."""
        pid = self.pid(name)
        if pid:
            kill(pid, sign)
            try:
                self.wait(60, f"the end of {name}", lambda: not self.alive(name))
            except ClusterFailed:
                kill(pid, signal.SIGKILL)
                self.wait(PATIENCE_SECONDS, f"the end of {name}", lambda: not self.alive(name))
        (self.run_dir / f"{name}.pid").unlink(missing_ok=True)

    def wait(self, seconds: float, what: str, so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while not so():
            if time.monotonic() > deadline:
                raise ClusterFailed(f"waited {seconds:g} s in vain for {what}; see {self.root}/log")
            time.sleep(0.1)
