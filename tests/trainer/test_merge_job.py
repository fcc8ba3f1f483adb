"""A merge job by hand: from a job directory to a version, with the coordinator's bytes, and without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from trainer_samples import BASE, contribution, languages, make_job, run

from consortium.canonical import decode, encode
from consortium.jobs import Assignment, Merge, Part
from consortium.manifests import FileRef, VersionManifest
from consortium.merging.job import ingredients_of, make_version, outer_files
from consortium.merging.recipe import PLAIN_AVERAGE, OuterStep, Recipe
from consortium.store import ref_of
from consortium.tensor_writer import TensorWriter
from consortium.tensors import Checkpoint
from consortium.versions import OUTER_STATE, VERSION, model_file, verify_directory
from coordinator.making import made
from coordinator.making_process import MergeOrder
from site_agent.trainer.folder import CONTINUE_LATER, Failure, FailureReason, Site

MOMENTUM = Recipe(outer=OuterStep())
STANDING = Site(text=(), heldout_share=0.1, cache="cache", threads=2)


@pytest.fixture(scope="module")
def deltas(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three, by digest."""
    folder, found = tmp_path_factory.mktemp("deltas"), {}
    with Checkpoint(base) as tensors:
        for seed in range(3):
            dice, path = np.random.default_rng(seed), folder / f"{seed}"
            with TensorWriter(path, tensors.shapes, "F32") as writer:
                for name, info in tensors.items():
                    writer.write(name, 0, (0.01 * dice.standard_normal(info.num_elements)).astype(np.float32))
            found[ref_of(path).digest] = path
    return dict(sorted(found.items()))


def merge_work(deltas: dict[str, Path], recipe: Recipe = MOMENTUM, **outer_state: FileRef) -> Merge:
    return Merge(
        base=BASE,
        outer_state={f"{name}.safetensors": ref for name, ref in outer_state.items()},
        parts=tuple(
            Part(delta=ref_of(path), weight=100 + number, cohort=f"x{number}")
            for number, path in enumerate(deltas.values())
        ),
        recipe=recipe,
        languages=languages("bg", "el"),
    )


def merge_folder(folder: Path, work: Merge, base: Path, inputs: dict[str, Path]) -> Path:
    make_job(folder, STANDING, work, base)
    (folder / "inputs").mkdir()
    for digest, path in inputs.items():
        shutil.copy(path, folder / "inputs" / digest)
    return folder


def version_in(folder: Path) -> VersionManifest:
    return decode((folder / "result" / "version.json").read_bytes(), VersionManifest)


def test_the_version_is_the_coordinators(base: Path, deltas: dict[str, Path], tmp_path: Path) -> None:
    """Two merges, the second with the momentum of the first; here another number of threads."""
    work, inputs = merge_work(deltas), dict(deltas)
    for number in (1, 2):
        folder = merge_folder(tmp_path / f"job{number}", work, base, inputs)
        assert run(folder) == 0
        order = MergeOrder(
            work=work,
            base_dir=str(base),
            blobs={digest: str(path) for digest, path in inputs.items()},
        )
        version = version_in(folder)
        with made("coordinator.merging_process", order, tmp_path / "making") as by_the_coordinator:
            assert version == by_the_coordinator.manifest
        assert version.ingredients == ingredients_of(work) and version.base == BASE
        model = folder / "result" / "model"
        verify_directory(version, model)
        momentum = version.outer_state[OUTER_STATE]
        work, inputs = merge_work(deltas, outer=momentum), {**deltas, momentum.digest: model / OUTER_STATE}
    assert version.outer_state != version_in(tmp_path / "job1").outer_state


def test_what_is_signed_is_all_of_it_and_nothing_else(
    base: Path, deltas: dict[str, Path], tmp_path: Path
) -> None:
    folder = merge_folder(tmp_path / "job", merge_work(deltas), base, deltas)
    assert run(folder) == 0
    signed, version = contribution(folder), version_in(folder)
    files = {**version.files, **version.outer_state}
    path = folder / "result" / "version.json"
    assert signed.artifacts == {
        VERSION: ref_of(path),
        **{model_file(name): ref for name, ref in files.items()},
    }
    assert signed.artifacts[VERSION].digest == version.digest
    assert {p.name for p in (folder / "result" / "model").iterdir()} == files.keys()
    assert (signed.base, signed.steps, signed.tokens) == (BASE, 0, {})
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert (lines[0]["step"], lines[-1]["step"]) == (0, 100) and {line["steps"] for line in lines} == {100}


@pytest.mark.parametrize(
    "outer",
    [PLAIN_AVERAGE.outer, OuterStep(), OuterStep(optimizer="adam"), OuterStep(optimizer="sgd", momentum=0.0)],
)
def test_the_outer_state_is_there_when_it_should_be(
    outer: OuterStep, base: Path, deltas: dict[str, Path], tmp_path: Path
) -> None:
    work = merge_work(deltas, Recipe(outer=outer))
    version = make_version(work, base, lambda digest: deltas[digest], tmp_path / "out")
    assert version.outer_state.keys() == outer_files(work.recipe)


def test_a_stop_file_stops_it_and_leaves_nothing_half_made(
    base: Path, deltas: dict[str, Path], tmp_path: Path
) -> None:
    folder = merge_folder(tmp_path / "job", merge_work(deltas), base, deltas)
    before = {path.name for path in folder.iterdir()}
    (folder / "STOP").touch()
    assert run(folder) == CONTINUE_LATER
    assert {path.name for path in folder.iterdir()} == before | {"STOP", "progress.jsonl"}
    (folder / "STOP").unlink()
    assert run(folder) == 0
    assert version_in(folder) == make_version(
        merge_work(deltas), base, lambda digest: deltas[digest], tmp_path / "out"
    )


def test_bytes_that_are_not_what_was_ordered_fail_the_job(
    base: Path, deltas: dict[str, Path], tmp_path: Path
) -> None:
    folder = merge_folder(tmp_path / "job", merge_work(deltas), base, deltas)
    changed = folder / "inputs" / next(iter(deltas))
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    assert run(folder) not in (0, CONTINUE_LATER)
    failure = msgspec.json.decode((folder / "failure.json").read_bytes(), type=Failure)
    assert failure.reason is FailureReason.BAD_INPUT and "sha256" in failure.sentence
    assert not (folder / "result").exists()


def test_it_does_without_torch(base: Path, deltas: dict[str, Path], tmp_path: Path) -> None:
    folder = merge_folder(tmp_path / "job", merge_work(deltas), base, deltas)
    program = (
        "import sys; from site_agent.trainer.__main__ import main; code = main(sys.argv[1:]); "
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split() == ["0", "False"]


def test_the_order_says_everything(deltas: dict[str, Path]) -> None:
    """It goes through job.json and back."""
    work = merge_work(deltas)
    spelt = encode(work)
    assert decode(spelt, Merge) == work and b'"merge"' in spelt
    assert Merge in Assignment.__annotations__["work"].__args__
