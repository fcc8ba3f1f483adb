"""A small consortium of real processes for faults to fall on: a small disk for each home, a hostile line for each site.

    workdir/coordinator        home of the coordinator, a tmpfs
            sites/<name>       home of each site, a tmpfs
            logs/  text/       on the ordinary disk

A supervisor starts again what ended by itself, as a service manager would, and remembers what it was asked to; a
recorder remembers every event that was ever seen in the ledger, and whoever finds one changed or gone raises.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hostile_line import HostileLine

from console.corpora import LICENCES, write_corpora
from console.local import HOST, LocalConsortium, LocalSite
from consortium.ids import Language
from coordinator.ledgers import open_ledger
from coordinator.making import MARK

HOME_BYTES = 96 << 20
SITES = (
    LocalSite("north", "Nordic Text Institute", "FI", (Language("fi"),)),
    LocalSite("west", "Atlantic Language Lab", "IE", (Language("ga"),)),
    LocalSite("south", "Aegean Computing Centre", "EL", (Language("el"),)),
)
COORDINATOR = "coordinator"
#: consortium/errors.py, as `sprachbund site service` tells systemd: starting again cannot help
ENDS_FOR_GOOD = frozenset({2, 3, 4, 7, 8})
_RESTART_SECONDS = 1.0
_SHARED_MEMORY = Path("/dev/shm")
_FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


class Violation(AssertionError):
    """Something came out that no fault may bring about."""


def can_mount() -> bool:
    """Whether this machine lets us have small disks of our own."""
    return os.getuid() == 0 and shutil.which("mount") is not None


def can_fake_time() -> bool:
    """Whether Debian's libfaketime is installed, so that one process can have a wrong clock."""
    return _FAKETIME.is_file()


class Arena(LocalConsortium):
    """A consortium below ``workdir``, its daemons by name: ``coordinator``, ``agent-<site>``."""

    def __init__(
        self,
        workdir: Path,
        ledger: str | None = None,
        hostile: bool = True,
        sites: Sequence[LocalSite] = SITES,
    ) -> None:
        """
        ledger   an address of PostgreSQL; None: a file
        hostile  with small disks, and lines that can break
        """
        super().__init__(
            workdir=workdir.resolve(), name="storm", sites=sites, text=workdir.resolve() / "text"
        )
        self.ledger_place: str | Path = ledger or self.home / "ledger.sqlite"
        self._address = ledger
        self._hostile = hostile
        self.lines: dict[str, HostileLine] = {}
        self.clocks: dict[str, int] = {}  #: seconds by which a daemon's clock is wrong, when next started
        self.down: set[str] = set()  #: daemons that a fault keeps down
        self.excused: set[str] = set()  #: daemons that rightly end for good now: somebody would have to help
        self.lock = threading.RLock()
        self.restarts: Counter[str] = Counter()  #: what the supervisor started again, by daemon and status
        self.problems: list[str] = []
        self._seen: dict[int, str] = {}
        self._mounted: list[Path] = []
        self._faked: set[int] = set()  # processes that had a wrong clock
        self._over = threading.Event()

    # --- laying out -----------------------------------------------------------------------------------

    def lay_out(self) -> None:
        """Text, disks, config files, keys, certificates; every daemon runs when this returns."""
        self.workdir.mkdir(parents=True)
        write_corpora(self.text, self.languages)
        self.write_files({"private": LICENCES["gramps"], "public": LICENCES["gramps"]})
        for home in self.homes.values():
            home.mkdir(exist_ok=True)
            if self._hostile and can_mount():
                options = f"size={HOME_BYTES},mode=0755"
                subprocess.run(["mount", "-t", "tmpfs", "-o", options, "storm", home], check=True)
                self._mounted.append(home)
        if self._address is not None:
            change(self.workdir / "coordinator.yaml", {"ledger": self._address})
        port = int(yaml.safe_load((self.workdir / "coordinator.yaml").read_text())["port"])
        for site in self.sites:
            changes: dict[str, Any] = {"lives_max": 1000, "lives_total_max": 10_000}
            if self._hostile:
                self.lines[site.name] = HostileLine(port)
                changes["coordinator"] = f"{HOST}:{self.lines[site.name].port}"
            change(self.site_file(site.name), changes)
        self.command("init", str(self.workdir / "coordinator.yaml"))
        self.start_coordinator()
        self.invite_and_enrol()
        for site in self.sites:
            self.start_agent(site.name)
        threading.Thread(target=self._supervise, daemon=True).start()

    @property
    def homes(self) -> dict[str, Path]:
        """Of every daemon."""
        sites = {f"agent-{site.name}": self.workdir / "sites" / site.name for site in self.sites}
        return {COORDINATOR: self.home} | sites

    def stop(self) -> None:
        """Every daemon ends, and nobody starts it again."""
        with self.lock:
            self._over.set()
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
        super().stop()

    def close(self) -> None:
        """Everything ends; nothing stays mounted."""
        for line in self.lines.values():
            line.close()
        self.stop()
        for home in self._mounted:
            kept = home.with_name(f"{home.name}.kept")  # what a post-mortem needs
            shutil.copytree(home, kept, symlinks=True, dirs_exist_ok=True)
            subprocess.run(["umount", "--lazy", home], check=False)
        self._mounted.clear()
        sweep_faked(self._faked)

    # --- daemons --------------------------------------------------------------------------------------

    def start_daemon(self, name: str) -> None:
        """Start it without waiting for it; a clock that is to be wrong is wrong from its first instruction."""
        if name == COORDINATOR:
            self._start(name, "coordinator", "run", str(self.workdir / "coordinator.yaml"))
        else:
            self._start(name, "site", "run", str(self.site_file(name.removeprefix("agent-"))))

    def _start(self, name: str, *arguments: str) -> None:
        wrong = self.clocks.get(name, 0)
        before = {key: os.environ.get(key) for key in _faked(1)}
        with self.lock:
            os.environ.update(_faked(wrong) if wrong else {})
            try:
                super()._start(name, *arguments)
                if wrong:
                    self._faked.add(self.processes[name].pid)
            finally:
                for key, value in before.items():
                    os.environ.pop(key, None)
                    if value is not None:
                        os.environ[key] = value

    @contextlib.contextmanager
    def kept_down(self, name: str) -> Iterator[None]:
        """The daemon is down, by SIGKILL, as long as the block lasts; then it is started."""
        with self.lock:
            self.down.add(name)
            process = self.processes[name]
        process.kill()
        process.wait()
        try:
            yield
        finally:
            with self.lock:
                self.start_daemon(name)
                self.down.discard(name)

    def _supervise(self) -> None:
        while not self._over.wait(_RESTART_SECONDS):
            with self.lock:
                for name in self.homes:
                    process = self.processes.get(name)
                    status = process.poll() if process is not None else None
                    if status is None or name in self.down or self._over.is_set():
                        continue
                    self.restarts[f"{name}: {status}"] += 1
                    if name not in {COORDINATOR, *self.excused} and status in ENDS_FOR_GOOD:
                        self.problems.append(f"{name} ended with {status}: its service manager leaves it so")
                    self.start_daemon(name)

    def trainers_of(self, site: str) -> list[int]:
        """Process ids of the jobs of one site, sorted."""
        return _marked(f"SPRACHBUND_LIFE={self.workdir}/sites/{site}/")

    def makers(self) -> list[int]:
        """Process ids of what makes bases and merges, sorted, whichever life of the coordinator began it."""
        return _marked(f"{MARK}={self.home}/")

    # --- the recorder ---------------------------------------------------------------------------------

    def remember(self) -> int:
        """Read the whole ledger; the events in it. Raises Violation if one seen before has changed or is gone."""
        with open_ledger(self.ledger_place, read_only=True) as ledger:
            now = {one.seq: one.hash for one in ledger.read()}
        with self.lock:
            lost = [seq for seq, digest in self._seen.items() if now.get(seq) != digest]
            if lost:
                raise Violation(f"events {lost[:5]} of {len(self._seen)} were acknowledged and are not there")
            self._seen = now
        return len(now)

    def wait_until_recorded(self, seconds: float = 60.0) -> int:
        """The same, trying again while the ledger cannot be read at all."""
        until = time.monotonic() + seconds
        while True:
            try:
                return self.remember()
            except Violation:
                raise
            except Exception:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)


def _marked(mark: str) -> list[int]:
    """Process ids of those with a word in their environment that begins so, sorted."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "environ").read_bytes().split(b"\0")
            if any(word.startswith(mark.encode()) for word in words):
                found.append(int(place.name))
    return sorted(found)


def sweep_faked(processes: Iterable[int]) -> None:
    """Remove what libfaketime leaves in shared memory of a process that was killed: its name has the process's id."""
    for pid in processes:
        if not Path(f"/proc/{pid}").exists():  # else the id is somebody else's by now
            for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
                (_SHARED_MEMORY / name).unlink(missing_ok=True)


def _faked(seconds: int) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(_FAKETIME),
        "FAKETIME": f"{seconds:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def change(path: Path, changes: Mapping[str, Any]) -> None:
    """Of a config file."""
    config = yaml.safe_load(path.read_text()) | dict(changes)
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
