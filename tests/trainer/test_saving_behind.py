"""Training checkpoints that are written while training goes on."""

import threading
from pathlib import Path

import pytest
import torch
from trainer_samples import BASE, make_job, sha256, train_work

from consortium.errors import DiskFull
from consortium.tensors import TensorFile
from site_agent.trainer import saves
from site_agent.trainer.folder import JobFolder, Site, Stopped
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.saves import Account, Made, Saver
from site_agent.trainer.training import _Training, train

MADE = Made(data={}, tokens={}, public_tokens={}, software={}, weights={})


def values(folder: Path, step: int) -> list[float]:
    found = saves.newest(folder)
    assert found is not None and found[0].account.step == step
    with TensorFile(found[1]) as file:
        return file.array("weight/x").tolist()


def test_what_is_written_is_what_was_there_when_it_was_asked_for(
    tmp_path: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, real = threading.Event(), Saver._write

    def slowly(*given: object) -> None:
        assert may_write.wait(300)
        real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Saver, "_write", slowly)
    tensors = {"weight/x": torch.arange(3.0)}
    with Saver(tmp_path, BASE, alone, is_behind=True) as saver:
        saver.save(Account(step=1), MADE, tensors)
        assert saves.newest(tmp_path) is None
        tensors["weight/x"] += 10.0  # training goes on
        may_write.set()
        saver.wait()
        assert values(tmp_path, 1) == [0.0, 1.0, 2.0]
        saver.save(Account(step=2), MADE, tensors, is_needed=True)
        assert values(tmp_path, 2) == [10.0, 11.0, 12.0]
        saver.save(Account(step=3), MADE, tensors)
    assert values(tmp_path, 3) == [10.0, 11.0, 12.0]  # leaving waits
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000003"]


def test_what_goes_wrong_behind_is_not_lost(
    tmp_path: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise DiskFull("no room")

    tensors = {"weight/x": torch.arange(3.0)}
    monkeypatch.setattr(Saver, "_write", full)
    with Saver(tmp_path, BASE, alone, is_behind=True) as saver:
        saver.save(Account(step=1), MADE, tensors)
        with pytest.raises(DiskFull):  # of the first one
            saver.save(Account(step=2), MADE, tensors)
    saver = Saver(tmp_path, BASE, alone, is_behind=True)
    saver.save(Account(step=1), MADE, tensors)
    with pytest.raises(DiskFull):
        saver.__exit__(None, None, None)


def test_a_job_that_saves_behind_and_goes_on_makes_the_same_bits(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = train_work(checkpoint_steps=2)
    straight = make_job(tmp_path / "straight", site, work, base)
    train(JobFolder(straight), work, alone, lambda: False)
    monkeypatch.setattr(_Training, "_has_room_for_a_copy", lambda self: True)
    folder = make_job(tmp_path / "job", site, work, base)
    looks = iter(range(1, 13))
    with pytest.raises(Stopped):
        train(JobFolder(folder), work, alone, lambda: next(looks) >= 7)
    found = saves.newest(folder / "checkpoint")
    assert found is not None and found[0].account.step == 7
    train(JobFolder(folder), work, alone, lambda: False)
    one, other = (sha256(place / "result/delta.safetensors") for place in (straight, folder))
    assert one == other


def test_only_a_gpus_checkpoints_are_written_behind_and_only_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stub:
        class _stepper:
            saved = {"weight/x": torch.zeros(1000)}

        _ranks = Ranks(rank=0, world=1, device=torch.device("cuda"))

    has_room = _Training._has_room_for_a_copy
    for found, wanted in ((5000, False), (5001, True), (None, True)):
        monkeypatch.setattr("site_agent.trainer.training.room", lambda found=found: found)
        assert has_room(Stub()) is wanted  # type: ignore[arg-type]
    Stub._ranks = Ranks(rank=0, world=1, device=torch.device("cpu"))
    assert not has_room(Stub())  # type: ignore[arg-type]
