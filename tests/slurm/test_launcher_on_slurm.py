"""Does the launcher keep its promises on a real Slurm that nobody hurts?"""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from slurm_jobs import CountedCommands, Jobs, let_go, look, starts, until, until_gone

from consortium.canonical import decode, encode, replace
from consortium.errors import Refused
from site_agent.core.facts import Cause, Seen, Usage
from site_agent.launchers.base import Life
from site_agent.launchers.slurm.commands import LocalCommands
from site_agent.launchers.slurm.request import sbatch_line

pytestmark = pytest.mark.slow


@pytest.fixture
def jobs(shared_cluster: Cluster, tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(shared_cluster, tmp_path)
    yield jobs
    jobs.clear()


@pytest.fixture(scope="module", autouse=True)
def deaf(shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A job that runs into its limit while the tests here do other things."""
    jobs = Jobs(shared_cluster, tmp_path_factory.mktemp("deaf"))
    directory = jobs.directory()
    (directory / "deaf").touch()
    jobs.launcher(walltime_minutes=1, signal_seconds=10).submit(directory, 1)
    yield directory
    jobs.clear()


def life_of(directory: Path) -> Life:
    return decode((directory / "life.json").read_bytes(), Life)


# ---- ends


@pytest.mark.parametrize("code", [0, 3])
def test_a_life_runs_ends_and_is_accounted_for(jobs: Jobs, code: int) -> None:
    launcher, directory = jobs.launcher(), jobs.directory()
    jobs.begun(launcher, directory)
    until(lambda: look(launcher, directory).seen is Seen.RUNNING, "running")
    assert life_of(directory).native_id == jobs.id_of(directory)
    let_go(directory, code)
    gone = until_gone(launcher, directory)
    assert (gone.cause, gone.detail) == (Cause.FINISHED, f"exit code {code}")
    assert "hello from 1.0" in (directory / "log.1.txt").read_text()
    end = json.loads((directory / "end.1.0.json").read_text())
    assert (end["rc"], end["why"], end["requeued"]) == (code, "exit", False)
    usage = decode((directory / "usage.json").read_bytes(), Usage)
    assert (
        usage.source == "sacct"
    )  # GONE is said when it has all of it, though the job's own record comes first
    assert usage.seconds >= end["ended"] - end["began"] - 2  # Slurm counts its own prologue, too
    assert jobs.accounted(jobs.id_of(directory)) == ["COMPLETED" if code == 0 else "FAILED"]


def test_an_account_of_nobody_is_refused_and_leaves_nothing_behind(jobs: Jobs) -> None:
    directory = jobs.directory()
    with pytest.raises(Refused, match="Invalid account"):
        jobs.launcher(account="nobodys").submit(directory, 1)
    assert not (directory / "life.json").exists()
    jobs.begun(jobs.launcher(), directory)  # corrected, the same life starts


def test_a_constraint_that_no_node_meets_is_refused_or_never_starts(jobs: Jobs) -> None:
    with pytest.raises(Refused, match="feature"):
        jobs.launcher(constraint="quantum").submit(jobs.directory(), 1)


def test_a_job_that_is_over_the_partitions_limit_never_starts(jobs: Jobs) -> None:
    launcher, directory = jobs.launcher(walltime_minutes=60, partition="debug"), jobs.directory()
    launcher.submit(directory, 1)
    until(lambda: look(launcher, directory).cause is Cause.NEVER, "the verdict")
    sighting = look(launcher, directory)
    assert (sighting.seen, sighting.detail) == (Seen.PENDING, "PartitionTimeLimit")
    launcher.cancel(directory)
    assert until_gone(launcher, directory).cause is Cause.CANCELLED
    assert starts(directory) == []


def test_an_account_without_minutes_only_waits(jobs: Jobs) -> None:
    launcher, directory = jobs.launcher(account="spent"), jobs.directory()
    launcher.submit(directory, 1)
    until(lambda: "AssocGrpCPUMinutesLimit" in look(launcher, directory).detail, "the reason")
    for _ in range(4):
        assert look(launcher, directory).cause is None  # a site may top it up


# ---- intent, and who is who


@pytest.mark.parametrize("moment", ["before sbatch", "between sbatch and note"])
def test_an_agent_killed_around_sbatch_never_starts_two(jobs: Jobs, moment: str) -> None:
    directory = jobs.directory()
    killer = jobs.folder / "killer.py"
    killer.write_text(
        textwrap.dedent(f"""
        import os, signal, sys
        from pathlib import Path
        from cluster import Cluster
        from cluster_settings import Settings
        from slurm_jobs import Jobs
        from site_agent.launchers.slurm.commands import LocalCommands
        class Deadly(LocalCommands):
            def run(self, argv, **options):
                if argv[0] == "sbatch" and {moment == "between sbatch and note"}:
                    super().run(argv, **options)
                if argv[0] == "sbatch":
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().run(argv, **options)
        cluster = Cluster(Settings.recorded(Path({str(jobs.cluster.root)!r})))
        jobs = Jobs(cluster, Path({str(jobs.folder)!r}))
        jobs.launcher(Deadly(cluster.environment)).submit(Path({str(directory)!r}), 1)
    """)
    )
    root = Path(__file__).parents[2]
    paths = ":".join(map(str, [root, root / "protos", root / "tests" / "slurm"]))
    ended = subprocess.run(
        [sys.executable, str(killer)], env={**os.environ, "PYTHONPATH": paths}, timeout=240
    )
    assert ended.returncode == -signal.SIGKILL
    assert life_of(directory).native_id == ""
    successor = jobs.launcher()
    successor.submit(directory, 1)  # whatever it believes, this life is not submitted again
    if moment == "before sbatch":
        assert look(successor, directory).seen is not Seen.GONE  # it may still be on its way
        assert until_gone(successor, directory).detail == "it was never started"
        jobs.begun(successor, directory, life=2)
        assert starts(directory) == ["2.0"]
    else:
        until(lambda: look(successor, directory).seen is Seen.RUNNING, "its being found")
        until(lambda: starts(directory), "the start")
        assert life_of(directory).native_id == jobs.id_of(directory)
        assert starts(directory) == ["1.0"]


def test_two_agents_that_both_submit_a_life_start_it_once(jobs: Jobs) -> None:
    """The second one's sbatch is given by hand: it read life.json before the first one wrote it."""
    launcher, directory = jobs.launcher(), jobs.directory()
    first = jobs.begun(launcher, directory)
    line = sbatch_line(launcher.request(directory, 1), jobs.profile())
    second = jobs.cluster.run(*line).strip()
    until(lambda: jobs.accounted(second) == ["COMPLETED"], "the second one's end")
    assert look(launcher, directory).seen is Seen.RUNNING
    assert (starts(directory), jobs.id_of(directory)) == (["1.0"], first)
    assert f"belongs to {first}, not to {second}" in (directory / "log.1.txt").read_text()


def test_a_life_given_up_is_not_begun_by_an_sbatch_that_comes_late(jobs: Jobs) -> None:
    launcher, directory = jobs.launcher(), jobs.directory()
    with pytest.raises(Refused):
        jobs.launcher(account="nobodys").submit(directory, 1)
    line = sbatch_line(launcher.request(directory, 1), jobs.profile())
    name = launcher.request(directory, 1).name
    intent = Life(number=1, name=name, host="slurm", submitted_at=1.0)
    (directory / "life.json").write_bytes(encode(intent))
    assert until_gone(launcher, directory).detail == "it was never started"
    late = jobs.cluster.run(*line).strip()
    until(lambda: jobs.accounted(late) in (["COMPLETED"], ["CANCELLED"]), "the late one's end")
    assert starts(directory) == []


def test_one_squeue_answers_for_all(jobs: Jobs) -> None:
    commands = CountedCommands(jobs.cluster.environment)
    launcher = jobs.launcher(commands)
    directories = [jobs.directory(f"job.a{number}") for number in range(8)]
    for directory in directories:
        launcher.submit(directory, 1)
    until(lambda: all(starts(directory) for directory in directories), "all starts")
    commands.names.clear()
    fresh = jobs.launcher(commands)
    assert {sighting.seen for sighting in fresh.poll(directories).values()} == {Seen.RUNNING}
    assert sorted(commands.names) == ["id", "sacct", "squeue"]


def test_no_secret_reaches_the_job(jobs: Jobs) -> None:
    environment = {**jobs.cluster.environment, "SITE_TOKEN": "secret"}
    directory = jobs.directory()
    jobs.begun(jobs.launcher(LocalCommands(environment)), directory)
    until(lambda: (directory / "environment").exists(), "the environment")
    names = (directory / "environment").read_text().split()
    assert "SITE_TOKEN" not in names
    assert {"PYTHONHASHSEED", "OMP_NUM_THREADS", "SLURM_JOB_ID"} <= set(names)


# ---- leaving and coming back


def test_cancelled_while_it_waits_or_runs_and_twice(jobs: Jobs) -> None:
    launcher, running, waiting = jobs.launcher(), jobs.directory("job.a1"), jobs.directory("job.a2")
    jobs.begun(launcher, running)
    jobs.launcher(sbatch_extra=("--begin=now+1hour",)).submit(waiting, 1)
    until(lambda: look(launcher, waiting).seen is Seen.PENDING, "waiting")
    for directory in (running, waiting):
        launcher.cancel(directory)
        launcher.cancel(directory)
        assert until_gone(launcher, directory).cause is Cause.CANCELLED
        launcher.cancel(directory)
    assert starts(waiting) == []


def test_the_signal_before_the_limit_becomes_a_checkpoint_and_a_requeue(jobs: Jobs) -> None:
    launcher, directory = jobs.launcher(), jobs.directory()
    id_ = jobs.begun(launcher, directory)
    said = set()
    for life in (1, 2):  # two cuts, three restarts of one Slurm job
        jobs.cluster.run("scancel", "--batch", "--signal=USR1", id_)
        until(
            lambda life=life: said.add(look(launcher, directory).seen) or len(starts(directory)) > life,
            "again",
        )
    assert starts(directory) == ["1.0", "1.1", "1.2"]
    assert Seen.GONE not in said
    assert json.loads((directory / "end.1.0.json").read_text())["requeued"] is True
    assert json.loads((directory / "end.1.1.json").read_text())["why"] == "limit"
    let_go(directory)
    assert until_gone(launcher, directory).cause is Cause.FINISHED
    assert jobs.accounted(id_) == ["REQUEUED", "REQUEUED", "COMPLETED"]
    assert life_of(directory).number == 1
    usage = decode((directory / "usage.json").read_bytes(), Usage)
    ends = [json.loads(path.read_text()) for path in sorted(directory.glob("end.*.json"))]
    assert usage.seconds >= sum(end["ended"] - end["began"] for end in ends) - len(ends)


def test_where_requeue_is_forbidden_the_life_stops_and_the_next_is_another_job(jobs: Jobs) -> None:
    launcher, directory = jobs.launcher(requeue=False), jobs.directory()
    id_ = jobs.begun(launcher, directory)
    jobs.cluster.run("scancel", "--batch", "--signal=USR1", id_)
    assert until_gone(launcher, directory).cause is Cause.STOPPED
    second = jobs.begun(launcher, directory, life=2)
    assert second != id_
    assert starts(directory) == ["1.0", "2.0"]


def test_a_stop_by_the_agent_is_not_followed_by_a_requeue(jobs: Jobs) -> None:
    launcher, directory = jobs.launcher(), jobs.directory()
    id_ = jobs.begun(launcher, directory)
    (directory / "STOP").touch()
    assert until_gone(launcher, directory).cause is Cause.STOPPED
    assert jobs.accounted(id_) == ["FAILED"]  # 75: the site's own record says that it was not done
    assert starts(directory) == ["1.0"]


def test_a_person_who_cancels_is_told_apart(jobs: Jobs) -> None:
    launcher, directory = jobs.launcher(), jobs.directory()
    id_ = jobs.begun(launcher, directory)
    jobs.cluster.run("scancel", id_)
    assert until_gone(launcher, directory).cause is Cause.CANCELLED


def test_a_preempted_job_runs_again_as_the_same_one(jobs: Jobs) -> None:
    launcher, directory = jobs.launcher(partition="preempt", constraint="south"), jobs.directory()
    id_ = jobs.begun(launcher, directory)
    intruder = ["-A", "north", "-p", "south", "-w", jobs.node_of(id_), "--exclusive", "-t", "2"]
    other = jobs.cluster.run(
        "sbatch", "--parsable", *intruder, "-o", "/dev/null", "--wrap", "sleep 2"
    ).strip()
    said = set()
    until(lambda: said.add(look(launcher, directory).seen) or len(starts(directory)) > 1, "the next")
    assert Seen.GONE not in said
    assert starts(directory) == ["1.0", "1.1"]
    until(lambda: jobs.accounted(id_) == ["PREEMPTED", "RUNNING"], "its being accounted for")
    jobs.cluster.run("scancel", other)


def test_two_nodes_begin_one_torchrun(jobs: Jobs) -> None:
    jobs.program.write_text(
        "import os, pathlib, sys\n"
        "name = 'rank.' + os.environ['RANK']\n"
        "text = os.environ['WORLD_SIZE'] + ' ' + os.environ['SLURMD_NODENAME']\n"
        "pathlib.Path(sys.argv[1], name).write_text(text)\n"
    )
    launcher = jobs.launcher(nodes=2, ranks_per_node=2, cpus_per_task=2)
    directory = jobs.directory()
    launcher.submit(directory, 1)
    gone = until_gone(launcher, directory)
    assert (gone.cause, gone.detail) == (Cause.FINISHED, "exit code 0")
    ranks = [(directory / f"rank.{rank}").read_text().split() for rank in range(4)]
    assert [world for world, _ in ranks] == ["4"] * 4
    assert len({node for _, node in ranks}) == 2


def test_a_host_that_is_not_slurm_is_unknown(jobs: Jobs) -> None:
    launcher, directory = jobs.launcher(), jobs.directory()
    jobs.begun(launcher, directory)
    life = life_of(directory)
    (directory / "life.json").write_bytes(encode(replace(life, host="login7")))
    sighting = look(jobs.launcher(), directory)
    assert sighting.seen is Seen.UNKNOWN and "login7" in sighting.detail
    (directory / "life.json").write_bytes(encode(life))


def test_the_limit_itself_ends_a_job_that_does_not_listen(deaf: Path, jobs: Jobs) -> None:
    """A real one: a minute, and up to half a minute until Slurm looks. It began with the first test here."""
    gone = until_gone(jobs.launcher(), deaf)
    assert gone.cause is Cause.TIMED_OUT
    assert (deaf / "STOP").read_text().strip() in ("limit", "term")
    assert jobs.accounted(jobs.id_of(deaf)) == ["TIMEOUT"]
