"""A spool directory says all there is to know, and a torn or alien one never stands in the way."""

import json
import os

import pytest

from consortium.canonical import encode
from consortium.errors import BadInput, Unavailable
from consortium.ids import AttemptId, CampaignId, JobId, Language, SiteName
from consortium.jobs import Assignment, Outcome, Purpose, Tokenizer
from site_agent import spool as spool_module
from site_agent.core.facts import AttemptFiles, Ended, Progress, Seen
from site_agent.launchers.base import Life
from site_agent.spool import Spool

JOB = JobId("demo_r0-tokenizer-north")
A1 = AttemptId(f"{JOB}.a1")
A2 = AttemptId(f"{JOB}.a2")


def assignment(attempt: AttemptId) -> bytes:
    work = Tokenizer(languages=(Language("fi"),), vocabulary_size=300, bytes_per_language=1000)
    return encode(
        Assignment(
            job=JOB,
            attempt=attempt,
            campaign=CampaignId("demo"),
            round=0,
            site=SiteName("north"),
            purpose=Purpose.TOKENIZER,
            work=work,
            inputs=(),
            tokenizer=None,
        )
    )


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool")
    spool.create(A1, assignment(A1), b"signature")
    return spool


def found(spool):
    attempts, complaints = spool.look()
    assert complaints == ()
    return attempts


def test_a_new_attempt_holds_its_assignment_verbatim(spool):
    directory = spool.create(A1, b"another", b"another")  # again: nothing changes
    assert (directory / "job.json").read_bytes() == assignment(A1)
    assert (directory / "job.sig").read_bytes() == b"signature"
    assert found(spool) == (AttemptFiles(attempt=A1, can_finish=False),)


def test_a_new_agent_reads_everything_from_the_directory(spool):
    directory = spool.directory(A1)
    (directory / "site.json").write_text("{}")
    life = Life(number=2, name="x", host="login1", native_id="42:7")
    (directory / "life.json").write_bytes(encode(life))
    (directory / "progress.jsonl").write_text('{"step": 1, "steps": 9}\n{"step": 4, "steps": 9, "at": 1.5}\n')
    spool.ask_to_stop(A1)
    (directory / "result").mkdir()
    [files] = found(Spool(spool.root))
    assert files.staged
    assert files.has_result
    assert (files.lives, files.native_id) == (2, "42:7")
    assert files.progress == Progress(step=4, steps=9)
    assert files.stopping_seconds is not None
    assert files.ended is None
    spool.ask_to_finish(A1)
    assert found(spool)[0].finishing
    spool.begin_life(A1, 3)
    assert not found(spool)[0].finishing
    ended = Ended(outcome=Outcome.FAILED, reason="no room")
    spool.end(A1, ended)
    [files] = found(spool)
    assert (files.stopping_seconds, files.ended) == (None, ended)


@pytest.mark.parametrize(
    ("lines", "step"),
    [
        (b"", None),
        (b'{"step": 1}', None),  # not whole yet
        (b'{"step": 1}\n{"ste', 1),
        (b'{"step": 1}\n{"step": \n', 1),
        (b'{"step": 1}\n\0\0\0\0\n', 1),  # what some file systems leave after a power cut
        (b"x" * 20_000 + b'\n{"step": 7}\n', 7),
    ],
)
def test_progress_is_the_last_line_that_can_be_read(spool, lines, step):
    (spool.directory(A1) / "progress.jsonl").write_bytes(lines)
    [files] = found(spool)
    assert (files.progress.step if files.progress else None) == step


def test_the_trainers_failure_is_its_sentence(spool):
    path = spool.directory(A1) / "failure.json"
    path.write_text(json.dumps({"reason": "no_data", "sentence": "no text in fi"}))
    assert found(spool)[0].failure == "no text in fi"
    path.write_text('{"reason": "no_')
    assert "its reason cannot be read" in found(spool)[0].failure


@pytest.mark.parametrize("torn", ["job.json", "life.json", "ended.json"])
@pytest.mark.parametrize("how", [b"", b'{"job": "de', b"\0" * 50, b"\xff\xfe", b"[]"])
def test_a_torn_directory_is_set_aside_and_told(spool, torn, how):
    spool.create(A2, assignment(A2), b"signature")
    (spool.directory(A1) / torn).write_bytes(how)
    spool = Spool(spool.root)
    attempts, [complaint] = spool.look()
    assert [files.attempt for files in attempts] == [A2]
    assert torn in complaint
    [aside] = (spool.root / "broken").iterdir()
    assert str(aside) in complaint
    assert (aside / torn).read_bytes() == how  # kept for a person
    assert spool.look() == (attempts, ())  # told once
    spool.create(A1, assignment(A1), b"signature")  # the coordinator still wants it
    assert len(found(spool)) == 2


def test_alien_things_are_set_aside(spool, tmp_path):
    (spool.root / "notes.txt").write_text("mine")
    (spool.root / JOB / "copy of a1").mkdir()
    (spool.root / "other_job").mkdir()
    os.rename(spool.directory(A1), spool.root / "other_job" / A1)
    (spool.root / JOB / ".hidden").mkdir()  # half-made ones are hidden, and left alone
    attempts, complaints = spool.look()
    assert attempts == ()
    assert len(complaints) == 3
    assert len(list((spool.root / "broken").iterdir())) == 3
    assert (spool.root / JOB / ".hidden").exists()


def test_a_directory_with_another_attempts_job_is_set_aside(spool):
    spool.create(A2, assignment(A1), b"signature")
    attempts, [complaint] = spool.look()
    assert [files.attempt for files in attempts] == [A1]
    assert f"belongs to attempt {A1}" in complaint


def test_a_launcher_is_asked_of_lives_that_can_be_read(spool):
    spool.create(A2, assignment(A2), b"signature")
    places = spool.places()
    assert spool.begun(places) == ()  # staged, and no more
    for attempt in (A1, A2):
        (spool.directory(attempt) / "life.json").write_bytes(encode(Life(number=1, name="x", host="login1")))
    assert spool.begun(places) == (A1, A2)
    (spool.directory(A2) / "life.json").write_bytes(b"{")
    assert spool.begun(places) == (A1,)
    attempts, [complaint] = spool.look(places)  # which says what was passed over
    assert [files.attempt for files in attempts] == [A1]
    assert "life.json" in complaint


def test_dropping_keeps_the_log_and_nothing_else(spool, tmp_path):
    (spool.directory(A1) / "log.txt").write_text("step 1\n")
    (spool.directory(A1) / "base").mkdir()
    spool.drop(A1)
    assert found(spool) == ()
    assert list(spool.root.iterdir()) == []
    assert (tmp_path / "logs" / f"{A1}.txt").read_text() == "step 1\n"
    spool.drop(A1)  # twice does no harm


@pytest.mark.parametrize("moment", ["_visible", "_attempts", "_names"])
def test_what_another_agent_drops_while_this_one_looks_is_passed_over(spool, monkeypatch, moment):
    """As a cron job's agent does while somebody asks for the status: not broken, and no trouble with the disk."""
    other = AttemptId("demo_r0-tokenizer-south.a1")
    spool.create(other, assignment(other), b"signature")
    (spool.directory(A1) / "life.json").write_bytes(encode(Life(number=1, name="x", host="login1")))
    look = getattr(spool_module, moment)

    def drops_meanwhile(folder):
        seen = look(folder)
        Spool(spool.root).drop(A1)
        return seen

    monkeypatch.setattr(spool_module, moment, drops_meanwhile)
    assert [files.attempt for files in found(Spool(spool.root))] == [other]
    assert not (spool.root / "broken").exists()


@pytest.mark.parametrize("seen", ["running", "gone"])
def test_what_another_agent_drops_while_it_is_watched_is_passed_over(spool, seen):
    [files] = found(spool)
    Spool(spool.root).drop(A1)
    assert spool.watch(files, Seen(seen)) == files
    assert found(spool) == ()


def test_what_another_agent_has_dropped_is_not_begun_anew(spool):
    """One that stood still meanwhile: what it writes would make a directory that nobody can read."""
    Spool(spool.root).drop(A1)
    for act in (
        lambda: spool.begin_life(A1, 1),
        lambda: spool.end(A1, Ended(outcome=Outcome.FAILED, reason="no room")),
    ):
        with pytest.raises(Unavailable):
            act()
    assert found(spool) == ()


def test_what_cannot_be_watched_is_told(spool, monkeypatch):
    def hangs(*_):
        raise OSError(5, "Input/output error")

    [files] = found(spool)
    monkeypatch.setattr(spool_module.record, "quiet_seconds", hangs)
    with pytest.raises(Unavailable, match="Input/output error"):
        spool.watch(files, Seen.RUNNING)


def test_what_a_killed_agent_was_deleting_is_deleted_at_the_next_start(spool):
    leftover = spool.root / f".dropped.{A2}.abcd"
    leftover.mkdir()
    (leftover / "job.json").touch()
    Spool(spool.root)
    assert not leftover.exists()


def test_an_attempt_id_cannot_lead_out_of_the_spool(spool):
    with pytest.raises(BadInput):
        spool.create(AttemptId("../../etc_x.a1"), b"", b"")
