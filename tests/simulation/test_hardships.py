"""What befalls a simulated consortium besides the network: each kind alone, often, in otherwise calm weather."""

import pytest

from consortium.canonical import replace
from consortium.codecs.names import EncodingName
from policies.campaign import Admission
from simulation.drawn import drawn_plan
from simulation.outcome import Outcome
from simulation.plan import Plan
from simulation.run import simulate
from simulation.weather import PRESETS, Weather

OFTEN = 20.0  # a day; the runs last some hours


def plain(seed: int) -> Plan:
    """A drawn plan whose sites do not fail by themselves."""
    plan = drawn_plan(seed)
    quiet = {"agent_kill_per_day": 0.0, "preempt_per_day": 0.0, "node_loss_per_day": 0.0}
    return replace(plan, sites=tuple(replace(site, **quiet) for site in plan.sites))


def lived_through(seed: int, **rates: float) -> Outcome:
    weather: Weather = replace(PRESETS["calm"], clears_after_hours=20.0, **rates)
    found = simulate(plain(seed), seed, weather)
    assert found.violations == ()
    return found


def details(found: Outcome, kind: str) -> list[str]:
    return [one.detail for one in found.happenings if one.kind == kind]


def test_the_older_of_two_agents_leaves_and_no_job_notices() -> None:
    alone = lived_through(3)
    found = lived_through(3, second_agents_per_day=OFTEN)
    assert found.faults["second agent"] >= 3 and found.ended[0].status == "completed"
    assert len([one for one in found.happenings if one.kind == "down"]) == 0  # it leaves, and is not missed
    assert {made.name for made in found.versions} == {made.name for made in alone.versions}
    assert found.tokens == alone.tokens


def test_a_coordinator_whose_clock_jumps_or_whose_disk_is_full_goes_on() -> None:
    jumpy = lived_through(
        3, coordinator_clock_jumps_per_day=OFTEN, clock_jump_seconds=7200.0, disk_full_minutes=30.0
    )
    assert jumpy.faults["clock jump"] >= 3 and jumpy.ended[0].status == "completed"
    full = lived_through(
        3, coordinator_disk_full_per_day=2 * OFTEN, crashes_per_day=2 * OFTEN, disk_full_minutes=120.0
    )
    assert full.faults["disk full"] >= 3 and full.ended[0].status == "completed"
    assert details(full, "coordinator left"), "it never began on a full disk"


def test_admins_who_meddle_are_obeyed_or_told_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulation.admins._STOP_SHARE", 0.0)
    done: set[str] = set()
    for seed in (0, 4):
        found = lived_through(seed, meddling_per_day=2 * OFTEN)
        done |= {said.split()[0] for said in details(found, "admin")}
    assert {"drain", "suspend", "promote", "roll"} <= done


def test_a_campaign_that_is_stopped_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulation.admins._STOP_SHARE", 1.0)
    assert lived_through(3, meddling_per_day=OFTEN).ended[0].status == "stopped"


@pytest.mark.parametrize(("encoding", "share"), [("bf16", 1.0), ("topk", 0.025)])
def test_a_delta_weighs_what_its_encoding_makes_of_the_model(encoding: EncodingName, share: float) -> None:
    plan = plain(2)
    train = replace(plan.campaign.train, delta_dtype=encoding)
    campaign = replace(plan.campaign, train=train, merge_at="coordinator", rounds=1, admission=Admission())
    found = simulate(replace(plan, campaign=campaign), 2, PRESETS["calm"])
    sent = sum(cost.uploaded_bytes for cost in found.costs.values()) / plan.model_bytes / share
    assert {"staging", "uploading"} <= {one.kind for one in found.happenings}
    assert sent >= 2.0 and sent == pytest.approx(round(sent), abs=0.01)
