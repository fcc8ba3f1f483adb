"""The ledger in PostgreSQL: the engine for when another machine has to be able to take over.

The chain and its bytes are those of ``chain.py``. An append is one transaction: the epoch is compared with the fence
(``postgres.py``), the head with what was written last, the entries are inserted; the server has it on disk when this
returns. A session that breaks is not mended: whoever leads no longer knows that it does, so it has to open anew. One
that is silent for so long that another leads by now is broken by ourselves, for a line that was cut without a word
(or whose other end only pretends to listen) would let an append wait for ever.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import LiteralString

from consortium.errors import Unavailable
from coordinator.chain import Row
from coordinator.ledger_tables import TableEvidence, TableLedger, Value
from coordinator.postgres import (
    BEAT_SECONDS,
    SILENCE_SECONDS,
    STRUCTURE,
    WANTED,
    Deposed,
    break_off,
    check_version,
    connect,
    lead,
    postgres_errors,
    require_epoch,
    set_up,
    shown_address,
)

_log = logging.getLogger(__name__)

#: No answer is waited for longer: the server has ended such a session long ago, and whoever waits must stand by.
HUNG_SECONDS = 30.0
_CLOSE_SECONDS = 5.0  # of an answer that is still to come, when this ends
_PAGE = 500  # rows that the server sends at once
_ROWS = 500  # that one statement inserts


class PostgresLedger(TableLedger):
    """The ledger in a database. Methods may be called from any thread."""

    def __init__(self, address: str, read_only: bool = False) -> None:
        """Open, and create if need be. A writer leads until ``close``, its end, or ``SILENCE_SECONDS`` of silence.

        address  as libpq reads it: a URL, or ``service=…``
        Raises Held if another coordinator leads, Unavailable if nothing answers, BadInput for a newer schema or a
        database that is no ledger, Broken if its last entry does not fit the chain.
        """
        super().__init__()
        self._place = shown_address(address)
        self._closed = threading.Event()
        self._lost: str | None = None
        self._beaten = _now()
        self._db = connect(address, read_only)
        try:
            if not read_only:
                set_up(self._db, self._place)
            check_version(self._db, self._place, read_only)
            self.epoch = 0 if read_only else lead(self._db, self._place)
            self._go_to_end()
        except BaseException:
            self._db.close()
            raise
        if not read_only:
            for work in (self._beat, self._watch):
                threading.Thread(target=work, name=f"ledger{work.__name__}", daemon=True).start()

    @property
    def place(self) -> str:
        return self._place

    def close(self) -> None:
        """Give up the lead: when this returns another may have it at once, unless the database says nothing."""
        self._closed.set()
        given_up = threading.Timer(_CLOSE_SECONDS, break_off, (self._db,))
        given_up.daemon = True
        given_up.start()
        try:
            with self._lock:
                if self.epoch and self._lost is None:
                    # Left to the server, the lock is there until it has heard of the end of the session.
                    with contextlib.suppress(Unavailable), postgres_errors(self._place):
                        self._db.execute("SELECT pg_advisory_unlock_all()")
                self._db.close()
        finally:
            given_up.cancel()

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
                self._lost = self._lost or str(error)
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
                    self._lost = self._lost or str(error)

    def _watch(self) -> None:
        """Break the session when nothing comes back any more; whoever waits for it, in any thread, then hears so."""
        while not self._closed.wait(BEAT_SECONDS) and self._lost is None:
            if (silent := _now() - self._beaten) > HUNG_SECONDS:
                self._lost = (
                    f"{self._place}: nothing was heard from the database for {silent:.0f} s, so the session was given "
                    "up; another coordinator may lead by now; check the database and the way to it"
                )
                _log.error("%s", self._lost)
                break_off(self._db)

    def _rows(self, query: LiteralString, *values: Value) -> Sequence[Row]:
        with self._lock, postgres_errors(self._place):
            return self._db.execute(query.replace("?", "%s"), values).fetchall()

    def _do(self, statement: LiteralString, rows: Sequence[Sequence[Value]]) -> None:
        # Not executemany: its pipeline ends with a Flush, after which the server (15 at least) no longer looks how long
        # the transaction is idle. A leader that is stopped before its COMMIT would keep everybody out for ever.
        head, values, row = statement.replace("?", "%s").partition("VALUES ")
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            self._db.execute(
                head + values + ", ".join([row] * len(some)), [one for part in some for one in part]
            )


def _now() -> float:
    """Seconds that also pass while this process, or this machine, is stopped."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class PostgresEvidence(TableEvidence):
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

    def close(self) -> None:
        self._db.close()

    def _rows(self, query: LiteralString) -> Iterator[Row]:
        with postgres_errors(self._place), self._db.cursor(name="evidence") as cursor:
            cursor.itersize = _PAGE
            yield from cursor.execute(query)
