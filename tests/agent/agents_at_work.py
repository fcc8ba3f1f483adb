"""Agents that run in this process, and waiting for what they do."""

import asyncio
import contextlib

from fake_coordinator import PATIENCE_SECONDS

from site_agent.agent import Agent


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
