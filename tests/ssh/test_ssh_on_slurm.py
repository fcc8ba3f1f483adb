"""The launcher contract over SSH on a real Slurm that is up (tests/slurm brings one up)."""

import launcher_contract
import pytest
from cluster import Cluster, default_root
from cluster_settings import Settings
from launcher_contract import *  # noqa: F403
from loopback_sshd import site_of
from slurm_jobs import PATIENCE

from policies.site_profile import SiteProfile
from site_agent.launchers.slurm.launcher import SlurmLauncher
from site_agent.ssh.commands import SshCommands
from site_agent.ssh.files import SshFiles

pytestmark = pytest.mark.slow


@pytest.fixture
def make(own_sshd, sockets, tmp_path, program, monkeypatch):
    recorded = Settings.recorded(default_root())
    if recorded is None or not Cluster(recorded).is_up():
        pytest.skip(f"no Slurm is up at {default_root()}; tests/slurm/cluster.py brings one up")
    environment = Cluster(recorded).environment
    own_sshd.stop()
    own_sshd.more = f"SetEnv SLURM_CONF={environment['SLURM_CONF']}"
    own_sshd.start()
    site = site_of(own_sshd, tmp_path, sockets)
    spool = tmp_path / "spool"
    monkeypatch.setattr(
        launcher_contract, "there", lambda directory: site.root / "jobs" / directory.relative_to(spool)
    )
    profile = SiteProfile(
        account="site",
        partition="gpu",
        cpus_per_task=1,
        memory="100M",
        walltime_minutes=5,
        signal_seconds=30,
        poll_seconds=0.3,
    )
    yield lambda: SlurmLauncher(
        profile,
        SshCommands(site.connect()),
        SshFiles(site.connect(), spool, site.settings.root, wait_seconds=300.0),
        program,
        patience=PATIENCE,
    )
    site.connect().close()
    site.wire.close()
