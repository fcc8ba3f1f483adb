"""Really trained deltas, and what an attacker makes of them: each is refused, left out, or bounded; the honest are not.

Norms bound how far a delta may move a model; the loss of base + delta on held-out text of its own languages decides.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from trainer_samples import BASE, contribution, languages, make_job, train_work

from consortium.admission import Inspection, inspect
from consortium.deltas import apply_delta
from consortium.ids import Digest
from consortium.jobs import Evaluate, Optimizer, Subject
from consortium.manifests import LanguageScore, Scores
from consortium.store import ref_of
from consortium.tensor_writer import TensorWriter
from consortium.tensors import Checkpoint, TensorFile
from coordinator.core.events import ScoreSummary
from coordinator.core.fold import growth
from policies.campaign import Admission
from policies.reading import load_admission
from site_agent.trainer.evaluation import evaluate
from site_agent.trainer.folder import JobFolder, Site
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.training import train

Tensors = dict[str, np.ndarray]
ET, BG = languages("et"), languages("bg")
GENTLE = Optimizer(learning_rate=1e-3)


class Lab:
    """A base that has learnt something, and honest deltas of two languages on it."""

    def __init__(self, folder: Path, site: Site, base: Path, alone: Ranks) -> None:
        self.folder, self.site, self.alone = folder, site, alone
        seed = self.train("seed", base, languages=(), replay_share=1.0, steps=60)
        apply_delta(base, seed, folder / "v1")
        self.base = folder / "v1"
        self.honest = {
            own: self.train(own, self.base, languages=languages(own), steps=20, optimizer=GENTLE)
            for own in ("et", "bg")
        }

    def train(self, name: str, base: Path, **changes: object) -> Path:
        folder = make_job(self.folder / name, self.site, train_work(**changes), base)
        job = JobFolder(folder)
        train(job, job.job.work, self.alone, lambda: False)  # type: ignore[arg-type]
        return folder / "result" / "delta.safetensors"

    def forged(self, name: str, change: Callable[[Tensors], Tensors], of: str = "et") -> Path:
        path = self.folder / f"{name}.safetensors"
        with TensorFile(self.honest[of]) as delta:
            tensors = change({x: delta.array(x).reshape(delta[x].shape) for x in delta})
        with TensorWriter(path, {x: array.shape for x, array in tensors.items()}, "F32") as writer:
            for x, array in tensors.items():
                writer.write(x, 0, np.ascontiguousarray(array, np.float32).reshape(-1))
        return path

    def inspect(self, delta: Path, tensor_norm_max: float = 2.0) -> Inspection:
        """As the coordinator does, in a campaign whose deltas moved as far as the honest ones here."""
        usual = self.norm(self.honest["et"])
        with Checkpoint(self.base) as base:
            return inspect(
                base,
                delta,
                ref_of(delta),
                norm_max=0.5,
                tensor_norm_max=tensor_norm_max,
                bytes_max=1 << 20,
                row_norm_max=STRICT.row_norm_max,
                usual=usual,
                growth_max=STRICT.norm_growth_max,
            )

    def norm(self, delta: Path) -> float:
        with Checkpoint(self.base) as base, TensorFile(delta) as found:
            sizes = [math.hypot(*(np.linalg.norm(x.array(name)) for name in x)) for x in (found, base)]
        return sizes[0] / sizes[1]

    def growth(self, delta: Path, own: tuple[str, ...], base: Path | None = None) -> float:
        """Of the loss on held-out text of ``own``, as a site that holds such text reports it."""
        name = Digest(ref_of(delta).digest)
        work = Evaluate(
            subjects=(Subject(name="base", version=BASE), Subject(name="it", version=BASE, delta=name)),
            languages=own,  # type: ignore[arg-type]
            sequence_tokens=16,
        )
        folder = self.folder / f"check-{name[:12]}-{'-'.join(own)}-{base is None}"
        make_job(folder, self.site, work, base or self.base)
        (folder / "inputs").mkdir()
        shutil.copy(delta, folder / "inputs" / name)
        evaluate(JobFolder(folder), work, self.alone, lambda: False)
        assert contribution(folder).artifacts["scores"]
        scores = msgspec.json.decode((folder / "result" / "scores.json").read_bytes(), type=Scores)
        found = growth(
            work, {x: {y: summed(s) for y, s in of.items()} for x, of in sorted(scores.subjects.items())}
        )
        assert found is not None
        return found


def summed(score: LanguageScore) -> ScoreSummary:
    return ScoreSummary(
        nats=math.fsum(score.nats), bytes=sum(score.bytes), documents=len(score.nats), heldout=score.heldout
    )


STRICT: Admission = load_admission("strict")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, site: Site, base: Path, alone: Ranks) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), site, base, alone)


def flipped(delta: Tensors) -> Tensors:
    return {name: -array for name, array in delta.items()}


def scaled(factor: float) -> Callable[[Tensors], Tensors]:
    return lambda delta: {name: factor * array for name, array in delta.items()}


USUAL_ROW = 0.2  #: root mean square of the norms of the base's embeddings, to one digit


def back_door(size: float) -> Callable[[Tensors], Tensors]:
    """One token's row is moved ``size`` times as far as rows are long: it is to mean something when it comes."""

    def change(delta: Tensors) -> Tensors:
        rows = delta["model.embed_tokens.weight"].copy()
        rows[7] = size * USUAL_ROW / math.sqrt(rows.shape[1]) * np.sign(np.sin(np.arange(rows.shape[1])))
        return {**delta, "model.embed_tokens.weight": rows}

    return change


@pytest.mark.parametrize("own", ["et", "bg"])
def test_an_honest_delta_is_let_in(lab: Lab, own: str) -> None:
    """bg stands for the language that only one site has: nothing compares its delta with those of others."""
    found = lab.inspect(lab.honest[own])
    assert found.ok, found.reason
    assert lab.growth(lab.honest[own], languages(own)) < -0.02


def test_a_flipped_sign_moves_no_farther_and_is_left_out_for_its_loss(lab: Lab) -> None:
    delta = lab.forged("flipped", flipped)
    assert lab.inspect(delta).ok
    assert lab.growth(delta, ET) > 4 * STRICT.loss_growth_max


def test_a_scaled_delta_is_refused_by_what_was_usual(lab: Lab) -> None:
    delta = lab.forged("scaled", scaled(3.5))
    found = lab.inspect(delta)
    assert not found.ok and "more than 3 times the" in found.reason
    assert not lab.inspect(
        delta, STRICT.tensor_norm_max
    ).ok  # the preset refuses it for a single tensor already


def test_a_scaled_delta_below_that_is_bounded_and_its_loss_decides(lab: Lab) -> None:
    """What slips through the norm moves the model at most three times as far as others did, whatever it claims."""
    delta = lab.forged("scaled-a-little", scaled(2.9))
    found = lab.inspect(delta)
    assert found.ok and found.norm <= 3.0 * lab.norm(lab.honest["et"]) * found.base_norm
    assert lab.growth(lab.forged("scaled-flipped", scaled(-2.9)), ET) > 4 * STRICT.loss_growth_max


def test_a_stale_delta_that_was_changed_a_little_is_bounded(lab: Lab) -> None:
    """The same bytes are known by their digest; with other bytes its loss on the newer base decides.

    It is a delta that was good once: on the newer base it brings less, and moves it no farther than it may.
    """
    apply_delta(lab.base, lab.honest["et"], lab.folder / "v2")
    stale = lab.forged("stale", scaled(1.0 + 1e-6))
    assert ref_of(stale) != ref_of(lab.honest["et"])
    found = lab.inspect(stale)
    assert found.ok and found.norm < 1.01 * lab.norm(lab.honest["et"]) * found.base_norm
    fresh, again = lab.growth(stale, ET), lab.growth(stale, ET, lab.folder / "v2")
    assert fresh < again < STRICT.loss_growth_max
    undone = lab.forged("undone", lambda delta: flipped(delta))
    assert lab.growth(undone, ET, lab.folder / "v2") > STRICT.loss_growth_max  # what would harm is left out


def test_a_back_door_in_a_row_is_refused_though_the_whole_moved_little(lab: Lab) -> None:
    delta = lab.forged("back-door", back_door(5.0))
    assert lab.norm(delta) < 2 * lab.norm(lab.honest["et"])
    found = lab.inspect(delta)
    assert not found.ok
    assert "row 7 of 'model.embed_tokens.weight' has norm" in found.reason and "exceeds 2 of" in found.reason


def test_a_smaller_one_is_bounded_by_what_a_row_may_move(lab: Lab) -> None:
    delta = lab.forged("small-back-door", back_door(1.5))
    assert lab.inspect(delta).ok
    with Checkpoint(lab.base) as base, TensorFile(delta) as found:
        name = "model.embed_tokens.weight"
        usual = np.linalg.norm(base.array(name)) / math.sqrt(base[name].shape[0])
        row = found.array(name).reshape(found[name].shape)[7]
        assert np.linalg.norm(row) <= STRICT.row_norm_max * usual  # type: ignore[operator]


def test_who_claims_another_language_is_judged_by_that_one(lab: Lab) -> None:
    """The flipped delta of et, said to be of bg: the claim chooses the text by which it is judged."""
    assert lab.growth(lab.forged("claimed", flipped, of="bg"), BG) > STRICT.loss_growth_max
