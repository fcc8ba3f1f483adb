"""Stories of campaigns as wholes: submitted, stopped, side by side, and long ones."""

import pytest
from consortium_in_facts import (
    DEMO,
    GIVEN,
    OWN,
    Coordinator,
    admitted,
    campaign,
    consortium,
    d,
    ended,
    given,
    merged,
    refused,
    success,
)

from consortium.errors import BadInput, Refused
from consortium.ids import CampaignId, Digest
from consortium.jobs import Outcome
from coordinator.core import commands as cm
from coordinator.core.owed import owed
from coordinator.core.state import RoundState
from policies.campaign import Campaign, TokenizerSource


def test_a_campaign_is_stopped() -> None:
    coordinator = given()
    coordinator.sync("north")
    coordinator.sync("south")
    coordinator.sync("south", success("demo_r1-train-south.a1"))
    stop = cm.StopCampaign(campaign=DEMO, reason="no more money")
    inspection = admitted(coordinator.job("demo_r1-train-south"))
    assert coordinator.do(stop) == [
        *(f"JobCancelled demo_r1-train-{site}" for site in OWN),
        "CampaignEnded demo stopped",
    ]
    assert owed(coordinator.state) == ()
    assert coordinator.sync("north", ended("demo_r1-train-north.a1", Outcome.CANCELLED)) == []
    assert coordinator.do(inspection) == []
    with pytest.raises(Refused, match="campaign demo is stopped: no more money"):
        coordinator.do(stop)
    with pytest.raises(BadInput, match="no campaign 'other'; known: demo"):
        coordinator.do(cm.StopCampaign(campaign=CampaignId("other"), reason="so"))


def test_a_campaign_is_submitted_once() -> None:
    coordinator = given()
    assert coordinator.do(cm.SubmitCampaign(campaign=campaign(**GIVEN))) == []
    with pytest.raises(Refused, match="exists already"):
        coordinator.do(cm.SubmitCampaign(campaign=campaign(**GIVEN, rounds=9)))


def test_a_campaign_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(BadInput, match="tokenizer"):
        Coordinator().do(cm.SubmitCampaign(campaign=campaign(tokenizer=TokenizerSource())))


def test_two_campaigns_do_not_mix() -> None:
    alone = given(rounds=2)
    alone.one_round()
    other: Campaign = campaign("other", **GIVEN, seed=5)
    both = consortium(campaign(**GIVEN, rounds=2), other, slots=2)
    assert [line.split()[1] for line in both.work() if "RoundOpened" in line] == ["demo/r1", "other/r1"]
    for site in OWN:
        assert both.sync(site, slots=2) == [
            f"JobLeased demo_r1-train-{site}.a1 {site}",
            f"JobLeased other_r1-train-{site}.a1 {site}",
        ]
    for site in OWN:
        both.deliver(f"demo_r1-train-{site}", slots=2)
    assert both.work()[0] == "VersionMade demo/v1"
    for site in OWN:
        both.sync(site, slots=2)
        both.deliver(f"demo_r1-gate-{site}", slots=2)
    both.work()
    first, second = (both.state.campaigns[CampaignId(name)] for name in ("demo", "other"))
    assert first.head == alone.state.campaigns[DEMO].head  # as if it were alone
    assert second.rounds[1].state is RoundState.TRAINING
    assert (
        both.do(cm.StopCampaign(campaign=CampaignId("other"), reason="so"))[-1]
        == "CampaignEnded other stopped"
    )
    assert (first.status, second.status) == ("open", "stopped")


def test_ten_rounds_survive_a_snapshot() -> None:
    """Numbers sort as numbers, and versions are shown as they were made."""
    coordinator = given(rounds=11)
    for number in range(1, 12):
        coordinator.one_round(number)
        coordinator.crash(from_snapshot=True)
    assert coordinator.state.campaigns[DEMO].status == "completed"
    assert sorted(coordinator.state.campaigns[DEMO].rounds) == list(range(1, 12))
    assert coordinator.state.snapshot() == coordinator.replayed().snapshot()


def test_a_refused_contribution_is_never_merged() -> None:
    coordinator = given(attempts_max=1)
    for site in OWN:
        coordinator.sync(site)
    coordinator.deliver("demo_r1-train-north")
    coordinator.deliver("demo_r1-train-west")
    coordinator.sync("south", success("demo_r1-train-south.a1"))
    coordinator.do(refused(coordinator.job("demo_r1-train-south")))
    collected = coordinator.state.campaigns[DEMO].rounds[1].collected
    assert collected == ("demo_r1-train-north", "demo_r1-train-west")
    deltas: list[Digest] = [p.delta.digest for p in merged(coordinator.state, DEMO, 1).ingredients]
    assert deltas == sorted([d("delta of demo_r1-train-north.a1"), d("delta of demo_r1-train-west.a1")])
