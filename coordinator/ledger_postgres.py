"""The ledger in PostgreSQL: the engine for when another machine has to be able to take over.

The chain and its bytes are those of ``chain.py``. An append is one transaction: the epoch is compared with the fence
(``postgres.py``), the head with what was written last, the entries are inserted; the server has it on disk when this
returns. A session that breaks is not mended: whoever leads no longer knows that it does, so it has to open anew.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, LiteralString

from consortium.canonical import Fact
from consortium.errors import Unavailable
from consortium.ids import digest_of
from consortium.signing import Checkpoint
from coordinator.chain import (
    GENESIS,
    Head,
    Recorded,
    Row,
    Snapshot,
    check_row,
    check_succession,
    checkpoint_of,
    other_writer,
    row_of,
    write_down,
)
from coordinator.postgres import (
    BEAT_SECONDS,
    SILENCE_SECONDS,
    STRUCTURE,
    WANTED,
    Deposed,
    check_version,
    connect,
    lead,
    postgres_errors,
    require_epoch,
    set_up,
    shown_address,
)

_PAGE = 500
_SELECT_EVENTS: LiteralString = "SELECT seq, at, kind, entry, hash FROM events"
_INSERT_EVENT: LiteralString = "INSERT INTO events VALUES (%s, %s, %s, %s, %s)"


class PostgresLedger:
    """The ledger in a database. Methods may be called from any thread."""

    def __init__(self, address: str, read_only: bool = False) -> None:
        """Open, and create if need be. A writer leads until ``close``, its end, or ``SILENCE_SECONDS`` of silence.

        address  as libpq reads it: a URL, or ``service=…``
        Raises Held if another coordinator leads, Unavailable if nothing answers, BadInput for a newer schema or a
        database that is no ledger, Broken if its last entry does not fit the chain.
        """
        self._place = shown_address(address)
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._lost: str | None = None
        self._beaten = _now()
        self._db = connect(address, read_only)
        try:
            if not read_only:
                set_up(self._db, self._place)
            check_version(self._db, self._place, read_only)
            self.epoch = 0 if read_only else lead(self._db, self._place)
            with postgres_errors(self._place):
                self.head = self._last()
            if self.head.seq:
                next(self.read(self.head.seq))
        except BaseException:
            self._db.close()
            raise
        if not read_only:
            threading.Thread(target=self._beat, name="ledger-heartbeat", daemon=True).start()

    @property
    def place(self) -> str:
        return self._place

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            self._db.close()

    def __enter__(self) -> "PostgresLedger":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def still_mine(self) -> None:
        """Raise Unavailable if another leads by now, or may: the session is gone, or was silent for too long."""
        if self._lost is not None:
            raise Unavailable(self._lost)
        silent = _now() - self._beaten
        if self.epoch and silent > SILENCE_SECONDS:
            raise Unavailable(
                f"{self._place}: nothing was heard from the database for {silent:.1f} s, so another coordinator may "
                "lead by now; ask again"
            )

    # ---- events

    def append(self, events: Sequence[Fact | dict[str, Any]], at: float) -> list[Recorded]:
        """See ``chain.AnyLedger``. Unavailable also if another coordinator leads by now: nothing was written."""
        with self._lock:
            recorded = write_down(self.head, events, at)  # before the transaction, which others wait for
            self._write(recorded)
        return recorded

    def adopt(self, recorded: Sequence[Recorded]) -> None:
        """Write down entries of another ledger, byte for byte, all or none; Broken if they do not follow the head."""
        with self._lock:
            check_succession(self.head, recorded, self._place)
            self._write(recorded)

    def read(self, from_seq: int = 1) -> Iterator[Recorded]:
        """All entries from ``from_seq`` on, each checked against the chain. Broken names a bad one."""
        seq, before = max(1, from_seq), GENESIS
        if seq > 1:
            rows = self._rows("SELECT hash FROM events WHERE seq = %s", seq - 1)
            before = rows[0][0] if rows else GENESIS
        while rows := self._rows(f"{_SELECT_EVENTS} WHERE seq >= %s ORDER BY seq LIMIT {_PAGE}", seq):
            for row in rows:
                yield check_row(row, seq, before, self._place)
                seq, before = seq + 1, row[4]

    # ---- snapshots and checkpoints

    def save_snapshot(self, state: bytes, at: Head) -> None:
        """Keep the fold of all events up to ``at`` in place of the older one."""
        with self._lock, self._writing():
            self._db.execute("DELETE FROM snapshots")
            self._db.execute(
                "INSERT INTO snapshots VALUES (%s, %s, %s, %s)", (at.seq, at.hash, state, digest_of(state))
            )

    def snapshot(self) -> Snapshot | None:
        """The snapshot, if there is one, it is whole and lies on the chain; None: replay from the start."""
        rows = self._rows(
            "SELECT s.seq, s.hash, s.state, s.digest FROM snapshots s JOIN events e USING (seq, hash)"
        )
        whole = [row for row in rows if digest_of(row[2]) == row[3]]
        return Snapshot(seq=whole[0][0], hash=whole[0][1], state=whole[0][2]) if whole else None

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a signed head; the same one twice does no harm."""
        with self._lock, self._writing():
            if checkpoint != self.checkpoint():
                self._db.execute(
                    "INSERT INTO checkpoints VALUES (%s, %s, %s, %s)",
                    (checkpoint.sequence, checkpoint.head, checkpoint.signature, checkpoint.public_key),
                )

    def checkpoint(self) -> Checkpoint | None:
        """The newest signed head."""
        rows = self._rows(
            "SELECT seq, head, signature, public_key FROM checkpoints ORDER BY seq DESC LIMIT 1"
        )
        return checkpoint_of(rows[0]) if rows else None

    def checkpoints(self) -> list[Checkpoint]:
        """All signed heads, the oldest first."""
        rows = self._rows("SELECT seq, head, signature, public_key FROM checkpoints ORDER BY seq")
        return [checkpoint_of(row) for row in rows]

    # ---- inside

    def _write(self, recorded: Sequence[Recorded]) -> None:
        with self._writing():
            head = self._last()
            if head != self.head:
                raise other_writer(self._place, self.head, head)
            with self._db.cursor() as cursor:
                cursor.executemany(_INSERT_EVENT, [row_of(entry) for entry in recorded])
        if recorded:
            self.head = Head(seq=recorded[-1].seq, hash=recorded[-1].hash)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction of the one who leads: all that is written inside, or nothing; durable when it ends."""
        self.still_mine()
        assert self.epoch, "opened to read"
        try:
            with postgres_errors(self._place), self._db.transaction():
                require_epoch(self._db, self._place, self.epoch)
                yield
        except Deposed as error:
            self._lost = str(error)
            raise
        except Unavailable as error:
            if self._db.closed:
                self._lost = str(error)
            raise

    def _beat(self) -> None:
        """Show the server that this process lives; notice when the session, or the lead, is gone."""
        while not self._closed.wait(BEAT_SECONDS) and self._lost is None:
            try:
                with self._lock, postgres_errors(self._place):
                    if self._closed.is_set():
                        return
                    now = _now()  # before it is sent: the server waits from when it hears it, which is later
                    with self._db.transaction():
                        require_epoch(self._db, self._place, self.epoch)
                    self._beaten = now
            except Unavailable as error:
                if isinstance(error, Deposed) or self._db.closed:
                    self._lost = str(error)

    def _rows(self, query: LiteralString, *values: int) -> Sequence[Row]:
        with self._lock, postgres_errors(self._place):
            return self._db.execute(query, values).fetchall()

    def _last(self) -> Head:
        row = self._db.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        return Head(seq=row[0], hash=row[1]) if row else Head(seq=0, hash=GENESIS)


def _now() -> float:
    """Seconds that also pass while this process, or this machine, is stopped."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class PostgresEvidence:
    """What lies in a database, as it is, at one moment: see ``chain.Evidence``."""

    def __init__(self, address: str) -> None:
        self._place = shown_address(address)
        self._db = connect(address, read_only=True)
        try:
            check_version(self._db, self._place, read_only=True)
            with postgres_errors(self._place):
                self._db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        except BaseException:
            self._db.close()
            raise

    def flaws(self) -> Iterator[str]:
        with postgres_errors(self._place):
            found = {(str(what), str(how)) for what, how in self._db.execute(STRUCTURE)}
        for what, how in sorted(WANTED ^ found):
            known = "is missing" if (what, how) in WANTED else "does not belong here"
            yield f"{what} {known}: {' '.join(how.split())}"

    def events(self) -> Iterator[Row]:
        return self._rows(f"{_SELECT_EVENTS} ORDER BY seq")

    def checkpoints(self) -> Iterator[Row]:
        return self._rows("SELECT seq, head, signature, public_key FROM checkpoints ORDER BY seq")

    def snapshots(self) -> Iterator[Row]:
        return self._rows("SELECT seq, hash, state, digest FROM snapshots")

    def close(self) -> None:
        self._db.close()

    def _rows(self, query: LiteralString) -> Iterator[Row]:
        with postgres_errors(self._place), self._db.cursor(name="evidence") as cursor:
            cursor.itersize = _PAGE
            yield from cursor.execute(query)
