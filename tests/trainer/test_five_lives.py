"""A job of five lives is one job: stopped or killed at any step, the same bits; ended early, a partial result."""

import asyncio
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainer_samples import (
    contribution,
    make_job,
    run,
    sha256,
    start_and_wait,
    tokenizer_work,
    train_work,
    wait_for_checkpoint,
)

from consortium.errors import BadInput
from consortium.tensors import TensorFile
from site_agent.carry import salvage
from site_agent.record import checkpoint_of
from site_agent.trainer.folder import CONTINUE_LATER, JobFolder, Site, Stopped
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.training import train
from site_agent.transfers import Died

WORK = train_work(steps=60, checkpoint_steps=7)
LONG = train_work(steps=120, checkpoint_steps=5, sequence_tokens=32, batch_sequences=8)


def finish(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "site_agent.trainer", "--finish", str(folder)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def same_result(one: Path, other: Path) -> bool:
    first, second = contribution(one), contribution(other)
    assert (first.losses, first.tokens, first.steps) == (second.losses, second.tokens, second.steps)
    return sha256(one / "result" / "delta.safetensors") == sha256(other / "result" / "delta.safetensors")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, site: Site, base: Path, alone: Ranks) -> Path:
    folder = make_job(tmp_path_factory.mktemp("straight") / "job", site, WORK, base)
    train(JobFolder(folder), WORK, alone, lambda: False)
    return folder


@pytest.fixture(scope="module")
def long_straight(tmp_path_factory: pytest.TempPathFactory, site: Site, base: Path) -> Path:
    folder = make_job(tmp_path_factory.mktemp("long") / "job", site, LONG, base)
    assert run(folder) == 0
    return folder


@pytest.mark.parametrize("seed", range(3))
def test_cut_at_five_steps_a_job_is_one_job(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, straight: Path, seed: int
) -> None:
    folder = make_job(tmp_path / "job", site, WORK, base)
    stops = sorted(random.Random(seed).sample(range(1, 60), 5))
    for stop in stops:
        begun = checkpoint_of(folder)[0]
        looks = iter(range(begun + 1, 61))
        with pytest.raises(Stopped):
            train(JobFolder(folder), WORK, alone, lambda looks=looks, stop=stop: next(looks) >= stop)  # type: ignore[misc]
        assert checkpoint_of(folder) == (stop, True)
        assert (folder / "CONTINUE").exists()
    train(JobFolder(folder), WORK, alone, lambda: False)
    assert same_result(folder, straight)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["STOP", "kill"])
def test_five_real_lives_are_one_job(
    tmp_path: Path, site: Site, base: Path, long_straight: Path, way: str
) -> None:
    folder = make_job(tmp_path / "job", site, LONG, base)
    draw = random.Random(way)
    for life in range(4):
        if way == "STOP":
            (folder / "STOP").touch()  # seen after one step
            assert run(folder) == CONTINUE_LATER
            (folder / "STOP").unlink()
            assert checkpoint_of(folder) == (life + 1, True)
        else:
            with start_and_wait(folder, steps=20) as trainer:
                wait_for_checkpoint(folder, trainer, checkpoint_of(folder)[0] + 1)
                time.sleep(draw.random() * 0.1)
                trainer.kill()
        assert (folder / "CONTINUE").exists() == (way == "STOP")
        assert not (folder / "result").exists()
    assert run(folder) == 0
    assert not (folder / "CONTINUE").exists()
    assert same_result(folder, long_straight)


def test_asked_to_finish_it_delivers_the_steps_it_has_done(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, straight: Path
) -> None:
    folder = make_job(tmp_path / "job", site, WORK, base)
    looks = iter(range(1, 61))
    train(JobFolder(folder), WORK, alone, lambda: False, lambda: next(looks) >= 20)
    made, whole = contribution(folder), contribution(straight)
    assert (made.steps, made.planned_steps) == (20, 60)
    assert sum(made.tokens.values()) == 20 * WORK.batch_sequences * WORK.sequence_tokens
    assert made.data == whole.data
    assert made.losses is not None
    assert whole.losses is not None
    assert made.losses.first == whole.losses.first


@pytest.mark.parametrize("encoding", ["fp32", "int8"])
def test_a_partial_result_is_made_without_training_and_is_the_same(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, encoding: str
) -> None:
    work = train_work(steps=60, checkpoint_steps=7, delta_dtype=encoding, token_counts=True)
    finished = make_job(tmp_path / "finished", site, work, base)
    looks = iter(range(1, 61))
    train(JobFolder(finished), work, alone, lambda: False, lambda: next(looks) >= 20)
    stopped = make_job(tmp_path / "stopped", site, work, base)
    steps = iter(range(1, 61))
    with pytest.raises(Stopped):
        train(JobFolder(stopped), work, alone, lambda: next(steps) >= 20)
    asyncio.run(salvage(stopped))  # as the agent does
    one, other = contribution(finished), contribution(stopped)
    assert one.artifacts == other.artifacts
    assert (one.tokens, one.steps, one.data, one.residual) == (
        other.tokens,
        other.steps,
        other.data,
        other.residual,
    )
    assert finish(stopped).returncode == 0  # it is there already
    assert not (stopped / "checkpoint").exists()


def test_a_process_that_is_killed_at_it_has_died_and_was_polite(tmp_path: Path, monkeypatch) -> None:
    """A login node's guard may end it again and again; everybody else comes first there."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nnice > "{tmp_path}/nice"\nkill -KILL $$\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(Died, match="exit code -9"):
        asyncio.run(salvage(tmp_path))
    assert int((tmp_path / "nice").read_text()) >= 10


def test_a_partial_result_needs_neither_text_nor_torch(
    tmp_path: Path, site: Site, base: Path, alone: Ranks
) -> None:
    folder = make_job(tmp_path / "job", site, WORK, base)
    steps = iter(range(1, 61))
    with pytest.raises(Stopped):
        train(JobFolder(folder), WORK, alone, lambda: next(steps) >= 5)
    (folder / "site.json").write_bytes(
        (folder / "site.json").read_bytes().replace(b"text", b"tekst").replace(b'"tekst"', b'"text"')
    )
    program = (
        "import sys; from site_agent.trainer.__main__ import main; assert main(sys.argv[1:]) == 0;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, "--finish", str(folder)], check=True)
    with TensorFile(folder / "result" / "delta.safetensors") as delta:
        assert any(delta.array(name).any() for name in delta)


def test_what_has_no_whole_checkpoint_has_no_partial_result(
    tmp_path: Path, site: Site, base: Path, alone: Ranks
) -> None:
    folder = make_job(tmp_path / "job", site, WORK, base)
    done = finish(folder)
    assert done.returncode == 2
    assert "holds no whole training checkpoint" in done.stderr
    with pytest.raises(BadInput, match="holds no whole training checkpoint"):
        asyncio.run(salvage(folder))
    steps = iter(range(1, 61))
    with pytest.raises(Stopped):
        train(JobFolder(folder), WORK, alone, lambda: next(steps) >= 5)
    other = make_job(tmp_path / "other", site, train_work(steps=61, checkpoint_steps=7), base)
    shutil.copytree(folder / "checkpoint", other / "checkpoint")
    assert "is a checkpoint of another job" in finish(other).stderr
    [saved] = (folder / "checkpoint").glob("*/state.safetensors")
    saved.write_bytes(saved.read_bytes()[:-1] + b"\xff")
    assert finish(folder).returncode == 2
    assert not (folder / "failure.json").exists()  # it says nothing of the job
    assert not (folder / "result").exists()
    tokenizer = make_job(tmp_path / "tokenizer", site, tokenizer_work())
    assert "only a training job has a partial result" in finish(tokenizer).stderr
