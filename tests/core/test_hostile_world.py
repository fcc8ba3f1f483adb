"""Whatever the world does, the invariants hold after every event, and when it stops every campaign ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_world import World

HERE = Path(__file__).parent


@pytest.mark.parametrize("seed", range(200))
def test_a_hostile_world(seed: int) -> None:
    World(seed).run()


def test_the_same_seed_writes_the_same_ledger_in_every_process() -> None:
    def hashes(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, str(HERE / "hostile_world.py"), "3", "14", "15"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert len(hashes("1").split()) == 6
    assert hashes("1") == hashes("2")
