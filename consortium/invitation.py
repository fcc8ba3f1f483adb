"""What an organisation is handed, over a channel it trusts, so that its site can enrol."""

from pathlib import Path

from consortium.canonical import Fact, encode
from consortium.files import write_bytes_atomically
from consortium.ids import SiteName


class Invitation(Fact):
    """One site's. The token is a secret, used once; the authority proves who is at the other end."""

    consortium: str
    site: SiteName
    coordinator: str  #: host:port that demands a certificate
    enrolment: str  #: host:port that gives one
    authority: str  #: PEM of the consortium's certificate authority
    token: str


def write_invitation(invitation: Invitation, path: Path) -> None:
    """As JSON, which is YAML too; for nobody's eyes but the owner's."""
    write_bytes_atomically(path, encode(invitation) + b"\n", mode=0o600)
