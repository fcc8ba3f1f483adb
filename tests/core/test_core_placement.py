"""Stories of who gets which job, with how many steps, and until when it is waited for; each with its reason."""

import math
from collections.abc import Callable, Iterator

import pytest
from consortium_in_facts import (
    DEMO,
    GIVEN,
    HOUR,
    OWN,
    SEED_ROUND,
    Coordinator,
    campaign,
    consortium,
    ended,
    given,
    success,
)
from hypothesis import given as forall
from hypothesis import strategies as st

from consortium.canonical import replace
from consortium.capacity import Allocation, Usage
from consortium.ids import JobId, SiteName
from consortium.jobs import Merge, Outcome, Phase, Train
from coordinator.core import commands as cm
from coordinator.core.estimates import median, queue_seconds, tokens_per_second
from coordinator.core.late import weights
from coordinator.core.orders import merge_order
from coordinator.core.pace import Runner, share_out
from coordinator.core.place import waiting
from coordinator.core.resting import Jobs
from coordinator.core.snapshot import keep, restore
from coordinator.core.state import Job, RoundState
from coordinator.core.transitions import JobState
from policies.campaign import Quorum

SPEEDS = {"north": 100.0, "south": 200.0, "west": 400.0}  #: seconds that each takes for ten steps
PATIENT = {"lease_seconds": 1e6, "quorum": Quorum(deadline_hours=1000.0)}


def taking(seconds: float, attempt: str, queued: float = 0.0) -> cm.Report:
    return replace(success(attempt), usage=Usage(seconds=seconds, queued_seconds=queued), started=True)


def one_round(
    coordinator: Coordinator,
    number: int = 1,
    queued: float = 0.0,
    before_its_verdict: Callable[[], object] = lambda: None,
) -> None:
    """Every site trains at its own speed; then the round is merged and judged."""
    for site in OWN:
        coordinator.sync(site)
    for site in OWN:
        name = f"demo_r{number}-train-{site}"
        work = coordinator.job(name).work
        assert isinstance(work, Train)
        coordinator.sync(site, taking(SPEEDS[site] * work.steps / 10, f"{name}.a1", queued))
    coordinator.work()
    coordinator.work()
    coordinator.judge_all(number)
    before_its_verdict()
    coordinator.work()


def why(coordinator: Coordinator, job: str) -> str:
    return waiting(coordinator.state, coordinator.job(job), coordinator.moment)


def rate(coordinator: Coordinator, site: str) -> tuple[float, bool]:
    found = tokens_per_second(
        coordinator.state, coordinator.state.campaigns[DEMO], coordinator.state.sites[SiteName(site)], None
    )
    return found.value, found.is_measured


# --- what is learnt --------------------------------------------------------------------------------


def test_speed_is_measured_by_the_accounts() -> None:
    coordinator = given(rounds=2, **PATIENT)
    assert not rate(coordinator, "north")[1]
    one_round(coordinator)
    assert {site: rate(coordinator, site) for site in OWN} == {
        site: (pytest.approx(160.0 / seconds), True) for site, seconds in SPEEDS.items()
    }


def test_the_newest_measurements_count(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = given(rounds=7, **PATIENT)
    for number in range(1, 8):
        monkeypatch.setitem(SPEEDS, "north", 1000.0 if number <= 3 else 100.0)
        one_round(coordinator, number)
    assert rate(coordinator, "north") == (pytest.approx(160.0 / 100.0), True)


def test_a_queue_is_known_by_the_median_of_its_waits() -> None:
    coordinator = given(rounds=3, **PATIENT)
    south = coordinator.state.sites[SiteName("south")]
    for number, queued in ((1, 60.0), (2, 7200.0), (3, 90.0)):
        one_round(coordinator, number, queued)
    found = queue_seconds(south)
    assert (found.value, found.is_measured) == (90.0, True)


@pytest.mark.parametrize(("values", "middle"), [([3.0], 3.0), ([9.0, 1.0], 5.0), ([5.0, 1.0, 9.0], 5.0)])
def test_a_median(values: list[float], middle: float) -> None:
    assert median(values) == middle


def test_a_state_read_from_a_snapshot_estimates_the_same() -> None:
    coordinator = given(rounds=2, **PATIENT)
    one_round(coordinator)
    before = {site: rate(coordinator, site) for site in OWN}
    coordinator.crash(from_snapshot=True)
    assert {site: rate(coordinator, site) for site in OWN} == before


# --- jobs that several sites could do --------------------------------------------------------------


def second_campaign(**sites: dict[str, object]) -> Coordinator:
    """A campaign has shown how fast each site is; another one wants a seed round."""
    coordinator = given(rounds=1, **PATIENT)
    one_round(coordinator)
    for site in OWN:
        coordinator.sync(site, slots=0)  # nobody asks while the campaign is submitted
    coordinator.do(cm.SubmitCampaign(campaign=campaign("other", **GIVEN, seed_round=SEED_ROUND)))
    coordinator.work()
    return coordinator


def test_the_site_expected_to_finish_first_gets_it() -> None:
    coordinator = second_campaign()
    for site in ("west", "north"):
        coordinator.sync(site, slots=0)
    assert coordinator.sync("west") == ["SiteDescribed west"]  # it asks first, and waits
    coordinator.sync("north", slots=1)
    job = coordinator.job("other_r0-seed")
    assert job.site == "north"
    assert "expected to finish in 3 min 20 s (work 3 min 20 s), " in job.reason


def test_who_is_best_and_does_not_ask_is_not_waited_for_long() -> None:
    coordinator = second_campaign()
    coordinator.sync("north", slots=1, draining=False)
    coordinator = second_campaign()
    for site in OWN:
        coordinator.state.sites[SiteName(site)].slots = 1
    assert coordinator.sync("west") == []
    assert why(coordinator, "other_r0-seed").startswith(
        "north has not asked since; north is expected to finish"
    )
    assert coordinator.wait(30) == []  # half of the 60 s that its leases last
    assert coordinator.sync("west") == []
    coordinator.wait(1)
    assert coordinator.sync("west") == ["JobLeased other_r0-seed.a1 west"]
    assert "north did not ask" in coordinator.job("other_r0-seed").reason


def test_where_nothing_is_measured_whoever_asks_gets_it() -> None:
    coordinator = consortium(campaign(**GIVEN, seed_round=SEED_ROUND))
    coordinator.work()
    assert coordinator.sync("west") == ["JobLeased demo_r0-seed.a1 west"]


class Pile(Jobs):
    """Of jobs, too high to be looked through."""

    is_high = False

    def __iter__(self) -> Iterator[JobId]:
        assert not self.is_high
        return super().__iter__()

    def items(self) -> Iterator[tuple[JobId, Job]]:
        assert not self.is_high
        return super().items()

    def values(self) -> Iterator[Job]:
        assert not self.is_high
        return super().values()


def test_a_sync_does_not_look_through_all_jobs_there_ever_were() -> None:
    coordinator = second_campaign()
    coordinator.state = restore(keep(coordinator.state))
    coordinator.state.jobs = pile = Pile(coordinator.state.jobs, Job)
    assert coordinator.state.index
    pile.is_high = True
    coordinator.sync("west", slots=0)
    coordinator.sync("north", slots=1)
    assert coordinator.state.jobs[JobId("other_r0-seed")].site == "north"
    coordinator.sync("north", success("other_r0-seed.a1"))
    coordinator.work()


# --- steps -----------------------------------------------------------------------------------------


def paced(**plan: object) -> Coordinator:
    train = replace(campaign().train, pace="finish_together", steps=1000, **plan)
    return given(rounds=3, train=train, **PATIENT)


def steps(coordinator: Coordinator, number: int) -> dict[str, int]:
    return {site: coordinator.job(f"demo_r{number}-train-{site}").work.steps for site in OWN}  # type: ignore[union-attr]


def test_steps_are_equal_until_speeds_are_known_then_sites_finish_together() -> None:
    coordinator = paced(steps_share_min=0.1)
    assert set(steps(coordinator, 1).values()) == {1000}
    assert "no site's speed has been measured yet" in coordinator.job("demo_r1-train-west").reason
    one_round(coordinator)
    given_steps = steps(coordinator, 2)
    assert sum(given_steps.values()) == 3000
    assert given_steps == {"north": 1714, "south": 857, "west": 429}
    assert (
        "1714 steps where equal ones were 1000, to end with the others in "
        in coordinator.job("demo_r2-train-north").reason
    )
    work = coordinator.job("demo_r2-train-north").work
    assert isinstance(work, Train)
    assert (work.schedule_start, work.schedule_steps) == (1714, 3 * 1714)  # its decay is everybody's


@pytest.mark.parametrize("seconds", [1e307, 9e14, 1e-300])
def test_a_round_is_planned_whatever_a_site_says_of_its_times(seconds: float) -> None:
    """One contribution with an absurd time, admitted and so in the ledger for good, must not end the planning."""
    coordinator = paced()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPEEDS, "north", seconds / 100.0)
        one_round(coordinator, queued=min(seconds, 9e14))
    assert sum(steps(coordinator, 2).values()) == 3000
    assert queue_seconds(coordinator.state.sites[SiteName("north")]).value <= 366 * 86400.0


def test_nobody_is_asked_for_less_or_more_than_the_campaign_allows() -> None:
    coordinator = paced(steps_share_min=0.6, steps_share_max=1.5)
    one_round(coordinator)
    assert steps(coordinator, 2) == {"north": 1500, "south": 900, "west": 600}


def test_nobody_is_asked_for_more_than_its_allocation_can_pay() -> None:
    """North is the fastest; its GPU-hours are enough for 1200 steps, and the others do the rest."""
    coordinator = paced(steps_share_min=0.1)
    taken = SPEEDS["north"] * 1000 / 10
    grant = (Allocation(name="p-17", gpu_hours=4 * 1.2 * taken / HOUR),)
    one_round(coordinator, before_its_verdict=lambda: coordinator.sync("north", gpus=4, allocations=grant))
    given_steps = steps(coordinator, 2)
    assert sum(given_steps.values()) == 3000
    assert given_steps["north"] == 1199  # a little less than 1200, lest rounding make it too dear
    assert given_steps["south"] == pytest.approx(2 * given_steps["west"], abs=1)
    reason = coordinator.job("demo_r2-train-north").reason
    assert "1199 steps (the most that its allocation can pay) where equal ones were 1000" in reason
    happened = coordinator.sync("north", gpus=4, allocations=grant)
    assert happened == ["JobLeased demo_r2-train-north.a1 north"]


@forall(
    st.lists(
        st.tuples(st.floats(0.01, 100.0), st.floats(0.0, 1e5)),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 5000),
    st.floats(0.05, 1.0),
    st.floats(1.0, 8.0),
)
def test_shares_add_up_and_end_together(
    sites: list[tuple[float, float]], each: int, lowest: float, highest: float
) -> None:
    least, most = max(1, math.ceil(each * lowest)), math.floor(each * highest)
    runners = {SiteName(f"s{n}"): Runner(r, w, least, most) for n, (r, w) in enumerate(sites)}
    found = share_out(each * len(sites), runners)
    assert sum(found.values()) == each * len(sites)
    assert all(least <= got <= most for got in found.values())
    free = [name for name, got in found.items() if least + 1 < got < most - 1]
    ends = [runners[name].wait_seconds + found[name] / runners[name].steps_per_second for name in free]
    slack = max((1.0 / runners[name].steps_per_second for name in free), default=0.0)
    assert not ends or max(ends) - min(ends) <= 2.0 * slack * (1 + 1e-6) + 1e-6


# --- hours count from the start --------------------------------------------------------------------


def test_a_deadline_counts_from_the_start_and_the_queue_has_a_cap_of_its_own() -> None:
    quorum = Quorum(deadline_hours=2.0, queue_hours_max=10.0)
    coordinator = given(lease_seconds=1e6, quorum=quorum)
    coordinator.sync("north")
    coordinator.sync("south")
    coordinator.deliver("demo_r1-train-south")
    assert coordinator.wait(9 * HOUR) == []
    begun = replace(success("demo_r1-train-north.a1"), phase=Phase.RUNNING, outcome=None, started=True)
    assert coordinator.sync("north", begun) == ["AttemptStarted demo_r1-train-north.a1 north"]
    assert coordinator.wait(1 * HOUR + 1) == []  # west has waited too long, but north has an hour left
    assert coordinator.wait(1 * HOUR)[-1] == "RoundCollected demo/r1"
    reason = coordinator.state.campaigns[DEMO].rounds[1].reason
    assert reason == (
        "deadline passed with 1 of 3 contributions: deadline of 2 h after its start passed; "
        "it did not start within 10 h"
    )


def test_grace_after_the_quorum() -> None:
    quorum = Quorum(share=0.5, grace_hours=1.0, deadline_hours=50.0)
    coordinator = given(lease_seconds=1e6, quorum=quorum)
    for site in OWN:
        coordinator.sync(site)
    coordinator.deliver("demo_r1-train-north")
    coordinator.now += HOUR
    coordinator.deliver("demo_r1-train-south")  # the quorum is there
    assert coordinator.wait(HOUR - 1) == []
    assert coordinator.wait(1) == ["JobCancelled demo_r1-train-west", "RoundCollected demo/r1"]
    assert "2 of 3 contributions are in, and 1 h of grace are over" in (
        coordinator.state.campaigns[DEMO].rounds[1].reason
    )


# --- late deltas -----------------------------------------------------------------------------------

LATE = Quorum(share=0.5, deadline_hours=50.0, late="next_round", staleness_max=1, stale_percent=50)


def left_behind(quorum: Quorum = LATE, rounds: int = 2) -> Coordinator:
    """Round 1 closed while west was still at it; round 2 is open."""
    coordinator = given(lease_seconds=1e6, quorum=quorum, rounds=rounds)
    for site in OWN:
        coordinator.sync(site)
    for site in ("north", "south"):
        coordinator.deliver(f"demo_r1-train-{site}")
    coordinator.work()
    for site in OWN:  # west has a second slot for its evaluation
        slots = 2 if site == "west" else 1
        coordinator.sync(site, slots=slots)
        coordinator.deliver(f"demo_r1-gate-{site}", slots=slots)
    coordinator.work()
    return coordinator


def test_who_is_late_goes_on_and_is_merged_a_round_later_with_less_weight() -> None:
    coordinator = left_behind()
    demo = coordinator.state.campaigns[DEMO]
    west = coordinator.job("demo_r1-train-west")
    assert west.state is JobState.LEASED and demo.rounds[1].left == (west.id,)
    assert demo.rounds[2].late == (west.id,)
    assert demo.rounds[2].jobs == ("demo_r2-train-north", "demo_r2-train-south")
    assert "west goes on with its job of round 1" in demo.rounds[2].reason
    coordinator.sync("north")
    coordinator.deliver(west.id)
    assert "RoundCollected demo/r2" in coordinator.deliver("demo_r2-train-north")
    order = merge_order(coordinator.state, demo, demo.rounds[2])
    assert isinstance(order, Merge) and order.base == demo.head != west.work.base  # type: ignore[union-attr]
    late = west.contribution
    assert late is not None and late.base == west.work.base  # type: ignore[union-attr]
    by_delta = {part.delta: part.weight for part in order.parts}
    fresh = [weight for delta, weight in by_delta.items() if delta != late.artifacts["delta"]]
    assert [by_delta[late.artifacts["delta"]] * 2] == fresh  # the same tokens, half the weight


def test_after_the_last_round_nobody_goes_on() -> None:
    coordinator = given(lease_seconds=1e6, quorum=LATE, rounds=1)
    for site in OWN:
        coordinator.sync(site)
    coordinator.deliver("demo_r1-train-north")
    assert coordinator.deliver("demo_r1-train-south")[-2:] == [
        "JobCancelled demo_r1-train-west",
        "RoundCollected demo/r1",
    ]


def test_a_delta_that_is_too_stale_is_refused() -> None:
    coordinator = left_behind(rounds=3)
    for site in ("north", "south"):
        coordinator.sync(site)
        happened = coordinator.deliver(f"demo_r2-train-{site}")
    assert happened[-2:] == ["JobCancelled demo_r1-train-west", "RoundCollected demo/r2"]
    assert coordinator.state.campaigns[DEMO].rounds[2].state is RoundState.MERGING


def failed_round(late: str) -> Coordinator:
    """Round 1 failed with one delta of the two that it needed; round 2 is open."""
    quorum = replace(LATE, late=late, minimum=2)
    coordinator = given(lease_seconds=1e6, quorum=quorum, rounds=2, attempts_max=1)
    for site in OWN:
        coordinator.sync(site)
    coordinator.deliver("demo_r1-train-west")
    for site in ("north", "south"):
        happened = coordinator.sync(site, ended(f"demo_r1-train-{site}.a1", Outcome.FAILED))
    assert "RoundFailed demo/r1" in happened
    return coordinator


def test_what_was_finished_in_a_round_that_failed_is_merged_in_the_next() -> None:
    coordinator = failed_round("next_round")
    demo, west = coordinator.state.campaigns[DEMO], "demo_r1-train-west"
    assert demo.rounds[1].left == demo.rounds[2].late == (west,)
    assert demo.rounds[2].jobs == tuple(f"demo_r2-train-{site}" for site in OWN)  # its site trains anew
    coordinator.sync("south")
    assert coordinator.deliver("demo_r2-train-south")[2:] == [
        "JobCancelled demo_r2-train-north",
        "JobCancelled demo_r2-train-west",
        "RoundCollected demo/r2",
    ]
    assert demo.rounds[2].collected == (west, "demo_r2-train-south")
    order = merge_order(coordinator.state, demo, demo.rounds[2])
    assert sorted(part.weight for part in order.parts) == [1, 2]


def test_where_late_deltas_are_refused_so_are_those_of_a_failed_round() -> None:
    demo = failed_round("refuse").state.campaigns[DEMO]
    assert demo.rounds[1].left == demo.rounds[2].late == ()


@pytest.mark.parametrize(
    ("counts", "percent", "found"),
    [
        ([(100, 0), (7, 0)], 50, [100, 7]),
        ([(100, 0), (100, 1)], 50, [2, 1]),
        ([(3, 0), (5, 1), (7, 2)], 50, [12, 10, 7]),
        ([(1, 0), (1, 1)], 33, [100, 33]),
        ([(10, 1)], 50, [1]),
    ],
)
def test_weights_of_stale_deltas_are_exact_integers(
    counts: list[tuple[int, int]], percent: int, found: list[int]
) -> None:
    assert weights(counts, percent) == found
