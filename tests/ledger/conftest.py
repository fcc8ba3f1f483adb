"""A ledger on each engine: what holds for one holds for the other."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_engines import InPostgres, InSqlite, Place
from ledger_samples import KEY, happened
from postgres_server import Server, require_postgres, server

from consortium.signing import sign_checkpoint


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    require_postgres()
    with server({"fsync": "off"}) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a ledger is to be."""
    if request.param == "sqlite":
        return InSqlite(tmp_path / "ledger.sqlite")
    return InPostgres(request.getfixturevalue("postgres").new_ledger())


@pytest.fixture
def written(place: Place) -> Place:
    """A closed ledger of five entries with a checkpoint at the fourth and a snapshot at the fifth."""
    with place.open() as ledger:
        for number in range(4):
            ledger.append([happened(number)], at=100.0 + number)
        ledger.save_checkpoint(sign_checkpoint(KEY, ledger.head.seq, ledger.head.hash))
        ledger.append([happened(4)], at=104.0)
        ledger.save_snapshot(b'{"state":5}', ledger.head)
    return place


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a ledger in a file, for what only a file can have happen to it."""
    return tmp_path / "file" / "ledger.sqlite"


@pytest.fixture
def file(path: Path) -> Path:
    """The same five entries, in a file."""
    return Path(written.__wrapped__(InSqlite(path)).where)  # type: ignore[attr-defined]
