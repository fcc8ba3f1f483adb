"""Which residual a site's order names: that of its last delta in the lineage of the base, and no other."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
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
from delivering_site import TRAIN, House, refusal, values

from consortium.canonical import digest_of_fact, replace
from consortium.codecs.names import EncodingName
from consortium.deltas import write_coded_delta
from consortium.ids import Digest, SiteName
from consortium.jobs import Train
from consortium.manifests import Contribution
from consortium.tensors import Checkpoint
from coordinator.core import commands as cm
from coordinator.core.transitions import JobState
from policies.campaign import Campaign, Quorum, Rivals, TrainPlan


def plan(encoding: EncodingName) -> TrainPlan:
    return TrainPlan(
        steps=10,
        batch_sequences=2,
        sequence_tokens=8,
        optimizer=OPTIMIZER,
        delta_dtype=encoding,
        delta_density=0.25,
    )


def order(coordinator: Coordinator, number: int, site: str = "north") -> Train:
    work = coordinator.job(f"demo_r{number}-train-{site}").work
    assert isinstance(work, Train)
    return work


def residual(number: int, site: str = "north", attempt: int = 1) -> Digest:
    return d(f"residual of demo_r{number}-train-{site}.a{attempt}")


def test_each_promoted_round_hands_its_residual_on() -> None:
    coordinator = given(rounds=3, train=plan("int4"))
    coordinator.one_round(1)
    coordinator.one_round(2)
    found = [order(coordinator, number) for number in (1, 2, 3)]
    assert [work.residual for work in found] == [None, residual(1), residual(2)]
    assert {(work.delta_dtype, work.delta_density) for work in found} == {("int4", 0.25)}
    assert order(coordinator, 3, "south").residual == residual(2, "south")


def test_what_was_rejected_never_happened() -> None:
    coordinator = given(rounds=3, train=plan("topk"))
    coordinator.one_round(1)
    coordinator.one_round(2, promote=False)
    assert order(coordinator, 3).residual == residual(1)


def test_a_site_that_missed_a_round_goes_on_where_it_was() -> None:
    coordinator = given(rounds=3, train=plan("int8"), quorum=Quorum(share=0.6, minimum=2))
    coordinator.one_round(1)
    for site in ("south", "west"):
        coordinator.sync(site)
        coordinator.deliver(f"demo_r2-train-{site}")  # the quorum is there
    coordinator.work()
    coordinator.judge_all(2)
    coordinator.work()
    assert order(coordinator, 3).residual == residual(1)
    assert order(coordinator, 3, "south").residual == residual(2, "south")


def test_another_attempt_begins_with_the_same() -> None:
    coordinator = given(rounds=2, train=plan("int8"))
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
    assert order(coordinator, 2).residual == residual(1)


def test_after_a_rollback_the_older_one_is_named() -> None:
    coordinator = given(rounds=4, train=plan("int8"))
    coordinator.one_round(1)
    older = coordinator.state.campaigns[DEMO].head
    assert older is not None
    coordinator.one_round(2)
    coordinator.do(cm.MoveHead(campaign=DEMO, version=older, verb="roll_back", reason="it forgot"))
    coordinator.one_round(3, promote=False)  # was open already, from the newer base
    assert order(coordinator, 3).residual == residual(2)
    assert order(coordinator, 4).residual == residual(1)


@pytest.mark.parametrize(
    ("encoding", "once"), [("int8", "bf16"), ("topk", "bf16"), ("fp32", "fp32"), ("bf16", "bf16")]
)
def test_what_has_no_next_round_keeps_nothing(encoding: EncodingName, once: str) -> None:
    spec = campaign(
        train=plan(encoding), seed_round=SEED_ROUND, rivals=Rivals(public_only=True, specialists=True)
    )
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
    assert {work.delta_dtype for name, work in found.items() if name in rounds} == {encoding}
    assert len(found) > len(rounds)
    assert {work.delta_dtype for name, work in found.items() if name not in rounds} == {once}
    assert {work.residual for work in found.values()} == {None}


# --- what is delivered ------------------------------------------------------------------------------


class Int8House(House):
    def campaign(self, trains_tokenizer: bool) -> Campaign:
        return replace(super().campaign(trains_tokenizer), train=plan("int8"))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = Int8House(tmp_path)
    made.enrol("north")
    made.enrol("south")
    made.submit()
    yield made
    made.ledger.close()


def delivered(house: House, **changes: object) -> Contribution:
    base_dir = house.home / "laid out"
    work = house.job(TRAIN).work
    assert isinstance(work, Train)
    if not base_dir.exists():
        base_dir.mkdir()
        manifest = house.driver.state.campaigns[DEMO].versions[work.base].manifest
        for name, ref in manifest.files.items():
            (base_dir / name).write_bytes(house.store.path(ref.digest).read_bytes())
    with Checkpoint(base_dir) as base:
        trained = {name: base.array(name) + values(1, 0.01)[name].astype(np.float32) for name in base}
        _, left = write_coded_delta(base, trained, house.home / "d", "int8", None, house.home / "left")
    ref = house.send((house.home / "d").read_bytes())
    return replace(house.contribution(house.job(TRAIN), ref), **{"residual": left.digest, **changes})


def test_an_encoded_delta_is_admitted(house: House) -> None:
    contribution = delivered(house)
    house.report(TRAIN, house.seal(contribution))
    house.work()
    job = house.job(TRAIN)
    assert (job.state, job.contribution) == (JobState.DONE, contribution)
    assert job.reason == "signature, base, shapes and norms are as they should be"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"residual": None}, "manifest's residual is missing, the delta is int8"),
        (
            {"residual_before": d("another")},
            f"manifest's residual_before is {d('another')}, the job's is None",
        ),
    ],
)
def test_a_broken_chain_of_residuals_is_refused(house: House, changes: dict[str, object], words: str) -> None:
    assert words in refusal(house, TRAIN, house.seal(delivered(house, **changes)))


def test_a_residual_beside_a_plain_delta_is_refused(training: House) -> None:
    contribution = replace(training.contribution(training.job(TRAIN)), residual=d("left"))
    reason = refusal(training, TRAIN, training.seal(contribution))
    assert f"manifest's residual is {d('left')}, the delta is fp32" in reason


def test_a_lost_residual_is_told(house: House) -> None:
    job = house.job(TRAIN)
    assert isinstance(job.work, Train) and job.attempt is not None
    job.work = replace(job.work, residual=d("the one before"))  # as round 2 would have it
    job.tries[job.attempt].order = digest_of_fact(job.assignment(job.attempt, SiteName("north")))
    house.report(TRAIN, house.seal(delivered(house)))
    house.work()
    assert house.job(TRAIN).reason.endswith("; it began without the residual of its last delta")
