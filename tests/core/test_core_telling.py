"""What people are told: the story of a subject, and the picture of the whole."""

import math

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
    decoded,
    ended,
    refused,
    success,
)

from consortium.canonical import encode
from consortium.ids import AttemptId, SiteName
from consortium.jobs import Outcome
from consortium.views import ConsortiumView
from coordinator.core.story import tell
from coordinator.core.view import Sight, view
from policies.campaign import Rivals

JOB = "demo_r1-train-north"


def told(coordinator: Coordinator, subject: str) -> list[str]:
    events = [(n, at, decoded(data)) for n, (data, at) in enumerate(coordinator.ledger, 1)]
    return [line.text for line in tell(events, coordinator.state, subject)]


def picture(coordinator: Coordinator) -> ConsortiumView:
    north = SiteName("north")
    sights = {AttemptId(f"{JOB}.a1"): Sight(phase="running", step=3, loss=2.5)}
    made = view(
        coordinator.state, sequence=9, head="ab", now=coordinator.now, seen={north: 990.0}, sights=sights
    )
    encode(made)
    return made


@pytest.fixture
def coordinator() -> Coordinator:
    made = consortium(campaign(**GIVEN, rounds=11, attempts_max=2))
    made.work()
    for site in OWN:
        made.sync(site)
    return made


def test_whose_delta_is_left_out_is_told_so(coordinator: Coordinator) -> None:
    for site, steps in (("north", 1), ("south", 10), ("west", 10)):
        coordinator.sync(site, success(f"demo_r1-train-{site}.a1"))
        coordinator.do(admitted(coordinator.job(f"demo_r1-train-{site}"), steps))
    left_out = "; demo_r1-train-north is left out: only 1 of 10 steps"
    assert any(line.endswith(left_out) for line in told(coordinator, "north"))
    assert not any(line.endswith(left_out) for line in told(coordinator, "west"))
    assert told(coordinator, JOB)[-2].endswith(left_out)
    assert told(coordinator, JOB)[-1] == "now: done: left out of the merge of round 1: only 1 of 10 steps"


def test_the_life_of_a_job(coordinator: Coordinator) -> None:
    coordinator.sync("north", ended(f"{JOB}.a1", Outcome.FAILED, "a GPU fell off the bus"))
    coordinator.sync("north", success(f"{JOB}.a2"))
    coordinator.do(refused(coordinator.job(JOB), "tensor 'head' has NaN"))
    assert told(coordinator, JOB) == [
        f"{JOB} planned: north holds fi",
        f"{JOB}.a1 leased to north: north asked with 1 free slot(s)",
        f"{JOB}.a1 failed: a GPU fell off the bus",
        f"{JOB}.a2 leased to north: north asked with 1 free slot(s)",
        f"{JOB}.a2 delivered by north, envelope {d(f'envelope of {JOB}.a2')[:12]}",
        f"{JOB}.a2 refused: tensor 'head' has NaN",
        f"{JOB} failed: 2 attempts failed, the last: tensor 'head' has NaN",
        "now: failed: 2 attempts failed, the last: tensor 'head' has NaN",
    ]


def test_who_is_asked_about_is_in_every_line(coordinator: Coordinator) -> None:
    one = told(coordinator, "demo/r1")
    assert one[0].startswith("round 1 opened on ") and one[0].endswith("take part: north, south, west")
    assert one[-1] == "now: waits for 3 job(s): " + ", ".join(f"demo_r1-train-{site}" for site in OWN)
    assert told(coordinator, "demo/v0")[0].startswith("demo/v0 (")
    assert told(coordinator, str(coordinator.state.campaigns[DEMO].head)[:12]) == told(coordinator, "demo/v0")
    assert told(coordinator, "north")[1].startswith("site north enrolled with certificate")
    assert told(coordinator, "demo")[0] == "campaign demo opened: 11 rounds, fi, ga, hu"
    assert told(coordinator, "nothing") == told(coordinator, "") == []


def test_the_picture_of_a_round(coordinator: Coordinator) -> None:
    seen = picture(coordinator)
    assert [(s.site, s.busy, s.seen_seconds_ago) for s in seen.sites] == [
        ("north", 1, 10.0),
        ("south", 1, None),
        ("west", 1, None),
    ]
    assert [(a.attempt, a.phase, a.step, a.steps, a.loss) for a in seen.attempts] == [
        (f"{JOB}.a1", "running", 3, 10, 2.5),
        ("demo_r1-train-south.a1", "leased", 0, 10, None),
        ("demo_r1-train-west.a1", "leased", 0, 10, None),
    ]
    (shown,) = seen.campaigns
    assert [(r.round, r.state, r.jobs_done, r.jobs) for r in shown.rounds] == [(1, "training", 0, 3)]
    assert shown.reason.startswith("3 job(s): ")


def test_versions_are_shown_as_they_were_made(coordinator: Coordinator) -> None:
    """Also after a snapshot, which has them by digest; and v10 comes after v9."""
    for number in range(1, 12):
        coordinator.one_round(number)
        coordinator.crash(from_snapshot=True)
    (shown,) = picture(coordinator).campaigns
    names = [f"demo/v{number}" for number in range(12)]
    assert [version.name for version in shown.versions] == [model.name for model in shown.models] == names
    assert [model.mean for model in shown.models] == pytest.approx([0.5 / math.log(2)] * 12)


def test_rivals_are_shown_by_what_they_are() -> None:
    coordinator = consortium(campaign(**GIVEN, rivals=Rivals(public_only=True, specialists=True)), slots=9)
    coordinator.work()
    for step in ("r1-train", "rival-alone", "r1-gate", "compare"):
        if step == "compare":
            coordinator.deliver("demo_rival-public", slots=9)
        for site in OWN:
            coordinator.sync(site, slots=9)
        for site in OWN:
            coordinator.deliver(f"demo_{step}-{site}", slots=9)
        coordinator.work()
    (shown,) = picture(coordinator).campaigns
    assert [(model.name, model.role, model.mean is None) for model in shown.models] == [
        ("demo/v0", "version", False),
        ("demo/v1", "version", False),
        ("public text only", "rival", False),
        *((site, "specialist", False) for site in OWN),
    ]
