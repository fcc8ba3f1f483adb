"""A coordinator, a site's config, and a program that stands in for the trainer."""

import sys

import pytest
from fake_coordinator import NORTH, PROGRAM, FakeCoordinator

from site_agent.config import SiteConfig


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
