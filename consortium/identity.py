"""Who is calling: certificates of one consortium, and the identity that each carries.

The name is one SPIFFE-style URI in the certificate, never a field of a message:

    spiffe://<consortium>/coordinator        the server
    spiffe://<consortium>/site/<name>        a site agent
    spiffe://<consortium>/admin/<name>       may change campaigns and sites
    spiffe://<consortium>/auditor/<name>     may read everything
    spiffe://<consortium>/reader/<name>      may read what is released

All keys are ECDSA P-256, signatures by RFC 6979. Times are seconds since the epoch and are always given:
nothing here reads a clock.
"""

import datetime
import hashlib
import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from consortium.canonical import Fact
from consortium.errors import BadInput, Refused, Unavailable
from consortium.files import disk_errors, write_bytes_atomically
from consortium.ids import SiteName, consortium_name, site_name
from consortium.roles import Role
from consortium.signing import load_key, new_key, private_pem, save_key

DAY_SECONDS = 86_400.0
AUTHORITY_DAYS = 3650
COORDINATOR_DAYS = 397  # the coordinator issues it anew when it starts with less than a third of it left
CLIENT_DAYS = 90  # sites renew by themselves at two thirds of it
# a clock may be hours ahead when it signs, or behind when it checks: valid a day before
CLOCK_SKEW_SECONDS = DAY_SECONDS

SIGNING_REQUEST_BYTES_MAX = 16_384

PEOPLE = (Role.ADMIN, Role.AUDITOR, Role.READER)  #: roles of persons, not of programs

_URI = re.compile(r"spiffe://([a-z0-9-]+)/(coordinator|(?:(site|admin|auditor|reader)/([a-z0-9-]+)))")
_PARSE_ERRORS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.AttributeNotFound,
)


class Identity(Fact):
    """What a verified certificate says of its holder."""

    role: Role
    name: str  #: a site's or a person's; "coordinator" for the coordinator
    fingerprint: str  #: sha256 of the certificate (DER), 64 hex digits
    not_after: float  #: seconds since the epoch


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Authority:
    """The consortium's own certificate authority."""

    consortium: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, consortium: str, now: float) -> "Authority":
        consortium_name(consortium)
        key = new_key()
        name = _common_name(f"Sprachbund {consortium} authority")
        certificate = (
            _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectAlternativeName([_uri(f"spiffe://{consortium}")]), critical=False)
            .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
        )
        return cls(consortium, key, certificate)

    @classmethod
    def load(cls, folder: Path) -> "Authority":
        """What ``save`` wrote."""
        path = folder / "ca.pem"
        if not path.is_file():
            raise Unavailable(f"{path}: no certificate authority here; `sprachbund init` makes one")
        with disk_errors(path):
            certificate = _certificate(path.read_bytes(), str(path))
        uris = _uris(certificate)
        key = load_key(folder / "ca.key")
        if (
            len(uris) != 1
            or not uris[0].startswith("spiffe://")
            or key.public_key() != certificate.public_key()
        ):
            raise BadInput(f"{path}: not the certificate of a consortium's authority, or not that of ca.key")
        return cls(uris[0].removeprefix("spiffe://"), key, certificate)

    def save(self, folder: Path) -> None:
        """Write ``ca.pem`` (for everybody) and ``ca.key`` (for nobody else)."""
        save_key(folder / "ca.key", self.key)
        write_bytes_atomically(folder / "ca.pem", self.pem)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def coordinator(self, hosts: Sequence[str], now: float) -> Credentials:
        """The server's certificate, valid for localhost, 127.0.0.1 and ``hosts`` (names or addresses)."""
        key = new_key()
        names = [_host(host) for host in dict.fromkeys(("localhost", "127.0.0.1", *hosts))]
        uri = _uri(f"spiffe://{self.consortium}/coordinator")
        pem = self._issue(
            "coordinator",
            [*names, uri],
            key.public_key(),
            now,
            COORDINATOR_DAYS,
            ExtendedKeyUsageOID.SERVER_AUTH,
        )
        return Credentials(pem, private_pem(key))

    def person(self, role: Role, name: str, now: float, days: float = CLIENT_DAYS) -> Credentials:
        """A client certificate for an admin, auditor or reader."""
        if role not in PEOPLE:
            raise BadInput(f"role {role}: only people are given their key; a site makes its own")
        key = new_key()
        return Credentials(self._client(role, site_name(name), key.public_key(), now, days), private_pem(key))

    def site(self, signing_request: bytes, name: SiteName, now: float, days: float = CLIENT_DAYS) -> bytes:
        """The PEM certificate for a site's own key; BadInput or Refused if the request is not for it."""
        key = check_signing_request(signing_request, name)
        return self._client(Role.SITE, site_name(name), key, now, days)

    def _client(
        self, role: Role, name: str, key: ec.EllipticCurvePublicKey, now: float, days: float
    ) -> bytes:
        uri = _uri(f"spiffe://{self.consortium}/{role}/{name}")
        return self._issue(f"{role} {name}", [uri], key, now, days, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self,
        subject: str,
        names: list[x509.GeneralName],
        key: ec.EllipticCurvePublicKey,
        now: float,
        days: float,
        usage: x509.ObjectIdentifier,
    ) -> bytes:
        certificate = (
            _builder(_common_name(subject), self.certificate.subject, key, now, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA256(), ecdsa_deterministic=True)
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def signing_request(site: SiteName, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A PKCS#10 request (PEM) that says which site asks; the key stays where it is."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_common_name(site_name(site)))
    signed = request.sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    return signed.public_bytes(serialization.Encoding.PEM)


def check_signing_request(pem: bytes, site: SiteName) -> ec.EllipticCurvePublicKey:
    """The key in a request that names exactly this site and proves possession of an ECDSA P-256 key.

    Raises BadInput for what is no such request, Refused for one that names another site.
    """
    if len(pem) > SIGNING_REQUEST_BYTES_MAX:
        raise BadInput(f"signing request: {len(pem)} bytes; at most {SIGNING_REQUEST_BYTES_MAX} are read")
    try:
        request = x509.load_pem_x509_csr(pem)
        names = [str(a.value) for a in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        signed = request.is_signature_valid
        key = request.public_key()
    except _PARSE_ERRORS as error:
        raise BadInput(f"signing request: {error}; expected a PEM PKCS#10 request") from error
    if not signed:
        raise BadInput("signing request: its signature does not fit its key; make a new request")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadInput(f"signing request: key of type {type(key).__name__}; only ECDSA P-256 is accepted")
    if names != [site]:
        raise Refused(f"signing request: names {names}, but this is for site {site!r}; enrol under that name")
    return key


@lru_cache(maxsize=4096)  # a coordinator asks at each call, of hundreds of agents: 60 µs each
def identity_of(pem: bytes, consortium: str) -> Identity:
    """The identity in a certificate that the TLS handshake has already verified.

    Raises BadInput unless it has exactly one URI, of a known form, in this consortium.
    """
    certificate = _certificate(pem, "certificate")
    uris = _uris(certificate)
    match = _URI.fullmatch(uris[0]) if len(uris) == 1 else None
    if match is None:
        raise BadInput(f"certificate: its URIs are {uris}; expected one spiffe://{consortium}/<role>/<name>")
    if match[1] != consortium:
        raise BadInput(f"certificate: {uris[0]} is of consortium {match[1]!r}, this one is {consortium!r}")
    der = certificate.public_bytes(serialization.Encoding.DER)
    return Identity(
        role=Role(match[3] or "coordinator"),
        name=match[4] or "coordinator",
        fingerprint=hashlib.sha256(der).hexdigest(),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


# ---- enrolment tokens


def new_token() -> tuple[str, str]:
    """A one-time enrolment token, shown once, and the hash to keep."""
    token = f"sprachbund-{secrets.token_urlsafe(32)}"
    return token, token_hash(token)


def token_hash(token: str) -> str:
    """What is stored and looked up instead of a token.

    Looking up by the hash leaks no timing: whoever measures it learns prefixes of a sha256, not of the token.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


# ---- inside


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, days: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_utc(now - CLOCK_SKEW_SECONDS))
        .not_valid_after(_utc(now + days * DAY_SECONDS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _certificate(pem: bytes, what: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except _PARSE_ERRORS as error:
        raise BadInput(f"{what}: {error}; expected one PEM certificate") from error


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        return []
    except _PARSE_ERRORS as error:
        raise BadInput(f"certificate: {error}") from error


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", host):
            raise BadInput(f"host {host!r}: expected a DNS name or an IP address") from None
        return x509.DNSName(host)


def _uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
