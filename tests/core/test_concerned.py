"""Whom an event wakes of those who wait for an answer, and what of the state a worker's thread is given."""

import asyncio
from typing import Any

import pytest
from consortium_in_facts import (
    DEMO,
    GIVEN,
    SEED_ROUND,
    Coordinator,
    answer,
    campaign,
    consortium,
    ended,
    given,
    sync,
)
from delivering_site import House

from consortium.canonical import encode
from consortium.ids import SiteName
from consortium.jobs import Outcome
from coordinator.core import commands as cm
from coordinator.core.concerned import concerned, standing
from coordinator.core.excerpt import excerpt
from coordinator.core.owed import owed

NORTH, SOUTH, WEST = SiteName("north"), SiteName("south"), SiteName("west")


def woken(coordinator: Coordinator, *sites: SiteName) -> set[SiteName]:
    """Which of ``sites``, waiting since now with what they have, go on."""
    wanted = {site: standing(coordinator.state, site) for site in sites}
    return concerned(coordinator.state, coordinator.moment, wanted)


def test_who_could_have_a_job_goes_on() -> None:
    coordinator = given()
    assert woken(coordinator, NORTH, SOUTH, WEST) == {NORTH, SOUTH, WEST}
    coordinator.sync("north")
    assert woken(coordinator, NORTH, SOUTH) == {SOUTH}, "north has its only slot full"


def test_another_sites_job_wakes_nobody() -> None:
    coordinator = given()
    for site in (NORTH, SOUTH, WEST):
        coordinator.sync(site)
    wanted = {site: standing(coordinator.state, site) for site in (NORTH, SOUTH, WEST)}
    attempt = coordinator.job("demo_r1-train-south").attempt
    coordinator.do(sync("south", ended(attempt, Outcome.PREEMPTED)))  # and is given it again
    assert concerned(coordinator.state, coordinator.moment, wanted) == {SOUTH}


def test_whose_job_was_cancelled_goes_on_and_who_was_suspended() -> None:
    coordinator = given()
    for site in (NORTH, SOUTH):
        coordinator.sync(site)
    wanted = {site: standing(coordinator.state, site) for site in (NORTH, SOUTH, WEST)}
    coordinator.do(cm.StopCampaign(campaign=DEMO, reason="enough"))
    assert concerned(coordinator.state, coordinator.moment, wanted) == {NORTH, SOUTH}
    coordinator.do(cm.SetSite(site=WEST, status="suspended", reason="its key was stolen"))
    assert WEST in concerned(coordinator.state, coordinator.moment, wanted)


@pytest.mark.parametrize("changes", [GIVEN, {**GIVEN, "merge_at": "any", "seed_round": SEED_ROUND}, {}])
def test_a_worker_answers_from_its_excerpt_what_it_answers_from_the_whole(changes: dict[str, Any]) -> None:
    coordinator = consortium(campaign(**changes), campaign("other", **changes), slots=2)
    seen = set()
    for _ in range(200):
        for what in owed(coordinator.state):
            part = excerpt(coordinator.state, what)
            assert encode(answer(what, part)) == encode(answer(what, coordinator.state))
            assert list(part.campaigns) == [
                what.campaign if hasattr(what, "campaign") else coordinator.state.jobs[what.job].campaign
            ]
            seen.add(type(what).__name__)
        before = {type(what): excerpt(coordinator.state, what) for what in owed(coordinator.state)}
        copies = {kind: encode(part) for kind, part in before.items()}
        coordinator.work()
        for site in (NORTH, SOUTH, WEST):
            for job in coordinator.state.live(site):
                coordinator.deliver(job.id, slots=2)
            coordinator.sync(site, slots=2)
        assert {kind: encode(part) for kind, part in before.items()} == copies, (
            "a copy changed with the state"
        )
    assert all(one.status == "completed" for one in coordinator.state.campaigns.values())
    assert seen >= {"MakeBase", "Merge", "Judge"}


async def test_only_the_site_that_has_news_is_answered_early(training: House) -> None:
    house, loop = training, asyncio.get_running_loop()
    house.driver.execute(house.message("south"))
    began = loop.time()
    waits = {site: asyncio.create_task(house.driver.news_for(site, 60.0)) for site in (NORTH, SOUTH)}
    await asyncio.sleep(0)
    attempt = house.driver.state.live(NORTH)[0].attempt
    house.driver.execute(house.message("north", ended(attempt, Outcome.PREEMPTED)))
    waited = await waits[NORTH]
    assert waited <= loop.time() - began
    assert not waits[SOUTH].done()
    waits[SOUTH].cancel()
