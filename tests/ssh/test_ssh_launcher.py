"""The launcher contract over SSH: the agent here, job directories and Slurm's commands behind a real sshd."""

import launcher_contract
import pytest
from fake_slurm import FakeSlurm
from launcher_contract import *  # noqa: F403
from launcher_contract import begin, is_gone, is_running, let_go, look, until

from consortium.errors import Unavailable
from policies.site_profile import SiteProfile
from site_agent.core.facts import Cause, Seen
from site_agent.launchers.slurm.launcher import SlurmLauncher
from site_agent.launchers.slurm.verdict import Patience
from site_agent.ssh.commands import SshCommands
from site_agent.ssh.files import SshFiles


def launcher_over(site, spool, program, path=(), **profile):
    return SlurmLauncher(
        SiteProfile(**{"poll_seconds": 0.3, **profile}),
        SshCommands(site.connect(), path),
        SshFiles(site.connect(), spool, site.settings.root, wait_seconds=300.0),
        program,
        patience=Patience(intent_seconds=0.0, requeue_seconds=0.0, lost_seconds=600.0),
    )


@pytest.fixture
def slurm(tmp_path):
    slurm = FakeSlurm(tmp_path / "slurm")
    yield slurm
    slurm.close()


@pytest.fixture
def make(site, slurm, program, tmp_path, monkeypatch):
    spool = tmp_path / "spool"
    monkeypatch.setattr(
        launcher_contract, "there", lambda directory: site.root / "jobs" / directory.relative_to(spool)
    )
    return lambda: launcher_over(site, spool, program, [str(slurm.root / "bin")])


def test_a_site_that_is_away_says_nothing_of_its_jobs(make, site, directory, slurm):
    launcher = make()
    begin(launcher, directory)
    until(lambda: is_running(launcher, directory), "running")
    life = (directory / "life.json").read_bytes()
    site.wire.is_down = True
    site.wire.cut()
    until(lambda: look(launcher, directory).seen is Seen.UNKNOWN, "the silence")
    assert (directory / "life.json").read_bytes() == life
    assert slurm.jobs[0]["state"] == "RUNNING"
    site.wire.is_down = False
    site.connect().open(patient=False)
    until(lambda: is_running(make(), directory), "the job's return")


def test_a_connection_that_breaks_at_sbatch_starts_one_job(make, site, directory, slurm):
    """The worst moment: the job is submitted, and nobody hears of it."""
    launcher = make()
    run = launcher._commands.run

    def break_after(argv, **more):
        done = run(argv, **more)
        if argv[0] == "sbatch":
            site.wire.cut()
            raise Unavailable("the connection broke before the answer was whole")
        return done

    launcher._commands.run = break_after
    with pytest.raises(Unavailable):
        launcher.submit(directory, 1)
    successor = make()
    until(lambda: is_running(successor, directory), "finding it")
    successor.submit(directory, 1)
    let_go(directory, 0)
    until(lambda: is_gone(successor, directory), "the end")
    assert len(slurm.jobs) == 1


def test_stop_reaches_a_job_far_away(make, directory):
    launcher = make()
    begin(launcher, directory)
    until(lambda: is_running(launcher, directory), "running")
    (directory / "STOP").touch()  # as the spool does it
    until(
        lambda: look(launcher, directory) and (launcher_contract.there(directory) / "STOP").exists(), "STOP"
    )
    let_go(directory, 75)
    until(lambda: is_gone(launcher, directory), "the end")
    assert look(launcher, directory).cause is Cause.STOPPED


def test_an_agent_with_an_empty_spool_goes_on_with_what_runs(make, site, program, directory, slurm, tmp_path):
    job = tmp_path / "spool" / "0123-jobs" / "0123-jobs.a1"
    job.mkdir(parents=True)
    (job / "job.json").write_text("{}")
    (job / "site.json").write_text("{}")
    launcher = make()
    begin(launcher, job)
    elsewhere = tmp_path / "new home" / "spool"
    SshFiles(site.connect(), elsewhere, site.settings.root).take_back()
    successor = launcher_over(site, elsewhere, program, [str(slurm.root / "bin")])
    there = elsewhere / "0123-jobs" / "0123-jobs.a1"
    until(lambda: is_running(successor, there), "running")
    successor.submit(there, 1)
    assert len(slurm.jobs) == 1
    let_go(job, 0)
    until(lambda: is_gone(successor, there), "the end")
