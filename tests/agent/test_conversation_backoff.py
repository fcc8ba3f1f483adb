"""A coordinator that was away for hours is found again as soon as one that was away for minutes."""

import asyncio
from typing import Any

from sprachbund.v1 import site_pb2

from consortium.channels import CHANNEL_OPTIONS
from consortium.errors import Refused, SprachbundError, Unavailable
from site_agent.conversation import Conversation

FOUND_AGAIN_SECONDS = 30.0  #: docs/reliability.md, less what the coordinator itself needs to start
START_SECONDS = 5.0
DIAL_JITTER = 1.2  #: grpc's own, doc/connection-backoff.md


class DeadLink:
    def __init__(self, error: SprachbundError) -> None:
        self._error = error

    class identity:
        @staticmethod
        def seconds_left(now: float) -> float:
            return 1e6

    def is_due(self, now: float) -> bool:
        return False

    async def sync(self, *words: Any) -> None:
        raise self._error


async def longest_pause(error: SprachbundError) -> float:
    conversation = Conversation(DeadLink(error), 1.0, lambda: None)  # type: ignore[arg-type]
    longest = 0.0
    for _ in range(200):
        conversation._not_before = 0.0
        conversation.say(site_pb2.SiteDescription(), ())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert conversation.listen()
        longest = max(longest, conversation.seconds_until_due())
    return longest


async def test_an_agents_pause_stays_short_however_long_nobody_answered() -> None:
    longest = await longest_pause(Unavailable("nobody answers"))
    dial = DIAL_JITTER * dict(CHANNEL_OPTIONS)["grpc.max_reconnect_backoff_ms"] / 1000
    assert longest + dial <= FOUND_AGAIN_SECONDS - START_SECONDS


async def test_a_suspended_agent_does_not_ask_every_few_seconds_for_a_month() -> None:
    assert 60.0 <= await longest_pause(Refused("site north is suspended")) <= 90.0
