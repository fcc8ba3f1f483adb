"""Which engine keeps a ledger: a file, or PostgreSQL; and how either is opened.

ledger: ledger.sqlite                                  a path: SQLite
ledger: postgresql://sprachbund@db.example.eu/sprachbund
ledger: service=sprachbund                             a section of pg_service.conf; the password in ~/.pgpass
"""

from pathlib import Path

from coordinator.chain import AnyLedger, Evidence
from coordinator.config import is_postgres
from coordinator.ledger import Ledger
from coordinator.ledger_file import SqliteEvidence


def open_ledger(where: Path | str, read_only: bool = False) -> AnyLedger:
    """The ledger at ``where``, created if need be; whoever may write to it does so alone.

    Raises Unavailable if another coordinator holds it or nothing answers there, BadInput for a newer schema or
    something that is no ledger, Broken if its last entry does not fit the chain.
    """
    if isinstance(where, str) and is_postgres(where):
        from coordinator.ledger_postgres import PostgresLedger  # the driver is an extra

        return PostgresLedger(where, read_only)
    return Ledger(Path(where), read_only)


def evidence(where: Path | str) -> Evidence:
    """What lies at ``where``, to be checked. Raises what ``open_ledger`` does, less what is about writing."""
    if isinstance(where, str) and is_postgres(where):
        from coordinator.ledger_postgres import PostgresEvidence

        return PostgresEvidence(where)
    return SqliteEvidence(Path(where))


def shown(where: Path | str) -> str:
    """A ledger's place as people may see it: without the password that an address can hold."""
    if isinstance(where, str) and is_postgres(where):
        from coordinator.postgres import shown_address

        return shown_address(where)
    return str(where)
