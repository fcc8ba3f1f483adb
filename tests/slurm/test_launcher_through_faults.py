"""Does the launcher keep its promises on a real Slurm whose nodes, controller and database fail?"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from slurm_jobs import WITHOUT_ACCOUNTS, Jobs, let_go, look, starts, until, until_gone

from consortium.canonical import decode
from consortium.errors import Unavailable
from site_agent.core.facts import Cause, Seen
from site_agent.launchers.base import Life

pytestmark = [pytest.mark.slow, pytest.mark.soak]


@pytest.fixture
def jobs(faulty_cluster: Cluster, tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(faulty_cluster, tmp_path)
    yield jobs
    faulty_cluster.up()
    jobs.clear()


def beats(directory: Path) -> list[str]:
    return (directory / "beats").read_text().split()


def test_nodes_that_die_or_are_cut_off_give_their_jobs_another_life(jobs: Jobs) -> None:
    """Both at once, to wait once: node0 loses power, node1 its network, so that its job goes on as a ghost."""
    dead, ghost = jobs.directory("job.dead"), jobs.directory("job.ghost")
    first = jobs.launcher(sbatch_extra=("--nodelist=node0",))
    second = jobs.launcher(sbatch_extra=("--nodelist=node1",))
    ids = {dead: jobs.begun(first, dead), ghost: jobs.begun(second, ghost)}
    jobs.cluster.kill_node("node0")
    jobs.cluster.cut_off_node("node1")
    stopped = len(beats(dead))
    agent = jobs.launcher()

    def given_up() -> bool:
        return all(look(agent, path).seen is Seen.PENDING for path in (dead, ghost))

    said = set()
    until(lambda: said.add(look(agent, ghost).seen) or given_up(), "the controller's giving up")
    assert len(beats(dead)) == stopped
    assert set(beats(ghost)) == {"1.0"}
    jobs.cluster.up()
    for path in (dead, ghost):
        until(lambda path=path: said.add(look(agent, path).seen) or "1.1" in starts(path), "the next life")
        assert jobs.id_of(path) == ids[path]
        assert starts(path) == ["1.0", "1.1"]
        until(
            lambda path=path: jobs.accounted(ids[path]) == ["NODE_FAIL", "RUNNING"],
            "its being accounted for",
        )
    assert Seen.GONE not in said
    for path in (dead, ghost):
        let_go(path)
        assert until_gone(agent, path).cause is Cause.FINISHED


def test_while_the_controller_is_down_nothing_is_known_and_nothing_is_lost(jobs: Jobs) -> None:
    launcher = jobs.launcher()
    running, ending, next_one = (jobs.directory(f"job.a{number}") for number in (1, 2, 3))
    id_ = jobs.begun(launcher, running)
    jobs.begun(launcher, ending)
    jobs.cluster.stop_controller()
    let_go(ending, 3)
    for sighting in jobs.launcher().poll([running, ending]).values():
        assert sighting.seen is Seen.UNKNOWN and "contact" in sighting.detail
    with pytest.raises(Unavailable, match="contact"):
        launcher.submit(next_one, 1)
    with pytest.raises(Unavailable, match="not tried again yet"):
        launcher.submit(next_one, 1)
    before = len(beats(running))
    until(lambda: len(beats(running)) > before, "the job's going on")
    until(lambda: (ending / "end.1.0.json").exists(), "the other one's end")
    jobs.cluster.up()
    successor = jobs.launcher()
    assert look(successor, running).seen is Seen.RUNNING
    gone = until_gone(successor, ending)
    assert (gone.cause, gone.detail) == (Cause.FINISHED, "exit code 3")
    jobs.begun(successor, next_one)
    assert (starts(running), jobs.id_of(running)) == (["1.0"], id_)
    assert (starts(ending), starts(next_one)) == (["1.0"], ["1.0"])


def test_without_the_database_jobs_start_run_and_end(jobs: Jobs) -> None:
    jobs.cluster.stop_database()
    launcher, directory = jobs.launcher(patience=WITHOUT_ACCOUNTS), jobs.directory()
    jobs.begun(launcher, directory)
    until(lambda: look(launcher, directory).seen is Seen.RUNNING, "running")
    let_go(directory, 0)
    assert until_gone(launcher, directory).cause is Cause.FINISHED
    assert decode((directory / "life.json").read_bytes(), Life).native_id == jobs.id_of(directory)


def test_what_squeue_has_forgotten_sacct_still_tells(jobs: Jobs) -> None:
    """MinJobAge is 5 s here; the agent was away meanwhile."""
    launcher = jobs.launcher()
    failed, cancelled = jobs.directory("job.failed"), jobs.directory("job.cancelled")
    ids = [jobs.begun(launcher, path) for path in (failed, cancelled)]
    let_go(failed, 4)
    jobs.cluster.run("scancel", ids[1])

    def forgotten() -> bool:
        known = jobs.cluster.run("squeue", "-h", "-t", "all", "-o", "%A").split()
        return not set(ids) & set(known)

    until(forgotten, "the forgetting")
    (failed / "end.1.0.json").unlink()  # not even its own record helps
    agent = jobs.launcher()
    assert look(agent, failed).seen is Seen.UNKNOWN  # once is not enough
    assert until_gone(agent, failed).detail == "exit code 4"
    assert until_gone(agent, cancelled).cause is Cause.CANCELLED


def test_forgotten_by_squeue_and_no_database_is_lost_only_after_long(jobs: Jobs) -> None:
    launcher, directory = jobs.launcher(), jobs.directory()
    id_ = jobs.begun(launcher, directory)
    jobs.cluster.run("scancel", id_)
    until(
        lambda: id_ not in jobs.cluster.run("squeue", "-h", "-t", "all", "-o", "%A").split(),
        "forgetting",
    )
    (directory / "end.1.0.json").unlink(missing_ok=True)
    jobs.cluster.stop_database()
    agent, began = jobs.launcher(patience=WITHOUT_ACCOUNTS), time.monotonic()
    gone = until_gone(agent, directory)
    assert time.monotonic() - began >= WITHOUT_ACCOUNTS.lost_seconds
    assert gone.cause is Cause.NODE_FAILED and "lost" in gone.detail
