"""Who may write to a ledger in PostgreSQL: one, and never again who was replaced."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hostile_wire import wire
from ledger_engines import InPostgres
from ledger_samples import KEY, happened
from postgres_server import Server, server
from processes import PATIENCE_SECONDS, reaped

from consortium.errors import BadInput, Refused, Unavailable
from consortium.signing import sign_checkpoint
from coordinator.ledger import Ledger
from coordinator.ledger_check import verify_chain
from coordinator.ledger_postgres import PostgresLedger
from coordinator.ledgers import open_ledger, shown
from coordinator.moving import move_ledger
from coordinator.postgres import Deposed, Held

SECRET = "geheim-42"

#: A leader that appends at every line it reads, and says what came of it.
LEADER = """
import sys
from consortium.errors import SprachbundError
from coordinator.ledger_postgres import PostgresLedger
ledger = PostgresLedger(sys.argv[1])
print("leads", flush=True)
for line in sys.stdin:
    try:
        print(ledger.append([{"kind": "Happened", "by": "old"}], at=1.0)[-1].seq, flush=True)
    except SprachbundError as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def address(postgres: Server) -> str:
    return postgres.new_ledger()


def test_each_leader_has_an_epoch_of_its_own(address: str) -> None:
    epochs = []
    for _ in range(3):
        with PostgresLedger(address) as ledger:
            epochs.append(ledger.epoch)
    assert epochs == [1, 2, 3]


def test_whoever_comes_next_leads_at_once_though_the_server_hears_late_that_the_session_is_over(
    address: str,
) -> None:
    with wire(address) as line:
        old = PostgresLedger(line.address)
        line.holds = b"X\x00\x00\x00\x04"  # the last message of a session: Terminate
        old.close()
        assert line.held.wait(PATIENCE_SECONDS)
        PostgresLedger(address).close()


def test_who_was_replaced_cannot_write_even_with_its_session_alive(address: str) -> None:
    with PostgresLedger(address) as old:
        old.append([happened(1)], at=1.0)
        old._db.execute("SELECT pg_advisory_unlock_all()")  # as a database does whose lock service lost it
        with PostgresLedger(address) as new:
            new.append([happened(2)], at=2.0)
            for write in (
                lambda: old.append([happened(3)], at=3.0),
                lambda: old.save_snapshot(b"old", old.head),
                lambda: old.save_checkpoint(sign_checkpoint(KEY, old.head.seq, old.head.hash)),
            ):
                with pytest.raises(
                    Unavailable, match=r"led in epoch 1, now it is 2 and process \d+ on .* leads"
                ):
                    write()
            with pytest.raises(Unavailable, match="led in epoch 1"):
                old.still_mine()
            new.append([happened(3)], at=3.0)
            assert [entry.event["number"] for entry in new.read()] == [1, 2, 3]
            assert (new.snapshot(), new.checkpoint()) == (None, None)
    assert issubclass(Deposed, Unavailable)  # agents ask elsewhere; Superseded would make them leave
    assert list(verify_chain(address)) == []


def test_what_an_old_leader_has_under_way_is_decided_before_the_new_one_leads(address: str) -> None:
    """The epoch is raised only when the old transaction has ended: here by the server, after its silence."""
    with PostgresLedger(address) as old:
        old.append([happened(1)], at=1.0)
        old._closed.set()  # it beats no more
        old._db.execute("SELECT pg_advisory_unlock_all()")
        old._db.execute("SET idle_in_transaction_session_timeout = '700ms'")
        old._db.execute(  # at once: its silence begins when all of it is done
            "BEGIN; SELECT epoch FROM fence FOR SHARE; "
            "INSERT INTO events SELECT 2, at, kind, entry, hash FROM events"
        )
        with PostgresLedger(address) as new:
            assert new.head.seq == 1
            new.append([happened(2)], at=2.0)
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            old._db.execute("COMMIT")
    assert list(verify_chain(address)) == []


@contextlib.contextmanager
def stopped_leader(address: str) -> Iterator[subprocess.Popen[str]]:
    """A leader in a process of its own that was stopped after its first append."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", LEADER, address]
    with reaped(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)) as leader:
        assert leader.stdin is not None and leader.stdout is not None
        leader.stdin.write("go\n")
        leader.stdin.flush()
        assert [leader.stdout.readline(), leader.stdout.readline()] == ["leads\n", "1\n"]
        os.kill(leader.pid, signal.SIGSTOP)
        yield leader


def test_a_leader_that_was_stopped_loses_the_lead_and_can_never_append_again(address: str) -> None:
    with stopped_leader(address) as old:
        with pytest.raises(Held, match=f"process {old.pid} on"):
            PostgresLedger(address)
        began = time.monotonic()
        new = waited_for(address)
        print(f"SIGSTOP: {time.monotonic() - began:.1f} s until another led")
        with new:
            new.append([happened(2)], at=2.0)
            os.kill(old.pid, signal.SIGCONT)
            assert old.stdin is not None and old.stdout is not None
            for _ in range(3):
                old.stdin.write("go\n")
                old.stdin.flush()
                assert old.stdout.readline().startswith("Unavailable postgresql://")
            assert new.head.seq == 2
            assert [entry.seq for entry in new.read()] == [1, 2]
    assert list(verify_chain(address)) == []


def waited_for(address: str) -> PostgresLedger:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return PostgresLedger(address)
        except Held:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_nobody_is_believed_who_has_not_heard_from_the_database_for_long(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PostgresLedger(address) as ledger:
        ledger.still_mine()
        with ledger._lock:  # no beat comes through
            ledger._beaten -= 100.0
            with pytest.raises(Unavailable, match="another coordinator may lead by now"):
                ledger.still_mine()


def test_a_killed_server_keeps_what_was_acknowledged() -> None:
    with server() as own:
        address = own.new_ledger()
        with PostgresLedger(address) as ledger:
            last = ledger.append([happened(number) for number in range(50)], at=1.0)[-1]
            own.kill()
            with pytest.raises(Unavailable, match="check the database"):
                ledger.append([happened(50)], at=1.0)
            with pytest.raises(Unavailable):
                ledger.still_mine()
        own.start()
        with PostgresLedger(address) as again:
            assert (again.head.seq, again.head.hash) == (50, last.hash)
        assert list(verify_chain(address)) == []


def test_a_ledger_moves_there_and_back_and_its_head_stays(address: str, tmp_path: Path) -> None:
    first, back = str(tmp_path / "first.sqlite"), str(tmp_path / "back.sqlite")
    with open_ledger(first) as ledger:
        for number in range(5):
            ledger.append([happened(number)] * 700, at=100.0 + number)
            ledger.save_checkpoint(sign_checkpoint(KEY, ledger.head.seq, ledger.head.hash))
        ledger.save_snapshot(b"state", ledger.head)
        before = ledger.head, list(ledger.read()), ledger.checkpoints(), ledger.snapshot()
    there = move_ledger(first, address)
    assert (there.sequence, there.head, there.checkpoints) == (3500, before[0].hash, 5)
    assert move_ledger(first, address) == there  # once more does no harm
    assert move_ledger(address, back).head == there.head
    with open_ledger(back, read_only=True) as ledger:
        assert (ledger.head, list(ledger.read()), ledger.checkpoints(), ledger.snapshot()) == before


def test_a_move_that_was_cut_off_goes_on_and_another_ledger_is_left_alone(
    address: str, tmp_path: Path
) -> None:
    first, other = str(tmp_path / "first.sqlite"), str(tmp_path / "other.sqlite")
    with open_ledger(first) as ledger:
        entries = ledger.append([happened(number) for number in range(20)], at=1.0)
    with open_ledger(address) as half:
        half.adopt(entries[:7])
    assert move_ledger(first, address).sequence == 20
    with Ledger(Path(other)) as ledger:
        ledger.append([happened(99)], at=1.0)
    with pytest.raises(Refused, match="another ledger lies there"):
        move_ledger(other, address)
    with pytest.raises(Refused, match="nothing to move"):
        move_ledger(str(tmp_path / "empty.sqlite"), address)


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://sprachbund:{SECRET}@127.0.0.1:1/postgres",
        f"postgresql://sprachbund@127.0.0.1:1/postgres?password={SECRET}",
        f"postgresql://sprachbund:{SECRET}@127.0.0.1:port/postgres",
        f"postgresql://sprachbund:{SECRET}@127.0.0.1/x?no_such_option={SECRET}",
        f"service=nowhere password={SECRET}",
    ],
)
def test_no_password_is_told(address: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises((Unavailable, BadInput)) as refusal:
        open_ledger(address)
    told, error = [], refusal.value
    while error is not None:  # the causes, too: a traceback shows them
        told.append(f"{error!r}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)  # type: ignore[assignment]
    told += [problem.what for problem in verify_chain(address)]
    try:
        told.append(shown(address))
    except BadInput as bad:
        told.append(str(bad))
    assert SECRET not in "\n".join([*told, caplog.text])


def test_the_address_that_is_shown_leads_there(postgres: Server) -> None:
    assert (
        shown(postgres.address(password=SECRET))
        == f"postgresql://sprachbund@127.0.0.1:{postgres.port}/postgres"
    )
    assert shown("service=sprachbund") == "service=sprachbund"
    assert shown("/x/ledger.sqlite") == "/x/ledger.sqlite"
    with InPostgres(postgres.new_ledger()).open() as ledger:
        assert isinstance(ledger, PostgresLedger)
