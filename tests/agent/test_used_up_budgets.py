"""An agent that hears that the coordinator takes no more of something waits with it, and its operator sees why."""

import asyncio
import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sprachbund.v1 import site_pb2

from console.screens.site import site_page
from consortium.errors import TooOften, Unavailable
from consortium.ids import AttemptId, SiteName
from consortium.jobs import Phase
from site_agent import wire
from site_agent.conversation import Conversation
from site_agent.core.facts import Report, UsedUp
from site_agent.link import News
from site_agent.presence import Presence
from site_agent.status import SiteStatus, read_status

WHY = "its agent described itself in other words more than 60 times in a short time"
HOUR = 3600.0


def news(*used_up: UsedUp) -> News:
    nobody: Any = frozenset()
    return News(
        offers=(), signed={}, answered=nobody, settled=nobody, told={}, next_seconds=0.0, upload_bytes_max=1,
        clock_ahead_seconds=0.0, used_up=used_up,
    )  # fmt: skip


def described(seconds: float = HOUR) -> UsedUp:
    return UsedUp(budget="described", again_at=time.time() + seconds, reason=WHY)


class Link:
    """Answers when it is told to; ``said`` is how many slots each Sync spoke of, and how many attempts."""

    class identity:
        @staticmethod
        def seconds_left(now: float) -> float:
            return 1e6

    def __init__(self, refusal: Exception | None = None) -> None:
        self.said: list[tuple[int, int]] = []
        self.renewals = 0
        self.answers: asyncio.Queue[News] = asyncio.Queue()
        self._refusal = refusal

    def is_due(self, now: float) -> bool:
        return self._refusal is not None

    async def renew(self) -> None:
        self.renewals += 1
        assert self._refusal is not None
        raise self._refusal

    async def sync(self, description: site_pb2.SiteDescription, reports: Any, wait_seconds: float) -> News:
        self.said.append((description.slots, len(reports)))
        return await self.answers.get()


class Talk:
    """A conversation whose pauses are over at once."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.conversation = Conversation(link, 1.0, lambda: None)  # type: ignore[arg-type]

    async def say(self, slots: int, *reports: Report) -> None:
        self.conversation._not_before = 0.0
        self.conversation.say(site_pb2.SiteDescription(slots=slots), reports)
        for _ in range(3):
            await asyncio.sleep(0)

    async def hear(self, answer: News) -> None:
        self.link.answers.put_nowait(answer)
        async with asyncio.timeout(60):
            while not self.conversation.listen():
                await asyncio.sleep(0)


RUNNING = Report(attempt=AttemptId("demo_r1-train-north.a1"), phase=Phase.RUNNING)


async def test_another_description_waits_until_it_would_be_taken_down() -> None:
    talk = Talk(link := Link())
    await talk.say(1)
    await talk.say(2)
    assert link.said == [(1, 0), (2, 0)]  # as long as nobody said anything, at once
    await talk.hear(news(described()))
    await talk.say(3)
    assert link.said[2:] == [(3, 0)]  # a Sync that is due says how it is
    await talk.say(4)
    await talk.say(5)
    assert len(link.said) == 3
    await talk.say(5, RUNNING)  # what happens to jobs does not wait
    assert link.said[3:] == [(5, 1)]
    await talk.hear(news())
    await talk.say(5, RUNNING)
    await talk.say(6, RUNNING)
    assert link.said[4:] == [(5, 1), (6, 1)]
    await talk.conversation.stop()


async def test_when_the_time_is_over_it_is_said_at_once() -> None:
    talk = Talk(link := Link())
    await talk.say(1)
    await talk.hear(news(described(seconds=-1.0)))
    await talk.say(1)
    await talk.say(2)
    assert link.said == [(1, 0), (1, 0), (2, 0)]
    await talk.conversation.stop()


async def test_a_certificate_too_many_is_not_asked_for_with_every_sync() -> None:
    talk = Talk(link := Link(TooOften("site north had 20 new certificates in a short time", HOUR)))
    for _ in range(5):
        await talk.say(1)
        await talk.hear(news())
    assert (link.renewals, len(link.said)) == (1, 5)
    talk.conversation._not_renewed_before = 0.0  # the hour is over
    await talk.say(1)
    assert link.renewals == 2
    await talk.conversation.stop()


@pytest.mark.parametrize("seconds", [HOUR, 1e12])
async def test_the_answer_alone_is_enough_and_nobody_is_made_to_wait_for_ever(seconds: float) -> None:
    talk = Talk(link := Link(Unavailable("nobody answers")))
    await talk.say(1)
    await talk.hear(news(UsedUp(budget="renewed", again_at=time.time() + seconds, reason="20 certificates")))
    await talk.say(1)
    assert link.renewals == 1
    assert talk.conversation._not_renewed_before <= asyncio.get_running_loop().time() + 6 * HOUR
    await talk.conversation.stop()


def test_a_kind_that_a_newer_coordinator_knows_is_shown_and_nothing_else() -> None:
    message = site_pb2.UsedUpBudget(kind=99, reason="something new")
    message.again.FromSeconds(60)
    message_known = site_pb2.UsedUpBudget(kind=site_pb2.BUDGET_KIND_RETURNED, reason="it gave jobs back")
    assert wire.used_up([message, message_known], 1000.0) == (
        UsedUp(budget="other", again_at=1060.0, reason="something new"),
        UsedUp(budget="returned", again_at=1000.0, reason="it gave jobs back"),
    )


async def test_its_operator_sees_it_at_once_and_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    talk = Talk(Link())
    presence = Presence(tmp_path, SiteName("north"), "first")
    await talk.say(1)
    await talk.hear(news())
    presence.note(talk.conversation)
    await talk.say(1)
    await talk.hear(news(told := described()))
    presence.note(talk.conversation)
    left = read_status(tmp_path)
    assert left is not None and left.used_up == (told,)

    def shown(now: float) -> str:
        console = Console(width=200, file=io.StringIO())
        with console.capture() as captured:
            console.print(site_page("north", SiteStatus(agent=left, attempts=(), broken=()), now, 200))
        return captured.get()

    assert f"held back: {WHY}; the next in 50 min" in shown(told.again_at - 3000.0)
    assert "held back" not in shown(told.again_at + 1.0)
    await talk.conversation.stop()
