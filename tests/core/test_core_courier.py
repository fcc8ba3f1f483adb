"""Stories of a site that is heard by courier: its leases are long, and only its own."""

import pytest
from consortium_in_facts import DEMO, HOUR, Coordinator, given, running, success, sync

from consortium.capacity import Window
from coordinator.core import events as ev
from coordinator.core.decide import decide
from coordinator.core.state import Site
from coordinator.core.view import view
from policies.campaign import Quorum

TRY = "demo_r1-train-north.a1"
OTHER = "demo_r1-train-south.a1"


@pytest.fixture
def coordinator() -> Coordinator:
    """North is heard by courier, and every site has its job."""
    coordinator = given(lease_seconds=60.0, courier_lease_hours=240.0, quorum=Quorum(deadline_hours=1e4))
    names = sorted(coordinator.state.sites)
    for name in names:
        coordinator.sync(name, courier=name == "north")
    return coordinator


def leased(coordinator: Coordinator) -> set[str]:
    return {job.site for job in coordinator.state.jobs.values() if job.state == "leased" and job.site}


def test_its_lease_outlives_the_others_by_days(coordinator: Coordinator) -> None:
    assert "north" in leased(coordinator) and len(leased(coordinator)) > 1
    coordinator.wait(61)
    assert leased(coordinator) == {"north"}
    coordinator.wait(200 * HOUR)
    assert leased(coordinator) == {"north"}
    assert coordinator.sync("north", running(TRY), courier=True) == []  # renewed
    coordinator.wait(239 * HOUR)
    assert leased(coordinator) == {"north"}
    assert f"ContributionReceived {TRY} north" in coordinator.sync("north", success(TRY), courier=True)


def test_it_lapses_in_the_end(coordinator: Coordinator) -> None:
    coordinator.wait(240 * HOUR)
    assert "north" in leased(coordinator)
    assert f"AttemptEnded {TRY} expired" in coordinator.wait(1)


def test_a_restart_and_a_replay_know_it_still(coordinator: Coordinator) -> None:
    coordinator.crash()
    assert coordinator.state.sites["north"].courier  # type: ignore[index]
    coordinator.wait(100 * HOUR)
    assert leased(coordinator) == {"north"}


def test_who_is_reached_by_a_network_again_has_a_lease_like_all(coordinator: Coordinator) -> None:
    assert coordinator.sync("north", running(TRY)) == ["SiteDescribed north"]
    coordinator.wait(61)
    assert leased(coordinator) == set()


def test_an_old_ledger_has_no_couriers() -> None:
    assert ev.SiteDescribed(site="x", agent_version="", slots=1, draining=False, holdings=()).courier is False
    assert Site("x", "", "", "", "", 0.0).courier is False


def test_its_windows_are_its_agents_business() -> None:
    """When the bundle is exchanged says nothing of when the site may work."""
    night = Window(cron="0 20 * * *", seconds=10 * HOUR)
    again = given(lease_seconds=60.0, quorum=Quorum(deadline_hours=1e4))
    again.now = 12 * HOUR
    assert again.sync("south", windows=(night,)) == ["SiteDescribed south"]
    assert again.sync("north", windows=(night,), courier=True)[-1] == f"JobLeased {TRY} north"
    [shown] = [
        one
        for one in view(again.state, sequence=1, head="", now=again.now, seen={}, sights={}).sites
        if one.site == "north"
    ]
    assert shown.is_open


def test_a_late_delta_is_asked_for_as_any_other() -> None:
    """A bundle's blobs are asked for if the core would take the result; of a job left by its round it would."""
    quorum = Quorum(share=0.5, deadline_hours=1e4, late="next_round")
    coordinator = given(lease_seconds=60.0, courier_lease_hours=240.0, quorum=quorum, rounds=2)
    for name in sorted(coordinator.state.sites):
        coordinator.sync(name, courier=name == "north")
    for name in ("south", "west"):
        coordinator.deliver(f"demo_r1-train-{name}")
    left = coordinator.state.campaigns[DEMO].rounds[1].left
    assert left == ("demo_r1-train-north",)
    bundle = sync("north", success(TRY), courier=True)
    assert [type(event) for event in decide(bundle, coordinator.state, coordinator.moment)] == [
        ev.ContributionReceived
    ]
