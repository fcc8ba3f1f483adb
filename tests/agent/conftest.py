"""A coordinator, a site's config, a stand-in for the trainer; launchers on a Slurm of fake commands."""

import asyncio
import sys
from pathlib import Path

import pytest
from fake_coordinator import NORTH, PROGRAM, FakeCoordinator
from fake_slurm import FakeSlurm
from launcher_contract import JOB
from slurm_launching import QUICK, TRAINER, Clock

from policies.site_profile import SiteProfile
from site_agent.config import SiteConfig
from site_agent.enrol import enrol
from site_agent.launchers.local import LocalLauncher
from site_agent.launchers.slurm.commands import LocalCommands, LocalFiles
from site_agent.launchers.slurm.launcher import SlurmLauncher


@pytest.fixture
async def coordinator(tmp_path):
    fake = FakeCoordinator(tmp_path / "coordinator")
    await fake.up()
    yield fake
    await fake.down()


@pytest.fixture
def config(tmp_path, coordinator) -> SiteConfig:
    return SiteConfig(
        site=NORTH,
        coordinator=f"127.0.0.1:{coordinator.port}",
        enrolment=f"127.0.0.1:{coordinator.enrolment_port}",
        home=str(tmp_path / "north"),
        sync_seconds=0.2,
    )


@pytest.fixture
def program(tmp_path) -> tuple[str, str]:
    """The stand-in for the trainer; files ``hold`` and ``go`` beside it stop it and let it go on."""
    path = tmp_path / "program" / "job.py"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    return sys.executable, str(path)


@pytest.fixture
async def identity(config, coordinator):
    return await asyncio.to_thread(enrol, config, coordinator.invitation())


@pytest.fixture
def launcher(program):
    return LocalLauncher(program, poll_seconds=0.05)


@pytest.fixture
def hold(program):
    """While this file exists and ``go`` does not, jobs wait."""
    path = Path(program[1]).with_name("hold")
    path.touch()
    return path


@pytest.fixture
def slurm(tmp_path):
    slurm = FakeSlurm(tmp_path / "slurm")
    yield slurm
    slurm.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def launch(slurm, tmp_path, clock):
    """Makes launchers, with any key of the profile changed; their job is the contract's."""
    job = tmp_path / "job.py"
    job.write_text(JOB)

    def make(command=(sys.executable, str(job)), patience=QUICK, **profile):
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
