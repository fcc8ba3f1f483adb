"""What an order hands on of a site's earlier deltas, history by history: the residual, and the optimizer's moments.

Both are those of its last delta in the lineage of the base, and of no other.
"""

from typing import Any

import pytest
from consortium_in_facts import (
    DEMO,
    OPTIMIZER,
    SEED_ROUND,
    Coordinator,
    campaign,
    consortium,
    d,
    given,
    success,
)
from msgspec import UNSET

from consortium.canonical import encode, replace
from consortium.ids import Digest, SiteName
from consortium.jobs import Train
from coordinator.core import commands as cm
from coordinator.core.orders import fed_back
from coordinator.core.transitions import JobState
from policies.campaign import Quorum, Rivals, TrainPlan

PLAN = TrainPlan(
    steps=10,
    batch_sequences=2,
    sequence_tokens=8,
    optimizer=OPTIMIZER,
    delta_dtype="bf16",
    delta_density=0.25,
)
KEEPS = replace(OPTIMIZER, moments="keep")
CODED = replace(PLAN, delta_dtype="int8")
#: what is handed on, and a plan that has it so; moments go with any encoding, residuals with any optimizer
HANDED_ON = [
    ("residual", CODED),
    ("residual", replace(PLAN, delta_dtype="topk", optimizer=KEEPS)),
    ("moments", replace(PLAN, optimizer=KEEPS)),
    ("moments", replace(PLAN, delta_dtype="int4", optimizer=KEEPS)),
]
each_kind = pytest.mark.parametrize(
    ("kind", "plan"), HANDED_ON, ids=lambda value: getattr(value, "delta_dtype", value)
)


def order(coordinator: Coordinator, number: int, site: str = "north") -> Train:
    work = coordinator.job(f"demo_r{number}-train-{site}").work
    assert isinstance(work, Train)
    return work


def handed(kind: str, coordinator: Coordinator, number: int, site: str = "north") -> Digest | None:
    """None if the order names none."""
    return getattr(order(coordinator, number, site), kind) or None


def left(kind: str, number: int, site: str = "north") -> Digest:
    """What the delta of that round left at its site."""
    return d(f"{kind} of demo_r{number}-train-{site}.a1")


@each_kind
def test_each_promoted_round_hands_on_what_it_left(kind: str, plan: TrainPlan) -> None:
    coordinator = given(rounds=3, train=plan)
    coordinator.one_round(1)
    coordinator.one_round(2)
    assert [handed(kind, coordinator, number) for number in (1, 2, 3)] == [None, left(kind, 1), left(kind, 2)]
    assert handed(kind, coordinator, 3, "south") == left(kind, 2, "south")
    asked = {
        (work.delta_dtype, work.delta_density, work.optimizer.moments)
        for work in (order(coordinator, number) for number in (1, 2, 3))
    }
    assert asked == {(plan.delta_dtype, 0.25, plan.optimizer.moments)}


@each_kind
def test_what_was_rejected_never_happened(kind: str, plan: TrainPlan) -> None:
    coordinator = given(rounds=3, train=plan)
    coordinator.one_round(1)
    coordinator.one_round(2, promote=False)
    assert handed(kind, coordinator, 3) == left(kind, 1)


@each_kind
def test_a_site_that_missed_a_round_goes_on_where_it_was(kind: str, plan: TrainPlan) -> None:
    coordinator = given(rounds=3, train=plan, quorum=Quorum(share=0.6, minimum=2))
    coordinator.one_round(1)
    for site in ("south", "west"):
        coordinator.sync(site)
        coordinator.deliver(f"demo_r2-train-{site}")  # the quorum is there
    coordinator.work()
    coordinator.judge_all(2)
    coordinator.work()
    assert handed(kind, coordinator, 3) == left(kind, 1)
    assert handed(kind, coordinator, 3, "south") == left(kind, 2, "south")


@each_kind
def test_another_attempt_begins_with_the_same_whatever_the_refused_one_left(
    kind: str, plan: TrainPlan
) -> None:
    coordinator = given(rounds=2, train=plan)
    coordinator.one_round(1)
    coordinator.sync("north")
    job = coordinator.job("demo_r2-train-north")
    first = job.assignment(job.attempt, job.site)  # type: ignore[arg-type]
    coordinator.sync("north", success("demo_r2-train-north.a1"))
    coordinator.do(cm.ReportInspection(job=job.id, attempt=first.attempt, contribution=None, reason="a NaN"))
    coordinator.sync("north")
    again = coordinator.job("demo_r2-train-north")
    assert again.attempts == 2
    assert replace(again.assignment(again.attempt, again.site), attempt=first.attempt) == first  # type: ignore[arg-type]
    assert handed(kind, coordinator, 2) == left(kind, 1)


@each_kind
def test_after_a_rollback_the_older_one_is_named(kind: str, plan: TrainPlan) -> None:
    coordinator = given(rounds=4, train=plan)
    coordinator.one_round(1)
    older = coordinator.state.campaigns[DEMO].head
    assert older is not None
    coordinator.one_round(2)
    coordinator.do(cm.MoveHead(campaign=DEMO, version=older, verb="roll_back", reason="it forgot"))
    coordinator.one_round(3, promote=False)  # was open already, from the newer base
    assert [handed(kind, coordinator, number) for number in (3, 4)] == [left(kind, 2), left(kind, 1)]


@pytest.mark.parametrize(
    ("encoding", "once"), [("int8", "bf16"), ("topk", "bf16"), ("fp32", "fp32"), ("bf16", "bf16")]
)
def test_what_has_no_next_round_keeps_nothing(encoding: Any, once: str) -> None:
    plan = replace(PLAN, delta_dtype=encoding, optimizer=KEEPS)
    spec = campaign(train=plan, seed_round=SEED_ROUND, rivals=Rivals(public_only=True, specialists=True))
    coordinator = consortium(spec)
    while "demo_r1-train-north" not in coordinator.state.jobs:
        for site in ("north", "south", "west"):
            coordinator.sync(site)
        for name, job in list(coordinator.state.jobs.items()):
            if job.state is JobState.LEASED:
                coordinator.deliver(name)
        coordinator.work()
    found = {name: job.work for name, job in coordinator.state.jobs.items() if isinstance(job.work, Train)}
    rounds = {f"demo_r1-train-{site}" for site in ("north", "south", "west")}
    assert len(found) > len(rounds)
    for name, work in found.items():
        asked = (encoding, "keep") if name in rounds else (once, UNSET)
        assert (work.delta_dtype, work.optimizer.moments) == asked
        assert (work.residual, work.moments) == (None, UNSET)


def test_a_delta_that_was_collected_and_left_out_of_the_merge_left_nothing() -> None:
    coordinator = given(rounds=2, train=replace(CODED, optimizer=KEEPS))
    coordinator.one_round(1)
    demo = coordinator.state.campaigns[DEMO]
    version, left_out = demo.versions[order(coordinator, 2).base], d("delta of demo_r1-train-north.a1")
    merged = tuple(part for part in version.manifest.ingredients if part.delta.digest != left_out)
    assert len(merged) == 2
    version.manifest = replace(version.manifest, ingredients=merged)
    found = {
        site: fed_back(order(coordinator, 2, site), coordinator.state, demo, SiteName(site))
        for site in ("north", "south")
    }
    assert (found["north"].moments, found["north"].residual) == (UNSET, None)
    assert found["south"] == order(coordinator, 2, "south")


@pytest.mark.parametrize("word", ["fresh", UNSET])
def test_without_moments_an_order_has_the_bytes_of_before_there_were_any(word: Any) -> None:
    coordinator = given(rounds=2, train=replace(PLAN, optimizer=replace(OPTIMIZER, moments=word)))
    coordinator.one_round(1)
    assert b"moments" not in encode(order(coordinator, 2))
    done = coordinator.job("demo_r1-train-north").contribution
    assert done is not None and b"moments" not in encode(done)
