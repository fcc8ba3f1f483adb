"""Small consortia in bad weather: every invariant after every event, and every campaign ends.

In shares, so that a failure is told early, and by processes that take what other tests leave of both processors:
``make test`` runs this file beside all others. SPRACHBUND_SEEDS=5000 runs so many.
A failing seed is replayed with
``python -m simulation.seeds SEED``.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from simulation.seeds import crew, fates

SHARE = 50
SEEDS = int(os.environ.get("SPRACHBUND_SEEDS", "2000"))


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessPoolExecutor]:
    processes = crew(2, aside=True)
    try:
        yield processes
    finally:
        processes.shutdown(cancel_futures=True)  # whoever breaks off does not wait for what is given out


@pytest.mark.slow
@pytest.mark.timeout(3600)  # nothing but a hang is meant: everybody else goes first
@pytest.mark.parametrize("first", range(0, SEEDS, SHARE))
def test_the_invariants_hold_in_rough_weather(first: int, workers: ProcessPoolExecutor) -> None:
    seeds = range(first, min(SEEDS, first + SHARE))
    found = fates(seeds, "rough", workers)
    failed = [f"{fate.seed}: {fate.violations[0]}" for fate in found if fate.violations]
    assert not failed


@pytest.mark.parametrize("weather", ["rough", "storm"])
def test_a_seed_gives_the_same_ledger_in_every_process(weather: str, tmp_path: Path) -> None:
    """Whatever the order of its sets, its clock's zone, its language and the folder that it runs in."""

    def head(**settings: str) -> str:
        code = f"from simulation.seeds import fate_of; print(fate_of(8, {weather!r}).head)"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
            **settings,
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    found = head(PYTHONHASHSEED="1", TZ="Pacific/Auckland", LC_ALL="C", LANGUAGE="tr")
    assert len(found) == 64
    assert found == head(PYTHONHASHSEED="2", TZ="America/St_Johns", LC_ALL="C.UTF-8", HOME=str(tmp_path))
