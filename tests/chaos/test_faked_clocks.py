"""What a wrong clock leaves behind on the machine when its process is killed is removed with the arena."""

import os
import subprocess
import sys
from pathlib import Path

import arena
import pytest
from arena import can_fake_time, sweep_faked


@pytest.mark.skipif(
    not can_fake_time(), reason="libfaketime is not installed (Debian: apt-get install faketime)"
)
def test_nothing_of_a_killed_process_stays_in_shared_memory_and_of_others_all() -> None:
    def begun() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", "print('begun', flush=True); input()"],
            env={**os.environ, **arena._faked(3600)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def left(process: "subprocess.Popen[str]") -> list[str]:
        return sorted(path.name for path in Path("/dev/shm").glob(f"*faketime_*_{process.pid}"))

    with begun() as ours, begun() as others:
        for process in (ours, others):
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
        ours.kill()
        ours.wait()
        assert left(ours) == [f"faketime_shm_{ours.pid}", f"sem.faketime_sem_{ours.pid}"]
        sweep_faked([ours.pid, others.pid])
        assert left(ours) == [] and len(left(others)) == 2  # it runs
        others.communicate("\n")
    assert left(others) == []
