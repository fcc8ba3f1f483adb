"""Stories of closing a round: by quorum, by nobody left, by deadline; with garbage and with partial deltas."""

import pytest
from consortium_in_facts import (
    DEMO,
    GIVEN,
    HOUR,
    OWN,
    Coordinator,
    admitted,
    campaign,
    consortium,
    ended,
    refused,
    success,
)

from consortium.jobs import Outcome
from coordinator.core.state import Round
from policies.campaign import Admission, Quorum


def open_round(**changes: object) -> Coordinator:
    """Round 1 of 1 is open, and every site has its job."""
    coordinator = consortium(campaign(**GIVEN, **changes))
    coordinator.work()
    for site in OWN:
        coordinator.sync(site)
    return coordinator


def first(coordinator: Coordinator) -> Round:
    return coordinator.state.campaigns[DEMO].rounds[1]


def test_with_all_contributions_it_closes_at_once() -> None:
    coordinator = open_round()
    assert coordinator.deliver("demo_r1-train-north")[-1] == "ContributionAdmitted demo_r1-train-north.a1"
    assert coordinator.deliver("demo_r1-train-west")[-1] == "ContributionAdmitted demo_r1-train-west.a1"
    assert coordinator.deliver("demo_r1-train-south")[-1] == "RoundCollected demo/r1"
    assert first(coordinator).collected == tuple(f"demo_r1-train-{site}" for site in OWN)
    assert first(coordinator).reason == "3 of 3 contributions are in and no other can come"


def test_garbage_is_sent_again_and_then_the_round_goes_on_without_it() -> None:
    coordinator = open_round(attempts_max=2)
    for number in (1, 2):
        attempt = f"demo_r1-train-north.a{number}"
        assert coordinator.sync("north", success(attempt)) == [f"ContributionReceived {attempt} north"]
        happened = coordinator.do(refused(coordinator.job("demo_r1-train-north"), "tensor 'a' has NaN"))
        assert happened[0] == f"ContributionRefused {attempt}"
        assert coordinator.sync("north", success(attempt)) == (
            ["JobLeased demo_r1-train-north.a2 north"] if number == 1 else []
        )
    assert happened[1:] == ["JobFailed demo_r1-train-north"]
    job = coordinator.job("demo_r1-train-north")
    assert (job.reason, job.envelope) == ("2 attempts failed, the last: tensor 'a' has NaN", None)
    coordinator.deliver("demo_r1-train-south")
    assert coordinator.deliver("demo_r1-train-west")[-1] == "RoundCollected demo/r1"
    assert first(coordinator).collected == ("demo_r1-train-south", "demo_r1-train-west")


def test_an_inspection_of_an_earlier_attempt_says_nothing_of_this_one() -> None:
    coordinator = open_round()
    coordinator.sync("north", success("demo_r1-train-north.a1"))
    first_try = coordinator.job("demo_r1-train-north")
    late = [admitted(first_try), refused(first_try)]
    coordinator.do(refused(first_try))
    coordinator.sync("north")
    coordinator.sync("north", success("demo_r1-train-north.a2"))
    for report in late:
        assert coordinator.do(report) == []
    assert coordinator.job("demo_r1-train-north").failures == 1


def test_too_few_contributions_fail_the_round() -> None:
    coordinator = open_round(attempts_max=1, quorum=Quorum(minimum=2, deadline_hours=2))
    for site in ("north", "south"):
        coordinator.sync(site, ended(f"demo_r1-train-{site}.a1", Outcome.FAILED, f"fire in {site}"))
    assert coordinator.deliver("demo_r1-train-west")[2:] == [
        "RoundFailed demo/r1",
        "CampaignEnded demo completed",
    ]
    assert first(coordinator).reason == (
        "1 of 2 needed contributions; 1 of 3 contributions are in and no other can come: "
        "demo_r1-train-north: 1 attempts failed, the last: fire in north; "
        "demo_r1-train-south: 1 attempts failed, the last: fire in south"
    )


@pytest.mark.parametrize(("share", "wanted"), [(0.3, 1), (0.5, 2), (0.66, 2), (0.67, 3), (1.0, 3)])
def test_a_quorum_is_rounded_up(share: float, wanted: int) -> None:
    coordinator = open_round(quorum=Quorum(share=share, deadline_hours=2))
    for number, site in enumerate(OWN, 1):
        closed = "RoundCollected demo/r1" in coordinator.deliver(f"demo_r1-train-{site}")
        assert closed == (number == wanted)
        if closed:
            break
    assert len(first(coordinator).collected) == wanted


def test_a_quorum_is_at_least_the_minimum() -> None:
    coordinator = open_round(quorum=Quorum(share=0.1, minimum=2, deadline_hours=2))
    coordinator.deliver("demo_r1-train-north")
    assert coordinator.deliver("demo_r1-train-south")[2:] == [
        "JobCancelled demo_r1-train-west",
        "RoundCollected demo/r1",
    ]
    assert first(coordinator).reason == "quorum: 2 of 3 contributions are in"
    assert coordinator.sync("west", success("demo_r1-train-west.a1")) == []  # too late


def test_a_share_of_twenty_is_what_it_says() -> None:
    """0.55 of 20 is 11, though 0.55 * 20 is a little more in binary."""
    from coordinator.core.plan import is_complete

    coordinator = open_round(quorum=Quorum(share=0.55, deadline_hours=2))
    coordinator.deliver("demo_r1-train-north")
    done, still_open = coordinator.job("demo_r1-train-north"), coordinator.job("demo_r1-train-south")
    state = coordinator.state.campaigns[DEMO]
    assert is_complete(state, first(coordinator), [done] * 10 + [still_open] * 10, coordinator.now) is None
    assert is_complete(state, first(coordinator), [done] * 11 + [still_open] * 9, coordinator.now)


def test_the_deadline_closes_a_round_with_what_is_there() -> None:
    coordinator = open_round(lease_seconds=1e6)
    coordinator.deliver("demo_r1-train-north")
    coordinator.sync("south", success("demo_r1-train-south.a1"))  # delivered, not yet inspected
    assert coordinator.wait(2 * HOUR) == []
    assert coordinator.wait(1) == [
        "JobCancelled demo_r1-train-south",
        "JobCancelled demo_r1-train-west",
        "RoundCollected demo/r1",
    ]
    assert first(coordinator).collected == ("demo_r1-train-north",)
    assert coordinator.do(admitted(coordinator.job("demo_r1-train-south"))) == []


def test_the_deadline_fails_a_round_with_nothing() -> None:
    coordinator = open_round(lease_seconds=1e6)
    assert coordinator.wait(2 * HOUR + 1) == [
        *(f"JobCancelled demo_r1-train-{site}" for site in OWN),
        "RoundFailed demo/r1",
        "CampaignEnded demo completed",
    ]


def deliver_partly(coordinator: Coordinator, site: str, steps: int) -> list[str]:
    coordinator.sync(site, success(f"demo_r1-train-{site}.a1"))
    return coordinator.do(admitted(coordinator.job(f"demo_r1-train-{site}"), steps))


def test_a_partial_delta_counts_if_it_saw_enough() -> None:
    coordinator = open_round(admission=Admission(tokens_share_min=0.3))
    deliver_partly(coordinator, "north", 2)
    deliver_partly(coordinator, "south", 3)
    assert deliver_partly(coordinator, "west", 10)[-1] == "RoundCollected demo/r1"
    assert first(coordinator).collected == ("demo_r1-train-south", "demo_r1-train-west")
    assert coordinator.job("demo_r1-train-north").reason == (
        "left out of the merge of round 1: only 2 of 10 steps"
    )


def test_a_partial_delta_makes_no_quorum() -> None:
    coordinator = open_round(quorum=Quorum(share=0.5, minimum=2, deadline_hours=2))
    assert len(deliver_partly(coordinator, "north", 1)) == 1
    assert len(deliver_partly(coordinator, "south", 10)) == 1
    assert deliver_partly(coordinator, "west", 10)[-1] == "RoundCollected demo/r1"


def test_only_partial_deltas_fail_the_round() -> None:
    coordinator = open_round(attempts_max=1)
    for site in ("north", "south"):
        coordinator.sync(site, ended(f"demo_r1-train-{site}.a1", Outcome.FAILED))
    assert deliver_partly(coordinator, "west", 1)[1] == "RoundFailed demo/r1"
    assert first(coordinator).reason.endswith("demo_r1-train-west: only 1 of 10 steps")
