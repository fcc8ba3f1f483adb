"""Which Slurm do these tests use? One that is up at SLURM_TEST_ROOT, else one that they start and take down.

Without root or the packages everything here is skipped with the reason; SPRACHBUND_REQUIRE_SLURM=1 makes that a
failure, so that a CI that should have Slurm cannot pass without.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, default_root, what_is_missing
from cluster_settings import Settings


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
    cluster = Cluster(Settings(root=default_root(), port=_free_ports()))
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
        Settings(root=root, nodes=2, port=_free_ports(), min_job_age=5, node_timeout=10, cluster="own")
    )
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def faulty_cluster(own_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster for faults, whole again before and after each test."""
    own_cluster.up()
    yield own_cluster
    own_cluster.up()


def _free_ports() -> int:
    """The first of 20 ports of 127.0.0.1 that nobody listens on, below those that the kernel gives to clients."""
    for first in range(26817, 32000, 40):
        if all(_is_free(first + offset) for offset in range(20)):
            return first
    raise RuntimeError("no 20 free ports between 26817 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
