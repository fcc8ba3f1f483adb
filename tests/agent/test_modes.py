"""Drain, pause and resume: what an operator asks of a running agent."""

from pathlib import Path

import pytest
from agents_at_work import running, until
from fake_coordinator import A1
from sprachbund.v1 import site_pb2

from consortium.errors import BadInput
from site_agent.mode import Mode, read_mode, write_mode
from site_agent.status import site_status


@pytest.fixture
def directory(config):
    return Path(config.home) / "spool" / "demo_r1-train-north" / A1


async def test_drain_is_told_and_what_is_here_is_finished(config, coordinator, identity, launcher, hold):
    async with running(config, identity, launcher):
        coordinator.want()
        await coordinator.until_phase("RUNNING")
        write_mode(Path(config.home), Mode(mode="drain", reason="maintenance"))
        await until(lambda: coordinator.requests[-1].site.draining, "draining")
        hold.unlink()
        await coordinator.until_phase("ENDED")
        write_mode(Path(config.home), Mode())
        await until(lambda: not coordinator.requests[-1].site.draining, "the end of it")
    assert site_status(config).mode == Mode()


async def test_pause_makes_a_running_job_leave_and_resume_lets_it_go_on(
    config, coordinator, identity, launcher, hold, directory
):
    async with running(config, identity, launcher):
        coordinator.want()
        await coordinator.until_phase("RUNNING")
        write_mode(Path(config.home), Mode(mode="pause"))
        await coordinator.until_phase("QUEUED")  # it saw STOP and left; its place is kept
        assert coordinator.requests[-1].site.draining
        begun = len((directory / "began").read_text().split())
        await coordinator.until_synced(3)
        assert len((directory / "began").read_text().split()) == begun
        hold.unlink()
        write_mode(Path(config.home), Mode())
        report = await coordinator.until_phase("ENDED")
    assert report.outcome == site_pb2.ATTEMPT_OUTCOME_SUCCEEDED


async def test_paused_from_the_beginning_nothing_starts(config, coordinator, identity, launcher, directory):
    write_mode(Path(config.home), Mode(mode="pause"))
    async with running(config, identity, launcher):
        coordinator.want()
        await coordinator.until_phase("QUEUED")
        await coordinator.until_synced(3)
        assert not (directory / "began").exists()


async def test_a_wish_that_cannot_be_read_lets_nothing_new_begin(config, coordinator, identity, launcher):
    (Path(config.home) / "mode.json").write_text('{"mode":"dance"}')
    with pytest.raises(BadInput, match="say it again with `sprachbund site drain`"):
        read_mode(Path(config.home))
    async with running(config, identity, launcher):
        await until(lambda: coordinator.requests and coordinator.requests[-1].site.draining, "draining")
