"""A signature speaks for one key, one kind of document and these very bytes."""

import base64
import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from consortium.errors import BadInput, Corrupt, Refused, Unavailable
from consortium.identity import Authority, signing_request
from consortium.ids import SiteName
from consortium.signing import (
    ASSIGNMENT,
    CHECKPOINT,
    CONTRIBUTION,
    Checkpoint,
    PrivateKey,
    key_of_certificate,
    load_key,
    load_ledger_key,
    new_key,
    new_ledger_key,
    open_envelope,
    private_pem,
    save_key,
    seal,
    sign,
    sign_checkpoint,
    verify,
    verify_checkpoint,
)

SITE, OTHER, LEDGER = new_key(), new_key(), new_ledger_key()
LEDGER_PUBLIC = LEDGER.public_key().public_bytes_raw()
PAYLOAD = b'{"job":"balkan-1-r1-train-sofia"}'


@pytest.mark.parametrize("key", [SITE, LEDGER], ids=["site", "ledger"])
def test_an_envelope_gives_back_what_was_sealed(key: PrivateKey) -> None:
    envelope = seal(PAYLOAD, CONTRIBUTION, key)
    assert open_envelope(envelope, CONTRIBUTION, key.public_key()) == PAYLOAD
    assert open_envelope(envelope, CONTRIBUTION, OTHER.public_key(), key.public_key()) == PAYLOAD
    assert envelope == seal(PAYLOAD, CONTRIBUTION, key)  # delivered twice, it has one digest


def test_the_envelope_is_dsse() -> None:
    """The signature verifies over the pre-authentication encoding as the specification writes it out."""
    envelope = json.loads(seal(b"hello world", "http://example.com/HelloWorld", LEDGER))
    assert envelope["payload"] == "aGVsbG8gd29ybGQ="
    assert envelope["payloadType"] == "http://example.com/HelloWorld"
    pae = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    LEDGER.public_key().verify(base64.b64decode(envelope["signatures"][0]["sig"]), pae)


def test_a_site_cannot_speak_for_another() -> None:
    with pytest.raises(Corrupt, match=r"signed by \w{12}, expected key \w{12}"):
        open_envelope(seal(PAYLOAD, CONTRIBUTION, OTHER), CONTRIBUTION, SITE.public_key())
    forged = json.loads(seal(PAYLOAD, CONTRIBUTION, OTHER))
    forged["signatures"][0]["keyid"] = json.loads(seal(PAYLOAD, CONTRIBUTION, SITE))["signatures"][0]["keyid"]
    with pytest.raises(Corrupt, match="does not fit the bytes"):
        open_envelope(json.dumps(forged).encode(), CONTRIBUTION, SITE.public_key())
    unsigned = {**forged, "signatures": []}
    with pytest.raises(Corrupt, match="signed by nobody"):
        open_envelope(json.dumps(unsigned).encode(), CONTRIBUTION, SITE.public_key())


def test_one_kind_of_document_cannot_be_shown_as_another() -> None:
    envelope = seal(PAYLOAD, ASSIGNMENT, SITE)
    with pytest.raises(Corrupt, match=r"its type is .*assignment"):
        open_envelope(envelope, CONTRIBUTION, SITE.public_key())
    relabelled = envelope.replace(b"assignment+json", b"contribution+json")
    with pytest.raises(Corrupt, match="does not fit the bytes"):
        open_envelope(relabelled, CONTRIBUTION, SITE.public_key())
    signature = sign(LEDGER, ASSIGNMENT, PAYLOAD)
    verify(LEDGER_PUBLIC, ASSIGNMENT, PAYLOAD, signature)
    with pytest.raises(Corrupt, match="does not fit"):
        verify(LEDGER_PUBLIC, CHECKPOINT, PAYLOAD, signature)


ENVELOPE = seal(PAYLOAD, CONTRIBUTION, SITE)


@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_corrupt_or_changes_nothing(place: int, flip: int) -> None:
    data = bytearray(ENVELOPE)
    data[place] ^= flip
    try:
        assert open_envelope(bytes(data), CONTRIBUTION, SITE.public_key()) == PAYLOAD
    except Corrupt:
        pass


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_corrupt_and_nothing_else(data: bytes) -> None:
    with pytest.raises(Corrupt):
        open_envelope(data, CONTRIBUTION, SITE.public_key())


def test_a_checkpoint_fits_one_head_and_one_key() -> None:
    checkpoint = sign_checkpoint(LEDGER, 12, "ab" * 32)
    verify_checkpoint(checkpoint)
    verify_checkpoint(checkpoint, LEDGER_PUBLIC)
    with pytest.raises(Corrupt, match="the consortium's ledger key is"):
        verify_checkpoint(checkpoint, new_ledger_key().public_key().public_bytes_raw())
    fields = {
        "sequence": 12,
        "head": "ab" * 32,
        "signature": checkpoint.signature,
        "public_key": LEDGER_PUBLIC,
    }
    for change in ({"sequence": 13}, {"head": "ac" * 32}, {"signature": b"x" * 64}, {"public_key": b"short"}):
        with pytest.raises(Corrupt):
            verify_checkpoint(Checkpoint(**{**fields, **change}))


def test_keys_are_saved_for_their_owner_alone(tmp_path: Path) -> None:
    save_key(tmp_path / "site.key", SITE)
    save_key(tmp_path / "ledger.key", LEDGER)
    assert stat.S_IMODE((tmp_path / "site.key").stat().st_mode) == 0o600
    assert load_key(tmp_path / "site.key").private_numbers() == SITE.private_numbers()
    assert load_ledger_key(tmp_path / "ledger.key").private_bytes_raw() == LEDGER.private_bytes_raw()
    with pytest.raises(BadInput, match="not an Ed25519 key"):
        load_ledger_key(tmp_path / "site.key")
    with pytest.raises(BadInput, match="not an ECDSA P-256 key"):
        load_key(tmp_path / "ledger.key")
    with pytest.raises(Unavailable, match="no such key file"):
        load_key(tmp_path / "nothing.key")
    (tmp_path / "site.key").chmod(0o640)
    with pytest.raises(Refused, match="mode 640 lets others read this private key; run: chmod 600"):
        load_key(tmp_path / "site.key")


def test_files_that_are_no_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.key"
    wrong_curve = private_pem(ec.generate_private_key(ec.SECP384R1()))
    for content in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", wrong_curve):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(BadInput, match=r"bad\.key: not"):
            load_key(path)


def test_the_key_in_a_certificate_opens_what_the_site_sealed() -> None:
    authority = Authority.create("balkan", now=1e9)
    certificate = authority.site(signing_request(SiteName("sofia"), SITE), SiteName("sofia"), now=1e9)
    assert open_envelope(ENVELOPE, CONTRIBUTION, key_of_certificate(certificate)) == PAYLOAD
    with pytest.raises(BadInput, match="expected one PEM certificate"):
        key_of_certificate(b"nothing")
