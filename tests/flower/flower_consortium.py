"""A consortium of real processes that runs the example's Flower app, as an operator would set it up."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from processes import reaped

from console.local import LocalConsortium, LocalSite
from consortium.ids import digest_of
from coordinator.core.state import State
from coordinator.driver import replay
from coordinator.ledger import Ledger

APP_FOLDER = Path(__file__).parents[2] / "examples" / "flower"
CLIENT_APP = "quickstart.client_app:app"
PATIENCE_SECONDS = 400.0  #: for what takes a quarter of a minute here; less than the time of a test
SITES = tuple(
    LocalSite(name, f"Institute of {name}", country, (), slots=1)
    for name, country in (("north", "FI"), ("south", "EL"), ("west", "IE"))
)


class FlowerConsortium:
    """Started, with every agent at work; ``with`` it."""

    def __init__(
        self, workdir: Path, apps: dict[str, list[str]] | None = None, slurm: dict[str, Any] | None = None
    ) -> None:
        """apps  of sites, what their operators let run; left out: the example
        slurm    of sites that launch through it: their profile
        """
        workdir.mkdir(parents=True)
        self.here = LocalConsortium(
            workdir=workdir.resolve(),
            name="flowers",
            sites=SITES,
            text=workdir,
            sync_seconds=0.5,
            slurm=slurm or {},
        )
        self._apps = apps or {}
        self._started = contextlib.ExitStack()  #: ServerApps
        # the operators have installed the app at their sites
        self._path = os.pathsep.join([str(APP_FOLDER), str(Path(__file__).parents[2])])

    def __enter__(self) -> "FlowerConsortium":
        os.environ["PYTHONPATH"], self._before = self._path, os.environ.get("PYTHONPATH")
        self.here.write_files({})
        for site in self.here.sites:
            path = self.here.site_file(site.name)
            allowed = self._apps.get(site.name, [CLIENT_APP])
            told = yaml.safe_load(path.read_text())
            path.write_text(yaml.safe_dump({**told, "flower": {"apps": allowed}}))
        try:
            self.here.command("init", str(self.here.workdir / "coordinator.yaml"))
            self.here.start_coordinator()
            self.here.invite_and_enrol()
            for site in self.here.sites:
                self.here.start_agent(site.name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._started.close()
        self.here.stop()
        if self._before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = self._before

    def start(self, run: str, **settings: object) -> "subprocess.Popen[bytes]":
        """The ServerApp's process, from its beginning; ended with the consortium, if not before."""
        said = [f"--set={key.replace('_', '-')}={value}" for key, value in sorted(settings.items())]
        log = open(self.here.workdir / "logs" / f"{run}.log", "ab")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "console.main", "flower", "run", str(APP_FOLDER), "--run", run,
                 f"--set=out={self.model(run)}", *said],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "SPRACHBUND_ADMIN": str(self.here.admin), "PYTHONHASHSEED": "0"},
            )  # fmt: skip
        return self._started.enter_context(reaped(process))

    def run(self, run: str, **settings: object) -> str:
        """Run it to its end; the digest of its model."""
        code = self.start(run, **settings).wait(PATIENCE_SECONDS)
        assert code == 0, self.log(run)
        return self.digest(run)

    def log(self, run: str) -> str:
        return (self.here.workdir / "logs" / f"{run}.log").read_text()

    def model(self, run: str) -> Path:
        return self.here.workdir / f"{run}.npz"

    def digest(self, run: str) -> str:
        return self.digest_in(self.model(run))

    def digest_in(self, model: Path) -> str:
        import numpy as np

        with np.load(model) as arrays:
            return digest_of(b"".join(arrays[name].tobytes() for name in sorted(arrays)))

    def state(self) -> State:
        with Ledger(self.here.home / "ledger.sqlite", read_only=True) as ledger:
            return replay(ledger)

    def jobs(self, run: str) -> dict[str, Any]:
        return {name: job for name, job in sorted(self.state().jobs.items()) if job.campaign == run}
