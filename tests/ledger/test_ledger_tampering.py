"""Whoever changes the ledger's file is found out, with the place."""

import random
import re
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_engines import InPostgres, InSqlite, Place
from ledger_samples import KEY, happened
from postgres_server import Server

from consortium.canonical import encode
from consortium.signing import new_ledger_key, sign_checkpoint
from coordinator.ledger import GENESIS, Entry, Ledger, chain, examine
from coordinator.ledger_check import verify_chain

LEDGER_KEY = KEY.public_key().public_bytes_raw()


def problems(where: Path | str) -> list[tuple[int, str]]:
    return [(problem.sequence, problem.what) for problem in verify_chain(where, LEDGER_KEY)]


def test_a_whole_ledger_has_no_problems(written: Place) -> None:
    assert problems(written.where) == []


@pytest.mark.parametrize(
    ("statement", "sequence", "words"),
    [
        ("UPDATE events SET entry = swap(entry, 'Ljubljana', 'Maribor') WHERE seq = 3", 3, "does not fit"),
        ("UPDATE events SET hash = '000' || cut(hash) WHERE seq = 3", 3, "does not fit"),
        ("UPDATE events SET hash = 'zz' WHERE seq = 3", 4, "the hash before it is not a hash"),
        ("UPDATE events SET kind = 'Other' WHERE seq = 2", 2, "its row says Other at 101.0"),
        ("UPDATE events SET at = 7 WHERE seq = 2", 2, "its row says Happened at 7.0"),
        ("UPDATE events SET entry = swap(entry, 'schema\":1', 'schema\":2') WHERE seq = 1", 1, "schema is 2"),
        ("UPDATE events SET entry = swap(entry, ',', ', ') WHERE seq = 1", 1, "not canonical"),
        ("UPDATE events SET entry = bytes('7B7D') WHERE seq = 1", 1, "missing required field"),
        ("DELETE FROM events WHERE seq = 2", 2, "its number is 3; entries are missing"),
        ("DELETE FROM events WHERE seq > 3", 4, "the ledger ends at 3: entries were cut off"),
        ("UPDATE events SET seq = 6 WHERE seq = 5", 5, "its number is 6"),
        ("UPDATE checkpoints SET seq = 3", 3, "the signature does not fit"),
        ("UPDATE checkpoints SET head = '000' || cut(head)", 4, "does not fit"),
        ("UPDATE checkpoints SET signature = zeros(64)", 4, "the signature does not fit"),
        ("UPDATE checkpoints SET public_key = zeros(32)", 4, "the consortium's ledger key is"),
        ("UPDATE checkpoints SET public_key = bytes('00')", 4, "the consortium's ledger key is"),
        ("UPDATE snapshots SET state = bytes('00')", 5, "the snapshot is damaged"),
        ("UPDATE snapshots SET digest = 'x'", 5, "the snapshot is damaged"),
        ("UPDATE snapshots SET seq = 4", 4, "the snapshot is damaged"),
        ("UPDATE schema_version SET version = 2", 0, "ledger schema 2"),
        ("DELETE FROM schema_version", 0, "ledger schema None"),
        ("CREATE INDEX extra ON events (kind)", 0, "index extra does not belong here"),
        ("DROP TABLE snapshots", 0, "table snapshots is missing"),
        ("CREATE VIEW songs AS SELECT 1", 0, "songs does not belong here"),
    ],
)  # fmt: skip
def test_each_kind_of_change_is_named_with_its_place(
    written: Place, statement: str, sequence: int, words: str
) -> None:
    written.change(statement)
    found = problems(written.where)
    assert any(at == sequence and words in what for at, what in found), found


def test_a_missing_trigger_is_noticed(file: Path) -> None:
    InSqlite(file).sql("DROP TRIGGER events_never_update")
    ((sequence, what),) = problems(file)
    assert sequence == 0
    assert "trigger events_never_update is missing" in what


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DROP TRIGGER events_only_grow ON events", "trigger events_only_grow is missing"),
        ("ALTER TABLE events DISABLE TRIGGER events_only_grow", "only_grows 31 D on events"),
        ("ALTER TABLE events DROP CONSTRAINT events_pkey", "index events_pkey is missing"),
        ("CREATE RULE no AS ON INSERT TO events DO INSTEAD NOTHING", "rule no does not belong here"),
        (
            "CREATE OR REPLACE FUNCTION only_grows() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RETURN NEW; END $$",
            "function only_grows does not belong here",
        ),
    ],
)
def test_what_would_let_the_past_be_changed_is_noticed(postgres: Server, statement: str, words: str) -> None:
    place = InPostgres(postgres.new_ledger())
    with place.open() as ledger:
        ledger.append([happened(1)], at=1.0)
    place.sql(statement)
    assert any(at == 0 and words in what for at, what in problems(place.where)), problems(place.where)


def test_one_change_is_reported_once_and_later_entries_are_still_checked(written: Place) -> None:
    written.change("UPDATE events SET at = 7 WHERE seq IN (2, 5)")
    assert [sequence for sequence, _ in problems(written.where)] == [2, 5]


def test_a_ledger_written_anew_is_betrayed_by_a_checkpoint_kept_elsewhere(
    written: Place, tmp_path: Path
) -> None:
    with written.open() as ledger:
        kept_by_a_site = sign_checkpoint(KEY, ledger.head.seq, ledger.head.hash)
    forged = tmp_path / "forged.sqlite"
    with Ledger(forged) as ledger:
        for number in range(5):
            ledger.append([happened(number + 1)], at=100.0 + number)
        ledger.save_checkpoint(sign_checkpoint(KEY, ledger.head.seq, ledger.head.hash))
    assert problems(forged) == []  # it is a fine ledger, only not the one that the site saw
    (problem,) = verify_chain(forged, LEDGER_KEY, [kept_by_a_site])
    assert (problem.sequence, "rewritten" in problem.what) == (5, True)
    written.change("DELETE FROM events WHERE seq = 5", "DELETE FROM snapshots")
    (problem,) = verify_chain(written.where, LEDGER_KEY, [kept_by_a_site])
    assert (problem.sequence, "cut off" in problem.what) == (5, True)


def test_a_checkpoint_of_another_key_is_refused(written: Place) -> None:
    other = new_ledger_key().public_key().public_bytes_raw()
    (problem,) = verify_chain(written.where, other)
    assert problem.sequence == 4
    assert re.search("signed with key .*the consortium's ledger key is", problem.what)


def test_any_changed_byte_of_the_file_is_found_or_says_nothing(file: Path, tmp_path: Path) -> None:
    """SQLite has bytes that carry nothing (counters, free space). Any other one must be found."""
    whole, truth = file.read_bytes(), content(file)
    used = [place for place, byte in enumerate(whole) if byte]
    places = sorted(random.Random(1).sample(used, 3000))
    copy, found = tmp_path / "copy.sqlite", 0
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        copy.write_bytes(data)
        if any(verify_chain(copy, LEDGER_KEY)):
            found += 1
        else:
            assert content(copy) == truth, f"byte {place} changed what the ledger says, unseen"
    assert found > 0.9 * len(places)


@pytest.mark.parametrize("keep", [0, 1, 99, 4096, 5000])
def test_a_cut_file_is_a_problem_and_not_a_crash(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    assert problems(file)


def test_a_file_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    ((sequence, what),) = problems(tmp_path / "nothing.sqlite")
    assert (sequence, "no ledger here" in what) == (0, True)


def content(path: Path) -> object:
    db = sqlite3.connect(path)
    db.text_factory = bytes
    try:
        tables = ("schema_version", "events", "snapshots", "checkpoints", "sqlite_schema")
        columns = {"sqlite_schema": "type, name, tbl_name, sql"}
        return [db.execute(f"SELECT {columns.get(table, '*')} FROM {table}").fetchall() for table in tables]
    finally:
        db.close()


ENTRY = encode(Entry(schema=1, seq=1, at=1.0, prev=GENESIS, event=happened(1)))


@given(st.one_of(st.binary(), st.integers(0, len(ENTRY) - 1)), st.integers(1, 255))
def test_no_bytes_make_the_examination_fail_otherwise(change: bytes | int, flip: int) -> None:
    data = bytearray(change if isinstance(change, bytes) else ENTRY)
    if isinstance(change, int):
        data[change] ^= flip
    _, problems = examine((1, 1.0, "Happened", bytes(data), chain(GENESIS, ENTRY)), 1, GENESIS)
    assert problems
    assert examine((1, 1.0, "Happened", None, "x"), 1, GENESIS) == (None, ["its row is damaged"])
