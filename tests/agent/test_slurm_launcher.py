"""What Slurm and its commands do to a launcher, one story each; batch scripts run as real processes."""

import json
import sys
import textwrap
import time

import pytest
from fake_slurm import FakeSlurm
from launcher_contract import (
    begin,
    environment_of,
    is_gone,
    is_running,
    log_of,
    look,
    note_of,
    program,  # noqa: F401
    starts,
    until,
    usage_of,
)

from consortium.canonical import encode
from consortium.errors import Refused, Unavailable
from policies.site_profile import Container, SiteProfile
from site_agent.core.facts import Cause, Seen
from site_agent.launchers.slurm.commands import LocalCommands, LocalFiles
from site_agent.launchers.slurm.launcher import SlurmLauncher
from site_agent.launchers.slurm.notes import Intent
from site_agent.launchers.slurm.request import sbatch_line
from site_agent.launchers.slurm.verdict import Patience

QUICK = Patience(intent_seconds=0.0, requeue_seconds=0.0, lost_seconds=600.0, begin_seconds=900.0)

TRAINER = """
import os, pathlib, sys, time
directory = pathlib.Path(sys.argv[1])
with open(directory / "began", "a") as file:
    file.write(os.environ["SPRACHBUND_LIFE"] + "\\n")
print("hello from", os.getpid(), flush=True)
(directory / "CONTINUE").unlink(missing_ok=True)
step = len(list((directory / "checkpoint").glob("step-*"))) if (directory / "checkpoint").exists() else 0
while not (directory / "STOP").exists():
    if (directory / "finish").exists():
        (directory / "result").mkdir()
        sys.exit(0)
    time.sleep(0.01)
if not (directory / "no progress").exists():
    (directory / "checkpoint" / f"step-{step + 1:09d}").mkdir(parents=True)
(directory / "CONTINUE").touch()
sys.exit(75)
"""


class Clock:
    def __init__(self):
        self.ahead = 0.0

    def __call__(self):
        return time.time() + self.ahead


@pytest.fixture
def slurm(tmp_path):
    slurm = FakeSlurm(tmp_path / "slurm")
    yield slurm
    slurm.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def launch(slurm, program, clock):  # noqa: F811
    """Makes launchers, with any key of the profile changed."""

    def make(command=program, patience=QUICK, **profile):
        return SlurmLauncher(
            SiteProfile(**{"poll_seconds": 0.02, **profile}),
            LocalCommands(slurm.environment),
            LocalFiles(),
            command,
            patience=patience,
            clock=clock,
        )

    return make


@pytest.fixture
def trainer(tmp_path):
    """Writes a training checkpoint and CONTINUE when it finds STOP, a result when it finds ``finish``."""
    path = tmp_path / "trainer.py"
    path.write_text(TRAINER)
    return sys.executable, str(path)


@pytest.fixture
def directory(tmp_path):
    directory = tmp_path / "spool" / "job.a1"
    directory.mkdir(parents=True)
    return directory


def again(launcher, directory):
    """The answer to a new question."""
    launcher._pace.pause = 0.0
    return look(launcher, directory)


def end_of(directory, life=1, restart=0):
    return json.loads((directory / f"end.{life}.{restart}.json").read_text())


# ---- submitting


@pytest.mark.parametrize("how", ["lose", "mute"])
def test_a_submission_whose_answer_is_lost_is_found_by_its_name(slurm, launch, directory, how):
    slurm.mood(sbatch=how)
    with pytest.raises(Unavailable, match="sbatch"):
        launch().submit(directory, 1)
    assert note_of(directory).native_id == ""
    slurm.mood(sbatch=None)
    launch().submit(directory, 1)  # an agent that did not hear the first answer
    until(lambda: is_running(launch(), directory), "finding it")
    assert note_of(directory).native_id == slurm.jobs[0]["id"]
    assert len(slurm.jobs) == 1


def test_a_controller_that_is_down_costs_no_life(slurm, launch, directory):
    slurm.mood(sbatch="down")
    launcher = launch(poll_seconds=0.2)
    with pytest.raises(Unavailable, match="Unable to contact"):
        launcher.submit(directory, 1)
    assert not (directory / "life.json").exists()
    slurm.mood(sbatch=None)
    with pytest.raises(Unavailable, match="not tried again yet"):  # nor is it asked at every look
        launcher.submit(directory, 1)
    assert sum(line.startswith("sbatch") for line in slurm.asked) == 1
    begin(launch(), directory)
    assert len(slurm.jobs) == 1


@pytest.mark.parametrize("silent", ["sbatch", "squeue"])
def test_a_controller_that_is_silent_is_spared_too(launch, directory, silent, monkeypatch):
    """A timeout of 90 s a job and a look would keep the agent from everything else."""
    launcher = launch(poll_seconds=5.0)
    run, asked = launcher._commands.run, []

    def hangs(argv, **more):
        asked.append(argv[0])
        if argv[0] == silent:
            raise Unavailable(f"{silent} did not answer within 90 s; try again later")
        return run(argv, **more)

    monkeypatch.setattr(launcher._commands, "run", hangs)
    for number in range(3):
        another = directory.with_name(f"job.a{number}")
        another.mkdir(exist_ok=True)
        (another / "submitted.1.json").write_bytes(encode(Intent(name=f"x{number}", submitted_at=1.0)))
        with pytest.raises(Unavailable, match="did not answer within 90 s"):
            launcher.submit(another, 1)
    assert asked.count(silent) == 1


def test_before_a_second_sbatch_the_name_is_looked_for(slurm, launch, directory):
    """The first one said that it could not reach the controller, and had reached it."""
    slurm.mood(sbatch="lose")
    with pytest.raises(Unavailable):
        launch().submit(directory, 1)
    (directory / "life.json").unlink()  # as after an answer that was surely none
    slurm.mood(sbatch=None, squeue="down")
    with pytest.raises(Unavailable, match="squeue"):  # not to know is no reason to submit
        launch().submit(directory, 1)
    slurm.mood(squeue=None, forget=True)
    until(lambda: slurm.jobs[0]["state"] == "COMPLETED", "the end")
    assert starts(directory) == []  # it found no intent that was its own
    launch().submit(directory, 1)  # the queue has forgotten it, accounting has not
    assert note_of(directory).native_id == slurm.jobs[0]["id"]
    assert len(slurm.jobs) == 1


def test_what_sbatch_refuses_is_refused_and_leaves_no_life(slurm, launch, directory):
    slurm.mood(sbatch="refuse")
    with pytest.raises(Refused, match="Invalid account"):
        launch().submit(directory, 1)
    assert not (directory / "life.json").exists()


def test_a_drained_partition_is_waited_for_however_long(slurm, launch, directory, clock):
    slurm.mood(sbatch="drained")
    for _ in range(3):
        with pytest.raises(Unavailable, match="inactive or drain"):
            launch().submit(directory, 1)
        clock.ahead += 20 * 3600.0
    assert not (directory / "life.json").exists()
    slurm.mood(sbatch=None)
    begin(launch(), directory)


def test_an_answer_of_sbatch_that_nobody_foresaw_is_borne_for_a_day(slurm, launch, directory, clock):
    """Each look is another agent's, as under cron; one that stays does not ask at every look."""
    slurm.mood(sbatch="object")
    for _ in range(3):
        with pytest.raises(Unavailable, match="not before noon"):
            launch().submit(directory, 1)
        clock.ahead += 8 * 3600.0 - 60.0
    patient, other = launch(poll_seconds=10.0), directory.parent / "job.a2"
    other.mkdir()
    with pytest.raises(Unavailable, match="not before noon"):
        patient.submit(directory, 1)
    asked = len(slurm.asked)
    with pytest.raises(Unavailable, match="not tried again yet"):
        patient.submit(directory, 1)
    assert len(slurm.asked) == asked
    slurm.mood(sbatch=None)
    begin(patient, other)  # what sbatch says of one job holds up no other
    slurm.mood(sbatch="object")
    clock.ahead += 600.0
    with pytest.raises(Refused, match=r"not before noon \(for 24 hours\)"):
        launch().submit(directory, 1)
    assert not (directory / "life.json").exists()


def test_a_clock_that_is_ahead_of_slurms_loses_no_job_and_calls_none_hanging(slurm, launch, directory, clock):
    clock.ahead = 3600.0
    slurm.mood(hold="Prolog")
    launcher = launch()
    launcher.submit(directory, 1)
    assert again(launcher, directory).seen is Seen.PENDING
    slurm.change("1", state="RUNNING", start=time.time())
    for _ in range(3):
        assert again(launcher, directory).seen is Seen.RUNNING
    assert not (directory / "hung.1.json").exists()
    launcher.cancel(directory)


def test_a_job_that_slurm_gave_up_to_launch_is_cancelled_and_may_live_again(slurm, launch, directory):
    slurm.mood(hold="launch failed requeued held")
    launcher = launch()
    launcher.submit(directory, 1)
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    sighting = look(launcher, directory)
    assert sighting.cause is Cause.NODE_FAILED
    assert "launch failed requeued held" in sighting.detail


def test_two_agents_submit_the_same_life_and_one_job_works(slurm, launch, directory):
    slurm.mood(hold="Priority")
    launcher = launch()
    launcher.submit(directory, 1)
    line = sbatch_line(launcher.request(directory, 1), SiteProfile())
    assert LocalCommands(slurm.environment).run(line).rc == 0
    slurm.mood(hold=None)
    until(lambda: starts(directory), "the start")
    until(lambda: any(job["state"] == "COMPLETED" for job in slurm.jobs), "the other's end")
    for _ in range(3):
        assert again(launcher, directory).seen is Seen.RUNNING  # whichever id was noted
    (directory / "go").touch()
    until(lambda: is_gone(launcher, directory), "the end")
    assert len(starts(directory)) == 1


def test_a_life_that_was_given_up_starts_nothing_however_late_its_job_comes(slurm, launch, directory):
    slurm.mood(hold="Priority")
    launcher = launch()
    launcher.submit(directory, 1)
    line = sbatch_line(launcher.request(directory, 1), SiteProfile())
    slurm.change("1", name="somebody-else")
    (directory / "life.json").write_text(
        (directory / "life.json").read_text().replace('"native_id":"1"', '"native_id":""')
    )
    until(lambda: is_gone(launcher, directory), "giving it up")
    assert look(launcher, directory).detail == "it was never started"
    LocalCommands(slurm.environment).run(line)
    slurm.mood(hold=None)
    until(lambda: all(job["state"] == "COMPLETED" for job in slurm.jobs), "both")
    assert starts(directory) == []
    assert "belongs to given up" in log_of(directory)


def test_a_requeued_job_finds_a_newer_life_and_leaves(slurm, launch, directory):
    launcher = launch()
    begin(launcher, directory)
    slurm.mood(hold="Priority")
    slurm.end("1", "PREEMPTED", requeue=True)
    (directory / "life.json").write_text(
        (directory / "life.json").read_text().replace('"number":1', '"number":2')
    )
    slurm.mood(hold=None)
    until(lambda: slurm.job("1")["state"] == "COMPLETED", "leaving")
    assert len(starts(directory)) == 1
    assert "a newer one has begun" in log_of(directory)


def test_a_life_that_nobody_can_claim_fails_with_words(slurm, launch, directory):
    """A disk that is full, or a file system without hard links."""
    (directory / "owner.1").touch()
    launcher = launch()
    launcher.submit(directory, 1)
    until(lambda: is_gone(launcher, directory), "its end")
    assert "owner.1 cannot be made" in log_of(directory)
    assert slurm.jobs[0]["state"] == "FAILED"
    assert starts(directory) == []


# ---- looking


def test_one_question_for_all_and_none_before_its_time(slurm, launch, tmp_path):
    launcher = launch(poll_seconds=1000.0)
    directories = [tmp_path / "spool" / f"job.a{number}" for number in range(5)]
    for directory in directories:
        directory.mkdir(parents=True)
        launcher.submit(directory, 1)
    fresh = launch(poll_seconds=1000.0)
    for _ in range(10):
        fresh.poll(directories)
    assert sum(line.startswith("squeue") for line in slurm.asked) == 1
    assert sum(line.startswith("sacct") for line in slurm.asked) <= 1


@pytest.mark.parametrize("how", ["down", "garbage", "empty", "cut"])
def test_a_queue_that_lies_about_a_running_job_never_makes_it_gone(slurm, launch, directory, how):
    launcher = launch()
    begin(launcher, directory)
    slurm.mood(squeue=how, sacct="late")
    for _ in range(6):
        assert again(launcher, directory).seen is not Seen.GONE
    slurm.mood(squeue=None, sacct=None)
    assert again(launcher, directory).seen is Seen.RUNNING


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("TIMEOUT", Cause.TIMED_OUT),
        ("PREEMPTED", Cause.PREEMPTED),
        ("NODE_FAIL", Cause.NODE_FAILED),
        ("OUT_OF_MEMORY", Cause.OUT_OF_MEMORY),
        ("CANCELLED by 0", Cause.CANCELLED),
    ],
)
@pytest.mark.parametrize("forget", [False, True])
def test_every_end_has_its_cause_in_the_queue_and_after_it_is_forgotten(
    slurm, launch, directory, state, cause, forget
):
    launcher = launch()
    begin(launcher, directory)
    slurm.mood(forget=forget)
    slurm.end("1", state)
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    assert look(launcher, directory).cause is cause
    fresh = launch()
    until(lambda: again(fresh, directory).seen is Seen.GONE, "the end")
    assert look(fresh, directory).cause is cause


def test_one_answer_is_not_enough_for_an_end_that_left_no_record(slurm, launch, directory):
    launcher = launch()
    begin(launcher, directory)
    slurm.end("1", "NODE_FAIL")
    until(lambda: slurm.job("1")["state"] == "NODE_FAIL", "the end")
    assert again(launcher, directory).seen is Seen.UNKNOWN
    assert again(launcher, directory).seen is Seen.GONE


def test_without_accounting_the_controller_and_the_jobs_own_record_are_asked(slurm, launch, directory):
    slurm.mood(sacct="off")
    launcher = launch()
    begin(launcher, directory)
    slurm.mood(forget=True)
    slurm.end("1", "OUT_OF_MEMORY")
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    assert look(launcher, directory).cause is Cause.OUT_OF_MEMORY
    begin(launcher, directory, life=2)
    slurm.mood(forget="all")
    (directory / "go").write_text("4")
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    assert look(launcher, directory).detail == "exit code 4"
    assert usage_of(directory).source == "clock"
    assert sum(line.startswith("sacct") for line in slurm.asked) == 1  # it will not be there the next time


def test_an_end_is_told_when_accounting_has_it_and_never_counted_anew(slurm, launch, directory):
    launcher = launch()
    begin(launcher, directory)
    slurm.mood(sacct="late")
    (directory / "go").write_text("0")
    until(lambda: slurm.job("1")["state"] == "COMPLETED", "the end")
    for _ in range(3):
        sighting = again(launcher, directory)
        assert sighting.seen is Seen.UNKNOWN
        assert "exit code 0" in sighting.detail and "sacct says RUNNING of 1" in sighting.detail
    slurm.mood(sacct=None)
    assert again(launcher, directory).seen is Seen.GONE
    assert usage_of(directory).source == "sacct"
    before, asked = (directory / "usage.json").read_bytes(), len(slurm.asked)
    slurm.change("1", start=1.0)
    assert look(launch(), directory).seen is Seen.GONE
    assert ((directory / "usage.json").read_bytes(), len(slurm.asked)) == (before, asked)


def test_an_account_that_stays_open_is_closed_by_the_jobs_own_record_after_two_minutes(
    slurm, launch, directory, clock
):
    """A job that accounting believes to run for ever; its use by then would be wrong, and grow."""
    begin(launch(), directory)
    slurm.mood(sacct="late")
    slurm.change("1", start=time.time() - 1000.0)
    (directory / "go").write_text("0")
    until(lambda: slurm.job("1")["state"] == "COMPLETED", "the end")
    assert look(launch(), directory).seen is Seen.UNKNOWN
    clock.ahead = 119.0
    assert look(launch(), directory).seen is Seen.UNKNOWN
    clock.ahead = 121.0
    assert look(launch(), directory).seen is Seen.GONE
    end, usage = end_of(directory), usage_of(directory)
    assert (usage.source, usage.seconds) == ("clock", end["ended"] - end["began"])
    slurm.mood(sacct=None)
    assert look(launch(), directory).seen is Seen.GONE
    assert usage_of(directory) == usage  # what was told is told
    begin(launch(), directory, life=2)
    until(lambda: is_gone(launch(), directory), "the second end")
    assert usage_of(directory).seconds >= 1000.0  # the next life's account has it right


def test_accounting_alone_never_ends_a_job_that_it_believes_to_run(slurm, launch, directory, clock):
    launcher = launch()
    begin(launcher, directory)
    slurm.mood(forget=True, sacct="late")
    slurm.end("1", "NODE_FAIL")
    until(lambda: slurm.job("1")["state"] == "NODE_FAIL", "the end")
    for _ in range(4):
        clock.ahead += 500
        sighting = again(launcher, directory)
        assert sighting.seen is Seen.UNKNOWN
        assert "sacct says RUNNING" in sighting.detail


def test_what_nobody_knows_is_lost_after_ten_minutes_and_a_new_agent_does_not_begin_to_count_anew(
    slurm, launch, directory, clock
):
    begin(launch(), directory)
    slurm.end("1", "NODE_FAIL")
    until(lambda: slurm.job("1")["state"] == "NODE_FAIL", "the end")
    slurm.restart_controller()
    for _ in range(3):
        assert look(launch(), directory).seen is Seen.UNKNOWN
        clock.ahead += 190
    assert look(launch(), directory).seen is Seen.UNKNOWN
    clock.ahead += 60
    sighting = look(launch(), directory)
    assert (sighting.seen, sighting.cause) == (Seen.GONE, Cause.NODE_FAILED)
    assert "lost" in sighting.detail


def test_an_id_that_is_given_again_after_a_restart_of_the_controller_is_another_job(
    slurm, launch, directory, tmp_path
):
    begin(launch(), directory)
    slurm.end("1", "NODE_FAIL")
    until(lambda: slurm.job("1")["state"] == "NODE_FAIL", "the end")
    slurm.restart_controller()
    other = tmp_path / "spool" / "other.a1"
    other.mkdir()
    launcher = launch()
    begin(launcher, other)
    assert note_of(other).native_id == note_of(directory).native_id
    assert again(launcher, directory).seen is Seen.UNKNOWN
    launcher.cancel(directory)
    assert again(launcher, other).seen is Seen.RUNNING


def test_the_queue_tells_the_expected_start_and_the_reason(slurm, launch, directory):
    slurm.mood(hold="ReqNodeNotAvail, UnavailableNodes:node[1-2]")
    launcher = launch()
    launcher.submit(directory, 1)
    slurm.change("1", start=1_900_000_000.0)
    sighting = again(launcher, directory)
    assert (sighting.seen, sighting.cause) == (Seen.PENDING, None)
    assert sighting.detail == "ReqNodeNotAvail, UnavailableNodes:node[1-2]"
    assert sighting.expected_start == 1_900_000_000.0


def test_a_job_that_will_never_start_is_told_after_a_second_look(slurm, launch, directory):
    slurm.mood(hold="PartitionTimeLimit")
    launcher = launch()
    launcher.submit(directory, 1)
    assert again(launcher, directory).cause is None
    sighting = again(launcher, directory)
    assert (sighting.seen, sighting.cause) == (Seen.PENDING, Cause.NEVER)
    assert sighting.detail == "PartitionTimeLimit"


def test_a_job_that_runs_and_never_begins_is_cancelled_and_its_node_left_out(slurm, launch, directory, clock):
    slurm.mood(hold="Prolog")
    launcher = launch()
    launcher.submit(directory, 1)
    slurm.change("1", state="RUNNING", start=time.time())
    assert again(launcher, directory).seen is Seen.RUNNING
    clock.ahead = 1000.0
    again(launcher, directory)
    slurm.change("1", state="CANCELLED by 0", end=time.time())
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    sighting = look(launcher, directory)
    assert sighting.cause is Cause.NODE_FAILED
    assert "nothing has begun for" in sighting.detail
    slurm.mood(hold=None)
    launcher.submit(directory, 2)
    assert "--exclude=node0" in next(line for line in reversed(slurm.asked) if line.startswith("sbatch"))


# ---- the batch script


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
    launcher = launch(gpus_per_node=2, gpu_type="cuda")
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
