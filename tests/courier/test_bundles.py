"""The file itself: what is written is read back; what is cut, changed or hostile is refused, and leaves nothing."""

import os
import random
import ssl
import tracemalloc
from pathlib import Path

import pytest
from cryptography import x509

from consortium.bundles import HEAD_BYTES_MAX, Head, open_bundle, open_head, sign_head, write_bundle
from consortium.canonical import Fact, decode, encode, replace
from consortium.errors import BadInput, Corrupt, Refused
from consortium.identity import Authority, signing_request
from consortium.ids import Digest, SiteName
from consortium.manifests import FileRef
from consortium.roles import Role
from consortium.signing import new_key
from consortium.store import BlobStore, ref_of

KIND = "application/vnd.sprachbund.test+json"
NOW = 1.7e9


class Statement(Fact):
    blobs: tuple[FileRef, ...]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("test", NOW)


@pytest.fixture(scope="module")
def signer(authority: Authority):
    key = new_key()
    return key, authority.site(signing_request(SiteName("north"), key), SiteName("north"), NOW)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


@pytest.fixture
def made(tmp_path: Path, signer):
    """A bundle of three blobs, one of them empty, one of more than a chunk."""
    dice = random.Random(3)
    files = {}
    for name, size in (("a", 10), ("b", 0), ("c", (1 << 20) + 7)):
        (tmp_path / name).write_bytes(dice.randbytes(size))
        files[ref_of(tmp_path / name)] = tmp_path / name
    statement = Statement(blobs=tuple(sorted(files, key=lambda ref: ref.digest)))
    path = tmp_path / "made.bundle"
    size = write_bundle(path, sign_head(statement, KIND, *signer), files.items())
    assert size == path.stat().st_size and path.stat().st_mode & 0o077 == 0
    return path, statement


def take_in(path: Path, statement: Statement, store: BlobStore) -> None:
    with open_bundle(path) as bundle:
        bundle.take_in(statement, store)


def believe(path: Path, authority: Authority, store: BlobStore) -> None:
    """Take in what the signed head says, if it is properly signed."""
    with open_bundle(path) as bundle:
        _, payload = open_head(bundle.head, KIND, authority.pem, "test", NOW)
        bundle.take_in(decode(payload, Statement), store)


def test_what_was_written_is_read_back(made, store: BlobStore, authority: Authority) -> None:
    path, statement = made
    with open_bundle(path) as bundle:
        who, payload = open_head(bundle.head, KIND, authority.pem, "test", NOW)
        assert (who.role, who.name) == (Role.SITE, "north")
        assert decode(payload, Statement) == statement
        moved: list[int] = []
        bundle.take_in(statement, store, moved.append)
        bundle.verify(statement)
    assert store.digests() == [ref.digest for ref in statement.blobs]
    assert moved == sorted(moved) and moved[-1] == sum(ref.size for ref in statement.blobs)
    for ref in statement.blobs:
        store.verify(ref.digest)


def test_parts_that_split_made_are_a_bundle_again_when_joined(made, store: BlobStore, tmp_path: Path) -> None:
    path, statement = made
    data = path.read_bytes()
    parts = [data[begin : begin + 400_000] for begin in range(0, len(data), 400_000)]
    joined = tmp_path / "joined.bundle"
    joined.write_bytes(b"".join(parts))
    take_in(joined, statement, store)
    wrong = tmp_path / "wrong.bundle"
    wrong.write_bytes(b"".join([parts[0], parts[2], parts[1]]))
    with pytest.raises(Corrupt):
        take_in(wrong, statement, BlobStore(tmp_path / "other"))


@pytest.mark.parametrize("cut", [0, 1, 23, 24, 31, 32, 33, 200, -1, -(1 << 20)])
def test_a_cut_bundle_is_refused_before_a_blob_is_used(made, store: BlobStore, cut: int) -> None:
    path, statement = made
    data = path.read_bytes()
    path.write_bytes(data[:cut])
    with pytest.raises(Corrupt, match=r"cut|not a bundle"):
        take_in(path, statement, store)
    assert store.digests() == [] and store.partials() == []


def test_an_addition_is_refused(made, store: BlobStore) -> None:
    path, statement = made
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(Corrupt, match="something was added"):
        take_in(path, statement, store)


# Of a serial number that is not positive the library warns today, and raises ValueError in a later release: either
# comes while it is read, before the signature is looked at. Only this message, and what matters is asserted below.
odd_serial = pytest.mark.filterwarnings("ignore:Parsed a serial number")


@odd_serial
def test_a_serial_number_that_became_negative_is_refused(made, authority: Authority) -> None:
    path, _ = made
    with open_bundle(path) as bundle:
        der = ssl.PEM_cert_to_DER_cert(bundle.head.certificate)
        envelope = bundle.head.envelope
    number = x509.load_der_x509_certificate(der).serial_number
    width = number.bit_length() // 8 + 1
    positive = b"\x02" + bytes([width]) + number.to_bytes(width, "big")
    negative = positive[:2] + bytes([positive[2] | 0x80]) + positive[3:]
    assert der.count(positive) == 1
    head = Head(certificate=ssl.DER_cert_to_PEM_cert(der.replace(positive, negative)), envelope=envelope)
    with pytest.raises((BadInput, Refused)):
        open_head(head, KIND, authority.pem, "test", NOW)


@odd_serial
def test_every_changed_byte_is_noticed(made, authority: Authority, tmp_path: Path) -> None:
    path, statement = made
    data = path.read_bytes()
    begin = len(data) - sum(ref.size for ref in statement.blobs)
    dice = random.Random(5)
    places = [*range(0, begin, 7), *(dice.randrange(begin, len(data)) for _ in range(5))]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        store = BlobStore(tmp_path / f"store-{place}")
        with pytest.raises((BadInput, Refused)):
            believe(path, authority, store)
        for digest in store.digests():
            store.verify(digest)  # what was taken in before is true to its name
        assert store.partials() == []


def test_an_import_that_was_killed_goes_on_where_it_was(made, store: BlobStore, monkeypatch) -> None:
    path, statement = made
    append, calls = BlobStore.append, []

    def killed(self, *arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return append(self, *arguments)

    monkeypatch.setattr(BlobStore, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        take_in(path, statement, store)
    take_in(path, statement, BlobStore(store._blobs.parent))
    sent = sum(len(data) for *_, data in calls)
    total = sum(ref.size for ref in statement.blobs)
    assert store.digests() == [ref.digest for ref in statement.blobs]
    assert sent < total + (1 << 20)  # of the chunk that was cut off, and of nothing else


@pytest.mark.parametrize(
    "blobs",
    [
        (FileRef(digest=Digest("../../etc/passwd"), size=1),),
        (FileRef(digest=Digest("0" * 64), size=-1),),
        (FileRef(digest=Digest("0" * 64), size=0), FileRef(digest=Digest("0" * 64), size=0)),
    ],
)
def test_a_signed_statement_that_names_nonsense_is_refused(tmp_path, store, signer, blobs) -> None:
    statement = Statement(blobs=blobs)
    path = tmp_path / "hostile.bundle"
    write_bundle(path, sign_head(statement, KIND, *signer), ())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput):
        take_in(path, statement, store)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_head_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.bundle"
    path.write_bytes(b"sprachbund bundle v1".ljust(24, b"\0") + (HEAD_BYTES_MAX + 1).to_bytes(8, "big"))
    with pytest.raises(Corrupt, match="at most"), open_bundle(path):
        pass
    path.write_bytes(b"sprachbund bundle v2".ljust(24, b"\0") + bytes(40))
    with pytest.raises(BadInput, match="another release"), open_bundle(path):
        pass


def test_a_file_that_changed_leaves_no_bundle(tmp_path: Path, signer) -> None:
    (tmp_path / "file").write_bytes(b"first")
    ref = ref_of(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"other")
    with pytest.raises(Corrupt, match="it changed after it was made"):
        write_bundle(
            tmp_path / "out", sign_head(Statement(blobs=(ref,)), KIND, *signer), [(ref, tmp_path / "file")]
        )
    assert os.listdir(tmp_path) == ["file"]


def test_a_bundle_is_never_overwritten(made, signer) -> None:
    path, statement = made
    before = path.read_bytes()
    with pytest.raises(BadInput, match="exists already"):
        write_bundle(path, sign_head(statement, KIND, *signer), ())
    assert path.read_bytes() == before


def test_who_signed_is_checked_as_in_a_handshake(authority: Authority, signer) -> None:
    head = sign_head(Statement(blobs=()), KIND, *signer)

    def opened(head: Head = head, kind: str = KIND, pem: bytes = authority.pem, name="test", now=NOW) -> None:
        open_head(head, kind, pem, name, now)

    opened()
    with pytest.raises(Refused, match="did not issue it"):
        opened(pem=Authority.create("test", NOW).pem)
    with pytest.raises(BadInput, match="is of consortium 'test', this one is 'other'"):
        opened(name="other")
    with pytest.raises(Refused, match="expired on"):
        opened(now=NOW + 91 * 86_400)
    with pytest.raises(Refused, match="not valid yet"):
        opened(now=NOW - 2 * 86_400)  # one day is allowed to clocks that are wrong
    with pytest.raises(Corrupt, match="its type is"):
        opened(kind="application/vnd.sprachbund.other+json")
    with pytest.raises(Corrupt, match="signed by"):
        opened(replace(head, envelope=sign_head(Statement(blobs=()), KIND, new_key()).envelope))
    with pytest.raises(BadInput, match="expected one PEM"):
        opened(replace(head, certificate=""))


def test_memory_stays_small_whatever_the_size(tmp_path: Path, signer, store: BlobStore) -> None:
    with open(tmp_path / "big", "wb") as file:
        file.truncate(64 << 20)
    ref = ref_of(tmp_path / "big")
    statement = Statement(blobs=(ref,))
    tracemalloc.start()
    write_bundle(tmp_path / "b", sign_head(statement, KIND, *signer), [(ref, tmp_path / "big")])
    take_in(tmp_path / "b", statement, store)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert encode(statement)
