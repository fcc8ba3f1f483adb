"""The launcher contract that the local launcher and the fake commands pass, asked of a real Slurm."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster
from launcher_contract import *  # noqa: F403
from slurm_jobs import Jobs

from site_agent.launchers.base import Launcher

pytestmark = pytest.mark.slow


@pytest.fixture
def make(shared_cluster: Cluster, tmp_path: Path, program: tuple[str, ...]) -> Callable[[], Launcher]:
    jobs = Jobs(shared_cluster, tmp_path)
    return lambda: jobs.launcher(command=program)
