"""A Flower ClientApp in Slurm jobs: the same model as in local processes, and every message was one Slurm job."""

import sys
from pathlib import Path

import pytest
from cluster import Cluster

sys.path.append(str(Path(__file__).parents[1] / "flower"))

from flower_consortium import FlowerConsortium

from console.demo import SLURM

SETTINGS = {"num_server_rounds": 1, "strategy": '"fedavg"'}


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.demo
@pytest.mark.timeout(900)
def test_the_same_model_through_slurm(
    shared_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, shared_cluster.environment[name])
    with FlowerConsortium(tmp_path / "mixed", slurm={"north": SLURM, "west": SLURM}) as flowers:
        mixed = flowers.run("mixed", **SETTINGS)
        jobs = flowers.jobs("mixed")
        assert {job.attempts for job in jobs.values()} == {1}
        by_slurm = [job.tries[job.attempt].seconds for job in jobs.values() if job.site != "south"]
        assert len(by_slurm) == 4
    with FlowerConsortium(tmp_path / "local") as flowers:
        assert flowers.run("local", **SETTINGS) == mixed
