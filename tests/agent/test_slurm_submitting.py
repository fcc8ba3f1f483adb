"""How a launcher submits, whatever sbatch does to it."""

import time

import pytest
from launcher_contract import begin, is_gone, is_running, log_of, look, note_of, starts, until
from slurm_launching import again

from consortium.canonical import encode
from consortium.errors import Refused, Unavailable
from policies.site_profile import SiteProfile
from site_agent.core.facts import Cause, Seen
from site_agent.launchers.slurm.commands import LocalCommands
from site_agent.launchers.slurm.notes import Intent
from site_agent.launchers.slurm.request import sbatch_line


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
    launcher = launch(poll_seconds=1000.0)
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
    launcher = launch(poll_seconds=1000.0)
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
    slurm.mood(sbatch="lose", hold="Priority")  # it must not begin before it is taken back
    with pytest.raises(Unavailable):
        launch().submit(directory, 1)
    (directory / "life.json").unlink()  # as after an answer that was surely none
    slurm.mood(sbatch=None, hold=None, squeue="down")
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
    patient, other = launch(poll_seconds=1000.0), directory.parent / "job.a2"
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
