"""How is a real Slurm of virtual nodes brought up, looked at, hurt and taken down on this one machine?

    python tests/slurm/cluster.py up --root DIR --nodes 3      then:  . DIR/env.sh; sinfo
    python tests/slurm/cluster.py status --root DIR
    python tests/slurm/cluster.py down --root DIR --purge

``up`` starts only what is not alive, so a second call costs a second. Needs root and the programs in ``PROGRAMS``
(Debian: munge slurmctld slurmd slurm-client slurm-wlm-basic-plugins slurmdbd mariadb-server); installs nothing.
Everything is below one directory, but for a marked block in /etc/hosts, which ``down`` takes away again.
"""

import argparse
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from accounting import make_accounts, start_accounting
from cluster_settings import (
    GPUS_PER_NODE,
    Settings,
    cgroup_conf,
    gres_conf,
    slurm_conf,
    slurmdbd_conf,
)
from daemons import PATH, PATIENCE_SECONDS, ClusterFailed, Daemons
from proc_files import descendants, kill, open_files, pids_named, runs

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
DATABASE_PROGRAMS = ("slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb", "mariadb-install-db")
HOSTS = Path("/etc/hosts")


def default_root() -> Path:
    return Path(os.environ.get("SLURM_TEST_ROOT") or Path(tempfile.gettempdir()) / "slurm-test")


def what_is_missing(database: bool = True) -> str:
    """Why no cluster can be had here; "" if one can."""
    if not Path("/proc/self/comm").exists():
        return "it needs Linux's /proc"
    if os.geteuid():
        return "it needs root (slurmd starts jobs as their users)"
    programs = PROGRAMS + (DATABASE_PROGRAMS if database else ())
    absent = [program for program in programs if not shutil.which(program, path=PATH)]
    return f"not installed: {', '.join(absent)}" if absent else ""


class Cluster:
    """One cluster below one directory. Only the methods under "faults" hurt it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.root = settings.root
        self.host = socket.gethostname().partition(".")[0]
        #: for every command of this cluster
        self.environment = {
            **os.environ,
            "PATH": PATH,
            "SLURM_CONF": str(settings.slurm_conf),
            "LC_ALL": "C",
            "SLURM_TIME_FORMAT": "%s",
        }
        self._daemons = Daemons(settings.root, self.environment)
        self.run = self._daemons.run
        self.wait = self._daemons.wait

    # ---- up

    def up(self) -> None:
        """All nodes idle or at work when this returns; ~1 s if it is up, 3 to 15 s else."""
        if problem := what_is_missing(self.settings.database):
            raise ClusterFailed(problem)
        if len(str(self.settings.database_socket)) > 100:
            raise ClusterFailed(
                f"{self.root}: too long for a unix socket (107 bytes); choose a shorter --root"
            )
        self._make_folders()
        self._refuse_other_settings()
        self._write_hosts("".join(f"127.0.0.1 {name}\n" for name in [self.host, *self.settings.node_names]))
        changed = self._write_configuration()
        self._start_munge()
        if self.settings.database:
            start_accounting(self.settings, self._daemons)
        was_alive = self._daemons.alive("slurmctld")
        self._start_slurm()
        if changed and was_alive:
            self.run("scontrol", "reconfigure")
        if self.settings.database:
            make_accounts(self.settings, self._daemons)
        (self.root / "env.sh").write_text(
            f"export SLURM_CONF={self.settings.slurm_conf}\nexport SLURM_TEST_ROOT={self.root}\n"
        )

    def start_controller(self) -> None:
        """It answers when this returns, and knows its nodes a little later."""
        if not self._daemons.alive("slurmctld"):
            self._daemons.start("slurmctld", "slurmctld", "-i")
        self.wait(
            PATIENCE_SECONDS, "the controller", lambda: "is UP" in self.run("scontrol", "ping", check=False)
        )

    def start_node(self, node: str) -> None:
        if not self._daemons.alive(f"slurmd-{node}"):
            self._daemons.start(f"slurmd-{node}", "slurmd", "-N", node)

    def start_database(self) -> None:
        start_accounting(self.settings, self._daemons)

    def nodes_ready(self) -> bool:
        lines = self.run("sinfo", "-hN", "-p", "gpu", "-o", "%N %t", check=False).splitlines()
        states = dict(line.split() for line in lines)
        return len(states) == self.settings.nodes and set(states.values()) <= {"idle", "alloc", "mix", "comp"}

    def status(self) -> dict[str, str | bool]:
        names = ["munged", "slurmctld", *(f"slurmd-{node}" for node in self.settings.node_names)]
        names += ["mariadbd", "slurmdbd"] if self.settings.database else []
        return {"root": str(self.root), **{name: self._daemons.alive(name) for name in names}}

    def is_up(self) -> bool:
        return all(self.status().values()) and self.nodes_ready()

    # ---- down

    def down(self, purge: bool = False) -> None:
        """End all jobs and daemons, in the order that lets each say good-bye."""
        if self._daemons.alive("slurmctld"):
            jobs = self.run("squeue", "-ho", "%A", check=False).split()
            if jobs:
                self.run("scancel", "-f", *sorted(set(jobs)), check=False)
                try:
                    self.wait(15, "the last job", lambda: not self.run("squeue", "-h", check=False).strip())
                except ClusterFailed:
                    pass  # its node may be one that a test killed; the daemons go all the same
        nodes = [path.stem for path in sorted((self.root / "run").glob("slurmd-*.pid"))]
        for name in [*nodes, "slurmctld", "slurmdbd", "mariadbd", "munged"]:
            self._daemons.stop(name)
        for node in self.settings.node_names:
            self._kill_steps(node)
        self._write_hosts("")
        if purge:
            shutil.rmtree(self.root, ignore_errors=True)

    # ---- faults

    def stop_controller(self) -> None:
        self._daemons.stop("slurmctld")

    def stop_database(self) -> None:
        """slurmdbd only, as when its machine is serviced."""
        self._daemons.stop("slurmdbd")

    def kill_node(self, node: str) -> None:
        """As when it loses power: slurmd, its steps and all their processes die without a word."""
        self._daemons.stop(f"slurmd-{node}", signal.SIGKILL)
        self._kill_steps(node)

    def cut_off_node(self, node: str) -> None:
        """As when its network is cut: the controller will give it up, its jobs' processes go on."""
        self._daemons.stop(f"slurmd-{node}", signal.SIGKILL)

    # ---- inside

    def _start_slurm(self) -> None:
        self.start_controller()
        for node in self.settings.node_names:
            self.start_node(node)
        try:
            self.wait(4, "all nodes", self.nodes_ready)
        except ClusterFailed:  # down since before; or claimed to be something else
            for node in self.settings.node_names:
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
            self.wait(PATIENCE_SECONDS, "all nodes", self.nodes_ready)

    def _kill_steps(self, node: str) -> None:
        """The slurmstepds of a node, which hold sockets in its spool directory, and all below them."""
        spool = f"{self.root}/spool/{node}/"
        held = set()
        for line in Path("/proc/net/unix").read_text().splitlines():
            fields = line.split()
            if len(fields) > 7 and fields[7].startswith(spool):
                held.add(f"socket:[{fields[6]}]")
        steps = [pid for pid in pids_named("slurmstepd") if held & open_files(pid)]
        below = [pid for step in steps for pid in descendants(step)]
        for pid in [*steps, *below]:
            kill(pid, signal.SIGKILL)
        self.wait(PATIENCE_SECONDS, "the end of its steps", lambda: not any(map(runs, [*steps, *below])))

    def _make_folders(self) -> None:
        for name in ("etc", "run", "log", "state", "dev", "spool"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for node in self.settings.node_names:
            (self.root / "spool" / node).mkdir(exist_ok=True)
        (self.root / "munge").mkdir(mode=0o700, exist_ok=True)
        for number in range(GPUS_PER_NODE):
            link = self.root / "dev" / f"gpu{number}"
            if not link.is_symlink():
                link.symlink_to("/dev/null")

    def _refuse_other_settings(self) -> None:
        if self._daemons.alive("slurmctld") and Settings.recorded(self.root) != self.settings:
            raise ClusterFailed(f"{self.root} is up with other settings; take it down first")
        self.settings.record()

    def _write_hosts(self, block: str) -> None:
        """torchrun resolves node names; the machine's own name must be a loopback address (see slurm.conf)."""
        begin, end = f"# >>> slurm-test {self.root}\n", f"# <<< slurm-test {self.root}\n"
        with open(HOSTS, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two clusters may come up at once
            text = file.read()
            rest = re.sub(re.escape(begin) + ".*?" + re.escape(end), "", text, flags=re.DOTALL)
            wanted = (begin + block + end if block else "") + rest
            if wanted != text:
                file.seek(0)
                file.write(wanted)
                file.truncate()

    def _write_configuration(self) -> bool:
        """Whether anything is other than it was."""
        etc = self.root / "etc"
        files = {
            "slurm.conf": slurm_conf(self.settings, self.host),
            "gres.conf": gres_conf(self.settings),
            "cgroup.conf": cgroup_conf(self.run("slurmd", "-V")),
            "slurmdbd.conf": slurmdbd_conf(self.settings, self.host),
        }
        changed = [
            name for name in files if not (etc / name).exists() or (etc / name).read_text() != files[name]
        ]
        for name in changed:
            (etc / name).touch(mode=0o600 if name == "slurmdbd.conf" else 0o644)  # slurmdbd insists
            (etc / name).write_text(files[name])
        return bool(changed)

    def _start_munge(self) -> None:
        if self._daemons.alive("munged"):
            return
        key, run = self.root / "munge" / "munge.key", self.root / "run"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(128))
        for stale in run.glob("munge.sock*"):
            stale.unlink()
        self._daemons.start(
            "munged",
            "munged",
            "--force",  # as root, and below a directory that others may write to
            f"--key-file={key}",
            f"--socket={run}/munge.sock",
            f"--pid-file={run}/munged.pid",
            f"--seed-file={self.root}/munge/munge.seed",
            f"--log-file={self.root}/log/munged.log",
            "--num-threads=2",
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("act", choices=["up", "status", "down"])
    parser.add_argument("--root", type=Path, default=default_root(), help="SLURM_TEST_ROOT or %(default)s")
    parser.add_argument("--nodes", type=int, default=Settings.nodes)
    parser.add_argument(
        "--port", type=int, default=Settings.port, help="of the controller; +2, +10 ... are used"
    )
    parser.add_argument("--no-database", action="store_true", help="no accounting, so no sacct; much faster")
    parser.add_argument("--min-job-age", type=int, default=Settings.min_job_age, metavar="SECONDS")
    parser.add_argument("--purge", action="store_true", help="down: remove the directory too")
    given = parser.parse_args(argv)
    root = given.root.absolute()
    asked = Settings(
        root=root,
        nodes=given.nodes,
        port=given.port,
        database=not given.no_database,
        min_job_age=given.min_job_age,
    )
    try:
        if given.act == "up":
            began = time.monotonic()
            Cluster(asked).up()
            print(f"up in {time.monotonic() - began:.1f} s; then: . {root}/env.sh")
        elif (recorded := Settings.recorded(root)) is None:
            print(f"nothing at {root}")
            return 1
        elif given.act == "down":
            Cluster(recorded).down(purge=given.purge)
        else:
            cluster = Cluster(recorded)
            print(json.dumps(cluster.status(), indent=2))
            return 0 if cluster.is_up() else 1
    except (ClusterFailed, subprocess.SubprocessError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
