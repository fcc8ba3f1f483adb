"""How does a test cluster get its accounting: MariaDB with its own data, slurmdbd, accounts and users?"""

import shutil
import subprocess

from cluster_settings import ACCOUNTS, SPENT, USERS, Settings
from daemons import PATIENCE_SECONDS, Daemons
from proc_files import succeeds


def start_accounting(settings: Settings, daemons: Daemons) -> None:
    """Both daemons answer when this returns."""
    if not daemons.alive("mariadbd"):
        _start_mariadb(settings, daemons)
    if not daemons.alive("slurmdbd"):
        daemons.start("slurmdbd", "slurmdbd", MYSQL_UNIX_PORT=str(settings.database_socket))
        command = ["sacctmgr", "-n", "show", "cluster"]
        daemons.wait(PATIENCE_SECONDS, "slurmdbd", lambda: succeeds(command, daemons.environment))


def make_accounts(settings: Settings, daemons: Daemons) -> None:
    """``ACCOUNTS`` may compute; ``spent`` has used its minutes up. The controller must be up."""
    name = settings.cluster
    found = set(daemons.run("sacctmgr", "-nP", "show", "assoc", "format=account,user").split())
    if not daemons.run("sacctmgr", "-nP", "show", "cluster", name, "format=cluster").strip():
        daemons.run("sacctmgr", "-iQ", "add", "cluster", name)
    new = [account for account in (*ACCOUNTS, SPENT) if f"{account}|" not in found]
    if new:
        daemons.run(
            "sacctmgr", "-iQ", "add", "account", ",".join(new), f"Cluster={name}", "Description=tests"
        )
        users = ",".join(USERS)
        daemons.run("sacctmgr", "-iQ", "add", "user", users, f"Account={','.join(new)}")
        daemons.run("sacctmgr", "-iQ", "modify", "user", users, "set", f"DefaultAccount={ACCOUNTS[0]}")
        daemons.run("sacctmgr", "-iQ", "modify", "account", SPENT, "set", "GrpTRESMins=cpu=0")

    def usable() -> bool:  # the controller hears of a new account a little later
        argv = ["sbatch", "--test-only", "-t", "1", "--wrap", "true", "-A"]
        return all(succeeds([*argv, account], daemons.environment) for account in ACCOUNTS)

    daemons.wait(PATIENCE_SECONDS, "accounts in the controller", usable)


def _start_mariadb(settings: Settings, daemons: Daemons) -> None:
    data, socket = settings.root / "db", settings.database_socket
    for folder in (data, socket.parent):
        folder.mkdir(exist_ok=True)
        shutil.chown(folder, "mysql")
    common = ["--no-defaults", "--user=mysql", f"--datadir={data}"]
    with open(settings.root / "log" / "mariadbd.log", "ab") as log:
        if not (data / "mysql").exists():
            subprocess.run(
                ["mariadb-install-db", *common, "--auth-root-authentication-method=socket", "--skip-test-db"],
                env=daemons.environment,
                stdout=log,
                stderr=log,
                check=True,
                timeout=PATIENCE_SECONDS,
            )
        options = (
            f"--socket={socket} --pid-file={socket.parent}/mariadb.pid --skip-networking --skip-log-bin"
            " --innodb-buffer-pool-size=64M --innodb-log-file-size=16M --innodb-lock-wait-timeout=900"
            " --innodb-flush-log-at-trx-commit=0 --performance-schema=OFF"
        )
        child = subprocess.Popen(
            ["mariadbd", *common, *options.split()],
            env=daemons.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    child.returncode = 0  # it does not fork, and outlives this process
    (daemons.run_dir / "mariadbd.pid").write_text(str(child.pid))
    sql = ["mariadb", "--no-defaults", f"--socket={socket}", "-e"]
    daemons.wait(PATIENCE_SECONDS, "MariaDB", lambda: succeeds([*sql, "select 1"], daemons.environment))
    daemons.run(
        *sql,
        "CREATE DATABASE IF NOT EXISTS slurm_acct_db; "
        "CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED BY 'slurm'; "
        "GRANT ALL ON slurm_acct_db.* TO slurm@localhost",
    )
