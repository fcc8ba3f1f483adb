"""The demo through a real Slurm on which everything falls that falls on sites: the same model comes out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from demo_through_faults import FAULTS, Story, problems

SCRIPT = Path(__file__).parent / "demo_through_faults.py"


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.demo
@pytest.mark.timeout(1800)
def test_five_faults_change_nothing(slurm_here: None, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--keep", str(tmp_path / "runs")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    calm, *strikes, outcome = [json.loads(line) for line in done.stdout.splitlines()]
    assert {strike["fault"] for strike in strikes} == set(FAULTS)
    assert outcome["same"] and outcome["version"] == calm["version"]


def test_a_fault_that_did_not_fall_is_missed() -> None:
    story = Story()
    story.lines = [{"fault": fault} for fault in FAULTS]
    whole = {"REQUEUED": 1, "PREEMPTED": 1, "NODE_FAIL": 2, "COMPLETED": 9}
    assert problems(whole, story) == []
    assert problems({**whole, "NODE_FAIL": 0}, story) == ["no NODE_FAIL in sacct: node failure"]
    story.lines.pop()
    assert problems(whole, story) == ["agent kill"]
