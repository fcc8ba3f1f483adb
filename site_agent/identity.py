"""What a site shows to the coordinator and by what it knows it again: the files in ``home/identity``.

site.pem     private key and certificate in one file, so that renewing replaces both at once (0600)
trust.json   the consortium's name, its authority, and the key that signs assignments and checkpoints
next.key     a key whose certificate has been asked for and has not arrived (0600)
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput, Unavailable
from consortium.files import disk_errors, make_folder, make_private_folder, write_bytes_atomically
from consortium.identity import Credentials, identity_of
from consortium.ids import SiteName
from consortium.roles import Role
from consortium.signing import key_of_certificate, load_key, new_key, private_pem, save_key

RENEW_BELOW = 1 / 3  # of the lifetime left: a month of 90 days, for a coordinator that is away for long


class Trust(Fact):
    """Public, but nobody may change it unnoticed."""

    consortium: str
    site: SiteName
    authority: str  #: PEM
    ledger_key: str  #: Ed25519, raw, hex


def has_enrolled(home: Path) -> bool:
    return (home / "identity" / "site.pem").is_file()


def certificate_of(home: Path) -> bytes:
    """The certificate in ``site.pem`` (PEM), as it stands there. Raises Unavailable if the site has not enrolled."""
    folder = home / "identity"
    with disk_errors(folder):
        try:
            pem = (folder / "site.pem").read_bytes()
        except FileNotFoundError:
            raise Unavailable(
                f"{folder}: this site has not enrolled; run `sprachbund site enrol` first"
            ) from None
    return b"".join(pem.partition(b"-----BEGIN CERTIFICATE-----")[1:])


@dataclass(frozen=True, slots=True)
class SiteIdentity:
    trust: Trust
    key: ec.EllipticCurvePrivateKey
    certificate: bytes  #: PEM

    @classmethod
    def load(cls, home: Path) -> "SiteIdentity":
        """What ``save`` wrote. Raises Unavailable if the site has not enrolled, BadInput if they differ."""
        folder, certificate = home / "identity", certificate_of(home)
        with disk_errors(folder):
            trust = decode((folder / "trust.json").read_bytes(), Trust, str(folder / "trust.json"))
        found = cls(trust, load_key(folder / "site.pem"), certificate)
        found.check()
        return found

    def save(self, home: Path) -> None:
        folder = home / "identity"
        with disk_errors(home):
            make_private_folder(home)
        write_bytes_atomically(folder / "trust.json", encode(self.trust))
        write_bytes_atomically(folder / "site.pem", private_pem(self.key) + self.certificate, mode=0o600)
        (folder / "next.key").unlink(missing_ok=True)

    def check(self) -> None:
        """Whether certificate, key, site and consortium belong together; raises BadInput."""
        identity = identity_of(self.certificate, self.trust.consortium)
        if (identity.role, identity.name) != (Role.SITE, self.trust.site):
            raise BadInput(
                f"certificate of {identity.role} {identity.name}, but this is {self.trust.site}; enrol again"
            )
        if key_of_certificate(self.certificate) != self.key.public_key():
            raise BadInput("certificate: is not for the key of this site; enrol again")

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.certificate, private_pem(self.key))

    @property
    def authority(self) -> bytes:
        return self.trust.authority.encode()

    @property
    def ledger_key(self) -> bytes:
        return bytes.fromhex(self.trust.ledger_key)

    def seconds_left(self, now: float) -> float:
        """Of the certificate's validity; negative once it is over."""
        return _validity(self.certificate)[1] - now

    def is_due(self, now: float) -> bool:
        """Whether a new certificate should be asked for."""
        begin, until = _validity(self.certificate)
        return until - now < RENEW_BELOW * (until - begin)

    def renewed(self, key: ec.EllipticCurvePrivateKey, certificate: bytes) -> "SiteIdentity":
        identity = SiteIdentity(self.trust, key, certificate)
        identity.check()
        return identity


@lru_cache(maxsize=64)  # asked before each Sync, of one certificate for two months
def _validity(certificate: bytes) -> tuple[float, float]:
    """From when and until when: seconds since the epoch."""
    found = x509.load_pem_x509_certificate(certificate)
    return found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()


def next_key(home: Path) -> ec.EllipticCurvePrivateKey:
    """The key to ask a certificate for, kept until it has one: a lost answer can be asked for again."""
    folder = home / "identity"
    path = folder / "next.key"
    with disk_errors(folder):
        make_folder(folder)
        folder.chmod(0o700)
    if not path.exists():
        save_key(path, new_key())
    return load_key(path)
