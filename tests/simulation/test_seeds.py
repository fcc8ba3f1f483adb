"""Small consortia in bad weather: every invariant after every event, and every campaign ends.

In shares, so that both processors have something to do and a failure is told early; SPRACHBUND_SEEDS=2000 runs so many.
A failing seed is replayed with
``python -m simulation.seeds SEED``.
"""

import os
import subprocess
import sys

import pytest

from simulation.seeds import fate_of, fates

SHARE = 50
SEEDS = int(os.environ.get("SPRACHBUND_SEEDS", "600"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SEEDS, SHARE))
def test_the_invariants_hold_in_rough_weather(first: int) -> None:
    seeds = range(first, min(SEEDS, first + SHARE))
    failed = [f"{fate.seed}: {fate.violations[0]}" for fate in fates(seeds, "rough", 2) if fate.violations]
    assert not failed


@pytest.mark.parametrize("weather", ["rough", "storm"])
def test_a_seed_gives_the_same_ledger_in_every_process(weather: str) -> None:
    def head(hash_seed: str) -> str:
        code = f"from simulation.seeds import fate_of; print(fate_of(7, {weather!r}).head)"
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    found = head("1")
    assert len(found) == 64 and found == head("2") == fate_of(7, weather).head
