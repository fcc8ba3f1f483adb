"""Whoever changes the ledger's file is found out, with the place."""

import random
import re
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_samples import KEY, happened

from consortium.canonical import encode
from consortium.signing import new_ledger_key, sign_checkpoint
from coordinator.ledger import GENESIS, Entry, Ledger, chain, examine
from coordinator.ledger_check import verify_chain

LEDGER_KEY = KEY.public_key().public_bytes_raw()


def problems(path: Path) -> list[tuple[int, str]]:
    return [(problem.sequence, problem.what) for problem in verify_chain(path, LEDGER_KEY)]


def change(path: Path, *statements: str) -> None:
    """Change the file as someone who knows how to get past the triggers, and puts them back."""
    db = sqlite3.connect(path)
    triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    db.create_function("swap", 3, lambda data, old, new: data.replace(old.encode(), new.encode()))
    for statement in statements:
        db.execute(statement)
    for _, sql in triggers:
        db.execute(sql)
    db.commit()
    db.close()


def test_a_whole_ledger_has_no_problems(written: Path) -> None:
    assert problems(written) == []


@pytest.mark.parametrize(
    ("statement", "sequence", "words"),
    [
        ("UPDATE events SET entry = swap(entry, 'Ljubljana', 'Maribor') WHERE seq = 3", 3, "does not fit"),
        ("UPDATE events SET hash = '000' || substr(hash, 4) WHERE seq = 3", 3, "does not fit"),
        ("UPDATE events SET hash = 'zz' WHERE seq = 3", 4, "the hash before it is not a hash"),
        ("UPDATE events SET kind = 'Other' WHERE seq = 2", 2, "its row says Other at 101.0"),
        ("UPDATE events SET at = 7 WHERE seq = 2", 2, "its row says Happened at 7.0"),
        ("UPDATE events SET entry = swap(entry, 'schema\":1', 'schema\":2') WHERE seq = 1", 1, "schema is 2"),
        ("UPDATE events SET entry = swap(entry, ',', ', ') WHERE seq = 1", 1, "not canonical"),
        ("UPDATE events SET entry = X'7B7D' WHERE seq = 1", 1, "missing required field"),
        ("DELETE FROM events WHERE seq = 2", 2, "its number is 3; entries are missing"),
        ("DELETE FROM events WHERE seq > 3", 4, "the ledger ends at 3: entries were cut off"),
        ("UPDATE events SET seq = 6 WHERE seq = 5", 5, "its number is 6"),
        ("UPDATE checkpoints SET seq = 3", 3, "the signature does not fit"),
        ("UPDATE checkpoints SET head = '000' || substr(head, 4)", 4, "does not fit"),
        ("UPDATE checkpoints SET signature = zeroblob(64)", 4, "the signature does not fit"),
        ("UPDATE checkpoints SET public_key = zeroblob(32)", 4, "the consortium's ledger key is"),
        ("UPDATE checkpoints SET public_key = X'00'", 4, "the consortium's ledger key is"),
        ("UPDATE snapshots SET state = X'00'", 5, "the snapshot is damaged"),
        ("UPDATE snapshots SET digest = 'x'", 5, "the snapshot is damaged"),
        ("UPDATE snapshots SET seq = 4", 4, "the snapshot is damaged"),
        ("UPDATE schema_version SET version = 2", 0, "ledger schema 2"),
        ("DELETE FROM schema_version", 0, "ledger schema None"),
        ("CREATE INDEX extra ON events (kind)", 0, "index extra does not belong here"),
        ("DROP TABLE snapshots", 0, "table snapshots is missing"),
    ],
)  # fmt: skip
def test_each_kind_of_change_is_named_with_its_place(
    written: Path, statement: str, sequence: int, words: str
) -> None:
    change(written, statement)
    found = problems(written)
    assert any(at == sequence and words in what for at, what in found), found


def test_a_missing_trigger_is_noticed(written: Path) -> None:
    db = sqlite3.connect(written)
    db.execute("DROP TRIGGER events_never_update")
    db.close()
    ((sequence, what),) = problems(written)
    assert sequence == 0
    assert "trigger events_never_update is missing" in what


def test_one_change_is_reported_once_and_later_entries_are_still_checked(written: Path) -> None:
    change(written, "UPDATE events SET at = 7 WHERE seq IN (2, 5)")
    assert [sequence for sequence, _ in problems(written)] == [2, 5]


def test_a_ledger_written_anew_is_betrayed_by_a_checkpoint_kept_elsewhere(
    written: Path, tmp_path: Path
) -> None:
    with Ledger(written) as ledger:
        kept_by_a_site = sign_checkpoint(KEY, ledger.head.seq, ledger.head.hash)
    forged = tmp_path / "forged.sqlite"
    with Ledger(forged) as ledger:
        for number in range(5):
            ledger.append([happened(number + 1)], at=100.0 + number)
        ledger.save_checkpoint(sign_checkpoint(KEY, ledger.head.seq, ledger.head.hash))
    assert problems(forged) == []  # it is a fine ledger, only not the one that the site saw
    (problem,) = verify_chain(forged, LEDGER_KEY, [kept_by_a_site])
    assert (problem.sequence, "rewritten" in problem.what) == (5, True)
    change(written, "DELETE FROM events WHERE seq = 5", "DELETE FROM snapshots")
    (problem,) = verify_chain(written, LEDGER_KEY, [kept_by_a_site])
    assert (problem.sequence, "cut off" in problem.what) == (5, True)


def test_a_checkpoint_of_another_key_is_refused(written: Path) -> None:
    other = new_ledger_key().public_key().public_bytes_raw()
    (problem,) = verify_chain(written, other)
    assert problem.sequence == 4
    assert re.search("signed with key .*the consortium's ledger key is", problem.what)


def test_any_changed_byte_of_the_file_is_found_or_says_nothing(written: Path, tmp_path: Path) -> None:
    """SQLite has bytes that carry nothing (counters, free space). Any other one must be found."""
    whole, truth = written.read_bytes(), content(written)
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
def test_a_cut_file_is_a_problem_and_not_a_crash(written: Path, keep: int) -> None:
    written.write_bytes(written.read_bytes()[:keep])
    assert problems(written)


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
