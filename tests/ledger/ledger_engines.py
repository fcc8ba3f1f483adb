"""What the tests need to know of an engine: how it is opened, and how someone gets past it into its tables."""

import sqlite3
from pathlib import Path
from typing import Protocol

from coordinator.chain import AnyLedger
from coordinator.ledgers import open_ledger


class Place(Protocol):
    where: str
    refusals: tuple[type[Exception], ...]  #: of the database itself, for what it does not let be done

    def open(self, read_only: bool = False) -> AnyLedger: ...

    def sql(self, *statements: str) -> None:
        """As anybody who reaches the database."""
        ...

    def change(self, *statements: str) -> None:
        """As someone who knows how to get past the triggers, and puts them back.

        Statements may use ``swap(bytes, old, new)``, ``zeros(count)``, ``bytes(hex)`` and ``cut(text)``, which is
        the text from its fourth letter on.
        """
        ...


class InSqlite:
    refusals = (sqlite3.IntegrityError,)

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        self.where = str(path)

    def open(self, read_only: bool = False) -> AnyLedger:
        return open_ledger(self.where, read_only)

    def sql(self, *statements: str) -> None:
        db = sqlite3.connect(self.where)
        try:
            _add_functions(db)
            for statement in statements:
                db.execute(statement)
            db.commit()
        finally:
            db.close()

    def change(self, *statements: str) -> None:
        db = sqlite3.connect(self.where)
        _add_functions(db)
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            db.execute(statement)
        for _, sql in triggers:
            db.execute(sql)
        db.commit()
        db.close()


def _add_functions(db: sqlite3.Connection) -> None:
    db.create_function("swap", 3, lambda data, old, new: data.replace(old.encode(), new.encode()))
    db.create_function("zeros", 1, bytes)
    db.create_function("bytes", 1, bytes.fromhex)
    db.create_function("cut", 1, lambda text: text[3:])


class InPostgres:
    _FUNCTIONS = (
        "CREATE FUNCTION pg_temp.swap(bytea, text, text) RETURNS bytea LANGUAGE sql AS"
        " $$ SELECT convert_to(replace(convert_from($1, 'UTF8'), $2, $3), 'UTF8') $$",
        "CREATE FUNCTION pg_temp.zeros(integer) RETURNS bytea LANGUAGE sql AS"
        " $$ SELECT decode(repeat('00', $1), 'hex') $$",
        "CREATE FUNCTION pg_temp.bytes(text) RETURNS bytea LANGUAGE sql AS $$ SELECT decode($1, 'hex') $$",
        "CREATE FUNCTION pg_temp.cut(text) RETURNS text LANGUAGE sql AS $$ SELECT substr($1, 4) $$",
    )

    def __init__(self, address: str) -> None:
        import psycopg

        self.where = address
        self.refusals = (psycopg.errors.RaiseException, psycopg.errors.UniqueViolation)

    def open(self, read_only: bool = False) -> AnyLedger:
        return open_ledger(self.where, read_only)

    def sql(self, *statements: str) -> None:
        self._run(*statements)

    def change(self, *statements: str) -> None:
        # what a superuser can do, and no trigger hears of
        self._run("SET session_replication_role = replica", *statements)

    def _run(self, *statements: str) -> None:
        import psycopg

        with psycopg.connect(self.where) as db:
            for function in self._FUNCTIONS:
                db.execute(function)  # type: ignore[arg-type]
            for statement in statements:
                for name in ("swap", "zeros", "bytes", "cut"):
                    statement = statement.replace(f"{name}(", f"pg_temp.{name}(")
                db.execute(statement)  # type: ignore[arg-type]
