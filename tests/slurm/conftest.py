"""Which Slurm do these tests use? One that is up at SLURM_TEST_ROOT, else one that they start and take down.

Without root or the packages everything here is skipped with the reason; SPRACHBUND_REQUIRE_SLURM=1 makes that a
failure, so that a CI that should have Slurm cannot pass without.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, default_root, what_is_missing
from cluster_settings import PORTS, Settings
from free_ports import free_row

sys.path.append(str(Path(__file__).parents[1] / "agent"))  # launcher_contract


@pytest.fixture(scope="session")
def slurm_here() -> None:
    """Skips, or fails where Slurm is required, if no cluster can be started."""
    problem = what_is_missing()
    if problem and os.environ.get("SPRACHBUND_REQUIRE_SLURM") == "1":
        pytest.fail(f"SPRACHBUND_REQUIRE_SLURM=1, and no Slurm: {problem}")
    if problem:
        pytest.skip(f"no Slurm: {problem}; .ci/run installs it on Debian")


@pytest.fixture(scope="session")
def shared_cluster(slurm_here: None) -> Iterator[Cluster]:
    """A cluster that tests must not hurt: it may be somebody's who works beside them."""
    recorded = Settings.recorded(default_root())
    if recorded and Cluster(recorded).is_up():
        yield Cluster(recorded)
        return
    cluster = Cluster(Settings(root=default_root(), port=free_row(PORTS)))
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down(purge=True)


@pytest.fixture(scope="session")
def own_cluster(slurm_here: None) -> Iterator[Cluster]:
    """A cluster for faults, of two nodes, which forgets jobs 5 s after their end."""
    root = Path(tempfile.mkdtemp(prefix="slurm-"))
    root.chmod(0o755)
    cluster = Cluster(
        Settings(root=root, nodes=2, port=free_row(PORTS), min_job_age=5, node_timeout=10, cluster="own")
    )
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def faulty_cluster(own_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster for faults, whole again before each test."""
    own_cluster.up()
    yield own_cluster
    print(own_cluster.run("squeue", "-t", "all", check=False))  # pytest shows it where the test failed
    print(own_cluster.run("sinfo", "-NR", check=False))
    print((own_cluster.root / "log" / "slurmctld.log").read_text()[-6000:])
