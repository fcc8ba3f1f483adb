"""The promises of ``site_agent.launchers.base``, asked of every launcher."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from consortium.canonical import decode, encode, replace
from site_agent.core.facts import Seen
from site_agent.launchers.base import Life
from site_agent.launchers.local import LocalLauncher

JOB = """
import os, pathlib, sys, time
directory = pathlib.Path(sys.argv[1])
with open(directory / "began", "a") as file:
    file.write(f"{os.getpid()}\\n")
print("hello from", os.getpid(), flush=True)
(directory / "environment").write_text("\\n".join(sorted(os.environ)))
while not (directory / "go").exists():
    time.sleep(0.01)
sys.exit(int((directory / "go").read_text() or 0))
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "job.py"
    path.write_text(JOB)
    return (sys.executable, str(path))


@pytest.fixture(params=["local"])
def make(request, program):
    """Makes launchers of one kind, as agents do that start one after the other."""
    return {"local": lambda: LocalLauncher(program)}[request.param]


@pytest.fixture
def directory(tmp_path, make):
    directory = tmp_path / "spool" / "job.a1"
    directory.mkdir(parents=True)
    yield directory
    make().cancel(directory)


def look(launcher, directory):
    return launcher.poll([directory])[directory]


def until(condition, what="it"):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)


def starts(directory):
    try:
        return (directory / "began").read_text().split()
    except FileNotFoundError:
        return []


def begin(launcher, directory, life=1):
    before = len(starts(directory))
    launcher.submit(directory, life)
    until(lambda: len(starts(directory)) > before, "the start")


def test_a_life_runs_and_ends(make, directory):
    launcher = make()
    begin(launcher, directory)
    assert look(launcher, directory).seen is Seen.RUNNING
    note = decode((directory / "life.json").read_bytes(), Life)
    assert note.number == 1
    assert note.native_id
    (directory / "go").write_text("3")
    until(lambda: look(launcher, directory).seen is Seen.GONE, "the end")
    assert look(launcher, directory).detail == "exit code 3"
    assert "hello from" in (directory / "log.txt").read_text()


def test_a_life_outlives_its_agent_and_is_found_by_the_next(make, directory):
    begin(make(), directory)
    assert look(make(), directory).seen is Seen.RUNNING


def test_a_life_submitted_twice_starts_once(make, directory):
    launcher = make()
    begin(launcher, directory)
    launcher.submit(directory, 1)
    make().submit(directory, 1)
    (directory / "go").touch()
    until(lambda: look(launcher, directory).seen is Seen.GONE, "the end")
    assert len(starts(directory)) == 1


def test_the_next_life_is_another(make, directory):
    launcher = make()
    begin(launcher, directory)
    launcher.cancel(directory)
    until(lambda: look(launcher, directory).seen is Seen.GONE, "the end")
    begin(launcher, directory, life=2)
    assert look(launcher, directory).seen is Seen.RUNNING
    assert len(starts(directory)) == 2
    assert (directory / "log.txt").read_text().count("hello") == 2  # the log goes on


def test_an_intent_that_was_never_carried_out_is_gone_and_stays_so(make, directory):
    launcher = make()
    begin(launcher, directory)
    life = decode((directory / "life.json").read_bytes(), Life)
    launcher.cancel(directory)
    until(lambda: look(launcher, directory).seen is Seen.GONE, "the end")
    intent = replace(life, number=2, name=f"{directory}#2", native_id="")
    (directory / "life.json").write_bytes(encode(intent))
    assert look(launcher, directory).seen is Seen.GONE
    launcher.submit(directory, 2)  # an agent that still meant to start it
    assert look(launcher, directory).seen is Seen.GONE
    assert len(starts(directory)) == 1


def test_a_start_that_was_not_noted_is_found_by_its_name(make, directory):
    launcher = make()
    begin(launcher, directory)
    life = decode((directory / "life.json").read_bytes(), Life)
    (directory / "life.json").write_bytes(encode(replace(life, native_id="")))
    successor = make()
    assert look(successor, directory).seen is Seen.RUNNING
    assert decode((directory / "life.json").read_bytes(), Life).native_id == life.native_id
    successor.cancel(directory)
    until(lambda: look(successor, directory).seen is Seen.GONE, "the end")


def test_cancelling_twice_or_what_is_gone_does_no_harm(make, directory):
    launcher = make()
    begin(launcher, directory)
    for _ in range(2):
        launcher.cancel(directory)
    until(lambda: look(launcher, directory).seen is Seen.GONE, "the end")
    launcher.cancel(directory)


def test_all_are_polled_at_once(make, directory, tmp_path):
    launcher = make()
    other = tmp_path / "spool" / "job.a2"
    other.mkdir()
    begin(launcher, directory)
    begin(launcher, other)
    launcher.cancel(other)
    until(lambda: look(launcher, other).seen is Seen.GONE, "the end")
    sightings = launcher.poll([directory, other])
    assert [sightings[path].seen for path in (directory, other)] == [Seen.RUNNING, Seen.GONE]


def test_a_life_of_another_machine_is_unknown(make, directory):
    launcher = make()
    begin(launcher, directory)
    life = decode((directory / "life.json").read_bytes(), Life)
    (directory / "life.json").write_bytes(encode(replace(life, host="login7")))
    sighting = look(launcher, directory)
    assert sighting.seen is Seen.UNKNOWN
    assert "login7" in sighting.detail
    (directory / "life.json").write_bytes(encode(life))


def test_no_secret_reaches_the_job(make, directory, monkeypatch):
    monkeypatch.setenv("SITE_TOKEN", "secret")
    begin(make(), directory)
    until(lambda: (directory / "environment").exists(), "the environment")
    names = (directory / "environment").read_text().split()
    assert "SITE_TOKEN" not in names
    assert {"PYTHONHASHSEED", "OMP_NUM_THREADS"} <= set(names)


# ---- the local launcher alone


def test_a_pid_used_again_is_not_taken_for_the_life(program, directory):
    launcher = LocalLauncher(program)
    begin(launcher, directory)
    life = decode((directory / "life.json").read_bytes(), Life)
    launcher.cancel(directory)
    until(lambda: look(launcher, directory).seen is Seen.GONE, "the end")
    (directory / "life.json").write_bytes(encode(replace(life, native_id=f"{os.getpid()}:1")))
    assert look(launcher, directory).seen is Seen.GONE


def test_a_life_from_before_the_machine_was_restarted_is_gone(program, directory):
    launcher = LocalLauncher(program)
    begin(launcher, directory)
    life = decode((directory / "life.json").read_bytes(), Life)
    (directory / "life.json").write_bytes(encode(replace(life, boot="another")))
    assert look(launcher, directory).seen is Seen.GONE
    (directory / "life.json").write_bytes(encode(life))


def test_an_agent_that_was_paused_before_the_start_starts_nothing_after_it_was_given_up(program, directory):
    """It wakes up after another agent has found its intent, no process, and said that it is gone."""
    late = LocalLauncher(program)
    intent = Life(number=1, name=f"{directory}#1", host=late._host, boot=late._boot)
    (directory / "life.json").write_bytes(encode(intent))
    assert look(LocalLauncher(program), directory).seen is Seen.GONE
    _, status = os.waitpid(late._start(directory, intent), 0)
    assert os.waitstatus_to_exitcode(status) != 0
    assert starts(directory) == []


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
    ended = subprocess.run([sys.executable, str(killer)], env=environment, check=False, timeout=60)
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
