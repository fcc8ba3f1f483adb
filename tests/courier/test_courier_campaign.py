"""A campaign of three sites, one of which only ever sees bundles: the same versions and events as over gRPC."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from island import Island
from real_coordinator import CONSORTIUM, PATIENCE_SECONDS, Admin, Consortium, campaign, campaign_in
from scripted_sites import ScriptedSite, at_work

from consortium.canonical import replace
from consortium.invitation import Invitation
from consortium.views import CampaignView
from coordinator.core import events as ev
from coordinator.core.story import sentence
from coordinator.driver import decode_event
from coordinator.ledger import Ledger
from site_agent.enrol import enrol


def events(consortium: Consortium) -> list[ev.AnyEvent]:
    with Ledger(Path(consortium.config.ledger or consortium.home / "ledger.sqlite")) as ledger:
        return [decode_event(entry) for entry in ledger.read()]


def told_of(site: str, found: list[ev.AnyEvent]) -> dict[str, list[str]]:
    """What the ledger says of each job of ``site``, in order; keys and clocks aside."""
    stories: dict[str, list[str]] = {}
    for event in found:
        job = str(getattr(event, "job", ""))
        if site in job:
            if isinstance(event, ev.ContributionReceived):
                event = replace(event, envelope="")
            if isinstance(event, ev.AttemptStarted):
                event = replace(event, queued_seconds=0.0)
            stories.setdefault(job, []).append(sentence(event))
    return stories


def invitation(consortium: Consortium, token: str) -> Invitation:
    return Invitation(
        consortium=CONSORTIUM,
        site="ohrid",
        coordinator=f"127.0.0.1:{consortium.config.port}",
        enrolment=f"127.0.0.1:{consortium.config.enrolment_port}",
        authority=consortium.keys.authority.pem.decode(),
        token=token,
    )


async def whole_campaign(
    consortium: Consortium, base: Path, island: Island, admin: Admin, turn: Callable[[], Awaitable[object]]
) -> CampaignView:
    """With two sites at work over gRPC; ``turn`` is what the third does, again and again."""
    async with at_work(*(ScriptedSite(consortium, name) for name in ("plovdiv", "sofia"))):
        await turn()
        await admin.submit(campaign(base))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while campaign_in(await admin.view(), "demo").status == "open":
                await turn()
        seen = campaign_in(await admin.view(), "demo")
    await turn()
    assert list((island.home / "spool").iterdir()) == []  # all is settled
    return seen


@pytest.mark.slow
async def test_a_site_that_lives_by_courier_alone_ends_with_the_same_versions(
    consortium: Consortium, enrolled: Consortium, base: Path, tmp_path: Path
) -> None:
    island = Island(consortium, tmp_path / "island")
    async with consortium.running(), consortium.admin() as admin:
        asked = island.ask_to_enrol(invitation(consortium, await admin.invite("ohrid")))
        joined = island.take_in(await island.exchange(asked))
        assert joined.new and joined.certificate and joined.number == 0
        by_courier = await whole_campaign(consortium, base, island, admin, island.round_trip)

    other = enrolled.copy_to(tmp_path / "other")
    mainland = Island(other, tmp_path / "mainland")
    async with other.running(), other.admin() as admin:
        invited = invitation(other, await admin.invite("ohrid"))
        mainland.config = replace(
            mainland.config, coordinator=invited.coordinator, enrolment=invited.enrolment
        )
        await asyncio.to_thread(enrol, mainland.config, invited)
        by_wire = await whole_campaign(other, base, mainland, admin, mainland.work)

    assert by_courier.versions == by_wire.versions  # names, digests, reasons
    assert len(by_courier.versions) == 3 and by_courier.head == by_wire.head
    assert island.launcher.launched == mainland.launcher.launched and len(island.launcher.launched) == 4

    told, over_the_wire = events(consortium), events(other)
    stories = told_of("ohrid", told)
    assert stories == told_of("ohrid", over_the_wire) and len(stories) == 4
    assert {kind.__name__ for kind in map(type, told)} == {kind.__name__ for kind in map(type, over_the_wire)}
    leases = {event.site: event.lease_seconds for event in told if isinstance(event, ev.JobLeased)}
    assert leases == {"ohrid": 14 * 86_400.0, "plovdiv": 900.0, "sofia": 900.0}
    described = [event for event in told if isinstance(event, ev.SiteDescribed) and event.site == "ohrid"]
    assert [event.courier for event in described] == [False, True][-len(described) :]
