"""How the coordinator's secrets go into a backup: sealed by a passphrase, or not at all.

scrypt (RFC 7914) makes the key from the passphrase, AES-256-GCM seals. Whoever has the passphrase can speak for the
consortium: certificates for sites and people, assignments, checkpoints.
"""

import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput, Unavailable
from consortium.files import disk_errors, write_bytes_atomically

PASSPHRASE_CHARACTERS_MIN = 12
_SECRET = ("ledger.key", "server.key", "authority/ca.key")
_PUBLIC = ("server.pem", "authority/ca.pem")
_PEOPLE = ("admin", "auditor", "reader")
_WORK, _BLOCK = 1 << 17, 8  # 128 MiB and half a second for each guess


class Sealed(Fact):
    """The file in a backup."""

    schema: int = 1
    salt: bytes
    nonce: bytes
    data: bytes  #: canonical JSON of relative path -> bytes, sealed


def public_files(home: Path) -> dict[str, Path]:
    """What is no secret, by its path below home: certificates, connections, which couriers' bundles were heard."""
    found = [home / name for name in _PUBLIC]
    for role in _PEOPLE:
        found += sorted((home / role).glob("*.pem")) + sorted((home / role).glob("*.json"))
    found += sorted((home / "courier").glob("*.json"))  # and not what is being written just now
    return {str(path.relative_to(home)): path for path in found if path.is_file()}


def seal_keys(home: Path, passphrase: str, out: Path) -> None:
    """Write every secret below ``home`` to ``out``."""
    if len(passphrase) < PASSPHRASE_CHARACTERS_MIN:
        raise BadInput(
            f"the passphrase has {len(passphrase)} characters; take {PASSPHRASE_CHARACTERS_MIN} or more"
        )
    paths = [home / name for name in _SECRET] + [
        p for role in _PEOPLE for p in sorted((home / role).glob("*.key"))
    ]
    with disk_errors(home):
        found = {str(path.relative_to(home)): path.read_bytes() for path in paths if path.is_file()}
    if "ledger.key" not in found or "authority/ca.key" not in found:
        raise Unavailable(f"{home}: the ledger's or the authority's key is not here; nothing was sealed")
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    data = AESGCM(_key(passphrase, salt)).encrypt(nonce, encode(found), None)
    write_bytes_atomically(out, encode(Sealed(salt=salt, nonce=nonce, data=data)), mode=0o600)


def open_keys(path: Path, passphrase: str) -> dict[str, bytes]:
    """The secrets by their path below home. Raises BadInput for another passphrase, or if the file was changed."""
    with disk_errors(path):
        sealed = decode(path.read_bytes(), Sealed, str(path))
    try:
        plain = AESGCM(_key(passphrase, sealed.salt)).decrypt(sealed.nonce, sealed.data, None)
    except InvalidTag as error:
        raise BadInput(
            f"{path}: not the passphrase that it was sealed with, or the file was changed"
        ) from error
    return decode(plain, dict[str, bytes], str(path))


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=_WORK, r=_BLOCK, p=1).derive(passphrase.encode())
