"""While a job prepares text it shows that it lives, and leaves when it is asked to; what is done is kept."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from trainer_samples import make_job, tokenizer_work, train_work

from consortium.ids import AttemptId
from site_agent.core.facts import AttemptFiles
from site_agent.core.lives import fruitless_lives
from site_agent.record import note_launch, read_launches, text_bytes_of
from site_agent.trainer import folder as trainer_folder
from site_agent.trainer import stepping, training
from site_agent.trainer.bpe import train_tokenizer
from site_agent.trainer.folder import JobFolder, Site, Stopped
from site_agent.trainer.model import load_model
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.training import train

WORK = train_work(steps=2)


@pytest.fixture
def fresh(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The same text, prepared by nobody yet; a line of progress as often as it may be."""
    monkeypatch.setattr(trainer_folder, "PROGRESS_SECONDS", 0.0)
    return msgspec.structs.replace(site, cache=str(tmp_path / "cache"))


def after(beats: int) -> Callable[[], bool]:
    count = iter(range(1_000_000))
    return lambda: next(count) >= beats


def steps_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "progress.jsonl").read_text().splitlines()]


def test_a_job_that_prepares_text_is_neither_hung_nor_deaf(
    tmp_path: Path, fresh: Site, base: Path, alone: Ranks
) -> None:
    folder = make_job(tmp_path / "job", fresh, WORK, base)
    with pytest.raises(Stopped):
        train(JobFolder(folder), WORK, alone, after(3))
    assert steps_of(folder) == [0, 0, 0, 0]
    assert (folder / "CONTINUE").exists()
    assert not list((folder / "checkpoint").glob("step-*"))
    kept = sorted(Path(fresh.cache).glob("preparing/*/*.segment"))
    assert kept
    train(JobFolder(folder), WORK, alone, lambda: False)
    assert (folder / "result").is_dir()
    train(JobFolder(make_job(tmp_path / "again", fresh, WORK, base)), WORK, alone, lambda: False)
    assert steps_of(tmp_path / "again").count(0) == 1  # nothing is left to prepare


def test_lives_that_only_prepare_get_further_and_say_so(
    tmp_path: Path, fresh: Site, base: Path, alone: Ranks
) -> None:
    """More of them than ``lives_max`` would allow if they brought nothing."""
    folder = make_job(tmp_path / "job", fresh, WORK, base)
    fruitless = [0]
    for life in range(1, 50):
        note_launch(folder, life)
        try:  # asked to leave after one part of the text; a language's merge is done in one life, or again
            train(JobFolder(folder), WORK, alone, after(5 if fruitless[-1] else 1))
        except Stopped:
            files = AttemptFiles(
                attempt=AttemptId("demo_r1-train-north.a1"),
                lives=life,
                launches=read_launches(folder),
                text_bytes=text_bytes_of(folder),
            )
            fruitless.append(fruitless_lives(files))
        else:
            break
    assert (folder / "result").is_dir()
    assert fruitless.count(0) > 4
    assert max(fruitless) == 1


@pytest.mark.parametrize("beats", [1, 5, 40])
def test_a_tokenizer_job_leaves_while_it_reads(tmp_path: Path, fresh: Site, beats: int) -> None:
    folder = make_job(tmp_path / "job", fresh, tokenizer_work())
    with pytest.raises(Stopped):
        train_tokenizer(JobFolder(folder), tokenizer_work(), after(beats))
    assert len(steps_of(folder)) == beats + 2
    train_tokenizer(JobFolder(folder), tokenizer_work())
    assert (folder / "result" / "tokenizer.json").exists()


def test_a_model_in_shards_comes_to_the_gpu_block_by_block(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be larger than any of them."""
    model = load_model(base, torch.device("cuda"), torch.device("cpu"))
    assert model.backend.startswith("transformers")  # the program is that of the device it is computed on
    assert {weight.device.type for weight in model.weights.values()} == {"cpu"}
    asked: list[object] = []

    def load(folder: Path, device: torch.device, place: torch.device, backend: str) -> None:
        asked.append(place.type)
        raise Stopped

    monkeypatch.setattr(stepping, "load_model", load)
    monkeypatch.setattr(training, "batches_of", lambda *_: None)
    two = dataclasses.replace(alone, world=2, device=torch.device("meta"))
    for sharding, ranks in (("fsdp", two), ("hsdp", two), ("none", two), ("fsdp", alone)):
        shared = msgspec.structs.replace(site, sharding=sharding)
        folder = make_job(tmp_path / f"{sharding}-{ranks.world}", shared, WORK, base)
        with pytest.raises(Stopped):
            train(JobFolder(folder), WORK, ranks, lambda: False)
    assert asked == ["cpu", "cpu", "meta", "cpu"]
