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
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster_settings import (
    ACCOUNTS,
    GPUS_PER_NODE,
    USERS,
    Settings,
    cgroup_conf,
    gres_conf,
    slurm_conf,
    slurmdbd_conf,
)
from proc_files import descendants, kill, open_files, pids_named, succeeds

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
DATABASE_PROGRAMS = ("slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb", "mariadb-install-db")
HOSTS = Path("/etc/hosts")
_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


class ClusterFailed(Exception):
    """It did not come up, or not down; the message names the step and the log to read."""


def default_root() -> Path:
    return Path(os.environ.get("SLURM_TEST_ROOT") or Path(tempfile.gettempdir()) / "slurm-test")


def what_is_missing(database: bool = True) -> str:
    """Why no cluster can be had here; "" if one can."""
    if not Path("/proc/self/comm").exists():
        return "it needs Linux's /proc"
    if os.geteuid():
        return "it needs root (slurmd starts jobs as their users)"
    programs = PROGRAMS + (DATABASE_PROGRAMS if database else ())
    absent = [program for program in programs if not shutil.which(program, path=_PATH)]
    return f"not installed: {', '.join(absent)}" if absent else ""


class Cluster:
    """One cluster below one directory. Only the methods under "faults" hurt it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.root = settings.root
        self.host = socket.gethostname().partition(".")[0]
        self._run_dir = self.root / "run"
        self._socket = self._run_dir / "db" / "mysql.sock"

    @property
    def environment(self) -> dict[str, str]:
        """For every command of this cluster."""
        return {
            **os.environ,
            "PATH": _PATH,
            "SLURM_CONF": str(self.settings.slurm_conf),
            "LC_ALL": "C",
            "SLURM_TIME_FORMAT": "%s",
        }

    def run(self, *argv: str, check: bool = True, timeout: float = 60) -> str:
        """A command's output. Raises ClusterFailed with its words if ``check`` and it failed."""
        done = subprocess.run(
            argv,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.root if self.root.exists() else "/",
        )
        if check and done.returncode:
            raise ClusterFailed(
                f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip() or done.stdout}"
            )
        return done.stdout

    # ---- up

    def up(self) -> None:
        """All nodes idle or at work when this returns; ~1 s if it is up, 3 to 15 s else."""
        if problem := what_is_missing(self.settings.database):
            raise ClusterFailed(problem)
        if len(str(self._socket)) > 100:
            raise ClusterFailed(
                f"{self.root}: too long for a unix socket (107 bytes); choose a shorter --root"
            )
        self._make_folders()
        self._refuse_other_settings()
        self._write_hosts(self._hosts_block())
        self._write_configuration()
        self._start_munge()
        if self.settings.database:
            self.start_database()
        self.start_controller()
        for node in self.settings.node_names:
            self.start_node(node)
        self._wait(
            30, "a controller that answers", lambda: "is UP" in self.run("scontrol", "ping", check=False)
        )
        self.heal()
        if self.settings.database:
            self._make_accounts()
        (self.root / "env.sh").write_text(
            f"export SLURM_CONF={self.settings.slurm_conf}\nexport SLURM_TEST_ROOT={self.root}\n"
        )

    def heal(self) -> None:
        """Bring back what a fault left down, and wait for all nodes."""
        self.start_controller()
        for node in self.settings.node_names:
            self.start_node(node)
        try:
            self._wait(4, "all nodes", self.nodes_ready)
        except ClusterFailed:
            for node in self.settings.node_names:
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
            self._wait(60, "all nodes idle", self.nodes_ready)

    def nodes_ready(self) -> bool:
        lines = self.run("sinfo", "-hN", "-p", "gpu", "-o", "%N %t", check=False).split("\n")
        states = dict(line.split() for line in lines if line)
        return len(states) == self.settings.nodes and set(states.values()) <= {"idle", "alloc", "mix", "comp"}

    def start_controller(self) -> None:
        if not self._alive("slurmctld"):
            self._daemon("slurmctld", "-i")

    def start_node(self, node: str) -> None:
        if not self._alive(f"slurmd-{node}"):
            self._daemon("slurmd", "-N", node)

    def start_database(self) -> None:
        if not self._alive("mariadbd"):
            self._start_mariadb()
        if not self._alive("slurmdbd"):
            self._daemon("slurmdbd", MYSQL_UNIX_PORT=str(self._socket))

            def answers() -> bool:
                return succeeds(["sacctmgr", "-n", "show", "cluster"], self.environment)

            self._wait(60, "slurmdbd", answers)

    # ---- down

    def down(self, purge: bool = False) -> None:
        """End all jobs and daemons, in the order that lets each say good-bye."""
        if self._alive("slurmctld"):
            jobs = self.run("squeue", "-ho", "%A", check=False).split()
            if jobs:
                self.run("scancel", "-f", *sorted(set(jobs)), check=False)
                try:
                    self._wait(15, "the last job", lambda: not self.run("squeue", "-h", check=False).strip())
                except ClusterFailed:
                    pass  # its node may be one that a test killed; the daemons go all the same
        names = [path.stem for path in sorted(self._run_dir.glob("slurmd-*.pid"))]
        for name in [*names, "slurmctld", "slurmdbd", "mariadbd", "munged"]:
            self._stop(name, signal.SIGTERM)
        for node in self.settings.node_names:
            self._kill_steps(node)
        self._write_hosts("")
        if purge:
            shutil.rmtree(self.root, ignore_errors=True)

    def status(self) -> dict[str, str | bool]:
        names = ["munged", "slurmctld"] + [f"slurmd-{node}" for node in self.settings.node_names]
        names += ["mariadbd", "slurmdbd"] if self.settings.database else []
        return {"root": str(self.root), **{name: self._alive(name) for name in names}}

    def is_up(self) -> bool:
        return all(value for value in self.status().values()) and self.nodes_ready()

    # ---- faults

    def stop_controller(self) -> None:
        self._stop("slurmctld", signal.SIGTERM)

    def stop_database(self) -> None:
        self._stop("slurmdbd", signal.SIGTERM)

    def kill_node(self, node: str) -> None:
        """As when it loses power: slurmd, its steps and all their processes die without a word."""
        steps = self._steps(node)
        below = [pid for step in steps for pid in descendants(step)]
        self._stop(f"slurmd-{node}", signal.SIGKILL)
        for pid in [*steps, *below]:
            kill(pid, signal.SIGKILL)

    def isolate_node(self, node: str) -> None:
        """As when its network is cut: the controller gives it up, its jobs' processes go on."""
        self._stop(f"slurmd-{node}", signal.SIGKILL)

    # ---- inside

    def _steps(self, node: str) -> list[int]:
        """The slurmstepds of a node, by the sockets that they hold in its spool directory."""
        spool = f"{self.root}/spool/{node}/"
        inodes = set()
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            fields = line.split()
            if len(fields) > 7 and fields[7].startswith(spool):
                inodes.add(f"socket:[{fields[6]}]")
        return [pid for pid in pids_named("slurmstepd") if inodes & open_files(pid)]

    def _kill_steps(self, node: str) -> None:
        steps = self._steps(node)
        for pid in [*(child for step in steps for child in descendants(step)), *steps]:
            kill(pid, signal.SIGKILL)

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
        path = self.root / "settings.json"
        wanted = self.settings.described()
        if path.exists() and self._alive("slurmctld"):
            found = json.loads(path.read_text())
            if found != wanted:
                raise ClusterFailed(f"{self.root} is up with {found}, asked for {wanted}: take it down first")
        path.write_text(json.dumps(wanted))

    def _hosts_block(self) -> str:
        """torchrun resolves node names; the machine's own name must be a loopback address (see slurm.conf)."""
        return "".join(f"127.0.0.1 {name}\n" for name in [self.host, *self.settings.node_names])

    def _write_hosts(self, block: str) -> None:
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

    def _write_configuration(self) -> None:
        version = self.run("slurmd", "-V").strip()
        etc = self.root / "etc"
        (etc / "slurm.conf").write_text(slurm_conf(self.settings, self.host))
        (etc / "gres.conf").write_text(gres_conf(self.settings))
        (etc / "cgroup.conf").write_text(cgroup_conf(version))
        if self.settings.database:
            path = etc / "slurmdbd.conf"
            path.touch(mode=0o600)  # slurmdbd insists
            path.write_text(slurmdbd_conf(self.settings, self.host))

    def _start_munge(self) -> None:
        if self._alive("munged"):
            return
        key = self.root / "munge" / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(128))
        for stale in self._run_dir.glob("munge.sock*"):
            stale.unlink()
        self._daemon(
            "munged",
            "--force",  # as root, and below a directory that may be writable by others
            f"--key-file={key}",
            f"--socket={self._run_dir}/munge.sock",
            f"--pid-file={self._run_dir}/munged.pid",
            f"--seed-file={self.root}/munge/munge.seed",
            f"--log-file={self.root}/log/munged.log",
            "--num-threads=2",
        )

    def _start_mariadb(self) -> None:
        data = self.root / "db"
        for folder in (data, self._run_dir / "db"):
            folder.mkdir(exist_ok=True)
            shutil.chown(folder, "mysql")
        log = open(self.root / "log" / "mariadbd.log", "ab")
        with log:
            if not (data / "mysql").exists():
                subprocess.run(
                    [
                        "mariadb-install-db",
                        "--no-defaults",
                        "--user=mysql",
                        f"--datadir={data}",
                        "--auth-root-authentication-method=socket",
                        "--skip-test-db",
                    ],  # fmt: skip
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    check=True,
                    timeout=120,
                )
            child = subprocess.Popen(
                [
                    "mariadbd",
                    "--no-defaults",
                    "--user=mysql",
                    f"--datadir={data}",
                    "--skip-networking",
                    f"--socket={self._socket}",
                    f"--pid-file={self._run_dir}/db/mariadb.pid",
                    "--skip-log-bin",
                    "--innodb-buffer-pool-size=64M",
                    "--innodb-log-file-size=16M",
                    "--performance-schema=OFF",
                    "--innodb-lock-wait-timeout=900",
                    "--innodb-flush-log-at-trx-commit=0",
                ],  # fmt: skip
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        child.returncode = 0  # it does not fork, and outlives this process
        (self._run_dir / "mariadbd.pid").write_text(str(child.pid))
        sql = ["mariadb", "--no-defaults", f"--socket={self._socket}", "-e"]
        self._wait(60, "MariaDB", lambda: succeeds([*sql, "select 1"], self.environment))
        self.run(
            *sql,
            "CREATE DATABASE IF NOT EXISTS slurm_acct_db; "
            "CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED BY 'slurm'; "
            "GRANT ALL ON slurm_acct_db.* TO slurm@localhost",
        )

    def _make_accounts(self) -> None:
        found = set(self.run("sacctmgr", "-nP", "show", "assoc", "format=account,user").split())
        name = self.settings.cluster
        if not self.run("sacctmgr", "-nP", "show", "cluster", name, "format=cluster").strip():
            self.run("sacctmgr", "-iQ", "add", "cluster", name)
        for account in (*ACCOUNTS, "spent"):
            if f"{account}|" not in found:
                self.run("sacctmgr", "-iQ", "add", "account", account, f"Cluster={name}", "Description=t")
            for user in USERS:
                if f"{account}|{user}" not in found:
                    self.run("sacctmgr", "-iQ", "add", "user", user, f"Account={account}", check=False)
        if "spent|root" not in found:
            self.run("sacctmgr", "-iQ", "modify", "account", "spent", "set", "GrpTRESMins=cpu=0")
            for user in USERS:
                self.run("sacctmgr", "-iQ", "modify", "user", user, "set", "DefaultAccount=site")
        self._wait(15, "accounts in the controller", self._accounts_known)

    def _accounts_known(self) -> bool:
        return all(
            succeeds(["sbatch", "--test-only", "-A", account, "-t", "1", "--wrap", "true"], self.environment)
            for account in ACCOUNTS
        )

    def _daemon(self, *argv: str, **extra: str) -> None:
        """Start what forks into the background by itself."""
        with open(self.root / "log" / "start.log", "ab") as log:
            done = subprocess.run(
                argv,
                env={**self.environment, **extra},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                timeout=60,
            )
        if done.returncode:
            raise ClusterFailed(f"{argv[0]}: exit {done.returncode}; see {self.root}/log")
        pid_file = "slurmd-" + argv[2] if argv[0] == "slurmd" else argv[0]
        self._wait(30, f"{pid_file}.pid", lambda: self._alive(pid_file))

    def _pid(self, name: str) -> int:
        """Of the daemon that a pid file means, if it is that daemon still; 0 if not."""
        try:
            pid = int((self._run_dir / f"{name}.pid").read_text())
            comm = Path(f"/proc/{pid}/comm").read_text().strip()
        except (OSError, ValueError):
            return 0
        return pid if comm == name.partition("-")[0] else 0

    def _alive(self, name: str) -> bool:
        return bool(self._pid(name))

    def _stop(self, name: str, sign: signal.Signals) -> None:
        pid = self._pid(name)
        if pid:
            kill(pid, sign)
            try:
                self._wait(15, f"the end of {name}", lambda: not self._alive(name))
            except ClusterFailed:
                kill(pid, signal.SIGKILL)
        (self._run_dir / f"{name}.pid").unlink(missing_ok=True)

    def _wait(self, seconds: float, what: str, so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while not so():
            if time.monotonic() > deadline:
                raise ClusterFailed(f"waited {seconds:g} s in vain for {what}; see {self.root}/log")
            time.sleep(0.1)


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
    settings = Settings(
        root=given.root.absolute(),
        nodes=given.nodes,
        port=given.port,
        database=not given.no_database,
        min_job_age=given.min_job_age,
    )
    cluster = Cluster(settings)
    try:
        if given.act == "up":
            began = time.monotonic()
            cluster.up()
            print(f"up in {time.monotonic() - began:.1f} s; then: . {cluster.root}/env.sh")
        elif given.act == "down":
            cluster.down(purge=given.purge)
        else:
            print(json.dumps(cluster.status(), indent=2))
            return 0 if cluster.is_up() else 1
    except (ClusterFailed, subprocess.SubprocessError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
