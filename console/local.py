"""A whole consortium on one machine: real processes, real certificates, loopback only.

What ``sprachbund demo`` shows and what the chaos tests kill. Nothing here is a shortcut: coordinator and agents
are the programs that a consortium runs, started with the files that an operator would write.

    workdir/coordinator.yaml  coordinator/    home of the coordinator
            campaign.yaml     admin commands are given as its admin
            sites/<name>.yaml sites/<name>/   home of each site, with its text beside it
            text/  model/  report.json  logs/
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from consortium.errors import Unavailable
from consortium.files import make_folder, write_bytes_atomically
from consortium.ids import Language
from consortium.ports import free_port
from site_agent.config import load_site_config
from site_agent.launchers.base import LIFE_FILE
from site_agent.launching import make_launcher

HOST = "127.0.0.1"
_START_SECONDS = 300.0  #: a busy machine's imports alone may take a minute; who ends is noticed at once


@dataclass(frozen=True, slots=True)
class LocalSite:
    """A site of the demo: its own languages; everybody holds the public slice."""

    name: str
    organisation: str
    country: str
    languages: tuple[Language, ...]
    slots: int = 1


@dataclass(slots=True)
class LocalConsortium:
    """Starts, stops and restarts the processes of a consortium below ``workdir``."""

    workdir: Path
    name: str
    sites: Sequence[LocalSite]
    text: Path  #: public/<lang>.jsonl and private/<lang>.jsonl
    heldout_share: float = 0.1
    sync_seconds: float = 1.0
    slurm: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  #: by site: what its ``slurm:`` says
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.workdir / "coordinator"

    @property
    def admin(self) -> Path:
        return self.home / "admin"

    def site_file(self, name: str) -> Path:
        return self.workdir / "sites" / f"{name}.yaml"

    # --- files ----------------------------------------------------------------------------------------

    def write_files(self, licences: Mapping[str, str]) -> None:
        """The config files that operators would write; ``licences`` by access."""
        port, enrolment_port = free_port(), free_port()  # the same when the coordinator is restarted
        make_folder(self.workdir / "sites")
        make_folder(self.workdir / "logs")
        _write_yaml(
            self.workdir / "coordinator.yaml",
            {
                "consortium": self.name,
                "home": "coordinator",
                "listen": HOST,
                "port": port,
                "enrolment_port": enrolment_port,
                "names": [HOST, "localhost"],
                "tick_seconds": 0.5,
            },
        )
        for site in self.sites:
            text = [
                {
                    "language": language,
                    "path": str((self.text / access / f"{language}.jsonl").resolve()),
                    "format": "jsonl",
                    "access": access,
                    "licence": licences[access],
                    "id_field": "id",
                }
                for access, languages in (("private", site.languages), ("public", self.languages))
                for language in languages
            ]
            launching = (
                {"launcher": "slurm", "slurm": dict(self.slurm[site.name])} if site.name in self.slurm else {}
            )
            _write_yaml(
                self.site_file(site.name),
                {
                    "site": site.name,
                    "coordinator": f"{HOST}:{port}",
                    "enrolment": f"{HOST}:{enrolment_port}",
                    "home": site.name,
                    "slots": site.slots,
                    "sync_seconds": self.sync_seconds,
                    "heldout_share": self.heldout_share,
                    **launching,
                    "text": text,
                },
            )

    @property
    def languages(self) -> tuple[Language, ...]:
        return tuple(sorted({language for site in self.sites for language in site.languages}))

    # --- processes ------------------------------------------------------------------------------------

    def command(self, *arguments: str) -> Any:
        """Run one ``sprachbund`` command as the admin, to its end; what it printed with --json."""
        done = subprocess.run(
            [*_SPRACHBUND, *arguments, "--json"], capture_output=True, env=self._environment(), check=False
        )
        if done.returncode != 0:
            raise Unavailable(
                f"sprachbund {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}"
            )
        return json.loads(done.stdout) if done.stdout.strip() else None

    def start_coordinator(self) -> None:
        """Start it and wait until it answers."""
        self._start("coordinator", "coordinator", "run", str(self.workdir / "coordinator.yaml"))
        config = yaml.safe_load((self.workdir / "coordinator.yaml").read_text())
        self._wait_for_port("coordinator", int(config["port"]))

    def start_agent(self, site: str) -> None:
        self._start(f"agent-{site}", "site", "run", str(self.site_file(site)))

    def invite_and_enrol(self) -> None:
        """Each site gets a one-time invitation, makes its own key and comes back with a certificate."""
        for site in self.sites:
            invitation = self.workdir / "sites" / f"{site.name}.invitation"
            self.command(
                *("invite", site.name, "--organisation", site.organisation, "--country", site.country),
                *("--out", str(invitation)),
            )
            self.command("site", "enrol", str(self.site_file(site.name)), "--invitation", str(invitation))

    def _start(self, name: str, *arguments: str) -> None:
        with open(self.workdir / "logs" / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [*_SPRACHBUND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )

    def _wait_for_port(self, name: str, port: int) -> None:
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            if self.processes[name].poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
                return
            time.sleep(0.1)
        last = (self.workdir / "logs" / f"{name}.log").read_text(errors="replace").splitlines()[-3:]
        raise Unavailable(f"{name} does not answer on port {port}; the end of its log: {' | '.join(last)}")

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SPRACHBUND_ADMIN": str(self.admin)}

    def dead(self) -> list[str]:
        """Processes that have ended, though nobody stopped them."""
        return sorted(name for name, process in self.processes.items() if process.poll() is not None)

    def trainers(self) -> Iterator[tuple[str, int]]:
        """Live job processes of all sites, by the mark that the local launcher gives them: (attempt, pid)."""
        mark = f"SPRACHBUND_LIFE={self.workdir.resolve()}/".encode()
        for place in sorted(Path("/proc").glob("[0-9]*"), key=lambda p: int(p.name)):
            with contextlib.suppress(OSError):
                for variable in (place / "environ").read_bytes().split(b"\0"):
                    if variable.startswith(mark):
                        yield Path(variable.decode().partition("#")[0]).name, int(place.name)

    def stop(self) -> None:
        """Stop agents, then the coordinator, then whatever jobs are still running."""
        for name in sorted(self.processes):  # agents sort before the coordinator
            process = self.processes[name]
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for _, pid in self.trainers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in self.slurm:
            self._empty_queue(self.site_file(name))
        self.processes.clear()

    def _empty_queue(self, site_file: Path) -> None:
        """Take every Slurm job of a site's spool out of the queue."""
        if not site_file.exists():
            return
        config = load_site_config(site_file)
        launcher = make_launcher(config)
        for life in sorted(Path(config.home).glob(f"spool/*/*/{LIFE_FILE}")):
            with contextlib.suppress(Unavailable):  # then it ends by its own walltime
                launcher.cancel(life.parent)


_SPRACHBUND = (sys.executable, "-m", "console.main")


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    write_bytes_atomically(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True).encode())
