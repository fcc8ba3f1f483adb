"""What a job will take and what there is: before the start, against a measured peak, and in a fake machine."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from trainer_samples import make_job, train_work

from consortium.allocator import MOST
from site_agent.trainer import planning, ranks
from site_agent.trainer.folder import JobFailed, JobFolder, Site
from site_agent.trainer.memory import Setup, Sizes, plan_memory, sizes_of, what_fits
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.room import room
from site_agent.trainer.training import train

SIZES = Sizes(
    parameters=1_000_000, learning=1_000_000, in_products=900_000, layers=4, width=64, inner=176, queries=64,
    vocabulary=512,
)  # fmt: skip
SETUP = Setup(sequences=8, sequences_at_once=8, sequence_tokens=128)


@pytest.mark.parametrize(
    "job", [("2", "2", "64", "1.0"), ("8", "8", "256"), ("8", "4", "128", "0", "128", "1")]
)
def test_a_plan_is_within_a_fifth_of_the_measured_peak(job: tuple[str, ...]) -> None:
    """One of weights and moments, one of activations and logits, one of a loss in parts and bf16 weights."""
    command = [sys.executable, str(Path(__file__).with_name("peak_of_a_step.py")), *job]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path)
    }  # where pytest finds what tests share
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout)
    assert found["planned"] == pytest.approx(found["measured"], rel=0.2), found["lines"]


def test_parts_follow_what_they_are_made_of() -> None:
    plan = plan_memory(SIZES, SETUP)
    assert (plan.weights, plan.gradients, plan.moments, plan.base) == (4_000_000, 4_000_000, 8_000_000, 0)
    half = plan_memory(SIZES, msgspec.structs.replace(SETUP, sequences_at_once=4))
    assert (half.activations, half.head) == (plan.activations / 2, plan.head / 2)
    frozen = plan_memory(msgspec.structs.replace(SIZES, learning=250_000), SETUP)
    assert (frozen.gradients, frozen.moments) == (1_000_000, 2_000_000)
    sharded = plan_memory(SIZES, msgspec.structs.replace(SETUP, ranks=4, shards=4))
    assert (sharded.weights, sharded.moments) == (1_000_000, 2_000_000)
    assert sharded.copies > 0 < plan_memory(SIZES, msgspec.structs.replace(SETUP, ranks=4)).copies
    held = plan_memory(SIZES, msgspec.structs.replace(SETUP, has_base=True))
    assert held.peak == plan.peak + 4_000_000
    assert "moments 7.6" in plan.lines()
    assert "base" not in plan.lines()


def test_what_fits_is_the_most_that_does() -> None:
    for at_once in (1, 3, 5):
        exact = plan_memory(SIZES, msgspec.structs.replace(SETUP, sequences_at_once=at_once)).peak
        assert what_fits(SIZES, SETUP, exact) == at_once
        assert what_fits(SIZES, SETUP, exact - 1) == at_once - 1
    assert what_fits(SIZES, SETUP, 1 << 60) == 8


def test_sizes_are_read_from_other_families_too() -> None:
    shapes = {"transformer.wte.weight": (320, 32), "transformer.h.0.mlp.c_fc.weight": (32, 128)}
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 320, "n_inner": None}
    sizes = sizes_of(gpt2, shapes, ["transformer.wte.weight"])
    assert sizes is not None
    assert (sizes.parameters, sizes.learning, sizes.in_products, sizes.inner) == (14336, 4096, 14336, 128)
    assert sizes_of({"model_type": "of tomorrow", "vocab_size": 320}, shapes) is None


def test_a_job_says_its_plan_and_one_that_does_not_fit_says_what_would(
    tmp_path: Path,
    site: Site,
    base: Path,
    alone: Ranks,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    work = train_work(steps=1, sequence_tokens=48)  # enough for activations to be more than gradients

    def planned(room: int | None) -> None:
        monkeypatch.setattr(planning, "room", lambda: room)
        folder = make_job(tmp_path / f"{room}", site, work, base)
        train(JobFolder(folder), work, alone, lambda: False)

    planned(None)
    assert "memory of a rank, MiB: weights 0.1, gradients 0.1, moments 0.2" in capfd.readouterr().err
    line = json.loads((tmp_path / "None/progress.jsonl").read_text().splitlines()[-1])
    peak = line["planned_bytes"]
    planned(peak)
    with pytest.raises(
        JobFailed, match=r"4 sequences of 48 tokens at once take 41 MiB here, .* fits$"
    ) as failed:
        planned(peak - 1)
    assert failed.value.reason == "out_of_memory"
    assert "set `device_sequences: 3` at this site" in str(failed.value)
    with pytest.raises(JobFailed, match="not even one sequence at a time fits: share the model"):
        planned(1 << 20)


def test_a_rank_on_a_cpu_keeps_what_its_steps_free(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr(ranks, "keep_freed_memory", kept.append)
    monkeypatch.setattr(torch, "set_deterministic_debug_mode", lambda mode: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    with ranks.joined("cpu", 1):
        assert kept == [MOST]


# --- what there is ---------------------------------------------------------------------------------


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def _no_ulimit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


MEMINFO = {
    "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:   8000 kB\n",
    "proc/self/status": "VmSize: 1000 kB\n",
}


def test_a_machine_has_what_is_available(tmp_path: Path) -> None:
    assert room(machine(tmp_path, MEMINFO)) == 8000 << 10
    assert room(tmp_path / "elsewhere") is None


def test_every_control_group_above_counts_and_cached_files_do_not(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/slurm/job_7"
    root = machine(
        tmp_path,
        MEMINFO
        | {
            "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
            f"{group}/step_0/memory.max": "max\n",
            f"{group}/step_0/memory.current": "900000\n",
            f"{group}/memory.max": "5000000\n",
            f"{group}/memory.current": "1900000\n",
            f"{group}/memory.stat": "anon 100\nactive_file 300000\ninactive_file 100000\n",
        },
    )
    assert room(root) == 5000000 - (1900000 - 400000)


def test_version_1_of_control_groups(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/job\n1:cpu:/job\n0::/\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "3000000\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "1000000\n",
        "sys/fs/cgroup/memory/job/memory.stat": "total_active_file 0\ntotal_inactive_file 500000\n",
    }
    assert room(machine(tmp_path, MEMINFO | files)) == 2500000


def test_ulimit_counts_and_nothing_is_below_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, left in ((3000 << 10, 2000 << 10), (500 << 10, 0)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        assert room(machine(tmp_path, MEMINFO)) == left
