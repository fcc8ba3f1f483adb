"""A certificate says who calls, and only the consortium's authority can make one."""

import base64
import datetime
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from consortium.channels import peer_identity
from consortium.errors import BadInput, Refused, SprachbundError, Unavailable
from consortium.identity import (
    CLIENT_DAYS,
    DAY_SECONDS,
    Authority,
    Role,
    check_signing_request,
    identity_of,
    new_token,
    signing_request,
    token_hash,
)
from consortium.ids import SiteName
from consortium.signing import new_key

NOW = 1_700_000_000.0
AUTHORITY = Authority.create("balkan", NOW)
SOFIA = SiteName("sofia")
KEY = new_key()
REQUEST = signing_request(SOFIA, KEY)


def test_a_site_is_who_its_certificate_says() -> None:
    pem = AUTHORITY.site(REQUEST, SOFIA, NOW)
    identity = identity_of(pem, "balkan")
    assert (identity.role, identity.name) == (Role.SITE, "sofia")
    assert identity.not_after == NOW + CLIENT_DAYS * DAY_SECONDS
    certificate = x509.load_pem_x509_certificate(pem)
    assert identity.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()
    assert certificate.public_key() == KEY.public_key()  # the site's own; no other key ever left it
    certificate.verify_directly_issued_by(AUTHORITY.certificate)


def test_people_and_the_coordinator_have_their_own_roles() -> None:
    for role in (Role.ADMIN, Role.AUDITOR):
        identity = identity_of(AUTHORITY.person(role, "vera", NOW).certificate, "balkan")
        assert (identity.role, identity.name) == (role, "vera")
    server = AUTHORITY.coordinator(["lumi.example.org", "10.0.0.7"], NOW)
    assert identity_of(server.certificate, "balkan").role is Role.COORDINATOR
    names = x509.load_pem_x509_certificate(server.certificate).extensions
    alternative = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == ["localhost", "lumi.example.org"]
    assert [str(ip) for ip in alternative.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "10.0.0.7"]
    with pytest.raises(BadInput, match="a site makes its own"):
        AUTHORITY.person(Role.SITE, "sofia", NOW)
    with pytest.raises(BadInput, match="host 'two words'"):
        AUTHORITY.coordinator(["two words"], NOW)


def test_the_authority_is_kept_with_its_key_for_nobody_else(tmp_path: Path) -> None:
    AUTHORITY.save(tmp_path)
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600
    loaded = Authority.load(tmp_path)
    assert (loaded.consortium, loaded.pem) == ("balkan", AUTHORITY.pem)
    x509.load_pem_x509_certificate(loaded.site(REQUEST, SOFIA, NOW)).verify_directly_issued_by(
        AUTHORITY.certificate
    )
    with pytest.raises(Unavailable, match="`sprachbund init` makes one"):
        Authority.load(tmp_path / "elsewhere")
    (tmp_path / "ca.pem").write_bytes(Authority.create("nordic", NOW).pem)
    with pytest.raises(BadInput, match=r"not that of ca\.key"):
        Authority.load(tmp_path)


def request_for(subject: list[str], key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    names = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in subject])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(names).sign(key, algorithm)
    return request.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("request_pem", "error", "words"),
    [
        (request_for(["tirana"], KEY), Refused, r"names \['tirana'\], but this is for site 'sofia'"),
        (request_for([], KEY), Refused, "but this is for site"),
        (request_for(["sofia", "tirana"], KEY), Refused, "but this is for site"),
        (request_for(["sofia"], ed25519.Ed25519PrivateKey.generate()), BadInput, "only ECDSA P-256"),
        (request_for(["sofia"], ec.generate_private_key(ec.SECP384R1())), BadInput, "only ECDSA P-256"),
        (b"", BadInput, "expected a PEM PKCS#10 request"),
        (AUTHORITY.pem, BadInput, "expected a PEM PKCS#10 request"),
        (b"x" * 20_000, BadInput, "at most 16384 are read"),
    ],
)
def test_a_request_that_is_not_for_this_site_gets_no_certificate(
    request_pem: bytes, error: type[SprachbundError], words: str
) -> None:
    with pytest.raises(error, match=words):
        AUTHORITY.site(request_pem, SOFIA, NOW)


def test_a_request_must_be_signed_with_its_own_key() -> None:
    der = bytearray(x509.load_pem_x509_csr(REQUEST).public_bytes(serialization.Encoding.DER))
    der[der.index(b"sofia")] ^= 0x01  # "rofia", under a signature for "sofia"
    pem = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(BadInput, match="its signature does not fit its key"):
        check_signing_request(pem, SiteName("rofia"))


DER = x509.load_pem_x509_csr(REQUEST).public_bytes(serialization.Encoding.DER)


@given(st.integers(0, len(REQUEST) - 1), st.integers(1, 255))
def test_a_damaged_request_is_bad_input_or_still_the_same_request(place: int, flip: int) -> None:
    data = bytearray(REQUEST)
    data[place] ^= flip
    try:
        assert check_signing_request(bytes(data), SOFIA) == KEY.public_key()
    except (BadInput, Refused):
        pass


@given(st.integers(0, len(DER) - 1), st.integers(1, 255))
def test_damage_below_the_armour_is_always_noticed(place: int, flip: int) -> None:
    data = bytearray(DER)
    data[place] ^= flip
    armoured = base64.encodebytes(bytes(data))
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n" + armoured + b"-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises((BadInput, Refused)):
        check_signing_request(pem, SOFIA)


@given(st.binary())
def test_any_bytes_as_a_certificate_are_bad_input(data: bytes) -> None:
    with pytest.raises(BadInput):
        identity_of(data, "balkan")


def certificate_with(uris: list[str]) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site sofia")])
    end = datetime.datetime.fromtimestamp(NOW + 99, datetime.UTC)
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), 7, end - datetime.timedelta(1), end)
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["spiffe://balkan/site/sofia", "spiffe://balkan/admin/vera"],
        ["spiffe://balkan/site/sofia/admin"],
        ["spiffe://balkan/site/"],
        ["spiffe://balkan"],
        ["spiffe://balkan/root/sofia"],
        ["https://balkan/site/sofia"],
        ["spiffe://nordic/site/sofia"],
        ["spiffe://balkan.evil/site/sofia"],
    ],
)
def test_a_certificate_needs_exactly_one_uri_of_this_consortium(uris: list[str]) -> None:
    with pytest.raises(BadInput, match="certificate: "):
        identity_of(certificate_with(uris), "balkan")


def test_an_open_connection_does_not_outlive_its_certificate() -> None:
    context = {"x509_pem_cert": [AUTHORITY.site(REQUEST, SOFIA, NOW, days=1)]}
    assert peer_identity(context, "balkan", NOW).name == "sofia"
    with pytest.raises(Refused, match="certificate of site sofia: expired"):
        peer_identity(context, "balkan", NOW + DAY_SECONDS + 1)
    with pytest.raises(Refused, match="enrol first"):
        peer_identity({}, "balkan", NOW)


def test_only_the_hash_of_a_token_is_kept() -> None:
    token, kept = new_token()
    assert token_hash(token) == kept
    assert kept not in token
    assert new_token() != (token, kept)
    assert token_hash("\udcff") != kept  # whatever was typed, it is only a wrong token
