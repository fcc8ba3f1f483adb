"""What the local launcher knows of a life's end, and of what all lives used."""

import os
import sys

import pytest
from launcher_contract import until

from consortium.canonical import decode
from site_agent.core.facts import Cause, Seen, Usage
from site_agent.launchers.clock import life_begins, life_ended, life_runs
from site_agent.launchers.local import LocalLauncher, trainer_of


def usage(directory):
    return decode((directory / "usage.json").read_bytes(), Usage)


def test_lives_add_up_and_gpus_count(tmp_path):
    life_begins(tmp_path, 1, now=1000.0)
    life_begins(tmp_path, 1, now=1005.0)  # submitted again: it began before
    life_runs(tmp_path, 1, gpus=4, now=1030.0)
    assert not (tmp_path / "usage.json").exists()
    life_runs(tmp_path, 1, gpus=4, now=1060.0)
    assert usage(tmp_path) == Usage(seconds=60.0, gpu_seconds=240.0)
    life_ended(tmp_path, 1, gpus=4, was_seen=True, now=1100.0)
    life_ended(tmp_path, 1, gpus=4, was_seen=True, now=1200.0)  # looked at again
    assert usage(tmp_path) == Usage(seconds=100.0, gpu_seconds=400.0)
    life_begins(tmp_path, 2, now=5000.0)
    life_ended(tmp_path, 2, gpus=4, was_seen=True, now=5010.0)
    assert usage(tmp_path) == Usage(seconds=110.0, gpu_seconds=440.0)


def test_what_ended_while_no_agent_looked_ended_with_its_last_sign(tmp_path):
    life_begins(tmp_path, 1, now=1000.0)
    (tmp_path / "progress.jsonl").touch()
    os.utime(tmp_path / "progress.jsonl", (1500.0, 1500.0))
    life_ended(tmp_path, 1, gpus=1, was_seen=False, now=90000.0)
    assert usage(tmp_path) == Usage(seconds=500.0, gpu_seconds=500.0)


def test_what_never_gave_a_sign_used_nothing(tmp_path):
    life_begins(tmp_path, 1, now=1000.0)
    life_ended(tmp_path, 1, gpus=1, was_seen=False, now=90000.0)
    assert not (tmp_path / "usage.json").exists()


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("exit 0", Cause.FINISHED),
        ("exit 3", Cause.FINISHED),
        ("exit 75", Cause.STOPPED),
        ('touch "$0/CONTINUE"; exit 0', Cause.STOPPED),  # as under torchrun
        ("kill -9 $$", None),
    ],
)
def test_how_a_life_ended_is_said_where_it_is_known(tmp_path, script, cause):
    directory = tmp_path / "job"
    directory.mkdir()
    (directory / "CONTINUE").touch()  # of the life before
    launcher = LocalLauncher(("/bin/sh", "-c", script))
    launcher.submit(directory, 1)
    until(lambda: launcher.poll([directory])[directory].seen is Seen.GONE, "the end")
    assert launcher.poll([directory])[directory].cause is cause
    if (directory / "CONTINUE").exists():  # another agent knows it, too
        assert LocalLauncher(()).poll([directory])[directory].cause is cause


def test_more_than_one_rank_goes_by_torchrun():
    assert trainer_of(1) == (sys.executable, "-P", "-m", "site_agent.trainer")
    assert "torch.distributed.run" in trainer_of(2)
    assert trainer_of(2)[-4:] == ("--nproc-per-node", "2", "-m", "site_agent.trainer")
