"""Who said these bytes: keys, DSSE envelopes, and signed ledger checkpoints.

Every signature covers the *pre-authentication encoding* of a type and the bytes (DSSE v1, PAE), so that one
made for an assignment can never be shown as one for a checkpoint. Sites sign with ECDSA P-256 (the key of
their certificate), the ledger with Ed25519.
Source: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
"""

import base64
import binascii
import functools
import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput, Corrupt, Refused, Unavailable
from consortium.files import disk_errors, write_bytes_atomically

CONTRIBUTION = "application/vnd.sprachbund.contribution+json"
ASSIGNMENT = "application/vnd.sprachbund.assignment+json"
CHECKPOINT = "application/vnd.sprachbund.checkpoint+json"

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

# RFC 6979: the same key and bytes give the same envelope, so a repeated delivery has the same digest
_ECDSA = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


class _Signature(Fact):
    keyid: str
    sig: str


class _Envelope(Fact):
    payload: str
    payloadType: str
    signatures: tuple[_Signature, ...]


class Checkpoint(Fact):
    """A signed head of the ledger. Whoever keeps one notices when the entries up to it are rewritten."""

    sequence: int
    head: str  #: hash of the entry at ``sequence``
    signature: bytes
    public_key: bytes  #: Ed25519, raw


# ---- envelopes


def seal(payload: bytes, payload_type: str, key: PrivateKey) -> bytes:
    """The DSSE envelope (JSON) of ``payload``, signed."""
    signature = _Signature(keyid=key_id(key.public_key()), sig=_base64(_sign(key, payload_type, payload)))
    envelope = _Envelope(payload=_base64(payload), payloadType=payload_type, signatures=(signature,))
    return encode(envelope)


def open_envelope(data: bytes, payload_type: str, *keys: PublicKey) -> bytes:
    """The payload, if one of ``keys`` signed it as ``payload_type``. Raises Corrupt with the reason."""
    try:
        envelope = decode(data, _Envelope, "signed envelope")
        payload = base64.b64decode(envelope.payload, validate=True)
        signatures = [(s.keyid, base64.b64decode(s.sig, validate=True)) for s in envelope.signatures]
    except (BadInput, ValueError) as error:  # binascii.Error is a ValueError
        raise Corrupt(f"signed envelope: not DSSE JSON ({error})") from error
    if envelope.payloadType != payload_type:
        raise Corrupt(
            f"signed envelope: its type is {envelope.payloadType[:100]!r}, expected {payload_type!r}"
        )
    known = {key_id(key): key for key in keys}
    for keyid, signature in signatures:
        if keyid in known:
            _verify(known[keyid], payload_type, payload, signature, f"signed envelope, key {keyid[:12]}")
            return payload
    signers = ", ".join(keyid[:12] for keyid, _ in signatures) or "nobody"
    raise Corrupt(f"signed envelope: signed by {signers}, expected key {' or '.join(k[:12] for k in known)}")


def unsigned_payload(data: bytes, payload_type: str) -> bytes:
    """The payload of an envelope, **not verified**: of one's own, or to learn whose it claims to be."""
    kind, payload = envelope_claims(data)
    if kind != payload_type:
        raise Corrupt(f"signed envelope: its type is {kind[:100]!r}, expected {payload_type!r}")
    return payload


def envelope_claims(data: bytes) -> tuple[str, bytes]:
    """Payload type and payload of an envelope, **not verified**. Raises Corrupt."""
    try:
        envelope = decode(data, _Envelope, "signed envelope")
        return envelope.payloadType, base64.b64decode(envelope.payload, validate=True)
    except (BadInput, ValueError) as error:
        raise Corrupt(f"signed envelope: not DSSE JSON ({error})") from error


# ---- raw signatures of the ledger key


def sign(key: ed25519.Ed25519PrivateKey, payload_type: str, message: bytes) -> bytes:
    """A 64-byte Ed25519 signature of ``message`` as ``payload_type``."""
    return _sign(key, payload_type, message)


def verify(public_key: bytes, payload_type: str, message: bytes, signature: bytes) -> None:
    """Check a raw Ed25519 signature made by ``sign``; raises Corrupt."""
    _checked(public_key, payload_type, message, signature)


@functools.lru_cache(maxsize=128)
def _checked(public_key: bytes, payload_type: str, message: bytes, signature: bytes) -> None:
    """The same bytes are shown again and again: an order in every Sync, a head to every site."""
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError as error:
        raise Corrupt(f"ledger key: {len(public_key)} bytes are not an Ed25519 public key") from error
    _verify(key, payload_type, message, signature, payload_type)


def sign_checkpoint(key: ed25519.Ed25519PrivateKey, sequence: int, head: str) -> Checkpoint:
    return Checkpoint(
        sequence=sequence,
        head=head,
        signature=sign(key, CHECKPOINT, _checkpoint_bytes(sequence, head)),
        public_key=key.public_key().public_bytes_raw(),
    )


def verify_checkpoint(checkpoint: Checkpoint, public_key: bytes | None = None) -> None:
    """Check a checkpoint's signature, and that ``public_key`` (if given) made it; raises Corrupt."""
    if public_key is not None and checkpoint.public_key != public_key:
        raise Corrupt(
            f"checkpoint {checkpoint.sequence}: signed with key {checkpoint.public_key.hex()[:12]}, "
            f"the consortium's ledger key is {public_key.hex()[:12]}"
        )
    message = _checkpoint_bytes(checkpoint.sequence, checkpoint.head)
    verify(checkpoint.public_key, CHECKPOINT, message, checkpoint.signature)


# ---- keys


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key for a certificate."""
    return ec.generate_private_key(ec.SECP256R1())


def new_ledger_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def key_id(key: PublicKey) -> str:
    """sha256 of the key's SubjectPublicKeyInfo, 64 hex digits."""
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def key_of_certificate(pem: bytes) -> PublicKey:
    """The public key in a PEM certificate. Raises BadInput."""
    try:
        key = x509.load_pem_x509_certificate(pem).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise BadInput(f"certificate: {error}; expected one PEM certificate") from error
    if not isinstance(key, PublicKey):
        raise BadInput(
            f"certificate: key of type {type(key).__name__}; only ECDSA P-256 and Ed25519 are used here"
        )
    return key


def private_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def save_key(path: Path, key: PrivateKey) -> None:
    """Write a private key that only its owner can read."""
    write_bytes_atomically(path, private_pem(key), mode=0o600)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The ECDSA P-256 key in a file that nobody else may read."""
    key = _load_private(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadInput(f"{path}: not an ECDSA P-256 key")
    return key


def load_ledger_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """The Ed25519 key in a file that nobody else may read."""
    key = _load_private(path)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise BadInput(f"{path}: not an Ed25519 key")
    return key


# ---- inside


def _load_private(path: Path) -> object:
    if not path.is_file():
        raise Unavailable(f"{path}: no such key file")
    with disk_errors(path):
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise Refused(f"{path}: mode {mode:o} lets others read this private key; run: chmod 600 {path}")
        pem = path.read_bytes()
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadInput(f"{path}: not a PEM private key without a password ({error})") from error


def _pae(payload_type: str, body: bytes) -> bytes:
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)


def _sign(key: PrivateKey, payload_type: str, body: bytes) -> bytes:
    message = _pae(payload_type, body)
    return key.sign(message, _ECDSA) if isinstance(key, ec.EllipticCurvePrivateKey) else key.sign(message)


def _verify(key: PublicKey, payload_type: str, body: bytes, signature: bytes, what: str) -> None:
    message = _pae(payload_type, body)
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, _ECDSA)
        else:
            key.verify(signature, message)
    except InvalidSignature as error:
        raise Corrupt(
            f"{what}: the signature does not fit the bytes; they were changed after signing"
        ) from error


def _checkpoint_bytes(sequence: int, head: str) -> bytes:
    return encode({"head": head, "schema": 1, "sequence": sequence})


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()
