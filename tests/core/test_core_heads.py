"""Stories of the head: what admins promote by hand or roll back to, and what the gate makes of it."""

import pytest
from consortium_in_facts import DEMO, Coordinator, answer, given, verdict

from consortium.canonical import replace
from consortium.errors import Refused
from consortium.ids import CampaignId
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.owed import owed


def move(verb: str, version: str) -> cm.MoveHead:
    plain = cm.MoveHead(campaign=DEMO, version=version, verb="promote", reason="I know better")
    return replace(plain, verb=verb)


def head(coordinator: Coordinator) -> str:
    campaign_state = coordinator.state.campaigns[DEMO]
    assert campaign_state.head is not None
    return campaign_state.versions[campaign_state.head].name


@pytest.fixture
def coordinator() -> Coordinator:
    """Three rounds to come; the verdict on the first candidate is owed."""
    made = given(rounds=3)
    made.to_the_gate()
    return made


def test_a_rejected_version_is_promoted_by_hand(coordinator: Coordinator) -> None:
    coordinator.work(promote=False)
    rejected = coordinator.state.campaigns[DEMO].rounds[1].candidate
    assert rejected is not None
    assert coordinator.events_of(move("promote", rejected[:12])) == (
        ev.VersionPromoted(campaign=DEMO, version=rejected, reason="by hand: I know better"),
    )
    assert head(coordinator) == "demo/v1"
    with pytest.raises(Refused, match="promoted already"):
        coordinator.do(move("promote", "demo/v1"))


def test_the_head_is_rolled_back(coordinator: Coordinator) -> None:
    coordinator.work()
    assert head(coordinator) == "demo/v1"
    assert coordinator.do(move("roll_back", "demo/v0")) == ["RolledBack demo/v0"]
    assert head(coordinator) == "demo/v0"
    assert coordinator.do(move("roll_back", "demo/v0")) == []
    assert coordinator.do(move("roll_back", "demo/v1")) == ["RolledBack demo/v1"]


def test_what_was_never_promoted_is_not_rolled_back_to(coordinator: Coordinator) -> None:
    with pytest.raises(Refused, match="was never promoted"):
        coordinator.do(move("roll_back", "demo/v1"))
    coordinator.work(promote=False)
    with pytest.raises(Refused, match="was never promoted"):
        coordinator.do(move("roll_back", "demo/v1"))


@pytest.mark.parametrize("version", ["demo/v9", "", "ffffffffffff", "v1"])
def test_an_unknown_version_is_refused(coordinator: Coordinator, version: str) -> None:
    with pytest.raises(Refused, match="known: demo/v0, demo/v1"):
        coordinator.do(move("promote", version))
    with pytest.raises(Refused, match="no campaign 'other'; known: demo"):
        coordinator.do(replace(move("promote", "demo/v1"), campaign=CampaignId("other")))


@pytest.mark.parametrize("passes", [True, False])
def test_the_gate_does_not_undo_an_admin(coordinator: Coordinator, passes: bool) -> None:
    """Promoted by hand while the worker still judged: the verdict is recorded, the version stays promoted."""
    coordinator.do(move("promote", "demo/v1"))
    assert coordinator.work(passes)[:2] == ["GateJudged demo/v1", "RoundOpened demo/r2"]
    assert head(coordinator) == "demo/v1"
    assert coordinator.state.campaigns[DEMO].rounds[1].verdict == verdict(passes)


def test_the_gate_does_not_undo_a_roll_back(coordinator: Coordinator) -> None:
    """A candidate that grew from a version that was rolled back must not bring it back unasked."""
    coordinator.work()
    coordinator.do(move("roll_back", "demo/v0"))
    coordinator.to_the_gate(2)  # it was opened on v1
    assert coordinator.work()[:3] == ["GateJudged demo/v2", "VersionRejected demo/v2", "RoundOpened demo/r3"]
    candidate = coordinator.state.campaigns[DEMO].rounds[2].candidate
    assert candidate is not None
    assert coordinator.state.campaigns[DEMO].versions[candidate].reason == (
        "passed the gate against demo/v1, but the head was moved to demo/v0 meanwhile; "
        "promote it by hand if it is the better one"
    )
    base = coordinator.state.campaigns[DEMO].rounds[3].base
    assert coordinator.state.campaigns[DEMO].versions[base].name == head(coordinator) == "demo/v0"


def test_a_verdict_is_given_once(coordinator: Coordinator) -> None:
    report = answer(owed(coordinator.state)[0], coordinator.state)
    assert coordinator.do(report)[0] == "GateJudged demo/v1"
    assert coordinator.do(report) == []
