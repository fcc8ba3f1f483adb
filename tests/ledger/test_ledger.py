"""The ledger keeps what it was given, in order, and answers to one writer."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from ledger_engines import InPostgres, InSqlite, Place
from ledger_samples import KEY, happened
from postgres_server import Server

from consortium.canonical import Fact, replace
from consortium.errors import BadInput, Broken, Unavailable
from consortium.signing import sign_checkpoint
from coordinator.ledger import GENESIS, Head, Ledger, Snapshot, chain
from coordinator.ledger_check import verify_chain


class SiteEnrolled(Fact, tag=True, tag_field="kind"):
    site: str
    languages: tuple[str, ...]


def test_what_was_appended_is_read_back_with_the_bytes_that_were_hashed(place: Place) -> None:
    event = SiteEnrolled(site="sofia", languages=("bg", "mk"))
    with place.open() as ledger:
        assert ledger.head == Head(seq=0, hash=GENESIS)
        first, second = ledger.append([event, happened(2)], at=12)
    with place.open() as again:
        assert list(again.read()) == [first, second]
        assert list(again.read(2)) == [second]
        assert again.head == Head(seq=2, hash=second.hash)
    assert first.event == {"kind": "SiteEnrolled", "site": "sofia", "languages": ["bg", "mk"]}
    assert first.entry == (
        b'{"at":12.0,"event":{"kind":"SiteEnrolled","languages":["bg","mk"],"site":"sofia"},'
        b'"prev":"' + GENESIS.encode() + b'","schema":1,"seq":1}'
    )
    assert second.hash == chain(first.hash, second.entry)


def test_many_entries_are_read_in_order(place: Place) -> None:
    with place.open() as ledger:
        ledger.append([happened(number) for number in range(1201)], at=1.0)
        assert [entry.event["number"] for entry in ledger.read()] == list(range(1201))
        assert [entry.seq for entry in ledger.read(1199)] == [1199, 1200, 1201]


def test_an_append_writes_all_or_nothing(place: Place) -> None:
    with place.open() as ledger:
        ledger.append([happened(1)], at=1.0)
        with pytest.raises(BadInput, match=r"event\.share: nan"):
            ledger.append([happened(2), {**happened(3), "share": float("nan")}], at=2.0)
        with pytest.raises(BadInput, match="expected a tag named 'kind'"):
            ledger.append([happened(2), {"number": 3}], at=2.0)
        assert ledger.head.seq == 1
        assert ledger.append([happened(2)], at=2.0)[0].seq == 2
    assert list(verify_chain(place.where)) == []


def test_a_second_coordinator_is_told_who_holds_the_ledger(place: Place) -> None:
    program = f"from coordinator.ledgers import open_ledger; open_ledger({place.where!r})"
    here = (
        "another coordinator" if isinstance(place, InPostgres) else "this process has the ledger open already"
    )
    with place.open() as ledger:
        ledger.append([happened(1)], at=1.0)
        with pytest.raises(Unavailable, match=here):
            place.open()
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert "another coordinator (process " in other.stderr
        ledger.append([happened(2)], at=2.0)  # and the first goes on undisturbed
        ledger.still_mine()
        with place.open(read_only=True) as reader:
            assert [entry.seq for entry in reader.read()] == [1, 2]
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_writer_that_got_past_the_lock_is_noticed_before_the_chain_forks(place: Place) -> None:
    with place.open() as ledger:
        ledger.append([happened(1)], at=1.0)
        place.sql("INSERT INTO events SELECT 2, at, kind, entry, hash FROM events")
        with pytest.raises(Broken, match="wrote up to entry 1, the ledger ends at 2"):
            ledger.append([happened(2)], at=2.0)


def test_entries_of_another_ledger_are_taken_over_byte_for_byte_if_they_follow(
    written: Place, tmp_path: Path
) -> None:
    with written.open(read_only=True) as ledger:
        entries = list(ledger.read())
    with Ledger(tmp_path / "copy.sqlite") as copy:
        copy.adopt(entries[:2])
        with pytest.raises(Broken, match="entry 3: its number is 4"):
            copy.adopt(entries[3:])
        forged = replace(entries[2], entry=entries[2].entry.replace(b"Ljubljana", b"Maribor__"))
        with pytest.raises(Broken, match="entry 3: its hash"):
            copy.adopt([forged])
        copy.adopt(entries[2:])
        assert list(copy.read()) == entries


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET at = 0 WHERE seq = 2",
        "DELETE FROM events WHERE seq = 5",
        "INSERT INTO events SELECT 2, at, kind, entry, hash FROM events WHERE seq = 3",
        "INSERT INTO events SELECT 9, at, kind, entry, hash FROM events WHERE seq = 3",
        "UPDATE checkpoints SET head = 'x'",
        "DELETE FROM checkpoints",
        "INSERT INTO checkpoints SELECT seq, 'x', signature, public_key FROM checkpoints",
    ],
)
def test_sql_cannot_change_the_past(written: Place, statement: str) -> None:
    with pytest.raises(written.refusals, match=r"append-only|grow"):
        written.sql(statement)
    assert list(verify_chain(written.where)) == []


@pytest.mark.parametrize("table", ["events", "checkpoints"])
def test_an_insert_that_replaces_cannot_change_the_past(file: Path, table: str) -> None:
    """Of SQLite: it deletes without firing delete triggers."""
    with pytest.raises(sqlite3.IntegrityError, match="grow"):
        InSqlite(file).sql(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table} WHERE seq = 4")
    assert list(verify_chain(file)) == []


def test_a_table_cannot_be_emptied(postgres: Server) -> None:
    """Of PostgreSQL: TRUNCATE fires no delete triggers."""
    place = InPostgres(postgres.new_ledger())
    with place.open() as ledger:
        ledger.append([happened(1)], at=1.0)
    for table in ("events", "checkpoints"):
        with pytest.raises(place.refusals, match="append-only"):
            place.sql(f"TRUNCATE {table}")


def test_a_snapshot_is_given_back_only_if_it_is_whole_and_on_the_chain(written: Place) -> None:
    with written.open() as ledger:
        assert ledger.snapshot() == Snapshot(seq=5, hash=ledger.head.hash, state=b'{"state":5}')
        ledger.save_snapshot(b"of another chain", Head(seq=5, hash=GENESIS))
        assert ledger.snapshot() is None
        ledger.save_snapshot(b"fine", ledger.head)
    written.sql("UPDATE snapshots SET state = bytes('00')")
    with written.open() as ledger:
        assert ledger.snapshot() is None


def test_the_newest_checkpoint_is_kept_and_a_repeated_one_does_no_harm(written: Place) -> None:
    with written.open() as ledger:
        before = ledger.checkpoint()
        assert before is not None
        assert before.sequence == 4
        ledger.save_checkpoint(before)
        newer = sign_checkpoint(KEY, ledger.head.seq, ledger.head.hash)
        ledger.save_checkpoint(newer)
        assert ledger.checkpoint() == newer
        assert ledger.checkpoints() == [before, newer]
        with pytest.raises(Broken, match="checkpoints only grow"):
            ledger.save_checkpoint(before)


def test_a_newer_schema_and_another_database_are_named(
    written: Place, tmp_path: Path, postgres: Server
) -> None:
    written.sql("UPDATE schema_version SET version = 2")
    with pytest.raises(BadInput, match="ledger schema 2, this program knows 1"):
        written.open()
    for other in (InSqlite(tmp_path / "other.sqlite"), InPostgres(postgres.new_ledger())):
        with pytest.raises(Unavailable, match="no ledger here"):
            other.open(read_only=True)
        other.sql("CREATE TABLE songs (title TEXT)")
        with pytest.raises(BadInput, match="not a ledger of Sprachbund"):
            other.open()


def test_a_damaged_file_is_refused_with_the_way_out_and_the_lock_is_given_back(file: Path) -> None:
    whole = file.read_bytes()
    for torn in (b"this is no database, whatever its name says" * 40, whole[:100], whole[: len(whole) // 2]):
        file.write_bytes(torn)
        with pytest.raises(Broken, match="run `sprachbund verify`"):
            list(Ledger(file).read())
    file.write_bytes(whole)
    Ledger(file).close()
