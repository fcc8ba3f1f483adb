"""Whatever happens to a leader's session, a deposed leader appends nothing, and nothing acknowledged is lost.

Each event names the epoch of who wrote it, so the ledger itself says whether an old leader came after a new one.
"""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from hostile_wire import Wire, wire
from postgres_server import Server, server
from processes import PATIENCE_SECONDS, reaped

from consortium.errors import SprachbundError, Unavailable
from coordinator import ledger_postgres, postgres
from coordinator.ledger_check import verify_chain
from coordinator.ledger_postgres import PostgresLedger

Written = dict[str, int]  #: what was acknowledged: word -> sequence


@pytest.fixture
def address(postgres: Server) -> str:
    return postgres.new_ledger()


def write(ledger: PostgresLedger, word: str) -> int:
    return ledger.append([{"kind": "Happened", "epoch": ledger.epoch, "word": word}], at=1.0)[-1].seq


def leads(address: str, patience_seconds: float = PATIENCE_SECONDS) -> PostgresLedger:
    """The next leader, as soon as the database lets it."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return PostgresLedger(address)
        except Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def told(address: str) -> list[tuple[int, str]]:
    """Epoch and word of every entry, after a look at the chain."""
    assert list(verify_chain(address)) == []
    with PostgresLedger(address, read_only=True) as ledger:
        return [(entry.event["epoch"], entry.event["word"]) for entry in ledger.read()]


def assert_nobody_came_late(address: str, acknowledged: Written) -> list[tuple[int, str]]:
    found = told(address)
    assert [epoch for epoch, _ in found] == sorted(epoch for epoch, _ in found), "a deposed leader appended"
    words = [word for _, word in found]
    assert len(set(words)) == len(words), "something was written twice"
    assert {word: words.index(word) + 1 for word in acknowledged} == acknowledged
    return found


def end_sessions(address: str, what: str = "pg_terminate_backend") -> None:
    """Of everybody else in this database who leads, or led."""
    with psycopg.connect(address, autocommit=True) as db:
        db.execute(
            f"SELECT {what}(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"  # type: ignore[arg-type]
            " AND objid = current_schema()::regnamespace::oid::bigint::bit(32)::integer::bigint & 4294967295"
        )


@contextlib.contextmanager
def on_its_way(old: PostgresLedger, line: Wire, message: bytes) -> Iterator[list[str]]:
    """While the block runs, the old leader's append stands still at ``message``; then what came of it is told."""
    came: list[str] = []

    def append() -> None:
        try:
            came.append(f"acknowledged as {write(old, 'on its way')}")
        except SprachbundError as error:
            came.append(type(error).__name__)

    line.holds = message
    thread = threading.Thread(target=append)
    thread.start()
    while not line.held.wait(0.02) and thread.is_alive():
        pass  # a machine that stood still for seconds may have been deposed before
    try:
        yield came
    finally:
        line.goes_on.set()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("terminated", b"FOR SHARE"),
        ("terminated", b"INSERT INTO events"),
        ("terminated", b"COMMIT"),
        ("cut", b"COMMIT"),
        ("silent", b"FOR SHARE"),
        ("silent", b"COMMIT"),
        ("lock lost", b"COMMIT"),
    ],
)
def test_an_append_that_is_held_up_on_its_way_comes_too_late(
    address: str, how: str, message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message arrives when another leads already: after the session ended, or its lock alone was lost."""
    with wire(address) as line:
        with monkeypatch.context() as patch:
            patch.setattr(postgres, "SILENCE_SECONDS", 60.0)
            patch.setattr(ledger_postgres, "BEAT_SECONDS", 3600.0)
            old = PostgresLedger(line.address)
        with old:
            if how in ("silent", "lock lost"):
                old._db.execute("SET idle_in_transaction_session_timeout = '3s'")
            old._db.prepare_threshold = None  # so that every message says in words what it is
            old._beaten += 3600.0  # it believes in itself whatever the clock says
            acknowledged = {"first": write(old, "first")}
            if how == "lock lost":
                old._db.execute("SELECT pg_advisory_unlock_all()")
            with on_its_way(old, line, message) as came:
                if how == "terminated":
                    end_sessions(address)
                elif how == "cut":
                    line.cut()
                with leads(address) as new:
                    acknowledged["second"] = write(new, "second")
            assert came and not came[0].startswith("acknowledged"), came
            with pytest.raises(Unavailable):
                write(old, "third")
    assert [word for _, word in assert_nobody_came_late(address, acknowledged)] == ["first", "second"]


def test_an_answer_that_is_lost_leaves_an_event_that_the_next_leader_knows(address: str) -> None:
    """Nobody was told of it, and it was written: so whoever leads next finds it, once."""
    with wire(address) as line:
        with PostgresLedger(line.address) as old:
            line.loses_answers = True
            with on_its_way(old, line, b"COMMIT") as came:
                line.goes_on.set()
                assert line.has_lost.wait(PATIENCE_SECONDS)
                line.cut()
            assert came == ["Unavailable"]
            with pytest.raises(Unavailable):
                old.still_mine()
            with leads(address) as new:
                acknowledged = {"second": write(new, "second")}
    assert assert_nobody_came_late(address, acknowledged) == [(1, "on its way"), (2, "second")]


@pytest.mark.parametrize("message", [b"FOR SHARE", b"COMMIT"])
def test_a_line_that_is_cut_without_a_word_does_not_hold_the_old_leader_for_ever(
    address: str, message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other end still takes every byte, as a proxy does: without us, nothing would ever end the wait."""
    monkeypatch.setattr(ledger_postgres, "HUNG_SECONDS", 1.0)
    monkeypatch.setattr(ledger_postgres, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(postgres, "SILENCE_SECONDS", PATIENCE_SECONDS)  # so that the server is not the first
    with wire(address) as line:
        with leads(line.address) as old:
            with on_its_way(old, line, message) as came:
                line.is_silent.set()
                line.goes_on.set()
            assert came == ["Unavailable"]
            with pytest.raises(Unavailable, match="the session was given up"):
                old.still_mine()
            monkeypatch.undo()
            end_sessions(address)
            with leads(address) as new:
                acknowledged, epoch = {"second": write(new, "second")}, new.epoch
    assert epoch > old.epoch and assert_nobody_came_late(address, acknowledged) == [(epoch, "second")]


def test_who_wants_to_end_does_not_wait_for_an_answer_for_ever(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append is under way, and the line silent."""
    monkeypatch.setattr(ledger_postgres, "_CLOSE_SECONDS", 0.1)
    with wire(address) as line:
        old = leads(line.address)
        with on_its_way(old, line, b"COMMIT") as came:
            line.is_silent.set()
            line.goes_on.set()
            old.close()
        assert came == ["Unavailable"]


def test_a_cancelled_statement_costs_its_append_and_not_the_lead(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_postgres, "SILENCE_SECONDS", 600.0)
    monkeypatch.setattr(ledger_postgres, "HUNG_SECONDS", 600.0)
    with wire(address) as line, PostgresLedger(line.address) as old:
        head = old.head
        old._db.execute("SET lock_timeout = 0")
        with psycopg.connect(address) as other:
            other.execute("LOCK TABLE events IN SHARE MODE")  # the append waits for it
            thread = threading.Thread(
                target=lambda: refused.append(type(_caught(lambda: write(old, "lost"))))
            )
            refused: list[type[BaseException]] = []
            thread.start()
            while not other.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
                time.sleep(0.01)
            end_sessions(address, "pg_cancel_backend")
            thread.join(PATIENCE_SECONDS)
        assert refused == [Unavailable] and old.head == old.last() == head
        old.still_mine()
        assert write(old, "kept") == 1
    assert assert_nobody_came_late(address, {"kept": 1}) == [(1, "kept")]


def _caught(do: Callable[[], object]) -> BaseException:
    with pytest.raises(SprachbundError) as caught:
        do()
    return caught.value


def test_a_clock_that_jumps_deposes_nobody_and_keeps_nobody(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence is measured by a clock that nobody sets; what an entry says of the time is not looked at."""
    now = time.time()
    with PostgresLedger(address) as old:
        for number, jump in enumerate((0.0, 3600.0, -7200.0, 86_400.0 * 400)):
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda jump=jump: now + jump)
                old.still_mine()
                old.append([{"kind": "Happened", "epoch": 1, "word": str(number)}], at=now + jump)
        old._closed.set()  # it beats no more
        old._beaten -= 100.0
        monkeypatch.setattr(time, "time", lambda: now - 7200.0)
        with pytest.raises(Unavailable, match="another coordinator may lead by now"):
            old.still_mine()
        with pytest.raises(Unavailable, match="another coordinator may lead by now"):
            write(old, "late")
    assert [word for _, word in told(address)] == ["0", "1", "2", "3"]


STOPPED = """
import sys
from coordinator import ledger_postgres, postgres
postgres.SILENCE_SECONDS = 60.0
ledger = ledger_postgres.PostgresLedger(sys.argv[1])
ledger._db.execute("SET idle_in_transaction_session_timeout = '3s'")
print("leads", flush=True)
for line in sys.stdin:
    try:
        event = {"kind": "Happened", "epoch": ledger.epoch, "word": line.strip()}
        print(ledger.append([event], at=1.0)[-1].seq, flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


def test_a_leader_that_is_stopped_while_its_commit_is_under_way_comes_too_late(address: str) -> None:
    """SIGSTOP between INSERT and COMMIT; it is woken, and its COMMIT let go, when another leads."""
    pipe = subprocess.PIPE
    with wire(address) as line:
        command = [sys.executable, "-c", STOPPED, line.address]
        with reaped(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)) as old:
            assert old.stdin is not None and old.stdout is not None
            assert old.stdout.readline() == "leads\n"
            line.holds = b"COMMIT"  # of a beat, or of the append: both are under way in the old epoch
            old.stdin.write("on its way\n")
            old.stdin.flush()
            assert line.held.wait(PATIENCE_SECONDS)
            os.kill(old.pid, signal.SIGSTOP)
            with leads(address) as new:
                acknowledged = {"second": write(new, "second")}
                line.goes_on.set()
                os.kill(old.pid, signal.SIGCONT)
                for _ in range(2):
                    assert old.stdout.readline() in ("Unavailable\n", "Deposed\n")
                    old.stdin.write("late\n")
                    old.stdin.flush()
                acknowledged["third"] = write(new, "third")
    assert [word for _, word in assert_nobody_came_late(address, acknowledged)] == ["second", "third"]


class Leader:
    """Appends for as long as it is believed; deposed, it goes on trying."""

    def __init__(self, ledger: PostgresLedger, acknowledged: Written) -> None:
        self.ledger, self._acknowledged = ledger, acknowledged
        self._ends, self.wrote = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for number in itertools.count():
            if self._ends.wait(0.002):
                return
            word = f"{self.ledger.epoch}.{number}"
            try:
                self._acknowledged[word] = write(self.ledger, word)
                self.wrote.set()
            except SprachbundError:
                self.ledger._beaten = ledger_postgres._now()  # so that the database alone decides
                self.ledger._lost = None

    def end(self) -> None:
        self._ends.set()
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        self.ledger.close()


def test_leaders_that_never_give_up_under_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaders one after the other, each attacked while it appends, and all of them going on until the end."""
    monkeypatch.setattr(postgres, "SILENCE_SECONDS", 60.0)
    die = random.Random(7)
    attacks = ["terminate", "cut", "unlock", "server killed", "answers lost", "terminate, twice"]
    with server() as own, contextlib.ExitStack() as lines:
        address, acknowledged, leaders = own.new_ledger(), Written(), []
        for attack in die.sample(attacks, len(attacks)):
            line = lines.enter_context(wire(address))
            leader = Leader(leads(line.address), acknowledged)
            leaders.append(leader)
            assert leader.wrote.wait(PATIENCE_SECONDS)
            match attack:
                case "terminate" | "terminate, twice":
                    for _ in range(attack.count("t") - 1):
                        end_sessions(address)
                case "cut":
                    line.cut()
                case "unlock":
                    with leader.ledger._lock:
                        leader.ledger._db.execute("SELECT pg_advisory_unlock_all()")
                case "server killed":
                    own.kill()
                    own.start()
                case "answers lost":
                    line.holds, line.loses_answers = b"COMMIT", True
                    line.goes_on.set()
                    assert line.has_lost.wait(PATIENCE_SECONDS)
                    line.cut()
        with leads(address) as last:
            acknowledged["last"] = write(last, "last")
            for leader in leaders:
                leader.end()
            acknowledged["really last"] = write(last, "really last")
        found = assert_nobody_came_late(address, acknowledged)
        assert len({epoch for epoch, _ in found}) == len(attacks) + 1 and found[-1][1] == "really last"
