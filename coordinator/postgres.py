"""The PostgreSQL database under a ledger: how it is reached, its tables, who leads, and what its errors mean.

Everything lies in one schema (the first of the session's ``search_path``). Whoever writes holds an advisory lock and
has raised the ``fence`` to a new epoch; every transaction that writes compares the epoch first, so what an old
leader has under way when it is replaced is refused by the database itself, however late it wakes up.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any, LiteralString

from consortium.errors import BadInput, Broken, DiskFull, Unavailable

try:
    import psycopg
    from psycopg import conninfo, errors
except ImportError as absent:
    raise BadInput(
        "the ledger is to be kept by PostgreSQL, for which a driver is missing here; "
        "`pip install 'sprachbund[postgres]'`"
    ) from absent

_log = logging.getLogger(__name__)


class Held(Unavailable):
    """Another coordinator leads; one may stand by until it ends."""


class Deposed(Unavailable):
    """Another coordinator leads by now. To callers it is as any coordinator that cannot be reached."""


SCHEMA_VERSION = 1
Connection = psycopg.Connection[tuple[Any, ...]]

#: A leader says that it lives every ``BEAT_SECONDS``; the server ends the session of one that is silent for longer
#: than ``SILENCE_SECONDS`` (stopped, or cut off), which frees the lock for another.
BEAT_SECONDS = 1.5
SILENCE_SECONDS = 6.0
_LOCK_SECONDS = 5.0  # no statement of ours waits longer for another session
_CONNECT_SECONDS = 5

_NAMESPACE = 0x5370_7262  # "Sprb": the first half of the advisory lock's key; the second is the schema's oid

_ONLY_GROWS: LiteralString = """
DECLARE last bigint;
BEGIN
    IF TG_OP <> 'INSERT' THEN RAISE EXCEPTION 'the ledger is append-only'; END IF;
    EXECUTE format('SELECT coalesce(max(seq), 0) FROM %I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME) INTO last;
    IF TG_TABLE_NAME = 'events' AND NEW.seq <> last + 1 THEN
        RAISE EXCEPTION 'the ledger only grows, one by one';
    ELSIF NEW.seq <= last THEN
        RAISE EXCEPTION 'checkpoints only grow';
    END IF;
    RETURN NEW;
END"""

_COLUMNS: dict[LiteralString, LiteralString] = {
    "schema_version": "version integer not null",
    "events": "seq bigint not null, at double precision not null, kind text not null, entry bytea not null, "
    "hash text not null",
    "snapshots": "seq bigint not null, hash text not null, state bytea not null, digest text not null",
    "checkpoints": "seq bigint not null, head text not null, signature bytea not null, public_key bytea not null",
    # one row: in which epoch the ledger is, and who leads in it
    "fence": "epoch bigint not null, holder text not null",
}
_KEYED: tuple[LiteralString, ...] = ("checkpoints", "events", "snapshots")
_GUARDED: tuple[LiteralString, ...] = ("checkpoints", "events")

TABLES: tuple[LiteralString, ...] = (
    *(f"CREATE TABLE {table} ({columns})" for table, columns in _COLUMNS.items()),
    *(f"ALTER TABLE {table} ADD PRIMARY KEY (seq)" for table in _KEYED),
    "INSERT INTO fence VALUES (0, 'nobody')",
    f"CREATE FUNCTION only_grows() RETURNS trigger LANGUAGE plpgsql AS $${_ONLY_GROWS}$$",
    *(
        f"CREATE TRIGGER {table}_only_grow BEFORE INSERT OR UPDATE OR DELETE ON {table}"
        " FOR EACH ROW EXECUTE FUNCTION only_grows()"
        for table in _GUARDED
    ),
    *(
        f"CREATE TRIGGER {table}_never_emptied BEFORE TRUNCATE ON {table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION only_grows()"
        for table in _GUARDED
    ),
)

#: What lies in the schema, each thing in a name and one line of words that no release of PostgreSQL changed.
STRUCTURE: LiteralString = """
    SELECT 'table ' || c.relname, string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
           || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END, ', ' ORDER BY a.attnum)
      FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
     WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind NOT IN ('i', 'I', 't')
     GROUP BY c.oid, c.relname
    UNION ALL
    SELECT 'index ' || c.relname, CASE WHEN i.indisprimary AND i.indisvalid THEN 'key of ' ELSE 'on ' END
           || i.indrelid::regclass::text
      FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid
     WHERE c.relnamespace = current_schema()::regnamespace
    UNION ALL
    SELECT 'trigger ' || t.tgname, format('%s %s %s on %s', p.proname, t.tgtype, t.tgenabled, c.relname)
      FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
     WHERE c.relnamespace = current_schema()::regnamespace AND NOT t.tgisinternal
    UNION ALL
    SELECT 'rule ' || r.rulename, 'on ' || c.relname FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
     WHERE c.relnamespace = current_schema()::regnamespace
    UNION ALL
    SELECT 'function ' || proname, prosrc FROM pg_proc WHERE pronamespace = current_schema()::regnamespace"""

_EACH_ROW, _TRUNCATE = (
    1 | 2 | 4 | 8 | 16,
    2 | 32,
)  # pg_trigger.tgtype: row, before, insert, delete, update; truncate

#: What ``STRUCTURE`` has to find.
WANTED: frozenset[tuple[str, str]] = frozenset(
    {
        *((f"table {table}", columns) for table, columns in _COLUMNS.items()),
        *((f"index {table}_pkey", f"key of {table}") for table in _KEYED),
        *((f"trigger {table}_only_grow", f"only_grows {_EACH_ROW} O on {table}") for table in _GUARDED),
        *((f"trigger {table}_never_emptied", f"only_grows {_TRUNCATE} O on {table}") for table in _GUARDED),
        ("function only_grows", _ONLY_GROWS),
    }
)


def shown_address(address: str) -> str:
    """An address without its password, as people and logs may see it: ``postgresql://user@host:port/name``."""
    found = _parse(address)
    if "service" in found:
        return f"service={found['service']}"
    user = f"{found['user']}@" if "user" in found else ""
    port = f":{found['port']}" if "port" in found else ""
    return f"postgresql://{user}{found.get('host', '')}{port}/{found.get('dbname', '')}"


def connect(address: str, read_only: bool) -> Connection:
    """A session of its own. Raises BadInput for an address that is none, Unavailable if nobody answers."""
    place = shown_address(address)
    defaults = {
        "connect_timeout": _CONNECT_SECONDS,
        "application_name": "sprachbund",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
    }
    given = _parse(address)
    with postgres_errors(place):
        db = psycopg.connect(autocommit=True, **{**defaults, **given})
        try:
            _set(db, "lock_timeout", _LOCK_SECONDS)
            db.execute("SET client_encoding = 'UTF8'")
            if read_only:
                db.execute("SET default_transaction_read_only = on")
            elif db.execute("SHOW synchronous_commit").fetchone() != ("remote_apply",):
                db.execute("SET synchronous_commit = on")
        except BaseException:
            db.close()
            raise
    return db


def _set(db: Connection, setting: str, seconds: float) -> None:
    db.execute("SELECT set_config(%s, %s, false)", (setting, f"{seconds * 1000:.0f}ms"))


def break_off(db: Connection) -> None:
    """End a session from another thread than that which waits for its answer, and which hears of it."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(db.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def set_up(db: Connection, place: str) -> None:
    """Make the tables where there are none yet."""
    with postgres_errors(place), db.transaction():
        db.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_NAMESPACE,))  # two that begin at once
        if db.execute("SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
                      " AND relkind <> 'i'").fetchone() == (0,):  # fmt: skip
            for statement in TABLES:
                db.execute(statement)
            db.execute("INSERT INTO schema_version VALUES (%s)", (SCHEMA_VERSION,))


def check_version(db: Connection, place: str, read_only: bool) -> None:
    """Raise for a schema that is no ledger, or one that this program does not know."""
    with postgres_errors(place):
        tables = {name for (name,) in db.execute(
            "SELECT relname::text FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind <> 'i'"
        )}  # fmt: skip
        if not tables and read_only:
            raise Unavailable(f"{place}: no ledger here; `sprachbund init` makes one")
        if "schema_version" not in tables:
            raise BadInput(f"{place}: a database, but not a ledger of Sprachbund")
        row = db.execute("SELECT max(version) FROM schema_version").fetchone()
    version = row[0] if row else None
    if version != SCHEMA_VERSION:
        raise BadInput(
            f"{place}: ledger schema {version}, this program knows {SCHEMA_VERSION}; "
            "use the release of Sprachbund that wrote it, or a newer one"
        )


def lead(db: Connection, place: str) -> int:
    """Become the one who writes: the epoch in which this session leads. Raises Held if another does."""
    with postgres_errors(place):
        key = "current_schema()::regnamespace::oid::bigint::bit(32)::integer"
        got = db.execute(f"SELECT pg_try_advisory_lock({_NAMESPACE}, {key})").fetchone()
        if got != (True,):
            row = db.execute("SELECT holder, epoch FROM fence").fetchone()
            holder, epoch = row or ("unknown", 0)
            raise Held(
                f"{place}: another coordinator ({holder}) holds this ledger since epoch {epoch}; stop it, or "
                "stand by until it ends"
            )
        # Waits for what an old leader has in flight: from here on that is written or never will be.
        me = f"process {os.getpid()} on {socket.gethostname()}"
        row = db.execute("UPDATE fence SET epoch = epoch + 1, holder = %s RETURNING epoch", (me,)).fetchone()
        assert row is not None
        _set(db, "idle_session_timeout", SILENCE_SECONDS)
        _set(db, "idle_in_transaction_session_timeout", SILENCE_SECONDS)
        if db.execute("SHOW fsync").fetchone() != ("on",):
            _log.warning(
                "%s: the server runs with fsync off; a power cut can lose what was acknowledged", place
            )
    return int(row[0])


def require_epoch(db: Connection, place: str, epoch: int) -> None:
    """Within a transaction: raise Deposed unless ``epoch`` is the newest, and keep it so until the end."""
    row = db.execute("SELECT epoch, holder FROM fence FOR SHARE").fetchone()
    if row is None or row[0] != epoch:
        newest, holder = row or ("none", "nobody")
        raise Deposed(
            f"{place}: this coordinator led in epoch {epoch}, now it is {newest} and {holder} leads; nothing was "
            "written, ask the other one"
        )


@contextlib.contextmanager
def postgres_errors(place: str) -> Iterator[None]:
    """Turn what PostgreSQL says inside the block into our errors."""
    try:
        yield
    except errors.DiskFull as error:
        raise DiskFull(f"{place}: {_words(error)}; free some space there: nothing is lost") from error
    except (errors.RaiseException, errors.IntegrityError) as error:
        raise Broken(f"{place}: {_words(error)}") from error
    except (errors.DataCorrupted, errors.IndexCorrupted) as error:
        raise Broken(
            f"{place}: {_words(error)}; run `sprachbund verify`, then restore a good copy"
        ) from error
    except (errors.InvalidPassword, errors.InvalidAuthorizationSpecification) as error:
        raise Unavailable(f"{place}: {_words(error)}; see pg_hba.conf there and ~/.pgpass here") from error
    except psycopg.Error as error:
        raise Unavailable(f"{place}: {_words(error)}; check the database and the way to it") from error


def _words(error: psycopg.Error) -> str:
    """What the server said, in one line; libpq's words hold addresses and names, never a password."""
    return " ".join((error.diag.message_primary or str(error) or type(error).__name__).split())


def _parse(address: str) -> dict[str, Any]:
    try:
        return conninfo.conninfo_to_dict(address)
    except psycopg.ProgrammingError:
        # without the cause, which quotes the address
        raise BadInput(
            "ledger: this is no address of PostgreSQL (it is not shown, for it may hold a password); write "
            "postgresql://user@host:port/name, or service=name, and the password into ~/.pgpass"
        ) from None
