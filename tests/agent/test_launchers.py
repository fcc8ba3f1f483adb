"""The launcher contract, asked of the local launcher and of Slurm with commands that a test can make lie."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_slurm import FakeSlurm
from launcher_contract import *  # noqa: F403
from launcher_contract import begin, look, starts, until

from consortium.canonical import decode, encode, replace
from policies.site_profile import SiteProfile
from site_agent.core.facts import Seen
from site_agent.launchers import local
from site_agent.launchers.base import Life
from site_agent.launchers.local import LocalLauncher
from site_agent.launchers.slurm.commands import LocalCommands, LocalFiles
from site_agent.launchers.slurm.launcher import SlurmLauncher
from site_agent.launchers.slurm.verdict import Patience


@pytest.fixture(params=["local", "slurm"])
def make(request, program, tmp_path):
    if request.param == "local":
        yield lambda: LocalLauncher(program)
        return
    slurm = FakeSlurm(tmp_path / "slurm")
    yield lambda: SlurmLauncher(
        SiteProfile(poll_seconds=0.05),
        LocalCommands(slurm.environment),
        LocalFiles(),
        program,
        patience=Patience(intent_seconds=0.0, requeue_seconds=0.0, lost_seconds=600.0),
    )
    slurm.close()


# ---- the local launcher alone

alone = pytest.mark.parametrize("make", ["local"], indirect=True)


@alone
def test_a_pid_used_again_is_not_taken_for_the_life(program, directory):
    launcher = LocalLauncher(program)
    begin(launcher, directory)
    life = decode((directory / "life.json").read_bytes(), Life)
    launcher.cancel(directory)
    until(lambda: look(launcher, directory).seen is Seen.GONE, "the end")
    (directory / "life.json").write_bytes(encode(replace(life, native_id=f"{os.getpid()}:1")))
    assert look(launcher, directory).seen is Seen.GONE


@alone
def test_of_who_ends_while_it_is_looked_at_it_is_known_how(program, directory, monkeypatch):
    launcher, is_running = LocalLauncher(program), local._is_running
    begin(launcher, directory)

    def ends_first(native_id: str) -> bool:
        os.kill(pid := int(native_id.partition(":")[0]), signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # nobody has asked for its exit code
        return is_running(native_id)

    monkeypatch.setattr(local, "_is_running", ends_first)
    found = look(launcher, directory)
    assert (found.seen, found.detail) == (Seen.GONE, "killed by SIGKILL")


@alone
def test_a_child_whose_exit_code_is_not_there_yet_runs(program, directory, monkeypatch):
    """Its first thread is dead, another of it not yet: /proc calls it a zombie, and nobody can ask how it ended."""
    launcher = LocalLauncher(program)
    begin(launcher, directory)
    with monkeypatch.context() as patch:
        patch.setattr(local, "_is_running", lambda native_id: False)
        patch.setattr(launcher, "_marked", lambda paths: {path: [] for path in paths})
        assert look(launcher, directory).seen is Seen.RUNNING
    launcher.cancel(directory)
    until(lambda: look(launcher, directory).seen is Seen.GONE, "the end")
    assert look(launcher, directory).detail == "killed by SIGKILL"


@pytest.fixture
def bare(tmp_path):
    """A process in /proc that has neither an environment nor arguments."""
    place = tmp_path / "4711"
    place.mkdir()
    for name in ("environ", "cmdline"):
        (place / name).touch()
    (place / "exe").symlink_to("/bin/sh")
    return place


def test_a_process_that_becomes_another_program_is_waited_for(bare, monkeypatch):
    moments = iter([False, False, True])

    def passes(seconds: float) -> None:
        if next(moments):
            (bare / "environ").write_bytes(b"SPRACHBUND_LIFE=x\0")

    monkeypatch.setattr(local, "time", SimpleNamespace(sleep=passes, monotonic=lambda: 0.0))
    assert b"SPRACHBUND_LIFE=x" in local._environment(str(bare))


@pytest.mark.parametrize("kind", ["zombie", "no environment", "never ready"])
def test_a_process_that_has_no_environment_holds_nobody_up(bare, monkeypatch, kind):
    seconds = iter(range(1000))
    monkeypatch.setattr(local, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: next(seconds)))
    if kind == "zombie":  # or a thread of the kernel
        (bare / "exe").unlink()
    if kind == "no environment":
        (bare / "cmdline").write_bytes(b"sh\0")
    assert not any(local._environment(str(bare)))
    assert next(seconds) < 10


@alone
def test_a_life_from_before_the_machine_was_restarted_is_gone(program, directory):
    launcher = LocalLauncher(program)
    begin(launcher, directory)
    life = decode((directory / "life.json").read_bytes(), Life)
    (directory / "life.json").write_bytes(encode(replace(life, boot="another")))
    assert look(launcher, directory).seen is Seen.GONE
    (directory / "life.json").write_bytes(encode(life))


@alone
def test_an_agent_that_was_paused_before_the_start_starts_nothing_after_it_was_given_up(program, directory):
    """It wakes up after another agent has found its intent, no process, and said that it is gone."""
    late = LocalLauncher(program)
    intent = Life(number=1, name=f"{directory}#1", host=late._host, boot=late._boot)
    (directory / "life.json").write_bytes(encode(intent))
    assert look(LocalLauncher(program), directory).seen is Seen.GONE
    _, status = os.waitpid(late._start(directory, intent), 0)
    assert os.waitstatus_to_exitcode(status) != 0
    assert starts(directory) == []


@alone
def test_children_left_behind_are_part_of_the_life(directory, tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(
        "import os, pathlib, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "pathlib.Path(sys.argv[1], 'child').write_text(str(child.pid))\n"
        "os._exit(0)\n"
    )
    launcher = LocalLauncher((sys.executable, str(program)))
    launcher.submit(directory, 1)
    until(lambda: (directory / "child").exists() and (directory / "child").read_text(), "the child")
    assert look(launcher, directory).seen is Seen.RUNNING  # it may still write
    launcher.cancel(directory)
    until(lambda: look(launcher, directory).seen is Seen.GONE, "the end")


@alone
@pytest.mark.parametrize("moment", ["before the start", "between start and note"])
def test_an_agent_killed_around_the_start_never_starts_two(program, directory, tmp_path, moment):
    """The parent is killed with SIGKILL at the worst moments; its successor decides from what is on disk."""
    killer = tmp_path / "killer.py"
    killer.write_text(
        textwrap.dedent(f"""
        import os, signal, sys
        from pathlib import Path
        from site_agent.launchers import local
        launcher = local.LocalLauncher({program!r})
        start = local.LocalLauncher._start
        def kill_around(self, *arguments):
            if {moment == "between start and note"}:
                start(self, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        local.LocalLauncher._start = kill_around
        launcher.submit(Path({str(directory)!r}), 1)
    """)
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'protos'}"}
    ended = subprocess.run([sys.executable, str(killer)], env=environment, check=False, timeout=200)
    assert ended.returncode == -signal.SIGKILL
    successor = LocalLauncher(program)
    successor.submit(directory, 1)  # whatever it believes, this life is not started again
    if moment == "before the start":
        assert look(successor, directory).seen is Seen.GONE
        begin(successor, directory, life=2)
    else:
        assert look(successor, directory).seen is Seen.RUNNING
        until(lambda: starts(directory), "the start")
    assert len(starts(directory)) == 1
