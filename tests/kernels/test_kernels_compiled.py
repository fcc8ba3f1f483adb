"""What the kernels become on GPUs that are not here: wide loads, no spills, no two operations fused into one."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
REGISTERS_MAX = 64  # of 4 warps: 8 programs on a multiprocessor of an H100, enough loads in flight

Found = dict[tuple[str, str, bool], dict[str, Any]]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or platform.machine() != "x86_64",
    reason="triton is not installed (the extra `kernels`), or has no tools for this machine",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": str(HERE.parents[1]),
    }
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, HERE / "compiled.py"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {(row["encoding"], row["target"], row["fusion"]): row for row in rows}


@pytest.mark.parametrize("encoding", ["int8", "int4"])
@pytest.mark.parametrize("target", ["sm_90", "gfx90a"])
def test_nothing_spills_and_subnormals_stay(encoding: str, target: str, found: Found) -> None:
    row = found[encoding, target, False]
    assert row["spills"] == row["stack"] == 0, row
    assert row["registers"] <= REGISTERS_MAX, row
    assert not row["flushes_subnormals"], row
    assert row["ieee_divisions"] > 1, row


@pytest.mark.parametrize("encoding", ["int8", "int4"])
def test_floats_are_read_and_written_four_at_a_time(encoding: str, found: Found) -> None:
    nvidia, amd = (found[encoding, target, False]["memory"] for target in ("sm_90", "gfx90a"))
    assert [name for name in nvidia if name.startswith("LDG")] == ["LDG.E.128"]
    assert nvidia["STG.E.128"] * 3 == nvidia["LDG.E.128"]  # residuals; three are read for one written
    assert [name for name in amd if "load" in name] == ["global_load_dwordx4"]
    assert amd["global_store_dwordx4"] * 3 == amd["global_load_dwordx4"]


@pytest.mark.parametrize("encoding", ["int8", "int4"])
def test_no_product_is_fused_with_a_difference(encoding: str, found: Found) -> None:
    """With fusion allowed they are, which is what makes this a test."""
    assert found[encoding, "sm_90", False]["fused"] == 0 < found[encoding, "sm_90", True]["fused"]
    strict, loose = (found[encoding, "gfx90a", fusion] for fusion in (False, True))
    assert strict["fused"] == 5 * strict["ieee_divisions"]  # division is made of five
    assert loose["fused"] > strict["fused"]
