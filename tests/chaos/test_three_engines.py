"""One campaign on several engines gives one version digest: real processes over gRPC, and Flower's own simulation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kill_anything import Outcome, lay_out, shorten

from console.demo import CAMPAIGN, consortium_at
from consortium.ids import CampaignId
from coordinator.driver import replay
from coordinator.ledger import Ledger
from coordinator.verification import verify
from simulation.real import simulate_folder

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.demo, pytest.mark.timeout(1200)]
SEED = 1  # as the calm run's


def test_our_simulation_makes_the_version_of_the_real_processes(
    calm: tuple[Outcome, Path], tmp_path: Path
) -> None:
    """With the real trainer; queues, network and time are simulated."""
    outcome, _ = calm
    lay_out(consortium_at(tmp_path / "simulated"), SEED, shorten)
    found = simulate_folder(tmp_path / "simulated")
    assert found.violations == ()
    promoted = [version.digest for version in found.versions if version.status == "promoted"]
    assert promoted[-1] == outcome.version


def test_flowers_own_simulation_makes_the_version_of_the_real_processes(
    calm: tuple[Outcome, Path], tmp_path: Path
) -> None:
    """Two clients at a time, in whatever order Ray likes; a process of its own, because Ray warns of much."""
    outcome, _ = calm
    workdir = tmp_path / "flower"
    lay_out(consortium_at(workdir), SEED, shorten)
    done = subprocess.run(
        [sys.executable, "-m", "simulation.flower.app"],
        env={**os.environ, "SPRACHBUND_CAMPAIGN": str(workdir)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with Ledger(workdir / "coordinator" / "ledger.sqlite", read_only=True) as ledger:
        campaign = replay(ledger).campaigns[CampaignId(CAMPAIGN)]
    assert campaign.head == outcome.version
    assert verify(workdir / "coordinator", rebuild=False).problems == ()
