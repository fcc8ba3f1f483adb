"""The benchmark of the trainer runs dry, compares what can be compared, and says what could not be run."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"


@pytest.fixture(name="pages")
def _pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import training_page

    module: ModuleType = training_page
    return module


def run(speed: float, loss: float = 8.0, device: str = "cpu", **more: Any) -> dict[str, Any]:
    return {
        "device": device,
        "tokens_per_second": speed,
        "cpu_seconds_per_step": 100 / speed,
        "step_p50": 0.1,
        "step_p90": 0.2,
        "first_loss": loss,
        "peak_bytes": 1e9,
        "warmup_seconds": 1.0,
        "mfu": 0.5,
        "mfu_causal": 0.4,
        "operations_per_second": 1e9,
        **more,
    }


def rows(pages: ModuleType, *runs: list[dict[str, Any]]) -> list[Any]:
    model = pages.Model(name="small", config={"a": 1}, batch_sequences=1, sequence_tokens=8)
    variants = tuple(pages.Variant(name=f"way {number}") for number in range(len(runs)))
    phase = pages.Phase(model=model, variants=variants, steps=1, warmup=1)
    return [
        pages.Row(phase=phase, variant=variant, runs=said)
        for variant, said in zip(variants, runs, strict=True)
    ]


def line_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"| {name} |"))


def test_ratios_are_of_medians_and_to_the_first_variant(pages: ModuleType) -> None:
    found = rows(pages, [run(100), run(50), run(90)], [run(180), run(10), run(200)])
    told = pages.page(found, {}, "cpu", 1, 60.0)
    assert "| 90 |" in line_of(told, "way 0") and "| 180 |" in line_of(told, "way 1")
    assert "| 2.00 (2.00) |" in line_of(told, "way 1")
    assert "No GPU was at hand" in told


@pytest.mark.parametrize(
    ("device", "loss", "agrees"), [("cpu", 8.001, False), ("H100", 8.001, True), ("H100", 8.1, False)]
)
def test_another_loss_in_the_first_step_is_seen(
    pages: ModuleType, device: str, loss: float, agrees: bool
) -> None:
    found = rows(pages, [run(100, device=device)], [run(100, loss, device)])
    assert found[1].is_agreeing(found) is agrees
    told = pages.page(found, {}, "gpu" if device != "cpu" else "cpu", 1, 60.0)
    assert ("**differs**" not in line_of(told, "way 1")) is agrees


def test_what_is_not_installed_or_fails_has_its_row(pages: ModuleType) -> None:
    found = rows(pages, [run(100)], [{"missing": "liger-kernel"}], [{"failed": "RuntimeError: no"}])
    told = pages.page(found, {}, "cpu", 1, 60.0)
    assert "not installed: liger-kernel" in line_of(told, "way 1")
    assert "failed: RuntimeError: no" in line_of(told, "way 2")


@pytest.mark.soak
def test_it_runs_dry(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command = [sys.executable, SCRIPT, "--dry", "--json", "--markdown", page]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {(row["model"], row["variant"]): row["runs"] for row in json.loads(done.stdout)}
    plain, native = found["tiny", "plain loop, transformers"][0], found["tiny", "ours, native"][0]
    assert native["first_loss"] == plain["first_loss"]
    assert native["last_loss"] == pytest.approx(plain["last_loss"], rel=1e-3)
    assert native["backend"] == "native"
    whole, parts = (
        found["tiny, packed", name][0] for name in ("ours, native", "ours, native, loss in parts")
    )
    assert parts["first_loss"] == pytest.approx(whole["first_loss"], rel=1e-6)
    assert "missing" in found["tiny", "plain loop, Liger"][0]
    assert "Ceilings here" in page.read_text(encoding="utf-8")
