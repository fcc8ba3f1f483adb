"""An agent and its service manager: what is told, when its watchdog starves, what holds nobody up."""

import asyncio
import contextlib
import logging
import socket
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from agents_at_work import running, until
from fake_coordinator import A1, PATIENCE_SECONDS
from sprachbund.v1 import site_pb2

from consortium.errors import Unavailable
from consortium.ids import AttemptId
from site_agent import heartbeat
from site_agent.agent import Agent
from site_agent.core.facts import Act, Action, Plan, Seen, Sighting
from site_agent.supervision import Supervisor

A2 = AttemptId("demo_r1-train-north.a2")


@pytest.fixture
def manager():
    """The socket on which systemd listens, of a short path: ``heard`` gives the datagrams so far."""
    with (
        tempfile.TemporaryDirectory(prefix="n", dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(f"{folder}/notify")
        listener.setblocking(False)
        yield listener


def heard(listener) -> list[str]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found += listener.recv(4096).decode().split("\n")
    return found


def test_the_words_of_sd_notify(manager):
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "3000000"}
    supervisor = Supervisor(environment)
    assert supervisor.seconds_max == 1.0
    supervisor.is_ready()
    supervisor.turned("1 running")
    supervisor.turned("1 running")  # neither new nor late
    supervisor.turned("no job")
    supervisor.is_leaving()
    assert heard(manager) == ["READY=1", "STATUS=1 running", "WATCHDOG=1", "STATUS=no job", "STOPPING=1"]
    for number in range(10_000):  # one that reads nothing any more holds nobody up
        supervisor.turned(f"turn {number}")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "3000000"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_PID": "1", "WATCHDOG_USEC": "9"},
    ],
)
def test_where_nobody_listens_nothing_is_told(environment):
    supervisor = Supervisor(environment)
    supervisor.is_ready()
    supervisor.turned("x")
    assert supervisor.seconds_max is None


async def test_the_watchdog_is_fed_by_turns_of_the_loop_and_starves_when_it_hangs(
    manager, monkeypatch, config, identity, launcher, coordinator
):
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    told: list[str] = []
    agent = Agent(config, identity, launcher)
    task = asyncio.create_task(agent.run())

    async def until_told(word):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while word not in told:
                told.extend(heard(manager))
                await asyncio.sleep(0.01)

    await until_told("READY=1")
    for _ in range(3):
        told.clear()
        await until_told("WATCHDOG=1")
    hangs, free = asyncio.Event(), asyncio.Event()

    async def hang():
        hangs.set()
        await free.wait()
        return None

    monkeypatch.setattr(heartbeat, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(heartbeat, "_CALL_SECONDS_MAX", 0.2)
    monkeypatch.setattr(agent, "_step", hang)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await hangs.wait()  # whatever turn was under way is over
    await asyncio.sleep(0.5)  # and so is the time for which a step that does not move is believed
    heard(manager)
    await asyncio.sleep(0.5)
    assert "WATCHDOG=1" not in heard(manager)
    free.set()
    told.clear()
    await until_told("WATCHDOG=1")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await until_told("STOPPING=1")


class SlowLauncher:
    """As with a Slurm whose controller is gone: questions take their time, and fail."""

    poll_seconds = 0.05

    def __init__(self, *slow: str) -> None:
        self.slow = slow
        self.asked: list[str] = []
        self.free = threading.Event()

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what in self.slow:
            self.free.wait(PATIENCE_SECONDS)
            raise Unavailable(f"{what}: no answer")

    def submit(self, directory, life):
        self._ask("submit")

    def poll(self, directories):
        self._ask("poll")
        return {directory: Sighting(seen=Seen.UNKNOWN) for directory in directories}

    def cancel(self, directory):
        self._ask("cancel")


async def test_a_slow_launcher_silences_nobody(manager, monkeypatch, config, identity, coordinator):
    """One step may take minutes; the lease must not end for it, nor the watchdog bite."""
    monkeypatch.setattr(heartbeat, "_BEAT_SECONDS", 0.02)
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    slow = SlowLauncher("submit")
    async with running(config, identity, slow):
        coordinator.want()
        await until(lambda: slow.asked, "the launch")
        heard(manager)
        await coordinator.until_synced(5)
        assert coordinator.told[A1].phase != site_pb2.ATTEMPT_PHASE_RUNNING
        await until(lambda: "WATCHDOG=1" in heard(manager), "the watchdog's food")
        assert slow.asked == ["submit"]
        slow.free.set()


async def test_a_launcher_that_fails_slowly_is_asked_once_a_step(monkeypatch, config, identity):
    monkeypatch.setattr("site_agent.agent._SLOW_SECONDS", 0.0)
    slow = SlowLauncher("submit")
    slow.free.set()
    agent = Agent(config, identity, slow)
    plan = Plan(
        actions=tuple(
            Action(act=act, attempt=attempt, reason="test", life=1)
            for act in (Act.LAUNCH, Act.KILL)
            for attempt in (A1, A2)
        ),
        reports=(),
    )
    for attempt in (A1, A2):
        (Path(config.home) / "spool" / "demo_r1-train-north" / attempt).mkdir(parents=True)
    assert not await agent._act_on(plan, None)
    assert slow.asked == ["submit"]
    monkeypatch.setattr("site_agent.agent._SLOW_SECONDS", 45.0)  # who fails at once costs nothing
    await agent._act_on(plan, None)
    assert slow.asked[1:] == ["submit", "submit", "cancel", "cancel"]
    await agent._close()


async def test_one_run_waits_for_what_is_carried_over_ssh(config, identity, launcher, caplog):
    """And does what follows; else one run of cron moved 20 s of a big file."""
    left = [(f"inputs of it: {done} of 3 MB",) for done in (1, 2, 3)] + [(), ("result of it: begun",)]
    steps: list[int] = []

    class Files:
        @property
        def errands(self):
            return left.pop(0) if left else ()

    async def step():
        steps.append(len(left))
        return None

    agent = Agent(config, identity, launcher)
    agent._site = SimpleNamespace(files=Files())  # type: ignore[assignment]
    agent._step = step  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO):
        await agent._carry_on()
    assert steps == [1, 0]
    assert "inputs of it: 1 of 3 MB" in caplog.text
    await agent._close()
