"""A whole agent outside its site: assignments in, contributions out, jobs and their files behind a real sshd."""

import asyncio
import contextlib
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_coordinator import A1, NORTH, PATIENCE_SECONDS, PROGRAM, FakeCoordinator, delta_of_base
from fake_slurm import FakeSlurm
from sprachbund.v1 import site_pb2

from consortium.canonical import replace
from policies.site_profile import SiteProfile
from site_agent.agent import Agent
from site_agent.config import SiteConfig
from site_agent.enrol import enrol
from site_agent.identity import SiteIdentity
from site_agent.launchers.slurm.launcher import SlurmLauncher
from site_agent.launchers.slurm.verdict import Patience
from site_agent.ssh.remote import remote_site

SUCCEEDED = site_pb2.AttemptOutcome.Value("ATTEMPT_OUTCOME_SUCCEEDED")
JOB = Path("demo_r1-train-north") / A1


@pytest.fixture
async def coordinator(tmp_path):
    fake = FakeCoordinator(tmp_path / "coordinator")
    await fake.up()
    yield fake
    await fake.down()


@pytest.fixture
def slurm(tmp_path):
    slurm = FakeSlurm(tmp_path / "slurm")
    yield slurm
    slurm.close()


@pytest.fixture
def config(site, slurm, coordinator, tmp_path, monkeypatch):
    monkeypatch.setattr("site_agent.ssh.master._socket_folder", lambda: site.sockets)
    return SiteConfig(
        site=NORTH,
        coordinator=f"127.0.0.1:{coordinator.port}",
        enrolment=f"127.0.0.1:{coordinator.enrolment_port}",
        home=str(tmp_path / "outside"),
        sync_seconds=0.2,
        launcher="slurm",
        slurm=SiteProfile(poll_seconds=0.3),
        ssh=replace(site.settings, path=(str(slurm.root / "bin"),)),
    )


@pytest.fixture
async def identity(config, coordinator):
    return await asyncio.to_thread(enrol, config, coordinator.invitation())


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program" / "job.py"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    return sys.executable, str(path)


@contextlib.asynccontextmanager
async def running(config, program):
    """An agent; with the block it ends, and so does what its threads were at."""
    there = remote_site(config)
    # an sbatch whose line broke may still be on its way at the site
    patience = Patience(intent_seconds=60.0, requeue_seconds=0.0, lost_seconds=600.0)
    launcher = SlurmLauncher(config.slurm, there.commands, there.files, program, patience=patience)
    loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor()
    loop.set_default_executor(threads)
    agent = asyncio.create_task(Agent(config, SiteIdentity.load(Path(config.home)), launcher).run())
    try:
        yield agent
    finally:
        agent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await agent
        loop.set_default_executor(others := ThreadPoolExecutor())
        await loop.run_in_executor(others, threads.shutdown)


async def until(condition):
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


async def test_from_assignment_to_contribution_over_ssh(config, coordinator, identity, site, slurm, program):
    async with running(config, program):
        coordinator.want()
        report = await coordinator.until_phase("ENDED")
        assert report.outcome == SUCCEEDED
        assert coordinator.has(delta_of_base())
        await until(lambda: not (Path(config.home) / "spool" / JOB).exists())
    assert not (site.root / "jobs" / JOB).exists()  # settled, so dropped at both ends
    assert len(slurm.jobs) == 1
    assert site.wire.dialled == 1


async def test_what_a_job_used_is_told_though_accounting_has_it_after_the_result_was_settled(
    config, coordinator, identity, slurm, program
):
    slurm.mood(sacct="late")
    async with running(config, program):
        coordinator.want()
        report = await coordinator.until_phase("ENDED")
        assert report.usage.seconds < 3600  # of a job that is still leaving
        job = slurm.jobs[0]
        await until(lambda: slurm.job(job["id"])["state"] == "COMPLETED")
        slurm.change(job["id"], start=job["submit"] + 5.0, end=job["submit"] + 3605.0)
        slurm.mood(sacct=None)
        await until(lambda: not (Path(config.home) / "spool" / JOB).exists())
    assert (coordinator.told[A1].usage.seconds, coordinator.told[A1].usage.gpu_seconds) == (3600.0, 7200.0)


async def test_an_agent_whose_host_is_lost_is_replaced(
    config, coordinator, identity, site, slurm, program, tmp_path
):
    hold = Path(program[1]).with_name("hold")
    hold.touch()
    async with running(config, program):
        coordinator.want()
        await until(lambda: any(job["state"] == "RUNNING" for job in slurm.jobs))
    successor = replace(config, home=str(tmp_path / "another host"))
    shutil.copytree(config.home, successor.home, ignore=shutil.ignore_patterns("spool", "blobs", "residuals"))
    shutil.rmtree(config.home)
    async with running(successor, program):
        await until(lambda: (Path(successor.home) / "spool" / JOB / "life.json").exists())
        hold.unlink()
        report = await coordinator.until_phase("ENDED")
    assert report.outcome == SUCCEEDED
    assert len(slurm.jobs) == 1  # the same job; none was started a second time


async def test_a_line_that_breaks_again_and_again_costs_nothing_but_time(
    config, coordinator, identity, site, slurm, program, monkeypatch
):
    monkeypatch.setattr("site_agent.ssh.master.wait_seconds", lambda trouble: 0.1)

    async def breaker():
        for seconds in (0.5, 1.0, 2.0, 3.0, 4.0, 5.0):
            await asyncio.sleep(seconds)
            site.wire.cut()

    async with running(config, program):
        breaking = asyncio.create_task(breaker())
        coordinator.want()
        report = await coordinator.until_phase("ENDED")
        await breaking
    assert report.outcome == SUCCEEDED
    assert len(slurm.jobs) == 1
