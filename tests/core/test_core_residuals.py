"""What is said of the residual that an encoded delta leaves: admitted, refused, told if it was lost."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from consortium_in_facts import DEMO, d
from delivering_site import TRAIN, House, refusal, values

from consortium.canonical import digest_of_fact, replace
from consortium.deltas import write_coded_delta
from consortium.ids import SiteName
from consortium.jobs import Train
from consortium.manifests import Contribution
from consortium.tensors import Checkpoint
from coordinator.core.transitions import JobState
from policies.campaign import Campaign


class Int8House(House):
    def campaign(self, trains_tokenizer: bool) -> Campaign:
        spec = super().campaign(trains_tokenizer)
        return replace(spec, train=replace(spec.train, delta_dtype="int8"))


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
