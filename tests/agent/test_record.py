"""What is written down of an attempt's lives, and what a torn or alien line does to it: nothing."""

import pytest

from consortium.canonical import encode
from consortium.ids import AttemptId, CampaignId, JobId, SiteName
from consortium.jobs import Assignment, Purpose, Tokenizer
from site_agent.core.facts import Launch, Seen, Usage
from site_agent.launchers.base import Life
from site_agent.record import (
    checkpoint_of,
    forget_quiet,
    note_launch,
    note_sent_away,
    quiet_seconds,
    read_launches,
    text_bytes_of,
)
from site_agent.spool import Spool

A1 = AttemptId("demo_r1-train-north.a1")


def save(directory, step):
    place = directory / "checkpoint" / f"step-{step:09d}"
    place.mkdir(parents=True)
    return place


def test_a_checkpoint_is_there_once_its_state_is(tmp_path):
    assert checkpoint_of(tmp_path) == (0, False)
    (save(tmp_path, 20) / "state.json").touch()
    save(tmp_path, 40)
    (tmp_path / "checkpoint" / ".step-000000060.x.tmp").mkdir()
    assert checkpoint_of(tmp_path) == (20, True)


def test_an_evaluation_gets_further_but_has_no_partial_result(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    for number in range(3):
        (tmp_path / "checkpoint" / f"subject-{number}.json").touch()
    assert checkpoint_of(tmp_path) == (3, False)


def test_text_that_was_prepared_is_a_beginning_and_a_torn_note_of_it_is_none(tmp_path):
    assert text_bytes_of(tmp_path) == 0
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "text.json").write_text('{"et":900,"fi":100}')
    note_launch(tmp_path, 1)
    assert read_launches(tmp_path) == (Launch(life=1, text_bytes=1000),)
    assert checkpoint_of(tmp_path) == (0, False)
    (tmp_path / "checkpoint" / "text.json").write_text('{"et":90')
    assert text_bytes_of(tmp_path) == 0


def test_a_launch_is_noted_once_from_where_it_began(tmp_path):
    note_launch(tmp_path, 1)
    (save(tmp_path, 20) / "state.json").touch()
    note_launch(tmp_path, 1)  # submitted again after a crash: it began before
    note_launch(tmp_path, 2)
    assert read_launches(tmp_path) == (Launch(life=1), Launch(life=2, step=20))
    note_sent_away(tmp_path, 1, "hung", "again")
    note_sent_away(tmp_path, 3, "paused", "pause")
    assert read_launches(tmp_path) == (
        Launch(life=1, asked="hung", meant="again"),
        Launch(life=2, step=20),
        Launch(life=3, asked="paused", meant="pause"),
    )


def test_lines_that_cannot_be_read_are_passed_over(tmp_path):
    note_launch(tmp_path, 1)
    with open(tmp_path / "lives.jsonl", "ab") as file:
        file.write(b'{"life": 2, "ste\n\xff\n')
    note_launch(tmp_path, 3)
    assert [launch.life for launch in read_launches(tmp_path)] == [1, 3]


def test_quiet_is_counted_from_when_it_was_first_seen_and_each_line_ends_it(tmp_path):
    lines = tmp_path / "progress.jsonl"
    assert quiet_seconds(tmp_path, 1, now=1000.0) == 0.0
    assert quiet_seconds(tmp_path, 1, now=1500.0) == 500.0
    lines.write_text("1\n")
    assert quiet_seconds(tmp_path, 1, now=1600.0) == 0.0
    lines.write_text("1\n2\n")
    assert quiet_seconds(tmp_path, 1, now=1610.0) == 0.0  # not noted: the last note is young
    assert quiet_seconds(tmp_path, 1, now=1700.0) == 0.0
    assert quiet_seconds(tmp_path, 1, now=1760.0) == 60.0
    assert quiet_seconds(tmp_path, 2, now=1765.0) == 0.0  # another life
    forget_quiet(tmp_path)
    assert quiet_seconds(tmp_path, 2, now=9000.0) == 0.0
    assert quiet_seconds(tmp_path, 2, now=8000.0) == 0.0  # the clock was set back


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool")
    work = Tokenizer(languages=(), vocabulary_size=300, bytes_per_language=1)
    job = Assignment(
        job=JobId("demo_r1-train-north"),
        attempt=A1,
        campaign=CampaignId("demo"),
        round=1,
        site=SiteName("north"),
        purpose=Purpose.ROUND,
        work=work,
        inputs=(),
        tokenizer=None,
    )
    spool.create(A1, encode(job), b"")
    return spool


def test_a_new_agent_finds_it_all_in_the_directory(spool):
    directory = spool.directory(A1)
    spool.begin_life(A1, 1)
    (directory / "life.json").write_bytes(encode(Life(number=1, name="x", host="h")))
    (save(directory, 8) / "state.json").touch()
    (directory / "usage.json").write_bytes(encode(Usage(gpu_seconds=12.0, seconds=3.0)))
    spool.send_away(A1, "hung", "again")
    [files] = Spool(spool.root).look()[0]
    assert (files.checkpoint, files.has_partial) == (8, True)
    assert files.launches == (Launch(life=1, asked="hung", meant="again"),)
    assert files.usage == Usage(gpu_seconds=12.0, seconds=3.0)
    assert spool.watch(files, Seen.RUNNING).quiet_seconds == 0.0
    assert spool.watch(files, Seen.UNKNOWN).quiet_seconds is None
    assert (directory / "watch.json").exists()
    spool.watch(files, Seen.GONE)
    assert not (directory / "watch.json").exists()
    (directory / "usage.json").write_bytes(b"{")  # the launcher writes it anew
    assert spool.look()[0][0].usage is None
