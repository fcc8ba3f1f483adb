"""Stories of leases: who gets what first, when a lease ends, and whose word still counts."""

import pytest
from consortium_in_facts import (
    DEMO,
    GIVEN,
    OWN,
    SEED_ROUND,
    Coordinator,
    campaign,
    consortium,
    d,
    ended,
    running,
    success,
    sync,
)

from consortium.canonical import digest_of_fact, replace
from consortium.ids import AttemptId, JobId, SiteName
from consortium.jobs import Outcome, Phase
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.place import URGENCY, waiting
from coordinator.core.transitions import JobState
from policies.campaign import Rivals

TRY = "demo_r1-train-north.a1"
AGAIN = "demo_r1-train-north.a2"


@pytest.fixture
def coordinator() -> Coordinator:
    """Round 1 is open; north holds its job."""
    made = consortium(campaign(**GIVEN))
    made.work()
    made.sync("north")
    return made


@pytest.fixture
def anyone() -> Coordinator:
    """A seed round, which any of the three sites can train."""
    made = consortium(campaign(**GIVEN, seed_round=SEED_ROUND))
    made.work()
    return made


def test_a_lease_says_what_was_signed() -> None:
    coordinator = consortium(campaign(**GIVEN))
    coordinator.work()
    assert coordinator.events_of(sync("north")) == (
        ev.JobLeased(
            job=JobId("demo_r1-train-north"),
            attempt=AttemptId(TRY),
            site=SiteName("north"),
            lease_seconds=60.0,
            assignment=digest_of_fact(
                coordinator.job("demo_r1-train-north").assignment(AttemptId(TRY), SiteName("north"))
            ),
            reason="north asked with 1 free slot(s)",
        ),
    )


def test_what_others_wait_for_comes_first() -> None:
    """A site with every kind of job before it takes them by urgency, one a slot."""
    coordinator = consortium(
        campaign("b", **GIVEN, rivals=Rivals(specialists=True)), campaign("c"), campaign("a", **GIVEN)
    )
    coordinator.work()
    kinds = {j.purpose for j in coordinator.state.jobs.values()}
    assert [p for p in URGENCY if p in kinds] == ["tokenizer", "round", "rival"]
    busy = coordinator.state.live(SiteName("west"))
    assert [job.id for job in busy] == ["c_tokenizer"]  # since it was the last to enrol
    assert coordinator.sync("west", slots=2) == ["SiteDescribed west", "JobLeased a_r1-train-west.a1 west"]
    assert coordinator.sync("west", slots=9) == [
        "SiteDescribed west",
        "JobLeased b_r1-train-west.a1 west",
        "JobLeased b_rival-alone-west.a1 west",
    ]


def test_never_more_leases_than_slots() -> None:
    coordinator = consortium(*(campaign(name, **GIVEN) for name in "abc"), slots=2)
    coordinator.work()
    assert len(coordinator.sync("north", slots=2)) == 2
    assert coordinator.sync("north", slots=2) == []
    assert coordinator.sync("north", slots=0) == ["SiteDescribed north"]
    assert (
        waiting(coordinator.state, coordinator.job("c_r1-train-north"), coordinator.moment)
        == "north has no free slot"
    )


@pytest.mark.parametrize("slots", [1, 2])
def test_the_last_free_slot_is_kept_from_rivals_until_the_rounds_are_over(slots: int) -> None:
    coordinator = consortium(
        campaign(**GIVEN, rivals=Rivals(public_only=True, specialists=True)), slots=slots
    )
    coordinator.work()
    coordinator.sync("north", slots=slots)
    happened = coordinator.deliver("demo_r1-train-north", slots=slots)
    rival = ["JobLeased demo_rival-public.a1 north"]  # the longest first
    assert [line for line in happened if "JobLeased" in line] == (rival if slots == 2 else [])
    reason = waiting(coordinator.state, coordinator.job("demo_rival-alone-north"), coordinator.moment)
    assert reason == "north's last free slot is kept for the rounds"
    for site in ("south", "west"):
        coordinator.sync(site)
        coordinator.deliver(f"demo_r1-train-{site}")
    coordinator.work()
    for site in OWN:
        coordinator.sync(site, slots=slots if site == "north" else 1)
    for site in OWN:
        assert "JobLeased" not in str(coordinator.deliver(f"demo_r1-gate-{site}"))
    coordinator.work()
    alone = ["JobLeased demo_rival-alone-north.a1 north"]
    leased = [line for line in coordinator.sync("north", slots=slots) if "JobLeased" in line]
    assert leased == (alone if slots == 2 else rival)


def test_a_lease_lapses_when_nobody_speaks_of_it(coordinator: Coordinator) -> None:
    assert coordinator.wait(60) == []
    assert coordinator.wait(1) == [f"AttemptEnded {TRY} expired"]
    assert coordinator.job("demo_r1-train-north").reason == "no word from north for 60 s"
    assert coordinator.wait(1) == []


def test_every_sync_that_speaks_of_it_renews_a_lease(coordinator: Coordinator) -> None:
    for _ in range(5):
        coordinator.now += 50
        assert coordinator.sync("north", running(TRY)) == []
    coordinator.now += 50
    assert coordinator.sync("north") == []  # the agent lost its spool: it does not speak of it
    assert coordinator.wait(11) == [f"AttemptEnded {TRY} expired"]


def test_after_a_restart_every_lease_has_its_full_length(coordinator: Coordinator) -> None:
    coordinator.now += 59
    coordinator.crash()
    assert coordinator.wait(60) == []
    assert coordinator.wait(1) == [f"AttemptEnded {TRY} expired"]


def test_an_expired_certificate_is_named(coordinator: Coordinator) -> None:
    coordinator.now = 2e9
    lapsed = coordinator.events_of(cm.Tick())[0]
    assert isinstance(lapsed, ev.AttemptEnded) and lapsed.reason.endswith("must be enrolled anew")


def test_who_comes_back_in_time_goes_on(coordinator: Coordinator) -> None:
    coordinator.wait(61)
    assert coordinator.sync("north", running(TRY)) == [f"LeaseResumed {TRY}"]
    assert coordinator.job("demo_r1-train-north").leased_at == coordinator.now
    assert coordinator.wait(60) == []
    coordinator.now += 1
    assert coordinator.sync("north", running(TRY)) == []  # renewed just before it would lapse
    coordinator.wait(61)
    assert coordinator.sync("north", success(TRY)) == [
        f"LeaseResumed {TRY}",
        f"ContributionReceived {TRY} north",
    ]
    assert coordinator.job("demo_r1-train-north").envelope == d(f"envelope of {TRY}")


def test_who_comes_back_without_the_attempt_gets_a_new_one(coordinator: Coordinator) -> None:
    coordinator.wait(61)
    assert coordinator.sync("north") == [f"JobLeased {AGAIN} north"]
    before = coordinator.state.snapshot()
    for late in (running(TRY), success(TRY), ended(TRY, Outcome.FAILED)):
        assert coordinator.sync("north", late) == []
    assert coordinator.state.snapshot() == before


def test_an_attempt_that_was_given_away_is_never_resumed(anyone: Coordinator) -> None:
    anyone.sync("north")
    anyone.wait(61)
    assert anyone.sync("south") == ["JobLeased demo_r0-seed.a2 south"]
    assert anyone.sync("north", running("demo_r0-seed.a1")) == []
    assert anyone.sync("north", success("demo_r0-seed.a1")) == []
    anyone.wait(61)
    assert anyone.sync("north", success("demo_r0-seed.a1")) == ["JobLeased demo_r0-seed.a3 north"]


def test_nobody_speaks_for_another_site(anyone: Coordinator) -> None:
    anyone.sync("north")
    for report in (success("demo_r0-seed.a1"), ended("demo_r0-seed.a1", Outcome.FAILED)):
        assert anyone.sync("south", report) == []
    anyone.wait(100)
    assert anyone.sync("south", running("demo_r0-seed.a1")) == ["JobLeased demo_r0-seed.a2 south"]


def test_reports_on_nothing_establish_nothing(coordinator: Coordinator) -> None:
    for attempt in ("demo_r9-train-north.a1", "other_r1-train-north.a1", AGAIN):
        assert coordinator.sync("north", success(attempt)) == []


def test_said_twice_it_happens_once(coordinator: Coordinator) -> None:
    assert coordinator.sync("north", success(TRY)) == [f"ContributionReceived {TRY} north"]
    assert coordinator.sync("north", success(TRY)) == []
    assert coordinator.sync("north", ended(TRY, Outcome.FAILED)) == []
    assert coordinator.sync("north", running(TRY)) == []


def test_of_two_lines_on_one_attempt_the_last_counts(coordinator: Coordinator) -> None:
    assert coordinator.sync("north", success(TRY), success(TRY)) == [f"ContributionReceived {TRY} north"]
    coordinator.sync("south")
    attempt = "demo_r1-train-south.a1"
    assert coordinator.sync("south", success(attempt), running(attempt)) == []


def test_reordered_syncs_end_in_the_same_state() -> None:
    """Old messages, delivered again at any later time, add nothing."""
    coordinator = consortium(campaign(**GIVEN, rounds=2))
    coordinator.work()
    messages = [sync("north"), sync("north", running(TRY)), sync("north", success(TRY))]
    for number, message in enumerate(messages):
        coordinator.do(message)
        before = coordinator.state.snapshot()
        for old in (*messages[: number + 1], *reversed(messages[: number + 1])):
            assert coordinator.do(old) == []
        assert coordinator.state.snapshot() == before


@pytest.mark.parametrize("outcome", [Outcome.PREEMPTED, Outcome.CANCELLED, Outcome.EXPIRED])
def test_bad_luck_does_not_count(coordinator: Coordinator, outcome: Outcome) -> None:
    for number in range(1, 9):
        attempt = f"demo_r1-train-north.a{number}"
        happened = coordinator.sync("north", ended(attempt, outcome))
        said = "preempted" if outcome is Outcome.EXPIRED else outcome.value  # only we say expired
        assert happened == [
            f"AttemptEnded {attempt} {said}",
            f"JobLeased demo_r1-train-north.a{number + 1} north",
        ]
    assert coordinator.job("demo_r1-train-north").failures == 0


def test_a_site_cannot_expire_its_own_attempt_again_and_again(coordinator: Coordinator) -> None:
    gone = ended(TRY, Outcome.EXPIRED)
    assert coordinator.sync("north", gone, draining=True)[-1] == f"AttemptEnded {TRY} preempted"
    assert coordinator.sync("north", gone, draining=True) == []


def test_failures_count_up_to_attempts_max(coordinator: Coordinator) -> None:
    assert coordinator.sync("north", ended(TRY, Outcome.FAILED, "disk")) == [
        f"AttemptEnded {TRY} failed",
        f"JobLeased {AGAIN} north",
    ]
    empty = replace(success(AGAIN), envelope=None)  # succeeded, and nothing to show for it
    assert coordinator.sync("north", empty)[0] == f"AttemptEnded {AGAIN} corrupt"
    assert coordinator.job("demo_r1-train-north").failures == 2
    assert coordinator.sync("north", ended("demo_r1-train-north.a3", Outcome.CORRUPT, "again")) == [
        "AttemptEnded demo_r1-train-north.a3 corrupt",
        "JobFailed demo_r1-train-north",
    ]
    assert coordinator.job("demo_r1-train-north").reason == "3 attempts failed, the last: again"
    assert coordinator.sync("north", running(AGAIN)) == []


def test_a_reason_is_always_given(coordinator: Coordinator) -> None:
    silent = cm.Report(attempt=AttemptId(TRY), phase=Phase.ENDED, outcome=Outcome.FAILED)
    events = coordinator.events_of(sync("north", silent))
    assert isinstance(events[0], ev.AttemptEnded) and events[0].reason == "north gave no reason"


def test_who_refuses_is_not_asked_again(anyone: Coordinator) -> None:
    for site in ("north", "south", "west"):
        attempt = f"demo_r0-seed.a{len(anyone.job('demo_r0-seed').refused_by) + 1}"
        assert anyone.sync(site) == [f"JobLeased {attempt} {site}"]
        happened = anyone.sync(site, ended(attempt, Outcome.REFUSED, "consent.purposes"))
        assert happened[0] == f"AttemptEnded {attempt} refused"
        assert anyone.sync(site) == []
        if site != "west":
            assert len(happened) == 1
            assert f"{site} refused it" in waiting(anyone.state, anyone.job("demo_r0-seed"), anyone.moment)
    assert happened[1] == "JobFailed demo_r0-seed"
    job = anyone.job("demo_r0-seed")
    assert (job.reason, job.failures) == ("every able site refused, the last: consent.purposes", 0)


def test_who_refused_cannot_resume(anyone: Coordinator) -> None:
    anyone.sync("north")
    anyone.sync("north", ended("demo_r0-seed.a1", Outcome.REFUSED))
    anyone.sync("south")
    anyone.wait(61)
    assert anyone.sync("north", running("demo_r0-seed.a1")) == []
    assert anyone.job("demo_r0-seed").state is JobState.PLANNED


def test_why_a_job_waits(coordinator: Coordinator) -> None:
    def why(site: str) -> str:
        return waiting(coordinator.state, coordinator.job(f"demo_r1-train-{site}"), coordinator.moment)

    assert why("south") == "south has not asked since"
    coordinator.do(cm.SetSite(site=SiteName("south"), status="suspended", reason="so"))
    assert why("south") == "south is suspended"
    coordinator.sync("west", draining=True)
    assert why("west") == "west is draining"
    assert DEMO in coordinator.state.campaigns
