"""Where a coordinator answers: the file beside a person's certificate that makes both usable together."""

from pathlib import Path

from consortium.canonical import Fact, encode
from consortium.files import write_bytes_atomically

CONNECTION_FILE = "connection.json"


class Connection(Fact):
    """No secret: addresses as sites and people dial them, ``host:port``; port 0 until the coordinator has one."""

    consortium: str
    coordinator: str  #: demands a certificate
    enrolment: str  #: gives a site one


def write_connection(connection: Connection, folder: Path) -> None:
    write_bytes_atomically(folder / CONNECTION_FILE, encode(connection) + b"\n")
