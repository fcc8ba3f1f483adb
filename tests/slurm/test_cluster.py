"""Does the test cluster behave as a site's Slurm does, in what the launcher's tests rely on?"""

import time
from pathlib import Path

import pytest
from cluster import Cluster, main
from cluster_settings import Settings, cgroup_conf, slurm_conf
from daemons import PATIENCE_SECONDS, ClusterFailed

pytestmark = pytest.mark.slow


def test_a_two_node_job_sees_its_gpus(shared_cluster: Cluster, tmp_path: Path) -> None:
    said = shared_cluster.run(
        *("srun", "-A", "site", "-N2", "--ntasks-per-node=1", "--gpus-per-node=2", "-t", "1", "-l"),
        *("bash", "-c", "echo $SLURM_NODEID $CUDA_VISIBLE_DEVICES $(scontrol show hostnames | wc -l)"),
    )
    assert sorted(said.splitlines()) == ["0: 0 0,1 2", "1: 1 0,1 2"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-A", "nobodys"], "Invalid account"),
        (["-A", "site", "--gres=gpu:9"], "Requested node configuration"),
    ],
)
def test_what_a_site_would_refuse_is_refused(shared_cluster: Cluster, options: list[str], words: str) -> None:
    with pytest.raises(ClusterFailed, match=words):
        shared_cluster.run("sbatch", *options, "-t", "1", "--wrap", "true")


def test_an_account_without_minutes_waits(shared_cluster: Cluster) -> None:
    job = shared_cluster.run("sbatch", "--parsable", "-A", "spent", "-t", "1", "--wrap", "true").strip()
    try:
        shared_cluster.wait(
            PATIENCE_SECONDS,
            "the reason",
            lambda: "AssocGrpCPUMinutesLimit" in shared_cluster.run("squeue", "-hj", job, "-o", "%r"),
        )
    finally:
        shared_cluster.run("scancel", job)


def test_up_starts_nothing_that_is_alive(own_cluster: Cluster) -> None:
    pids = {path.name: path.read_text() for path in (own_cluster.root / "run").glob("*.pid")}
    own_cluster.up()
    assert {path.name: path.read_text() for path in (own_cluster.root / "run").glob("*.pid")} == pids
    with pytest.raises(ClusterFailed, match="other settings"):
        Cluster(Settings(root=own_cluster.root, nodes=1)).up()


def test_a_killed_node_takes_its_processes_along(faulty_cluster: Cluster, tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    job = faulty_cluster.run(
        *("sbatch", "--parsable", "-A", "site", "-w", "node1", "-t", "5", "--no-requeue", "-o", "/dev/null"),
        *("--wrap", f"while :; do echo >>{beats}; sleep 0.05; done"),
    ).strip()
    faulty_cluster.wait(PATIENCE_SECONDS, "the first beat", beats.exists)
    faulty_cluster.kill_node("node1")
    size = beats.stat().st_size
    time.sleep(0.5)
    assert beats.stat().st_size == size
    faulty_cluster.run("scancel", job)


def test_nothing_at_a_root_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--root", str(tmp_path)]) == 1
    assert "nothing at" in capsys.readouterr().out


def test_settings_differ_by_release_where_they_must() -> None:
    assert cgroup_conf("slurm-wlm 22.05.8\n") == "ConstrainDevices=no\n"
    assert cgroup_conf("slurm 24.11.5\n") == "CgroupPlugin=disabled\n"
    text = slurm_conf(Settings(root=Path("/r"), nodes=1, database=False), "host")
    assert "Nodes=node0 " in text and "slurmdbd" not in text
