"""Two agents of one site, and an agent that cron starts again and again."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agents_at_work import in_a_process
from fake_coordinator import A1, PATIENCE_SECONDS, delta_of_base
from processes import reaped

from consortium.canonical import encode
from consortium.errors import Superseded, Unavailable
from site_agent.agent import Agent
from site_agent.launchers.local import LocalLauncher
from site_agent.running import run_agent
from site_agent.status import AgentStatus, at_work, write_status

ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory(config):
    return Path(config.home) / "spool" / "demo_r1-train-north" / A1


def status_of(**changes) -> AgentStatus:
    fields = dict(
        site="north", pid=1, host=socket.gethostname(), incarnation="x", started_at=0.0, synced_at=None
    )
    return AgentStatus(**(fields | changes))


def test_who_is_at_work(tmp_path):
    assert at_work(tmp_path) is None
    for status, is_there in (
        (status_of(pid=os.getppid()), True),
        (status_of(pid=os.getppid(), stopped=True), False),
        (status_of(pid=os.getppid(), began="1"), False),  # another process has its number now
        (status_of(pid=os.getpid()), False),  # this one
        (status_of(pid=2**22 - 3), False),
        (status_of(host="elsewhere", seen_at=time.time() - 10), True),
        (status_of(host="elsewhere", seen_at=time.time() - 1000), False),
        (status_of(host="elsewhere", seen_at=time.time(), stopped=True), False),
    ):
        write_status(tmp_path, status)
        assert (at_work(tmp_path) is not None) == is_there, status


async def test_cron_leaves_the_home_to_an_agent_that_is_there(config, coordinator, identity, program):
    write_status(Path(config.home), status_of(pid=os.getppid()))
    coordinator.want()
    assert await asyncio.to_thread(run_agent, config, True, LocalLauncher(program)) == 0
    assert not coordinator.requests
    with pytest.raises(Unavailable, match="an agent of this site runs here already"):
        await asyncio.to_thread(run_agent, config, False, LocalLauncher(program), take_over=True)


async def test_one_run_by_hand_does_not_end_what_runs_elsewhere(config, coordinator, identity, program):
    """The newer one would be listened to, and the older one's unit or chain would be over for good."""
    write_status(Path(config.home), status_of(host="login7", seen_at=time.time() - 200))
    with pytest.raises(Unavailable, match=r"at work on login7 2\d\d s ago.*--take-over"):
        await asyncio.to_thread(run_agent, config, False, LocalLauncher(program))
    assert not coordinator.requests
    seen = asyncio.create_task(coordinator.until_synced())
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}
    command = [sys.executable, "-m", "console.main", "site", "run", "--take-over", "site.json"]
    (Path(config.home) / "site.json").write_bytes(encode(config))
    with reaped(subprocess.Popen(command, env=environment, cwd=config.home)) as agent:
        await seen
        agent.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(agent.wait, PATIENCE_SECONDS) == 0


async def test_a_superseded_agent_leaves_and_ends_nothing(
    config, coordinator, identity, launcher, hold, directory
):
    agent = Agent(config, identity, launcher)
    task = asyncio.create_task(agent.run())
    coordinator.want()
    await coordinator.until_phase("RUNNING")

    async def no(*_):
        raise Superseded("another, newer agent of site north has taken over; stop this one")

    agent._link.sync = no
    coordinator.stir()
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await task == Superseded.exit_code == 8
    assert not (directory / "ended.json").exists()
    assert LocalLauncher(launcher._command).poll([directory])[directory].seen == "running"
    hold.unlink()


@pytest.mark.parametrize("seed", range(2))
async def test_overlapping_cron_runs_deliver_once(config, coordinator, identity, program, directory, seed):
    coordinator.want()
    codes = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        while coordinator.wanted:
            with (
                in_a_process(config, program, once=True) as one,
                in_a_process(config, program, once=True) as other,
            ):
                if seed:
                    await asyncio.sleep(0.6)
                    one.send_signal(signal.SIGKILL)
                codes += [await asyncio.to_thread(each.wait, PATIENCE_SECONDS) for each in (one, other)]
    assert "ENDED" in coordinator.phases[A1], codes  # the slower of a pair may speak of staging after that
    assert coordinator.has(delta_of_base())
    assert set(codes) <= {0, 8, -signal.SIGKILL}
