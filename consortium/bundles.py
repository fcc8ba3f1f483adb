"""What one file looks like that carries messages and blobs by hand, and how it is believed.

    magic     24 bytes, ``sprachbund bundle v1`` and zeros
    length    8 bytes, big-endian: of the head
    head      canonical JSON of ``Head``: a certificate and a signed statement that names every blob
    blobs     the bytes of each blob, back to back, in the order of their digests

Nothing in the file is a name or a path: a blob is known by its digest, which the signature covers, so there is
nothing to escape from a folder with. The signed sizes say how long the file has to be: one that was cut is
known before a byte of it is used. It is written and read from front to back, one chunk in memory; because it is
flat, ``split`` and ``cat`` spread it over several media. (tar and zip were weighed: both bring names, links and
modes that have to be forbidden one by one, and neither says at its beginning what it will hold.)
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from consortium import ids
from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput, Corrupt, Refused
from consortium.files import disk_errors, make_folder, move_into_place, start_writeback, temporary_beside
from consortium.identity import Identity, identity_of
from consortium.ids import Digest
from consortium.manifests import FileRef
from consortium.signing import key_of_certificate, open_envelope, seal
from consortium.store import BlobStore, ref_of_section

HEAD_BYTES_MAX = 12 << 20  # below a gRPC message's limit; a hundred thousand digests
SUFFIX = ".bundle"

_NAME = b"sprachbund bundle v"
_MAGIC = (_NAME + b"1").ljust(24, b"\0")
_CHUNK_BYTES = 1 << 20
_SYNC_BYTES = 64 << 20  # begin to write to disk after so many: the fsync at the end has less to wait for
_OWNER = "bundle"  # of partials in the receiver's store

Moved = Callable[[int], None]  #: is told how many bytes of the blobs have been moved so far
Begin = Callable[[int], Moved]  #: is told before how many there are


def _untold(moved: int) -> None:
    pass


def silent(size: int) -> Moved:
    """For nobody who waits."""
    return _untold


def _after(before: int, moved: Moved) -> Moved:
    return lambda more: moved(before + more)


class Head(Fact):
    """Who says something, and what, signed."""

    certificate: str  #: PEM; empty: whoever asks for their first one
    envelope: bytes  #: DSSE, signed with the certificate's key


class Carried(Protocol):
    """A statement that names the blobs which come with it."""

    @property
    def blobs(self) -> tuple[FileRef, ...]: ...


# ---- heads: who says it


def sign_head(statement: Fact, kind: str, key: ec.EllipticCurvePrivateKey, certificate: bytes = b"") -> Head:
    """kind  the payload type, so that one statement can never be shown as another"""
    return Head(certificate=certificate.decode(), envelope=seal(encode(statement), kind, key))


def open_head(head: Head, kind: str, authority: bytes, consortium: str, now: float) -> tuple[Identity, bytes]:
    """Who signed the statement, and its bytes: what mutual TLS would have checked, from the bytes alone.

    authority  PEM of the consortium's own; it must have issued the certificate
    Raises Corrupt for a wrong signature or kind, Refused for a certificate that is not valid now, BadInput for
    what is none. Whether the holder still is a member is not in the certificate: ask the ledger.
    """
    certificate = head.certificate.encode()
    identity = identity_of(certificate, consortium)
    leaf, root = x509.load_pem_x509_certificate(certificate), x509.load_pem_x509_certificate(authority)
    who = f"certificate of {identity.role} {identity.name}"
    try:
        leaf.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Refused(
            f"{who}: the authority of consortium {consortium} did not issue it; the bundle is another consortium's, or "
            "was damaged on the way"
        ) from error
    if now > identity.not_after:
        until = datetime.fromtimestamp(identity.not_after, UTC)
        raise Refused(f"{who}: it expired on {until:%Y-%m-%d %H:%M} UTC; enrol again with a new invitation")
    if now < leaf.not_valid_before_utc.timestamp():
        raise Refused(f"{who}: it is not valid yet; is this machine's clock right?")
    return identity, open_envelope(head.envelope, kind, key_of_certificate(certificate))


# ---- files: writing


def write_bundle(
    path: Path, head: Head, blobs: Iterable[tuple[FileRef, Path]], moved: Moved = _untold
) -> int:
    """Make the bundle at ``path``, durable and all at once; returns its bytes.

    blobs  those that the head's statement names, each with the file that holds it; their order does not matter
    Raises Corrupt if a file is not what its digest says, BadInput if ``path`` exists, DiskFull, Unavailable.
    """
    if os.path.lexists(path):
        raise BadInput(f"{path}: exists already; choose another name or remove it")
    written_head = encode(head)
    if len(written_head) > HEAD_BYTES_MAX:
        raise BadInput(f"{path}: its head would have {len(written_head)} bytes, at most {HEAD_BYTES_MAX} fit")
    total = 0
    with disk_errors(path):
        make_folder(path.parent)
        temporary = temporary_beside(path)
        try:
            # the token of an enrolment is a secret, and weights are nobody else's business on a shared disk
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(_MAGIC + len(written_head).to_bytes(8, "big") + written_head)
                for ref, source in sorted(blobs, key=lambda blob: blob[0].digest):
                    total += _append(file.fileno(), file.write, ref, source, _after(total, moved))
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            move_into_place(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return size


def _append(descriptor: int, write: Callable[[bytes], int], ref: FileRef, source: Path, moved: Moved) -> int:
    sha256, done = hashlib.sha256(), 0
    with open(source, "rb", buffering=0) as file:
        while data := file.read(_CHUNK_BYTES):
            sha256.update(data)
            done += write(data)
            moved(done)
            if done % _SYNC_BYTES == 0:
                start_writeback(descriptor, 0, 0)  # 0: to the end
    _same(ref, done, sha256.hexdigest(), str(source))
    return done


# ---- files: reading


class Bundle:
    """An open bundle. Its head is not verified yet; its blobs are verified as they are taken."""

    def __init__(self, path: Path, file: int, size: int, head: Head, begin: int) -> None:
        self.path = path
        self.head = head
        self._file = file
        self._size = size
        self._begin = begin

    def places(self, statement: Carried) -> dict[Digest, tuple[FileRef, int]]:
        """Where each blob begins in the file. Raises Corrupt unless the file holds these blobs and no more."""
        found: dict[Digest, tuple[FileRef, int]] = {}
        offset = self._begin
        for ref in sorted(statement.blobs, key=lambda ref: ref.digest):
            if ref.size < 0 or ids.digest(ref.digest) in found:
                raise Corrupt(f"{self.path}: names blob {ref.digest} twice, or with {ref.size} bytes")
            found[ref.digest] = ref, offset
            offset += ref.size
        if self._size != offset:
            what = "it was cut short" if self._size < offset else "something was added to it"
            raise Corrupt(
                f"{self.path}: has {self._size} bytes, its signed head says {offset}: {what}; copy it again "
                "(of several parts: all, in their order)"
            )
        return found

    def verify(self, statement: Carried) -> None:
        """Read every blob and compare it with its digest. Raises Corrupt."""
        for ref, begin in self.places(statement).values():
            found = ref_of_section(self.path, begin, ref.size)
            _same(ref, found.size, found.digest, str(self.path))

    def take_in(self, statement: Carried, store: BlobStore, moved: Moved = _untold) -> None:
        """Put every blob into ``store``; what is whole there already is passed over.

        Raises Corrupt for wrong bytes. Blobs before it stay: they are what the signed head names, and nothing
        refers to them yet, so the next copy of the bundle need not bring them again.
        """
        total = 0
        for ref, begin in self.places(statement).values():
            if not store.has(ref.digest):
                self._take(ref, begin, store, _after(total, moved))
            total += ref.size
            moved(total)

    def _take(self, ref: FileRef, begin: int, store: BlobStore, moved: Moved) -> None:
        store.require_room(ref.size - store.received(ref.digest, _OWNER))
        done = store.received(ref.digest, _OWNER)  # an import that was killed goes on
        try:
            while done < ref.size:
                with disk_errors(self.path):
                    data = os.pread(self._file, min(_CHUNK_BYTES, ref.size - done), begin + done)
                if not data:
                    raise Corrupt(f"{self.path}: ends inside blob {ref.digest}; it changed while it was read")
                done = store.append(ref.digest, _OWNER, done, data)
                moved(done)
            store.finish(ref.digest, _OWNER, ref.size)
        except Corrupt as error:
            store.discard(ref.digest, _OWNER)
            raise Corrupt(
                f"{self.path}: blob {ref.digest} is not what its digest says: the medium or a copy damaged it; "
                f"copy the bundle again ({error})"
            ) from error


@contextlib.contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """Read a bundle's head. Raises Corrupt if it is no bundle, or cut within its head."""
    with disk_errors(path), open(path, "rb", buffering=0) as file:
        begin = file.read(len(_MAGIC) + 8)
        if not begin.startswith(_NAME) or len(begin) < len(_MAGIC) + 8:
            raise Corrupt(
                f"{path}: not a bundle of sprachbund, or cut within its first {len(_MAGIC) + 8} bytes"
            )
        if begin[: len(_MAGIC)] != _MAGIC:
            raise BadInput(f"{path}: a bundle of another release; update the older side")
        length = int.from_bytes(begin[len(_MAGIC) :], "big")
        if length > HEAD_BYTES_MAX:
            raise Corrupt(f"{path}: says that its head has {length} bytes, at most {HEAD_BYTES_MAX} are read")
        head = os.pread(file.fileno(), length, len(begin))
        if len(head) < length:
            raise Corrupt(f"{path}: cut within its head: {len(head)} of {length} bytes; copy it again")
        try:
            decoded = decode(head, Head, f"{path}, head")
        except BadInput as error:
            raise Corrupt(str(error)) from error
        size = os.fstat(file.fileno()).st_size
        yield Bundle(path, file.fileno(), size, decoded, len(begin) + length)


def _same(ref: FileRef, size: int, digest: str, place: str) -> None:
    if (size, digest) != (ref.size, ref.digest):
        raise Corrupt(
            f"{place}: expected {ref.size} bytes with sha256 {ref.digest}, got {size} with {digest}; it changed "
            "after it was made"
        )
