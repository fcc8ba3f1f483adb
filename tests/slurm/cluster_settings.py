"""What is written into a test cluster's configuration files?

A whole Slurm (controller, virtual nodes with fake GPUs, accounting) on one Linux machine, on 127.0.0.1, without
systemd, cgroups or a second machine. Written for 22.05 (Debian 12) and 24.11 (Debian 13).
Source of the settings: slurm.conf(5), slurmdbd.conf(5), gres.conf(5), cgroup.conf(5), and trying.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

GPUS_PER_NODE = 4
PORTS = 20  #: in a row that a cluster of up to ten nodes has, used or not
ACCOUNTS = ("site", "north", "south")
SPENT = "spent"  #: an account whose minutes are used up: its jobs pend for ever
USERS = ("root", "nobody")


@dataclass(frozen=True)
class Settings:
    """One cluster. ``root`` must be short: a unix socket's path has 107 bytes."""

    root: Path
    nodes: int = 3
    port: int = 26817  #: the controller's; the database daemon has the next but one, nodes from +10 on
    database: bool = True  #: MariaDB and slurmdbd, so that sacct answers and accounts are checked
    min_job_age: int = 300  #: seconds after its end that squeue still knows a job (at least 2)
    node_timeout: int = 30  #: seconds until a silent node is down
    cluster: str = "test"

    @property
    def slurm_conf(self) -> Path:
        return self.root / "etc" / "slurm.conf"

    @property
    def node_names(self) -> list[str]:
        return [f"node{number}" for number in range(self.nodes)]

    @property
    def database_port(self) -> int:
        return self.port + 2

    def node_port(self, number: int) -> int:
        return self.port + 10 + number

    @property
    def database_socket(self) -> Path:
        return self.root / "run" / "db" / "mysql.sock"

    def record(self) -> None:
        """Note in ``root`` what the cluster there is like."""
        plain = {**asdict(self), "root": str(self.root)}
        (self.root / "settings.json").write_text(json.dumps(plain, indent=2, sort_keys=True))

    @classmethod
    def recorded(cls, root: Path) -> "Settings | None":
        """What ``record`` noted in ``root``."""
        try:
            plain = json.loads((root / "settings.json").read_text())
        except FileNotFoundError:
            return None
        return cls(**{**plain, "root": root})


def slurm_conf(settings: Settings, host: str) -> str:
    root, nodes = settings.root, _bracketed(settings.nodes)
    lines = [
        f"ClusterName={settings.cluster}",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={settings.port}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny",  # nothing listens beyond this machine
        "AuthType=auth/munge",
        "CredType=cred/munge",
        # a requeued job waits until its old credential is void: 120 s by default
        f"AuthInfo=socket={root}/run/munge.sock,cred_expire=8",
        f"StateSaveLocation={root}/state",
        f"SlurmctldPidFile={root}/run/slurmctld.pid",
        f"SlurmctldLogFile={root}/log/slurmctld.log",
        f"SlurmdPidFile={root}/run/slurmd-%n.pid",
        f"SlurmdLogFile={root}/log/slurmd-%n.log",
        f"SlurmdSpoolDir={root}/spool/%n",
        "ProctrackType=proctrack/linuxproc",  # no cgroups
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=2",
        "MpiDefault=none",
        "MailProg=/bin/true",
        "SlurmdParameters=config_overrides",  # nodes may claim more CPUs and memory than the machine has
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "DefMemPerCPU=1000",  # MB; a job that says nothing would take its node's whole memory
        "SchedulerType=sched/backfill",
        "SchedulerParameters=bf_interval=1,bf_resolution=1,sched_interval=1,sched_min_interval=0,"
        "batch_sched_delay=0,defer_batch",
        "PriorityType=priority/basic",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "GresTypes=gpu",
        "ReturnToService=2",  # a node that comes back is used again
        "JobRequeue=1",
        f"MinJobAge={settings.min_job_age}",
        "KillWait=2",
        f"SlurmdTimeout={settings.node_timeout}",
        "SlurmctldTimeout=30",
        "MessageTimeout=10",
        "JobCompType=jobcomp/filetxt",
        f"JobCompLoc={root}/log/jobcomp.log",
        "DebugFlags=NO_CONF_HASH",
    ]
    if settings.database:
        lines += [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={settings.database_port}",
            f"AccountingStoragePass={root}/run/munge.sock",
            "AccountingStorageTRES=gres/gpu",
            "AccountingStorageEnforce=associations,limits,qos",  # a wrong account is refused, as at a site
        ]
    # Every node has the machine's own name and a port of its own: NoInAddrAny binds all of them to that name.
    lines += [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={settings.node_port(number)} CPUs=8"
        " Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=8000"
        f" Gres=gpu:a100:{GPUS_PER_NODE} Feature=a100,{_side(settings, number)} State=UNKNOWN"
        for number, name in enumerate(settings.node_names)
    ]
    north = [name for number, name in enumerate(settings.node_names) if _side(settings, number) == "north"]
    south = [name for name in settings.node_names if name not in north] or north
    lines += [
        f"PartitionName=gpu Nodes={nodes} Default=YES MaxTime=2-00:00:00 DefaultTime=00:10:00 State=UP"
        " PriorityTier=10 PreemptMode=off",
        f"PartitionName=preempt Nodes={nodes} MaxTime=1-00:00:00 DefaultTime=00:10:00 State=UP"
        " PriorityTier=1 PreemptMode=requeue GraceTime=3",
        # two virtual sites with nodes of their own; jobs here push out those of ``preempt``
        f"PartitionName=north Nodes={','.join(north)} MaxTime=2-00:00:00 DefaultTime=00:10:00 State=UP"
        " PriorityTier=10 PreemptMode=off",
        f"PartitionName=south Nodes={','.join(south)} MaxTime=2-00:00:00 DefaultTime=00:10:00 State=UP"
        " PriorityTier=10 PreemptMode=off",
        "PartitionName=debug Nodes=node0 MaxTime=00:30:00 DefaultTime=00:05:00 State=UP"
        " PriorityTier=20 PreemptMode=off",
    ]
    return "\n".join(lines) + "\n"


def slurmdbd_conf(settings: Settings, host: str) -> str:
    root = settings.root
    return "\n".join(
        [
            "AuthType=auth/munge",
            f"AuthInfo=socket={root}/run/munge.sock,cred_expire=8",
            "SlurmUser=root",
            "DbdAddr=127.0.0.1",
            f"DbdHost={host}",
            f"DbdPort={settings.database_port}",
            "CommunicationParameters=NoInAddrAny",
            f"LogFile={root}/log/slurmdbd.log",
            f"PidFile={root}/run/slurmdbd.pid",
            "StorageType=accounting_storage/mysql",
            "StorageHost=localhost",
            "StorageUser=slurm",
            "StoragePass=slurm",  # over a unix socket that only this machine's users reach; nothing is in it
            "StorageLoc=slurm_acct_db",
            "",
        ]
    )


def gres_conf(settings: Settings) -> str:
    """GPUs are links to /dev/null: Slurm wants character devices whose names end in a number."""
    last = GPUS_PER_NODE - 1
    return (
        "AutoDetect=off\n"
        f"NodeName={_bracketed(settings.nodes)} Name=gpu Type=a100 File={settings.root}/dev/gpu[0-{last}]\n"
    )


def cgroup_conf(version: str) -> str:
    """``version`` as ``slurmd -V`` has it, ``slurm-wlm 22.05.8``; newer ones start their cgroup plugin unasked."""
    year = int(version.split()[-1].partition(".")[0])
    return "ConstrainDevices=no\n" if year <= 22 else "CgroupPlugin=disabled\n"


def _side(settings: Settings, number: int) -> str:
    return "north" if 2 * number < settings.nodes else "south"


def _bracketed(nodes: int) -> str:
    return "node0" if nodes == 1 else f"node[0-{nodes - 1}]"
