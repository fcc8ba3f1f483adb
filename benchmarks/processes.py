"""What a whole process costs: its time, its processor seconds, its memory, and who disturbed it."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.02
_TICKS = os.sysconf("SC_CLK_TCK")
_TOUCH = "import sys; n = int(sys.argv[1]); b = bytearray(n << 12); b[::4096] = bytes(n)"
_TOUCHED_PAGES = 3_000_000_000 >> 12


@dataclass(frozen=True, slots=True)
class Run:
    """One process from start to exit."""

    wall_seconds: float
    cpu_seconds: float  #: user and system
    anonymous_bytes: int  #: the most that was seen, looking every 20 ms
    resident_bytes: int  #: with the files that it maps: the kernel's own high-water mark
    other_cores: float  #: that everybody else used meanwhile


def measure(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end. Raises CalledProcessError with what it wrote if it fails."""
    settle()
    busy = _busy_seconds()
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        # an installed program has its bytecode; without this it would be compiled anew each time
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    listener = threading.Thread(target=lambda: said.extend(process.stdout or ()))
    listener.start()
    memory = _Memory(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    memory.stop()
    listener.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, "".join(said))
    cpu = usage.ru_utime + usage.ru_stime
    others = max(0.0, _busy_seconds() - busy - cpu) / wall
    return Run(wall, cpu, memory.anonymous, memory.resident, others)


def settle() -> None:
    """Give every program the same start: no writes outstanding, free memory that is really there.

    Where a virtual machine hands free pages back to its host, touching them again costs ten times as much as
    touching pages that were freed a moment ago; another process touches and frees some first.
    """
    os.sync()
    subprocess.run([sys.executable, "-c", _TOUCH, str(_TOUCHED_PAGES)], check=True)


class _Memory:
    """A thread that watches a process's memory."""

    def __init__(self, pid: int) -> None:
        self.anonymous = self.resident = 0
        self._status = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                lines = self._status.read_text().splitlines()
            except OSError:  # it has ended
                return
            for line in lines:
                if line.startswith("RssAnon:"):
                    self.anonymous = max(self.anonymous, int(line.split()[1]) << 10)
                elif line.startswith("VmHWM:"):
                    self.resident = max(self.resident, int(line.split()[1]) << 10)
            self._over.wait(_POLL_SECONDS)


def _busy_seconds() -> float:
    """Of all processors since the start of the machine: user, nice, system, interrupts, stolen."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS
