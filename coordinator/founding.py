"""How a consortium begins: its authority, its keys, its ledger's first event. Done once, by ``sprachbund init``.

home/
  authority/ca.pem ca.key       who may speak for a site; needed to enrol sites and to renew certificates
  server.pem server.key         the coordinator's own certificate
  ledger.key                    signs assignments and checkpoints
  admin/admin.pem admin.key     the first admin's certificate
        ca.pem connection.json  whom an admin trusts, and where the coordinator answers
  ledger.sqlite  store/  work/
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519

from consortium.canonical import decode
from consortium.connection import Connection, write_connection
from consortium.errors import Refused, Unavailable
from consortium.files import disk_errors, make_folder, make_private_folder, write_bytes_atomically
from consortium.identity import (
    CLOCK_SKEW_SECONDS,
    COORDINATOR_DAYS,
    DAY_SECONDS,
    PEOPLE,
    Authority,
    Credentials,
    identity_of,
)
from consortium.ids import Digest, digest_of
from consortium.roles import Role
from consortium.signing import load_ledger_key, new_ledger_key, save_key
from coordinator.config import CoordinatorConfig, is_postgres
from coordinator.core.events import ConsortiumFounded
from coordinator.ledgers import open_ledger, shown
from coordinator.stores import places_in

PORTS_FILE = "ports.json"  #: below home; the ports that the running, or last, coordinator got


@dataclass(frozen=True, slots=True)
class Keys:
    """Everything secret that a running coordinator needs."""

    authority: Authority
    server: Credentials
    ledger: ed25519.Ed25519PrivateKey

    @classmethod
    def load(cls, home: Path, names: Sequence[str], now: float) -> "Keys":
        """What ``found`` wrote.

        The server's own certificate is issued anew, for ``names``, if it is lost, has less than a third of its life
        left, or was issued by a clock that was ahead, so that nobody would accept it yet.
        """
        authority = Authority.load(home / "authority")
        ledger = load_ledger_key(home / "ledger.key")
        with contextlib.suppress(Unavailable):
            server = _load_credentials(home / "server")
            ends = identity_of(server.certificate, authority.consortium).not_after
            whole = COORDINATOR_DAYS * DAY_SECONDS
            if whole / 3 < ends - now <= whole + CLOCK_SKEW_SECONDS:
                return cls(authority, server, ledger)
        server = authority.coordinator(names, now)
        _save_credentials(home / "server", server)
        return cls(authority, server, ledger)


def found(config: CoordinatorConfig, now: float) -> Keys:
    """Make a consortium in the config's home. Refused where there is one already; a half-made one is finished."""
    home = Path(config.home)
    place = places_in(config).ledger
    if _is_taken(place):
        raise Refused(f"{shown(place)}: a consortium lives here already; choose another home")
    with disk_errors(home):
        make_private_folder(home)
    authority = Authority.create(config.consortium, now)
    authority.save(home / "authority")
    server = authority.coordinator(config.names, now)
    _save_credentials(home / "server", server)
    key = new_ledger_key()
    save_key(home / "ledger.key", key)
    issue_person(home, authority, Role.ADMIN, "admin", now)
    tell_people(config)
    with open_ledger(place) as ledger:
        ledger.append(
            [
                ConsortiumFounded(
                    consortium=config.consortium,
                    ledger_key=key.public_key().public_bytes_raw().hex(),
                    authority=authority.pem.decode(),
                    policies=policies_in_force(),
                )
            ],
            now,
        )
    return Keys(authority, server, key)


def _is_taken(place: str) -> bool:
    """Whether something was written down there. A file that is there was: nobody else makes one."""
    if not is_postgres(place):
        return Path(place).exists()
    with open_ledger(place) as ledger:  # as a writer: it also tells whether one may write
        return ledger.head.seq > 0


def policies_in_force() -> dict[str, Digest]:
    """Digest of every policy file that ships with this release, by its path below ``policies/``."""
    root = files("policies")
    found_files: dict[str, Digest] = {}
    for folder in ("", "admission", "gates", "recipes"):
        place = root / folder if folder else root
        for file in place.iterdir():
            if file.name.endswith(".yaml"):
                found_files[f"{folder}/{file.name}".lstrip("/")] = digest_of(file.read_bytes())
    return dict(sorted(found_files.items()))


def issue_person(home: Path, authority: Authority, role: Role, name: str, now: float) -> Path:
    """A client certificate for a person, below ``home/<role>/``; returns its path without suffix."""
    place = home / role.value / name
    make_folder(place.parent)
    _save_credentials(place, authority.person(role, name, now))
    write_bytes_atomically(place.parent / "ca.pem", authority.pem)
    return place


def tell_people(config: CoordinatorConfig) -> None:
    """Write beside every person's certificate where the coordinator answers.

    A port that the config leaves open is the one that the coordinator last got.
    """
    home = Path(config.home)
    ports = {"port": config.port, "enrolment_port": config.enrolment_port}
    last = home / PORTS_FILE
    if 0 in ports.values() and last.is_file():
        ports = decode(last.read_bytes(), dict[str, int], str(last))
    host = f"[{config.names[0]}]" if ":" in config.names[0] else config.names[0]
    connection = Connection(
        consortium=config.consortium,
        coordinator=",".join(config.addresses) or f"{host}:{ports['port']}",
        enrolment=",".join(config.enrolment_addresses) or f"{host}:{ports['enrolment_port']}",
    )
    for role in PEOPLE:
        if (home / role.value).is_dir():
            write_connection(connection, home / role.value)


def _save_credentials(stem: Path, credentials: Credentials) -> None:
    write_bytes_atomically(stem.with_suffix(".key"), credentials.key, mode=0o600)
    write_bytes_atomically(stem.with_suffix(".pem"), credentials.certificate)


def _load_credentials(stem: Path) -> Credentials:
    certificate, key = stem.with_suffix(".pem"), stem.with_suffix(".key")
    if not certificate.is_file() or not key.is_file():
        raise Unavailable(f"{certificate}: not there; `sprachbund init` makes a coordinator's home")
    return Credentials(certificate.read_bytes(), key.read_bytes())
