"""What an operator does to an agent, and a service manager: supervision, drain, pause, two agents, cron."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_coordinator import A1, PATIENCE_SECONDS, delta_of_base
from sprachbund.v1 import site_pb2

from consortium.canonical import encode, replace
from consortium.errors import BadInput, Superseded, Unavailable
from consortium.ids import AttemptId, Language
from consortium.logs import log_json
from policies.site_profile import SiteProfile
from site_agent import heartbeat
from site_agent.agent import Agent, limits
from site_agent.config import Text
from site_agent.core.facts import Act, Action, Plan, Seen, Sighting
from site_agent.enrol import enrol
from site_agent.launchers.local import LocalLauncher
from site_agent.mode import Mode, read_mode, write_mode
from site_agent.running import run_agent
from site_agent.status import AgentStatus, at_work, site_status, write_status
from site_agent.supervision import Supervisor

ROOT = Path(__file__).parents[2]
A2 = AttemptId("demo_r1-train-north.a2")
SECRET = "ghp-4f1c-do-not-tell"


@pytest.fixture
async def identity(config, coordinator):
    return await asyncio.to_thread(enrol, config, coordinator.invitation())


@pytest.fixture
def launcher(program):
    return LocalLauncher(program, poll_seconds=0.05)


@pytest.fixture
def hold(program):
    path = Path(program[1]).with_name("hold")
    path.touch()
    return path


@pytest.fixture
def directory(config):
    return Path(config.home) / "spool" / "demo_r1-train-north" / A1


@contextlib.asynccontextmanager
async def running(config, identity, launcher):
    agent = asyncio.create_task(Agent(config, identity, launcher).run())
    try:
        yield agent
    finally:
        agent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await agent


async def until(condition, what):
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def manager(tmp_path):
    """The socket on which systemd listens; ``read`` gives the datagrams so far."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


def heard(listener) -> list[str]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found += listener.recv(4096).decode().split("\n")
    return found


# ---- a service manager


def test_the_words_of_sd_notify(manager, tmp_path):
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
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
    manager, tmp_path, monkeypatch, config, identity, launcher, coordinator
):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
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
    free = asyncio.Event()

    async def hang():
        await free.wait()
        return None

    monkeypatch.setattr(heartbeat, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(heartbeat, "_CALL_SECONDS_MAX", 0.2)
    monkeypatch.setattr(agent, "_step", hang)
    await asyncio.sleep(0.5)  # whatever turn was under way
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


async def test_a_slow_launcher_silences_nobody(manager, tmp_path, monkeypatch, config, identity, coordinator):
    """One step may take minutes; the lease must not end for it, nor the watchdog bite."""
    monkeypatch.setattr(heartbeat, "_BEAT_SECONDS", 0.02)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
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


# ---- drain, pause, resume


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


# ---- two agents, cron


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
    with pytest.raises(Unavailable, match=r"at work on login7 20\d s ago.*--take-over"):
        await asyncio.to_thread(run_agent, config, False, LocalLauncher(program))
    assert not coordinator.requests
    seen = asyncio.create_task(coordinator.until_synced())
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}
    command = [sys.executable, "-m", "console.main", "site", "run", "--take-over", "site.json"]
    (Path(config.home) / "site.json").write_bytes(encode(config))
    with subprocess.Popen(command, env=environment, cwd=config.home) as agent:
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
    (Path(config.home) / "config.json").write_bytes(encode(config))
    driver = Path(config.home) / "driver.py"
    driver.write_text(
        "import sys, pathlib\n"
        "from consortium.canonical import decode\n"
        "from site_agent.running import run_agent\n"
        "from site_agent.config import SiteConfig\n"
        "from site_agent.launchers.local import LocalLauncher\n"
        "config = decode(pathlib.Path(sys.argv[1]).read_bytes(), SiteConfig)\n"
        f"sys.exit(run_agent(config, True, LocalLauncher({program!r}, poll_seconds=0.05)))\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}
    command = [sys.executable, str(driver), str(Path(config.home) / "config.json")]
    codes = []
    for _ in range(15):
        pair = [subprocess.Popen(command, env=environment) for _ in range(2)]
        if seed:
            await asyncio.sleep(0.6)
            pair[0].send_signal(signal.SIGKILL)
        codes += [await asyncio.to_thread(one.wait, PATIENCE_SECONDS) for one in pair]
        if not coordinator.wanted:
            break
    assert "ENDED" in coordinator.phases[A1], codes  # the slower of a pair may speak of staging after that
    assert coordinator.has(delta_of_base())
    assert set(codes) <= {0, 8, -signal.SIGKILL}


# ---- logs, secrets, metrics


async def test_no_secret_of_the_agent_reaches_a_job_or_the_log(
    config, coordinator, identity, tmp_path, monkeypatch, directory, program
):
    monkeypatch.setenv("SITE_API_TOKEN", SECRET)
    spy = tmp_path / "spy.py"
    spy.write_text(
        "import os, sys, pathlib\n"
        "pathlib.Path(sys.argv[1], 'environment').write_bytes(open('/proc/self/environ', 'rb').read())\n"
        "sys.exit(3)\n"
    )
    log = tmp_path / "log" / "agent.jsonl"

    root = logging.getLogger()
    before = list(root.handlers)
    try:
        log_json(log, "DEBUG", 100_000, 2)
        async with running(replace(config, lives_max=1), identity, LocalLauncher((sys.executable, str(spy)))):
            coordinator.want()
            await until((directory / "environment").exists, "the job")
            environment = (directory / "environment").read_bytes()
            await coordinator.until_phase("ENDED")
    finally:
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
            handler.close()
        root.setLevel(logging.WARNING)
    assert b"SPRACHBUND_LIFE=" in environment
    assert SECRET.encode() not in environment
    assert SECRET not in log.read_text()
    assert "BEGIN PRIVATE KEY" not in log.read_text()
    assert all(json.loads(line)["message"] for line in log.read_text().splitlines())


def test_a_log_turns_over(tmp_path):

    root = logging.getLogger()
    before = list(root.handlers)
    try:
        log_json(tmp_path / "a.log", "INFO", 2000, 2)
        for number in range(100):
            root.info("line %d", number)
    finally:
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
            handler.close()
        root.setLevel(logging.WARNING)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())
    assert "line 99" in (tmp_path / "a.log").read_text()


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


async def test_metrics_health_and_readiness(config, coordinator, identity, launcher, hold):
    port = free_port()
    async with running(replace(config, metrics_port=port), identity, launcher):
        coordinator.want()
        await coordinator.until_phase("RUNNING")
        await coordinator.until_synced(1)
        assert await asyncio.to_thread(get, port, "/healthz") == (200, "the loop turns\n")
        await until(lambda: True, "")
        status, text = await asyncio.to_thread(get, port, "/metrics")
        assert status == 200
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert values['sprachbund_attempts{phase="running"}'] == "1.0"
        assert float(values['sprachbund_blob_bytes_total{direction="received"}']) > 600
        assert values["sprachbund_lives_total"] == "1.0"
        assert "demo" not in text
        assert (await asyncio.to_thread(get, port, "/x"))[0] == 404
        await coordinator.down()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await asyncio.to_thread(get, port, "/readyz"))[0] != 503:
                await asyncio.sleep(0.05)
        await coordinator.up()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await asyncio.to_thread(get, port, "/readyz"))[0] != 200:
                await asyncio.sleep(0.05)
        hold.unlink()


@pytest.mark.parametrize("what", ["text", "spool"])
async def test_an_agent_that_has_nothing_to_say_yet_does_not_spin(
    config, identity, launcher, coordinator, monkeypatch, what
):
    """The first description of terabytes takes hours, and so may a file system that hangs."""
    agent = Agent(config, identity, launcher)
    looks = 0
    look = agent._step

    async def counted():
        nonlocal looks
        looks += 1
        return await look() if what == "text" else None

    monkeypatch.setattr(agent, "_step", counted)
    monkeypatch.setattr(agent._description, "keep_fresh", lambda changed: None)
    task = asyncio.create_task(agent.run())
    await asyncio.sleep(0.5)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert 1 <= looks <= 20  # at most every 0.05 s, which is the launcher's pace
    assert not coordinator.requests


async def test_nothing_listens_unless_it_is_asked_for(config, identity, launcher, coordinator):
    agent = Agent(config, identity, launcher)
    assert agent._health is None
    await agent._link.close()


def test_a_taken_port_is_said(tmp_path):
    from consortium.errors import Unavailable
    from site_agent.health import Health

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        with pytest.raises(Unavailable, match="choose another"):
            Health(one.getsockname()[1], lambda: None)


def test_the_agent_does_not_load_torch():
    code = (
        "import sys, site_agent.agent\n"
        "print([m for m in ('torch', 'numpy', 'pyarrow', 'prometheus_client') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_life_that_is_asked_to_leave_gets_the_time_that_the_profile_says_a_checkpoint_takes(config):
    assert limits(config).save_seconds == 600.0
    slow = SiteProfile(walltime_minutes=600, signal_seconds=1860)
    assert limits(replace(config, launcher="slurm", slurm=slow)).save_seconds == 1860.0
    assert limits(replace(config, launcher="slurm", slurm=SiteProfile())).save_seconds == 600.0


def test_the_languages_of_public_text_are_what_consent_is_asked_about(config):
    def text(language, access):
        return Text(language=Language(language), path="/text", access=access, licence="CC0-1.0")

    site = replace(config, text=(text("sv", "public"), text("fi", "private"), text("et", "public")))
    assert limits(site).public == ("et", "sv")
