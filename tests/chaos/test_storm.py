"""Faults of every kind fall on real processes for the length of one campaign; the same model comes out."""

from pathlib import Path

import pytest
from arena import can_fake_time, can_mount
from storm import Storm, through, undisturbed

pytestmark = [pytest.mark.soak, pytest.mark.demo, pytest.mark.timeout(900)]


def test_a_storm_changes_no_model_and_loses_no_event(tmp_path: Path) -> None:
    wanted = undisturbed(tmp_path / "calm", [1], rounds=1)
    storm = Storm(seed=5, faults=1, pause_seconds=3.0)
    assert through(storm, tmp_path / "storm", wanted, rounds=1), storm.failed
    assert storm.total >= 5
    assert can_mount() or not any(kind.startswith("fill_disk") for kind in storm.fallen)
    assert can_fake_time() or not any(kind.startswith("wrong_clock") for kind in storm.fallen)
