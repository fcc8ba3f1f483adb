"""The driver over a real ledger: what is told is on disk, what is not on disk has not happened."""

import asyncio

import pytest
from consortium_in_facts import DEMO, campaign, invitation, success
from delivering_site import NOW, TRAIN, House

from consortium.canonical import replace
from consortium.capacity import Window
from consortium.errors import Broken, DiskFull, Refused, Superseded, Unavailable
from consortium.ids import AttemptId, JobId, SiteName
from consortium.signing import verify_checkpoint
from coordinator import driver as driver_module
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.machine import Decision
from coordinator.core.transitions import JobState
from coordinator.core.view import Sight
from coordinator.driver import Driver, decode_event, replay
from coordinator.ledger import Ledger


@pytest.fixture
def house(training: House) -> House:
    return training


def stop_campaign() -> cm.StopCampaign:
    return cm.StopCampaign(campaign=DEMO, reason="no more money")


def assert_nothing_happened(house: House, before: bytes, sequence: int) -> None:
    assert house.driver.sequence == sequence
    assert house.driver.state.snapshot() == before == replay(house.ledger, from_snapshot=False).snapshot()


def test_the_state_is_what_the_ledger_tells(house: House) -> None:
    house.report(TRAIN, house.seal(house.contribution(house.job(TRAIN))))
    house.work()
    house.driver.execute(stop_campaign())
    live = house.driver.state.snapshot()
    house.ledger.close()
    with Ledger(house.home / "ledger.sqlite") as ledger:
        assert ledger.snapshot() is not None  # the end of a campaign is a milestone
        assert Driver(ledger, house.key).state.snapshot() == live
        assert replay(ledger, from_snapshot=False).snapshot() == live


def test_each_event_is_kept_as_it_was(house: House) -> None:
    told = [event for _, _, event in house.driver.events()]
    assert told == [decode_event(recorded) for recorded in house.driver.entries(1)]
    assert [sequence for sequence, _, _ in house.driver.events()] == list(range(1, house.driver.sequence + 1))


def test_nothing_to_say_writes_nothing(house: House) -> None:
    sequence = house.driver.sequence
    report = cm.Report(attempt=AttemptId(f"{TRAIN}.a1"), phase=success(f"{TRAIN}.a1").phase)
    house.driver.renewed[report.attempt] = house.now
    decision = house.driver.execute(house.message("north", replace(report, outcome=None)))
    assert (decision.events, house.driver.sequence) == ((), sequence)


def test_windows_that_cannot_be_read_here_close_their_site_and_no_other(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Another tzdata knew the zone when they were entered."""
    lost = (Window(cron="0 20 * * *", seconds=3600.0, timezone="Europe/Atlantis"),)
    house.driver.state.sites[SiteName("south")].windows = lost
    for _ in range(2):
        house.driver.execute(cm.Tick())
    house.driver.execute(house.message("north"))
    told = [record.getMessage() for record in caplog.records if "Atlantis" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("the windows of site south count as closed: time zone")
    planned = JobId("demo_r1-train-south")
    house.driver.state.jobs[planned].state = JobState.PLANNED
    [shown] = [job for job in house.driver.view().jobs if job.job == planned]
    assert shown.reason.startswith("south's windows cannot be read here: time zone 'Europe/Atlantis'")


def test_what_was_heard_of_attempts_is_forgotten_with_them(house: House) -> None:
    attempt = AttemptId(f"{TRAIN}.a1")
    house.driver.renewed[attempt] = house.now
    house.driver.sights[attempt] = Sight(phase="running")
    house.driver.execute(invitation("east", NOW + 60))
    assert set(house.driver.renewed) == set(house.driver.sights) == {attempt}
    house.driver.execute(stop_campaign())
    assert house.driver.renewed == house.driver.sights == {}


def test_a_courier_may_come_back_after_a_network(house: House) -> None:
    north, driver = SiteName("north"), house.driver
    driver.arrive(north, "the home's name", by_courier=True)
    driver.arrive(north, "an agent")
    driver.arrive(north, "the home's name", by_courier=True)
    with pytest.raises(Superseded):
        driver.arrive(north, "an agent")
    driver.arrive(north, "another agent")


def test_a_full_disk_takes_nothing_and_changes_nothing(house: House) -> None:
    pages = house.ledger._db.execute("PRAGMA page_count").fetchone()[0]
    house.ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    written = [(house.driver.state.snapshot(), house.driver.sequence)]

    def fill_the_last_page() -> None:
        for number in range(1000):
            house.driver.execute(invitation(f"site-{number}", NOW + 60))
            written.append((house.driver.state.snapshot(), house.driver.sequence))

    with pytest.raises(DiskFull):
        fill_the_last_page()
    assert_nothing_happened(house, *written[-1])
    house.ledger._db.execute("PRAGMA max_page_count = 1000000")
    house.driver.execute(stop_campaign())
    assert house.driver.state.campaigns[DEMO].status == "stopped"


def test_what_cannot_be_written_down_has_not_happened(house: House) -> None:
    """A NaN has no JSON: the event is refused by the ledger, after the core had believed it."""
    house.report(TRAIN, house.seal(house.contribution(house.job(TRAIN))))
    before, sequence = house.driver.state.snapshot(), house.driver.sequence
    job = house.job(TRAIN)
    assert job.attempt is not None
    report = cm.ReportInspection(
        job=job.id,
        attempt=job.attempt,
        contribution=house.contribution(job),
        measures={"norm": float("nan")},
        reason="fine",
    )
    with pytest.raises(Exception, match="cannot be written down"):
        house.driver.execute(report)
    assert_nothing_happened(house, before, sequence)


def test_a_mistake_of_the_core_leaves_no_trace(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    before, sequence = house.driver.state.snapshot(), house.driver.sequence

    def half(*arguments: object) -> Decision:
        house.driver.state.campaigns.clear()
        raise Broken("the table is contradicted")

    monkeypatch.setattr(driver_module, "handle", half)
    with pytest.raises(Broken):
        house.driver.execute(stop_campaign())
    assert_nothing_happened(house, before, sequence)


def test_without_its_ledger_the_driver_says_nothing(house: House) -> None:
    """Better silent than telling what is not written down."""
    house.ledger.close()
    for _ in range(2):
        with pytest.raises(Unavailable):
            house.driver.execute(stop_campaign())
        with pytest.raises(Unavailable):
            house.driver.view()


def test_a_refusal_costs_no_replay(house: House) -> None:
    state = house.driver.state
    with pytest.raises(Refused):
        house.driver.execute(cm.SubmitCampaign(campaign=campaign(rounds=9)))
    assert house.driver.state is state


def test_a_snapshot_that_cannot_be_kept_is_no_failure(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise DiskFull("no room")

    monkeypatch.setattr(house.ledger, "save_snapshot", full)
    house.driver.execute(stop_campaign())
    assert house.driver.state.campaigns[DEMO].status == "stopped"
    assert house.ledger.snapshot() is None


def test_a_snapshot_of_another_release_is_not_needed(house: House) -> None:
    house.driver.execute(stop_campaign())
    live = house.driver.state.snapshot()
    house.ledger.save_snapshot(b'{"sites": ["this was a list once"]}', house.ledger.head)
    assert replay(house.ledger).snapshot() == live


def test_milestones_are_signed(house: House) -> None:
    assert house.ledger.checkpoint() is None
    house.driver.execute(stop_campaign())
    kept = house.ledger.checkpoint()
    assert kept is not None and kept == house.driver.checkpoint() and kept.sequence == house.driver.sequence
    verify_checkpoint(kept, house.key.public_key().public_bytes_raw())


async def test_news_wake_whoever_waits(house: House) -> None:
    waiting = asyncio.create_task(house.driver.news(60))
    await asyncio.sleep(0)
    house.driver.execute(stop_campaign())
    assert await waiting
    assert not await house.driver.news(0.001)


def test_the_newest_agent_of_a_site_holds_it(house: House) -> None:
    north = SiteName("north")
    house.driver.arrive(north, "first")
    house.driver.arrive(north, "second")
    house.now += 5
    with pytest.raises(Refused, match="newer agent of site north has taken over"):
        house.driver.arrive(north, "first")
    assert house.driver.seen[north] == NOW
    house.driver.arrive(north, "second")
    assert house.driver.seen[north] == NOW + 5


def test_the_view_and_the_story_are_of_now(house: House) -> None:
    view = house.driver.view()
    assert (view.sequence, view.consortium, [a.attempt for a in view.attempts]) == (
        house.driver.sequence,
        "balkan",
        [f"{TRAIN}.a1"],
    )
    told = asyncio.run(house.driver.why(TRAIN))
    assert told[0].text.startswith(f"{TRAIN} planned: north holds fi")
    assert told[-1].text == "now: leased: north asked with 1 free slot(s)"
    assert asyncio.run(house.driver.why("nobody")) == ()
    first = next(iter(house.driver.events()))
    assert isinstance(first[2], ev.ConsortiumFounded)
