"""Sync and what it rests on: incarnations, long polls, leases, and a coordinator that goes and comes back."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from real_coordinator import (
    PATIENCE_SECONDS,
    SITES,
    WAIT_SECONDS,
    Consortium,
    campaign,
    campaign_in,
    duration,
    in_our_words,
    job_state,
)
from scripted_sites import ScriptedSite, at_work, done, introduce, lease
from sprachbund.v1 import site_pb2

from consortium.canonical import replace
from consortium.channels import WAITED
from consortium.errors import Refused, TooOften, Unavailable
from consortium.ids import AttemptId, digest_of
from consortium.jobs import Outcome, Phase
from consortium.views import ConsortiumView
from coordinator.core.budgets import BUDGETS, DESCRIBED, RENEWED, Budget
from coordinator.ledger import Ledger
from site_agent.core.facts import Ended, Report


@pytest.fixture(autouse=True)
def _no_sync_waits_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.services.site._WAIT_SECONDS_MAX", WAIT_SECONDS)


async def test_the_newest_agent_of_a_site_holds_it(consortium: Consortium) -> None:
    site = ScriptedSite(consortium, "sofia")
    async with consortium.running(), site.connected() as calls:
        for incarnation in ("first", "second", "second"):
            site.incarnation = incarnation
            await calls.Sync(site.request())
        site.incarnation = "first"
        with pytest.raises(Refused, match="another, newer agent of site sofia has taken over; stop this one"):
            with in_our_words():
                await calls.Sync(site.request())
        site.incarnation = "second"
        await calls.Sync(site.request())


async def test_a_waiting_sync_wakes_when_a_job_is_planned(consortium: Consortium, base: Path) -> None:
    site = ScriptedSite(consortium, "sofia")
    async with consortium.running(), consortium.admin() as admin, site.connected() as calls:
        await introduce(consortium)
        nothing = await calls.Sync(site.request())
        waiting = calls.Sync(site.request(seen=nothing.revision, wait=duration(WAIT_SECONDS)))
        await admin.submit(campaign(base))
        async with asyncio.timeout(PATIENCE_SECONDS):  # it would be answered after the whole in any case
            answer = await waiting
    assert [message.attempt for message in answer.wanted] == ["demo_r1-train-sofia.a1"]
    assert answer.upload_bytes_max == consortium.config.upload_bytes_max


async def test_a_site_that_said_too_much_is_told_at_once_and_then_waits_as_others_do(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its waiting Sync ends with each new description: what only came with the answer's time would never come."""
    monkeypatch.setitem(BUDGETS, DESCRIBED, Budget(2, 3600.0))
    monkeypatch.setitem(BUDGETS, RENEWED, Budget(1, 3600.0))
    site = ScriptedSite(consortium, "sofia")

    async def said(slots: int, seen: int, wait: float) -> tuple[site_pb2.SyncResponse, float]:
        site.slots = slots
        call = calls.Sync(site.request(seen=seen, wait=duration(wait)))
        answer = await call
        return answer, float(dict(await call.trailing_metadata())[WAITED])

    async with consortium.running(), site.connected() as calls:
        first, _ = await said(5, 0, 0.0)
        assert not first.used_up
        async with asyncio.timeout(PATIENCE_SECONDS):
            second, waited = await said(6, first.revision, WAIT_SECONDS)
        [told] = second.used_up
        assert (told.kind, waited) == (site_pb2.BUDGET_KIND_DESCRIBED, 0.0)
        assert told.reason.startswith("its agent described itself in other words more than 2 times")
        assert 3000 < told.again.ToSeconds() <= 3600
        third, waited = await said(7, second.revision, 0.1)
        assert third.used_up and waited > 0.0
        await site.renew()
    with pytest.raises(TooOften, match="had 1 new certificates") as refused:
        async with consortium.running():
            await site.renew()
    assert 3000 < refused.value.again_seconds <= 3600


async def test_late_and_foreign_reports_establish_nothing(consortium: Consortium, base: Path) -> None:
    first, second = AttemptId("demo_r1-train-sofia.a1"), AttemptId("demo_r1-train-sofia.a2")
    failed = Report(attempt=first, phase=Phase.ENDED, ended=Ended(outcome=Outcome.FAILED, reason="GPU lost"))
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base))
        await lease(consortium, "sofia")
        await lease(consortium, "ohrid", replace(failed, attempt=first))  # not ohrid's to say
        answer = await lease(consortium, "sofia", failed)
        assert [message.attempt for message in answer.wanted] == [second]
        before = (await admin.view()).sequence
        answer = await lease(consortium, "sofia", Report(attempt=first, phase=Phase.RUNNING))
        assert list(answer.settled) == []  # it has to be stopped, and its end to be told
        stale = done(first, digest_of(b"an envelope"))
        for report in (failed, stale):
            answer = await lease(consortium, "sofia", report)
            assert (list(answer.settled), [m.attempt for m in answer.wanted]) == ([first], [second])
        answer = await lease(consortium, "ohrid", done(second, digest_of(b"an envelope")))
        assert list(answer.settled) == [second]
        view = await admin.view()
    assert view.sequence == before
    assert job_state(view, "demo_r1-train-sofia") == "leased"


async def test_nobody_keeps_anothers_lease_alive(consortium: Consortium, base: Path) -> None:
    held = Report(attempt=AttemptId("demo_r1-train-sofia.a1"), phase=Phase.RUNNING)
    begun = asyncio.Event()

    async def meddle() -> None:
        async with (meddler := ScriptedSite(consortium, "ohrid")).connected() as calls:
            while True:
                await calls.Sync(meddler.request(held))
                begun.set()
                await asyncio.sleep(0.03)  # who calls more often is told to slow down

    async with consortium.running(), consortium.admin() as admin, asyncio.TaskGroup() as group:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base, lease_seconds=0.5))
        meddling = group.create_task(meddle())
        await begun.wait()
        await lease(consortium, "sofia")
        await admin.until(
            lambda view: job_state(view, "demo_r1-train-sofia") == "planned", "the lease lapsed"
        )
        meddling.cancel()
        story = await admin.why("demo_r1-train-sofia")
    assert "demo_r1-train-sofia.a1 expired: no word from sofia for 0 s" in story


async def test_leases_and_jobs_outlive_the_coordinator(consortium: Consortium, base: Path) -> None:
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base))
        before = {name: await lease(consortium, name) for name in SITES}
        view = await admin.view()
    async with consortium.running(), consortium.admin() as admin:
        again = await admin.view()
        assert (again.sequence, again.head, again.jobs) == (view.sequence, view.head, view.jobs)
        assert {job.state for job in again.jobs} == {"leased"}
        for name in SITES:
            answer = await lease(consortium, name)
            assert answer.wanted == before[name].wanted
            assert answer.revision == before[name].revision
        async with at_work(*(ScriptedSite(consortium, name) for name in SITES)):
            assert (await admin.until_ended("demo")).status == "completed"
        assert {job.attempts for job in (await admin.view()).jobs} == {1}


async def test_a_campaign_under_restarts_makes_the_same_versions(
    consortium: Consortium, rested: Consortium, base: Path
) -> None:
    async with consortium.running(), consortium.admin() as admin:
        await introduce(consortium)
        await admin.submit_and_wait(campaign(base))

    def reached(sequence: int) -> Any:
        return lambda view: view.sequence >= sequence or campaign_in(view, "demo").status != "open"

    async with at_work(*(ScriptedSite(consortium, name) for name in SITES)):
        for more in (5, 9, 4, 11):
            async with consortium.running(), consortium.admin() as admin:
                await admin.until(reached((await admin.view()).sequence + more), "the ledger grew")
        async with consortium.running(), consortium.admin() as admin:
            ended = await admin.until_ended("demo")
    async with rested.running(), rested.admin() as admin:
        assert ended.versions == campaign_in(await admin.view(), "demo").versions


async def test_only_one_coordinator_serves_a_home(consortium: Consortium) -> None:
    second = Consortium(consortium.folder)
    async with consortium.running():
        with pytest.raises(Unavailable, match="this process has the ledger open already; close it first"):
            async with second.running():
                pass


async def test_many_waiting_syncs_of_one_site_do_not_contradict_each_other_for_ever(
    consortium: Consortium, base: Path
) -> None:
    """Each says other slots; only the newest is believed, and each is taken down once at most."""
    site, slots = ScriptedSite(consortium, "sofia"), range(2, 42)

    def described() -> int:
        with Ledger(consortium.home / "ledger.sqlite", read_only=True) as ledger:
            return sum(
                entry.event["kind"] == "SiteDescribed" and entry.event["site"] == "sofia"
                for entry in ledger.read()
            )

    async with consortium.running(), consortium.admin() as admin, site.connected() as calls:
        await introduce(consortium)
        seen, before = (await calls.Sync(site.request())).revision, described()
        waiting = []
        for number in slots:
            request = site.request(seen=seen, wait=duration(WAIT_SECONDS))
            request.site.slots = number
            waiting.append(calls.Sync(request))
            async with asyncio.timeout(PATIENCE_SECONDS):
                while slots_of(await admin.view(), "sofia") != number:
                    await asyncio.sleep(0)
        assert described() == before + len(slots)
        await admin.set_site("sofia", "DRAIN")
        await admin.set_site("sofia", "RESUME")
        await admin.submit(campaign(base))  # news for all that wait
        async with asyncio.timeout(PATIENCE_SECONDS):
            answers = await asyncio.gather(*waiting)
        assert {one.wanted[0].attempt for one in answers} == {"demo_r1-train-sofia.a1"}
        assert described() == before + len(slots)


def slots_of(view: ConsortiumView, name: str) -> int:
    return next(site.slots for site in view.sites if site.site == name)
