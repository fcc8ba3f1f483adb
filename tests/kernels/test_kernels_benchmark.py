"""The benchmark of the kernels runs dry where there is no GPU, and says that it measured nothing."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or torch.cuda.is_available(),
    reason="triton is not installed (the extra `kernels`), or there is a GPU to measure",
)
def test_it_runs_dry(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_codecs.py", "--json", tmp_path / "found.json", "--workdir", tmp_path],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DRY RUN ON A CPU: NOTHING BELOW IS A MEASUREMENT\n")
    found = json.loads((tmp_path / "found.json").read_text())
    assert not found["is_measurement"]
    rows = found["coding on the device"] + found["writing a delta"]
    assert {(row["encoding"], row["way"]) for row in rows} == {
        (encoding, way)
        for encoding in ("int8", "int4")
        for way in ("eager", "torch.compile", "triton", "codecs")
    }
    assert all(row["codecs_bytes"] and row["seconds"] is None for row in rows)
