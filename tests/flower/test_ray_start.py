"""A Ray that does not come, or lets nobody in, ends in words and not in waiting."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import reaped

from consortium.errors import Unavailable
from simulation.flower import engine

HANGS = """
import subprocess, sys, time
from simulation.flower import engine
engine._START_SECONDS = 0.2
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
with engine._ends_unless_done(child):
    time.sleep(600)
"""


def test_a_client_that_hangs_takes_ray_and_its_process_with_it() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True)
    assert done.returncode == 1
    assert "lets nobody in" in done.stderr
    assert not Path(f"/proc/{int(done.stdout)}").exists()


@pytest.mark.parametrize(
    ("program", "how"), [("exit(3)", "ended with exit code 3"), ("input()", "is not there")]
)
def test_a_ray_that_does_not_come_is_told_with_its_words(
    program: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_START_SECONDS", 0.2 if program == "input()" else 200.0)
    (tmp_path / "said").write_text("no room on this machine")
    with reaped(subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)) as process:
        with pytest.raises(Unavailable, match=f"Ray {how}.*no room on this machine"):
            engine._wait(process, tmp_path / "said", tmp_path, 5)


def test_the_port_that_rays_raylet_waits_for_is_written_down_once(tmp_path: Path) -> None:
    session = tmp_path / "session_2026-11-22_00-00-00_1_2"
    session.mkdir()
    engine._write_down(tmp_path, 7)
    assert list(session.iterdir()) == []  # its node has no name yet
    (session / "gcs_server_port_abc").write_text("1")
    for port in (7, 8):
        engine._write_down(tmp_path, port)
    assert (session / "dashboard_agent_listen_port_abc").read_text() == "7"
