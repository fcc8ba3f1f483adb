"""Agents that run in this process or in one of their own, and waiting for what they do."""

import asyncio
import contextlib
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from fake_coordinator import PATIENCE_SECONDS
from processes import reaped

from consortium.canonical import encode
from site_agent.agent import Agent

_ROOT = Path(__file__).parents[2]
_PROGRAM = """
import sys, pathlib
from consortium.canonical import decode
from site_agent.running import run_agent
from site_agent.config import SiteConfig
from site_agent.launchers.local import LocalLauncher
config = decode(pathlib.Path(sys.argv[1]).read_bytes(), SiteConfig)
sys.exit(run_agent(config, {once}, LocalLauncher({program!r}, poll_seconds=0.05)))
"""


@contextlib.asynccontextmanager
async def running(config, identity, launcher):
    agent = asyncio.create_task(Agent(config, identity, launcher).run())
    try:
        yield agent
    finally:
        agent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await agent


def in_a_process(config, program, once=False) -> AbstractContextManager[subprocess.Popen]:
    """An agent that can be killed, and is when the block ends."""
    said = Path(config.home, "config.json")
    said.write_bytes(encode(config))
    command = [sys.executable, "-c", _PROGRAM.format(once=once, program=program), str(said)]
    return reaped(subprocess.Popen(command, env=os.environ | {"PYTHONPATH": f"{_ROOT}:{_ROOT / 'protos'}"}))


async def until(condition, what):
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)
