"""What the batch script does in a job: limits, requeues, containers, ranks, and what a job has used."""

import sys
import textwrap
import time

import pytest
from launcher_contract import begin, environment_of, is_gone, log_of, look, starts, until, usage_of
from slurm_launching import again, end_of

from policies.site_profile import Container
from site_agent.core.facts import Cause, Seen


def test_the_limit_makes_a_training_checkpoint_and_a_requeue_again_and_again(
    slurm, launch, directory, trainer
):
    launcher = launch(trainer)
    begin(launcher, directory)
    for restart in range(3):
        until(lambda restart=restart: (directory / f"started.1.{restart}").exists(), "the start")
        until(lambda restart=restart: f"1.{restart}" in starts(directory), "the trainer")
        slurm.warn("1")
        until(lambda restart=restart: (directory / f"end.1.{restart}.json").exists(), "the end")
    until(lambda: "1.3" in starts(directory), "the fourth start")
    ended = end_of(directory)
    assert (ended["why"], ended["rc"], ended["requeued"], ended["id"]) == ("limit", 75, True, "1")
    assert not (directory / "STOP").exists()
    assert again(launcher, directory).seen is Seen.RUNNING
    assert log_of(directory).count("hello") == 4
    (directory / "finish").touch()
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    assert look(launcher, directory).cause is Cause.FINISHED
    assert len(slurm.jobs) == 1


def test_a_life_without_progress_is_not_requeued(slurm, launch, directory, trainer):
    (directory / "no progress").touch()
    launcher = launch(trainer)
    begin(launcher, directory)
    slurm.warn("1")
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    assert look(launcher, directory).cause is Cause.STOPPED
    assert starts(directory) == ["1.0"]


def test_the_agents_own_wish_to_stop_is_not_answered_by_a_requeue(slurm, launch, directory, trainer):
    launcher = launch(trainer)
    begin(launcher, directory)
    (directory / "STOP").touch()
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    assert look(launcher, directory).cause is Cause.STOPPED
    assert starts(directory) == ["1.0"]
    assert not end_of(directory)["requeued"]


def test_where_requeue_is_forbidden_the_life_ends_and_the_next_is_a_new_job(
    slurm, launch, directory, trainer
):
    launcher = launch(trainer, requeue=False)
    begin(launcher, directory)
    slurm.warn("1")
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    assert look(launcher, directory).cause is Cause.STOPPED
    (directory / "STOP").unlink()
    begin(launcher, directory, life=2)
    assert starts(directory) == ["1.0", "2.0"]
    assert [job["id"] for job in slurm.jobs] == ["1", "2"]


def test_a_preempted_job_is_started_again_by_slurm_and_stays_the_same_life(slurm, launch, directory, trainer):
    launcher = launch(trainer)
    begin(launcher, directory)
    slurm.end("1", "PREEMPTED", requeue=True)
    until(lambda: starts(directory) == ["1.0", "1.1"], "the second start")
    assert again(launcher, directory).seen is Seen.RUNNING
    (directory / "finish").touch()
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    assert usage_of(directory).source == "sacct"


def test_usage_is_the_sum_of_all_lives_and_of_their_restarts(slurm, launch, directory):
    launcher = launch(gpus_per_node=2, gpu_type="cuda", ranks_per_node=1)  # no torchrun, which takes its time
    begin(launcher, directory)
    slurm.end("1", "NODE_FAIL")
    until(lambda: slurm.job("1")["state"] == "NODE_FAIL", "the end")
    now = int(time.time())
    earlier = {"state": "PREEMPTED", "exit": "0:0", "submit": now - 250, "start": now - 210, "end": now - 150}
    slurm.change("1", history=[earlier], submit=now - 150, start=now - 120, end=now - 60)
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    begin(launcher, directory, life=2)
    (directory / "go").touch()
    until(lambda: slurm.job("2")["state"] == "COMPLETED", "the end")
    slurm.change("2", start=now - 40, end=now - 30)
    (directory / "usage.json").unlink()
    until(lambda: is_gone(launch(), directory), "the end")
    usage = usage_of(directory)
    assert (usage.seconds, usage.gpu_seconds, usage.queued_seconds) == (130, 260, 40)
    assert usage.joules is None


def test_a_line_of_the_profile_that_fails_is_told_in_the_log(slurm, launch, directory):
    launcher = launch(setup=("cd /nowhere || return 1",))
    launcher.submit(directory, 1)
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    assert look(launcher, directory).detail == "exit code 78"
    assert "profile failed" in log_of(directory)
    assert starts(directory) == []


def test_modules_setup_and_environment_come_before_the_trainer(slurm, launch, directory):
    launcher = launch(
        setup=("module() { echo module $* ; }", "export FROM_SETUP=1"),
        environment={"FROM_PROFILE": "it's a value"},
    )
    begin(launcher, directory)
    until(lambda: environment_of(directory), "the environment")
    assert {"FROM_SETUP", "FROM_PROFILE"} <= set(environment_of(directory))


def test_a_container_sees_the_job_directory_and_nothing_of_the_nodes_environment(
    slurm, launch, directory, tmp_path
):
    runtime = slurm.root / "bin" / "apptainer"
    runtime.write_text(
        textwrap.dedent("""\
        #!/bin/bash
        echo "$@" >"$(dirname "$0")/called"
        kept=()
        while [ "$1" != "image.sif" ]; do
          if [ "$1" = --env ]; then kept+=("$2"); fi
          shift
        done
        shift
        exec env -i "${kept[@]}" "$@"
        """)
    )
    runtime.chmod(0o755)
    container = Container(image="image.sif", binds=("/data:/data:ro",), flags=("--no-home",))
    begin(launch(container=container, environment={"FROM_PROFILE": "1"}), directory)
    until(lambda: environment_of(directory), "the environment")
    inside = set(environment_of(directory))
    assert {"FROM_PROFILE", "SPRACHBUND_LIFE", "PYTHONHASHSEED"} <= inside
    assert "SLURM_JOB_ID" not in inside
    called = (slurm.root / "bin" / "called").read_text()
    assert "--containall" in called
    assert f"--bind {directory}" in called
    assert "--bind /data:/data:ro" in called
    assert "--no-home" in called


@pytest.mark.slow
def test_several_ranks_are_started_by_torchrun_one_task_a_node(slurm, launch, directory, tmp_path):
    path = tmp_path / "rank.py"
    path.write_text(
        "import os, pathlib, sys\n"
        "names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'SPRACHBUND_LIFE')\n"
        "words = ' '.join(os.environ[name] for name in names)\n"
        "pathlib.Path(sys.argv[1], 'rank.' + os.environ['RANK']).write_text(words)\n"
    )
    launcher = launch((sys.executable, str(path)), nodes=2, ranks_per_node=2)
    launcher.submit(directory, 1)
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    assert look(launcher, directory).detail == "exit code 0", log_of(directory)
    ranks = sorted(path.read_text() for path in directory.glob("rank.*"))
    assert ranks == [f"{rank} 4 {rank % 2} 1.0" for rank in range(4)]
