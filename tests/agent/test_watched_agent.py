"""What is seen of an agent: logs, secrets that are not in them, metrics, and what it costs."""

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from agents_at_work import running, until
from fake_coordinator import A1, PATIENCE_SECONDS
from free_ports import free_port

from consortium.canonical import replace
from consortium.errors import Unavailable
from consortium.ids import Language
from consortium.logs import log_json
from policies.site_profile import SiteProfile
from site_agent.agent import Agent, limits
from site_agent.config import Text
from site_agent.launchers.local import LocalLauncher

ROOT = Path(__file__).parents[2]
SECRET = "ghp-4f1c-do-not-tell"


@pytest.fixture
def directory(config):
    return Path(config.home) / "spool" / "demo_r1-train-north" / A1


async def test_no_secret_of_the_agent_reaches_a_job_or_the_log(
    config, coordinator, identity, tmp_path, monkeypatch
):
    monkeypatch.setenv("SITE_API_TOKEN", SECRET)
    spy = tmp_path / "spy.py"
    spy.write_text(
        "import os, sys, pathlib\n"
        "kept = pathlib.Path(__file__).with_name('environment')\n"
        "kept.with_suffix('.new').write_bytes(pathlib.Path('/proc/self/environ').read_bytes())\n"
        "kept.with_suffix('.new').rename(kept)\n"
        "sys.exit(3)\n"
    )
    log = tmp_path / "log" / "agent.jsonl"

    root = logging.getLogger()
    before = list(root.handlers)
    try:
        log_json(log, "DEBUG", 100_000, 2)
        async with running(replace(config, lives_max=1), identity, LocalLauncher((sys.executable, str(spy)))):
            coordinator.want()
            await coordinator.until_phase("ENDED")
    finally:
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
            handler.close()
        root.setLevel(logging.WARNING)
    environment = (tmp_path / "environment").read_bytes()
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
    looks, looked = 0, asyncio.Event()
    look = agent._step

    async def counted():
        nonlocal looks
        looks += 1
        looked.set()
        return await look() if what == "text" else None

    monkeypatch.setattr(agent, "_step", counted)
    monkeypatch.setattr(agent._description, "keep_fresh", lambda changed: None)
    task = asyncio.create_task(agent.run())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await looked.wait()
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
