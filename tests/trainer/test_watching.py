"""What a line of progress says beside the loss, and that saying it changes no bit."""

import json
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn
from trainer_samples import contribution, make_job, sha256, train_work

from site_agent.core.facts import Progress
from site_agent.trainer import folder as folders
from site_agent.trainer.batches import Batches
from site_agent.trainer.folder import JobFolder, Site
from site_agent.trainer.memory import Sizes
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.training import train
from site_agent.trainer.watching import Watch, operations_per_token, peak_of


@pytest.mark.parametrize("at_once", [None, 3])
def test_progress_says_more_and_no_bit_changes(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch, at_once: int | None
) -> None:
    site = msgspec.structs.replace(site, device_sequences=at_once)
    made = []
    for seconds in (1000.0, 0.0):  # hardly ever a line; one each step
        monkeypatch.setattr(folders, "PROGRESS_SECONDS", seconds)
        folder = make_job(tmp_path / f"{seconds}", site, train_work(batch_sequences=8), base)
        job = JobFolder(folder)
        train(job, train_work(batch_sequences=8), alone, lambda: False)
        found = contribution(folder)
        made.append((sha256(folder / "result/delta.safetensors"), found.losses, found.tokens))
    assert made[0] == made[1]
    written = (folder / "progress.jsonl").read_bytes().splitlines()
    lines = [json.loads(line) for line in written]
    training = [line for line in lines if line["step"]]
    assert len(training) >= 12
    assert lines[-1]["eta_seconds"] in (0.0, None)
    for line in training:
        assert 0 < line["grad_norm"] < 100
        assert line["mfu"] is line["mfu_causal"] is None  # nobody knows this processor's peak
        assert line["data_wait_seconds"] >= 0
        assert line["peak_bytes"] > 1 << 20
        by_language = line["loss_by_language"]
        assert set(by_language) <= {"bg", "el", "et"}
        assert min(by_language.values()) - 1.0 < line["loss"] < max(by_language.values()) + 1.0
    assert set(training[-1]["loss_by_language"]) == {"bg", "el", "et"}
    for line in written:  # what the agent does not know, it ignores
        assert msgspec.json.decode(line, type=Progress).step <= 12


@pytest.mark.parametrize("step_seconds", [0.5, 1.9, 7.0])
def test_lines_have_languages_however_long_a_step_takes(
    tmp_path: Path, site: Site, base: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch, step_seconds: float
) -> None:
    """Lines are two seconds apart: asked for at a step's begin alone, they would never be due in long steps."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    rows = Batches.rows

    def slowly(*given: int) -> object:
        now[0] += step_seconds
        return rows(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Batches, "rows", slowly)
    work = train_work(batch_sequences=8)
    folder = make_job(tmp_path / "job", site, work, base)
    train(JobFolder(folder), work, alone, lambda: False)
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["step"]]
    assert len(trained) >= 3
    assert all(line["loss_by_language"] for line in trained)


class _Said(nn.Module):
    def __init__(self, logits: torch.Tensor | None) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, rows: torch.Tensor) -> "_Said":
        return self


def test_languages_are_means_over_their_rows_also_of_transformers_answers() -> None:
    logits = torch.zeros(3, 2, 4)
    logits[2, :, 1] = 100.0
    rows = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 1, 1]])
    network = _Said(logits)
    watch = Watch(network, None, 2, None)
    with watch.languages(rows[:, 1:], ["et", "bg", "et"]):  # type: ignore[list-item]
        network(rows)
    network(rows)  # not looked at
    found = watch.numbers(50.0, 1000, 1)
    assert found["loss_by_language"] == pytest.approx({"bg": 1.386294, "et": 0.693147})
    assert found["eta_seconds"] == 20.0
    fused = _Said(None)
    watch = Watch(fused, None, 2, None)
    with watch.languages(rows[:, 1:], ["et", "bg", "et"]):  # type: ignore[list-item]
        fused(rows)
    assert watch.numbers(0.0, 1000, 1)["loss_by_language"] is None


def test_both_definitions_of_utilisation() -> None:
    """The model of shared figures: 1.1B parameters, 8.42 and 7.31 GFLOP per token at 4096 tokens."""
    sizes = Sizes(
        parameters=1_100_000_000, learning=1_100_000_000, in_products=1_034_400_000, layers=22, width=2048,
        inner=5632, queries=2048, vocabulary=32000,
    )  # fmt: skip
    whole = operations_per_token(sizes, 4096, is_causal=False)
    half = operations_per_token(sizes, 4096, is_causal=True)
    assert (whole / 1e9, half / 1e9) == (pytest.approx(8.42, abs=0.01), pytest.approx(7.31, abs=0.01))
    watch = Watch(nn.Identity(), sizes, 4096, peak_of("NVIDIA H100 80GB HBM3"))
    found = watch.numbers(2 * 58_700.0, 0, 2)
    assert (found["mfu"], found["mfu_causal"]) == (
        pytest.approx(0.50, abs=0.001),
        pytest.approx(0.434, abs=0.001),
    )
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("some other device") is None
