"""The promises of ``site_agent.launchers.base``, asked of every launcher: import all of this where one is tested.

The importing module has a fixture ``make``: a function that makes launchers of one kind, as agents do that start
one after the other. Their job is ``program``.
"""

import sys
import time

import pytest

from consortium.canonical import decode, encode, replace
from site_agent.core.facts import Cause, Seen, Usage
from site_agent.launchers.base import Life

WAIT_SECONDS = 240.0  #: for what takes a tenth of a second here, and ten on a busy Slurm

JOB = """
import os, pathlib, sys, time
directory = pathlib.Path(sys.argv[1])
new = directory / f"environment.{os.getpid()}"  # each rank does so
new.write_text("\\n".join(sorted(os.environ)))
new.rename(directory / "environment")
print("hello from", os.getpid(), flush=True)
with open(directory / "began", "a") as file:  # last of all: who sees it may look for the rest, or end this
    file.write(f"{os.getpid()}\\n")
while not (directory / "go").exists():
    time.sleep(0.01)
sys.exit(int((directory / "go").read_text() or 0))
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "job.py"
    path.write_text(JOB)
    return (sys.executable, str(path))


@pytest.fixture
def directory(tmp_path, make):
    directory = tmp_path / "spool" / "job.a1"
    directory.mkdir(parents=True)
    yield directory
    make().cancel(directory)


def there(directory):
    """The directory as the job sees it; a module that tests a site far away puts another function here."""
    return directory


def put_note(directory, life):
    for place in {directory, there(directory)}:
        (place / "life.json").write_bytes(encode(life))


def look(launcher, directory):
    return launcher.poll([directory])[directory]


def until(condition, what="it"):
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)


def starts(directory):
    try:
        return (there(directory) / "began").read_text().split()
    except FileNotFoundError:
        return []


def let_go(directory, code):
    """The job ends with this exit code; it must not read a file that is still being written."""
    (there(directory) / "going").write_text(str(code))
    (there(directory) / "going").rename(there(directory) / "go")


def begin(launcher, directory, life=1):
    before = len(starts(directory))
    launcher.submit(directory, life)
    until(lambda: len(starts(directory)) > before, "the start")


def is_running(launcher, directory):
    return look(launcher, directory).seen is Seen.RUNNING


def is_gone(launcher, directory):
    return look(launcher, directory).seen is Seen.GONE


def note_of(directory):
    return decode((directory / "life.json").read_bytes(), Life)


def usage_of(directory):
    return decode((directory / "usage.json").read_bytes(), Usage)


def environment_of(directory):
    """The names of the job's variables; none while they are not written."""
    try:
        return (directory / "environment").read_text().split()
    except FileNotFoundError:
        return []


def log_of(directory):
    return "".join(path.read_text() for path in sorted(directory.glob("log*.txt")))


def test_a_life_runs_and_ends(make, directory):
    launcher = make()
    begin(launcher, directory)
    until(lambda: is_running(launcher, directory), "running")
    assert note_of(directory).number == 1
    assert note_of(directory).native_id
    assert note_of(directory).submitted_at > 0
    let_go(directory, 3)
    until(lambda: is_gone(launcher, directory), "the end")
    assert look(launcher, directory).detail == "exit code 3"
    assert look(launcher, directory).cause is Cause.FINISHED
    assert "hello from" in log_of(directory)


def test_a_life_that_left_with_a_training_checkpoint_has_stopped(make, directory):
    launcher = make()
    begin(launcher, directory)
    let_go(directory, 75)
    until(lambda: is_gone(launcher, directory), "the end")
    assert look(launcher, directory).cause is Cause.STOPPED


def test_what_a_life_used_is_written_down(make, directory):
    launcher = make()
    begin(launcher, directory)
    (there(directory) / "go").touch()
    until(lambda: is_gone(launcher, directory), "the end")
    assert usage_of(directory).seconds >= 0
    before = (directory / "usage.json").read_bytes()
    look(make(), directory)
    assert (directory / "usage.json").read_bytes() == before  # a new agent counts nothing twice


def test_a_life_outlives_its_agent_and_is_found_by_the_next(make, directory):
    begin(make(), directory)
    until(lambda: is_running(make(), directory), "running")


def test_a_life_submitted_twice_starts_once(make, directory):
    launcher = make()
    begin(launcher, directory)
    launcher.submit(directory, 1)
    make().submit(directory, 1)
    (there(directory) / "go").touch()
    until(lambda: is_gone(launcher, directory), "the end")
    assert len(starts(directory)) == 1


def test_the_next_life_is_another(make, directory):
    launcher = make()
    begin(launcher, directory)
    launcher.cancel(directory)
    until(lambda: is_gone(launcher, directory), "the end")
    begin(launcher, directory, life=2)
    until(lambda: is_running(launcher, directory), "running")
    assert len(starts(directory)) == 2
    assert log_of(directory).count("hello") == 2  # the log goes on


def test_an_intent_that_was_never_carried_out_is_gone_and_stays_so(make, directory):
    launcher = make()
    begin(launcher, directory)
    life = note_of(directory)
    launcher.cancel(directory)
    until(lambda: is_gone(launcher, directory), "the end")
    intent = replace(life, number=2, name=f"{life.name[:-1]}2", native_id="")
    put_note(directory, intent)
    until(lambda: is_gone(launcher, directory), "giving it up")
    launcher.submit(directory, 2)  # an agent that still meant to start it
    assert is_gone(launcher, directory)
    assert len(starts(directory)) == 1


def test_a_start_that_was_not_noted_is_found_by_its_name(make, directory):
    launcher = make()
    begin(launcher, directory)
    life = note_of(directory)
    put_note(directory, replace(life, native_id=""))
    successor = make()
    until(lambda: is_running(successor, directory), "finding it")
    assert note_of(directory).native_id == life.native_id
    successor.cancel(directory)
    until(lambda: is_gone(successor, directory), "the end")


def test_cancelling_twice_or_what_is_gone_does_no_harm(make, directory):
    launcher = make()
    begin(launcher, directory)
    for _ in range(2):
        launcher.cancel(directory)
    until(lambda: is_gone(launcher, directory), "the end")
    launcher.cancel(directory)
    assert is_gone(launcher, directory)


def test_what_the_agent_cancelled_did_not_finish(make, directory):
    launcher = make()
    begin(launcher, directory)
    launcher.cancel(directory)
    until(lambda: is_gone(launcher, directory), "the end")
    assert look(launcher, directory).cause is not Cause.STOPPED


def test_all_are_polled_at_once(make, directory, tmp_path):
    launcher = make()
    other = tmp_path / "spool" / "job.a2"
    other.mkdir()
    begin(launcher, directory)
    begin(launcher, other)
    launcher.cancel(other)

    def seen():
        sightings = launcher.poll([directory, other])
        return [sightings[path].seen for path in (directory, other)]

    until(lambda: seen() == [Seen.RUNNING, Seen.GONE], "one that runs and one that is gone")


def test_a_life_of_another_machine_is_unknown(make, directory):
    launcher = make()
    begin(launcher, directory)
    life = note_of(directory)
    put_note(directory, replace(life, host="login7"))
    sighting = look(make(), directory)
    assert sighting.seen is Seen.UNKNOWN
    assert "login7" in sighting.detail
    put_note(directory, life)


def test_no_secret_reaches_the_job(make, directory, monkeypatch):
    monkeypatch.setenv("SITE_TOKEN", "secret")
    begin(make(), directory)
    until(lambda: environment_of(there(directory)), "the environment")
    names = environment_of(there(directory))
    assert "SITE_TOKEN" not in names
    assert {"PYTHONHASHSEED", "OMP_NUM_THREADS"} <= set(names)
