"""The view of a consortium that has been at it for years: what is over is trimmed, what is open never."""

import asyncio
from typing import Any

import pytest
from consortium_in_facts import DEMO, GIVEN, Coordinator, campaign, consortium
from delivering_site import TRAIN, House
from google.protobuf.duration_pb2 import Duration
from sprachbund.v1 import admin_pb2

from consortium.canonical import decode
from consortium.views import ConsortiumView
from coordinator.core import commands as cm
from coordinator.core.resting import Pack
from coordinator.core.snapshot import keep, restore
from coordinator.core.state import State
from coordinator.core.view import SHOWN_MAX, view
from coordinator.services import admin
from coordinator.services.admin import AdminService


@pytest.fixture(scope="module")
def grown() -> Coordinator:
    coordinator = consortium(campaign(**{**GIVEN, "rounds": 4}))
    coordinator.work()
    for _ in range(3):
        coordinator.one_round()
    return coordinator


def shown(state: State, most: int = SHOWN_MAX) -> ConsortiumView:
    return view(state, sequence=1, head="", now=2000.0, seen={}, sights={}, most=most)


def test_everything_is_shown_while_it_is_little(grown: Coordinator) -> None:
    found = shown(grown.state)
    assert {job.job for job in found.jobs} == grown.state.jobs.keys()
    assert (found.jobs_left_out, found.campaigns[0].rounds_left_out) == (0, 0)


def test_of_what_is_over_the_newest_is_shown_and_all_that_is_open(grown: Coordinator) -> None:
    state, all_ = grown.state, shown(grown.state)
    found = shown(state, most=2)
    over = [job for job in found.jobs if job.state in ("done", "failed", "cancelled")]
    assert {job.job for job in found.jobs} - {job.job for job in over} == {
        job.id for job in state.open_jobs()
    }
    newest = sorted((job for job in state.jobs.values() if job.is_final), key=lambda job: job.planned_at)
    assert [state.jobs[job.job].planned_at for job in over] == [job.planned_at for job in newest[-2:]]
    assert found.jobs_left_out == len(all_.jobs) - len(found.jobs) > 0
    before, after = all_.campaigns[0], found.campaigns[0]
    assert after.rounds == before.rounds[-2:] and after.rounds_left_out == len(before.rounds) - 2
    assert after.versions == before.versions[-2:] and after.versions_left_out == len(before.versions) - 2
    assert found.attempts == all_.attempts


def test_what_rests_is_shown_the_same_and_goes_on_resting(grown: Coordinator) -> None:
    state = restore(keep(grown.state))
    resting = {name for name, kept in dict.items(state.jobs) if isinstance(kept, Pack)}
    assert shown(state) == shown(grown.replayed())
    assert len(shown(state, most=1).jobs) == 1 + len(state.open_jobs())
    assert {name for name, kept in dict.items(state.jobs) if isinstance(kept, Pack)} == resting != set()


def test_the_console_gets_a_view_that_a_message_holds(
    training: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.report(TRAIN, training.seal(training.contribution(training.job(TRAIN))))
    training.work()
    training.driver.execute(cm.StopCampaign(campaign=DEMO, reason="no more money"))
    service: Any = AdminService(training.driver, None, None, None)  # type: ignore[arg-type]
    whole = asyncio.run(service.GetView(None, None)).view
    monkeypatch.setattr(admin, "_VIEW_BYTES_MAX", len(whole) - 1)
    sent = asyncio.run(service.GetView(None, None)).view
    assert len(sent) < len(whole)
    found = decode(sent, ConsortiumView)
    assert 0 < len(found.jobs) < len(decode(whole, ConsortiumView).jobs)
    assert found.jobs_left_out + len(found.jobs) == len(training.driver.state.jobs)


async def test_all_who_watch_share_a_view_until_an_event_or_a_second_has_passed(
    training: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    service: Any = AdminService(training.driver, None, None, None)  # type: ignore[arg-type]
    made: list[int] = []
    make, now = training.driver.view, [100.0]

    def counted(most: int) -> ConsortiumView:
        made.append(most)
        return make(most)

    monkeypatch.setattr(training.driver, "view", counted)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0])

    async def first() -> bytes:
        watching = service.Watch(admin_pb2.WatchRequest(interval=Duration(seconds=1)), None)
        found = await anext(watching)
        await watching.aclose()
        return bytes(found.view)

    assert len({await first() for _ in range(10)}) == 1 and len(made) == 1
    training.driver.execute(cm.StopCampaign(campaign=DEMO, reason="no more money"))
    assert b"no more money" in await first() and len(made) == 2
    now[0] += 1.0  # a watcher alone gets a new one each time
    await first()
    assert len(made) == 3
    for number in range(3):  # who asks gets what is so now
        await service.GetView(None, None)
        assert len(made) == 4 + number
