"""What a launcher makes of what Slurm says of its jobs, and of what it does not say."""

import time

import pytest
from launcher_contract import begin, is_gone, let_go, look, note_of, until, usage_of
from slurm_launching import again, end_of

from site_agent.core.facts import Cause, Seen


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
    let_go(directory, 4)
    until(lambda: again(launcher, directory).seen is Seen.GONE, "the end")
    assert look(launcher, directory).detail == "exit code 4"
    assert usage_of(directory).source == "clock"
    assert sum(line.startswith("sacct") for line in slurm.asked) == 1  # it will not be there the next time


def test_an_end_is_told_when_accounting_has_it_and_never_counted_anew(slurm, launch, directory, clock):
    launcher = launch()
    begin(launcher, directory)
    slurm.mood(sacct="late")
    let_go(directory, 0)
    until(lambda: slurm.job("1")["state"] == "COMPLETED", "the end")
    clock.stop()  # else two minutes are over on a machine that is slow enough
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
    let_go(directory, 0)
    until(lambda: slurm.job("1")["state"] == "COMPLETED", "the end")
    clock.stop()
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
    clock.stop()
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
