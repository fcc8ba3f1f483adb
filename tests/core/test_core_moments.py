"""Which moments a site's order names, where a campaign keeps them, and what is said of those that it began with."""

from collections.abc import Iterator
from pathlib import Path
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
from delivering_site import TRAIN, House, refusal
from msgspec import UNSET, UnsetType

from consortium.canonical import digest_of_fact, encode, replace
from consortium.ids import Digest, SiteName
from consortium.jobs import Train
from consortium.manifests import Contribution
from coordinator.core import commands as cm
from coordinator.core.orders import fed_back
from coordinator.core.transitions import JobState
from policies.campaign import Campaign, Quorum, Rivals, TrainPlan

KEEPS = replace(OPTIMIZER, moments="keep")
PLAN = TrainPlan(steps=10, batch_sequences=2, sequence_tokens=8, optimizer=KEEPS)
REASON = "signature, base, shapes and norms are as they should be"


def order(coordinator: Coordinator, number: int, site: str = "north") -> Train:
    work = coordinator.job(f"demo_r{number}-train-{site}").work
    assert isinstance(work, Train)
    return work


def moments(number: int, site: str = "north", attempt: int = 1) -> Digest:
    return d(f"moments of demo_r{number}-train-{site}.a{attempt}")


@pytest.mark.parametrize("encoding", ["bf16", "int4"])
def test_each_promoted_round_hands_its_moments_on(encoding: Any) -> None:
    coordinator = given(rounds=3, train=replace(PLAN, delta_dtype=encoding))
    coordinator.one_round(1)
    coordinator.one_round(2)
    found = [order(coordinator, number) for number in (1, 2, 3)]
    assert [work.moments for work in found] == [UNSET, moments(1), moments(2)]
    assert {work.optimizer.moments for work in found} == {"keep"}
    assert order(coordinator, 3, "south").moments == moments(2, "south")
    assert (found[2].residual is None) == (encoding == "bf16")


def test_a_round_that_was_rejected_left_none_and_a_site_that_missed_one_goes_on_where_it_was() -> None:
    coordinator = given(rounds=4, train=PLAN, quorum=Quorum(share=0.6, minimum=2))
    coordinator.one_round(1)
    coordinator.one_round(2, promote=False)
    assert order(coordinator, 3).moments == moments(1)
    for site in ("south", "west"):
        coordinator.sync(site)
        coordinator.deliver(f"demo_r3-train-{site}")  # the quorum is there
    coordinator.work()
    coordinator.judge_all(3)
    coordinator.work()
    assert order(coordinator, 4).moments == moments(1)
    assert order(coordinator, 4, "south").moments == moments(3, "south")


def test_another_attempt_begins_with_the_same_whatever_the_refused_one_left() -> None:
    coordinator = given(rounds=3, train=PLAN)
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
    assert order(coordinator, 2).moments == moments(1)


def test_after_a_rollback_the_older_ones_are_named() -> None:
    coordinator = given(rounds=4, train=PLAN)
    coordinator.one_round(1)
    older = coordinator.state.campaigns[DEMO].head
    assert older is not None
    coordinator.one_round(2)
    coordinator.do(cm.MoveHead(campaign=DEMO, version=older, verb="roll_back", reason="it forgot"))
    coordinator.one_round(3, promote=False)  # was open already, from the newer base
    assert [order(coordinator, number).moments for number in (3, 4)] == [moments(2), moments(1)]


def test_a_delta_that_was_collected_and_left_out_of_the_merge_left_nothing() -> None:
    coordinator = given(rounds=2, train=replace(PLAN, delta_dtype="int8"))
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


def test_what_has_no_next_round_keeps_nothing() -> None:
    spec = campaign(train=PLAN, seed_round=SEED_ROUND, rivals=Rivals(public_only=True, specialists=True))
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
    asked: dict[bool, set[str | UnsetType]] = {True: set(), False: set()}
    for name, work in found.items():
        asked[name in rounds].add(work.optimizer.moments)
        assert work.moments is UNSET
    assert asked == {True: {"keep"}, False: {UNSET}}


@pytest.mark.parametrize("word", ["fresh", UNSET])
def test_without_moments_an_order_has_the_bytes_of_before_there_were_any(word: Any) -> None:
    plan = replace(PLAN, optimizer=replace(OPTIMIZER, moments=word))
    coordinator = given(rounds=2, train=plan)
    coordinator.one_round(1)
    assert b"moments" not in encode(order(coordinator, 2))
    done = coordinator.job("demo_r1-train-north").contribution
    assert done is not None and b"moments" not in encode(done)


# --- what is delivered ------------------------------------------------------------------------------


class KeepingHouse(House):
    def campaign(self, trains_tokenizer: bool) -> Campaign:
        spec = super().campaign(trains_tokenizer)
        return replace(
            spec, train=replace(spec.train, optimizer=replace(spec.train.optimizer, moments="keep"))
        )


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[House]:
    made = KeepingHouse(tmp_path)
    made.enrol("north")
    made.enrol("south")
    made.submit()
    yield made
    made.ledger.close()


def delivered(house: House, **changes: Any) -> Contribution:
    return replace(house.contribution(house.job(TRAIN)), **changes)


def named(house: House, digest: Digest) -> None:
    """As a later round would have it: the order names moments."""
    job = house.job(TRAIN)
    assert isinstance(job.work, Train) and job.attempt is not None
    job.work = replace(job.work, moments=digest)
    job.tries[job.attempt].order = digest_of_fact(job.assignment(job.attempt, SiteName("north")))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (None, {"moments": d("left")}, ""),
        (d("before"), {"moments_before": d("before"), "moments": d("left")}, ""),
        (
            d("before"),
            {"moments": d("left")},
            "; its optimizer began anew, without the moments of its last delta",
        ),
        (None, {}, "; it left no moments: its agent's release may not know of them"),
    ],
)
def test_a_delta_is_admitted_and_what_its_optimizer_began_with_is_told(
    keeping: House, name: Digest | None, changes: dict[str, Any], words: str
) -> None:
    if name is not None:
        named(keeping, name)
    contribution = delivered(keeping, **changes)
    keeping.report(TRAIN, keeping.seal(contribution))
    keeping.work()
    job = keeping.job(TRAIN)
    assert (job.state, job.contribution) == (JobState.DONE, contribution)
    assert job.reason == REASON + words


def test_moments_of_elsewhere_are_refused(keeping: House) -> None:
    contribution = delivered(keeping, moments_before=d("a rival"), moments=d("left"))
    reason = refusal(keeping, TRAIN, keeping.seal(contribution))
    assert f"manifest's moments_before is {d('a rival')}, the job's is none; use that one, or none" in reason


def test_moments_that_nobody_asked_for_are_refused(training: House) -> None:
    reason = refusal(training, TRAIN, training.seal(delivered(training, moments=d("left"))))
    assert f"manifest's moments is {d('left')}, the job keeps none; leave it out" in reason
