"""What is said of the moments that a delta began with and left: admitted, told, refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from consortium_in_facts import d
from delivering_site import TRAIN, House, refusal

from consortium.canonical import digest_of_fact, replace
from consortium.ids import Digest, SiteName
from consortium.jobs import Train
from consortium.manifests import Contribution
from coordinator.core.transitions import JobState
from policies.campaign import Campaign

REASON = "signature, base, shapes and norms are as they should be"


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
