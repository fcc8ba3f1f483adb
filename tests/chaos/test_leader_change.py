"""Real agents and trainers live through a change of leaders: ledger in PostgreSQL, store in a shared folder."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from arena import COORDINATOR, Arena, change
from free_ports import free_port
from postgres_server import require_postgres, server
from storm import complete, undisturbed, versions_of

from console.local import HOST
from coordinator.verification import verify

pytestmark = [pytest.mark.soak, pytest.mark.demo, pytest.mark.timeout(1500)]

SECOND = "second"


class TwoCoordinators(Arena):
    """An arena without small disks and hostile lines, in which two coordinators take turns on one ledger and store."""

    def __init__(self, workdir: Path, ledger: str) -> None:
        super().__init__(workdir, ledger, hostile=False)
        self._ports = free_port(), free_port()

    def command(self, *arguments: str) -> Any:
        if arguments[0] == "init":
            mine = yaml.safe_load((self.workdir / "coordinator.yaml").read_text())
            both = {
                "store": str(self.workdir / "shared"),
                "addresses": [f"{HOST}:{port}" for port in (mine["port"], self._ports[0])],
                "enrolment_addresses": [
                    f"{HOST}:{port}" for port in (mine["enrolment_port"], self._ports[1])
                ],
            }
            change(self.workdir / "coordinator.yaml", both)
        return super().command(*arguments)

    def start_coordinator(self) -> None:
        """The first, which leads, then the one that stands by."""
        super().start_coordinator()
        first = yaml.safe_load((self.workdir / "coordinator.yaml").read_text())
        shutil.copytree(self.home, self.workdir / SECOND)
        own = {"home": str(self.workdir / SECOND), "port": self._ports[0], "enrolment_port": self._ports[1]}
        (self.workdir / f"{SECOND}.yaml").write_text(yaml.safe_dump(first | own))
        self._start(SECOND, "coordinator", "run", str(self.workdir / f"{SECOND}.yaml"))

    def start_agent(self, site: str) -> None:
        first = yaml.safe_load((self.workdir / "coordinator.yaml").read_text())
        change(self.site_file(site), {"coordinator": ",".join(first["addresses"])})
        super().start_agent(site)

    def kill_the_leader(self) -> None:
        """For good, as soon as a trainer runs at every site."""
        while not all(self.trainers_of(site.name) for site in self.sites):
            time.sleep(0.1)
        with self.lock:
            self.down.add(COORDINATOR)
            self.processes[COORDINATOR].kill()
        self.processes[COORDINATOR].wait()


def test_another_leads_the_round_to_the_same_model_and_no_agent_needs_help(tmp_path: Path) -> None:
    require_postgres()
    wanted = undisturbed(tmp_path / "calm", [1], rounds=1)[1]
    with server() as postgres:
        arena = TwoCoordinators(tmp_path / "two", postgres.new_ledger())
        try:
            arena.lay_out()
            killer = threading.Thread(target=arena.kill_the_leader, daemon=True)
            killer.start()
            made = complete(arena, 1, rounds=1)
            assert not killer.is_alive(), "nobody was killed"
        finally:
            arena.close()
        assert versions_of(made) == wanted
        assert arena.problems == [] and not [name for name in arena.restarts if name.startswith("agent-")]
        report = verify(arena.workdir / f"{SECOND}.yaml")
        assert report.problems == ()
