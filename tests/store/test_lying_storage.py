"""A storage that lies or is broken: never a wrong byte is given on, never anything but our own errors is raised.

A proxy before a real S3 server changes its answers. A store's callers (services, worker, gc) know what to do with
``Unavailable``, and with ``Corrupt`` where somebody asked to verify; any other exception would bring them to fall.
"""

import contextlib
import functools
import http.client
import itertools
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from s3_server import s3_server

from consortium import bucket as bucket_module
from consortium.bucket import Bucket
from consortium.errors import Corrupt, Unavailable
from consortium.ids import Digest, digest_of
from consortium.store_s3 import S3BlobStore

DATA = b"What was delivered, and nothing else." * 1000
NAME = digest_of(DATA)
OTHER = b"Other bytes, of the very same number!" * 1000


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    drips: bool = False  #: one byte after the other, for ever

    def but(self, status: int | None = None, body: bytes | None = None, **headers: str) -> "Answer":
        named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        status = self.status if status is None else status
        return self._replace(
            status=status, headers={**self.headers, **named}, body=self.body if body is None else body
        )

    def without(self, header: str) -> "Answer":
        return self._replace(headers={name: value for name, value in self.headers.items() if name != header})


Lie = Callable[[str, str, Answer], Answer]


class Storage(ThreadingHTTPServer):
    """Passes every request on to the real storage, and changes what comes back."""

    daemon_threads = True
    lie: Lie | None = None

    def __init__(self, real: str) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.real = urlsplit(real).netloc
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests = 0


class Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Storage

    def _pass(self) -> None:
        self.server.requests += 1
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = http.client.HTTPConnection(self.server.real, timeout=60)
        line.request(self.command, self.path, body, dict(self.headers))
        with contextlib.closing(line), line.getresponse() as response:
            kept = {name.lower(): value for name, value in response.getheaders()}
            kept.pop("connection", None)
            answer = Answer(response.status, kept, response.read())
        if self.server.lie is not None:
            answer = self.server.lie(self.command, self.path, answer)
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        self.close_connection = True
        try:
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            while answer.drips:
                self.wfile.write(b".")
                time.sleep(0.01)
            if self.command != "HEAD":
                self.wfile.write(answer.body)
        except OSError:
            pass  # whoever asked has had enough

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def real() -> Iterator[str]:
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module")
def storage(real: str) -> Iterator[Storage]:
    server = Storage(real)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


_numbers = itertools.count()
_client = functools.cache(bucket_module._client)  # to make one takes longer than a test


class House(NamedTuple):
    store: S3BlobStore
    bucket: Bucket
    storage: Storage


@pytest.fixture
def house(storage: Storage, real: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """A store without a cache, in whose bucket the blob lies; the storage is honest until a test says otherwise."""
    storage.lie = None
    where = f"s3://blobs/lies-{next(_numbers)}"
    honest = S3BlobStore(Bucket(where, real), tmp_path / "honest", cache_bytes=1 << 30)
    honest.put_bytes(DATA)
    monkeypatch.setattr(bucket_module, "_ATTEMPTS", 1)
    monkeypatch.setattr(bucket_module, "_client", _client)
    bucket = Bucket(where, storage.address)
    return House(S3BlobStore(bucket, tmp_path / "cache", cache_bytes=1 << 30), bucket, storage)


def of(method: str, change: Callable[[Answer], Answer], part: str = "/blobs/") -> Lie:
    def lie(command: str, path: str, answer: Answer) -> Answer:
        return change(answer) if command == method and part in path else answer

    return lie


def sized(answer: Answer, body: bytes) -> Answer:
    return answer.but(body=body, Content_Length=str(len(body)))


HTML = b"<html><body>Please log in</body></html>"
ERROR = b"<Error><Code>InternalError</Code><Message>We are sorry</Message></Error>"

OF_BYTES: dict[str, Lie] = {
    "other bytes": of("GET", lambda a: sized(a, OTHER[: len(a.body)])),
    "one bit": of("GET", lambda a: a.but(body=bytes([a.body[0] ^ 1]) + a.body[1:])),
    "truncated": of("GET", lambda a: a.but(body=a.body[:-7])),
    "truncated and said so": of("GET", lambda a: sized(a, a.body[:-7])),
    "nothing": of("GET", lambda a: sized(a, b"")),
    "more than there is": of("GET", lambda a: sized(a, a.body + OTHER)),
    "an error that is called 200": of("GET", lambda a: sized(a.but(status=200), ERROR)),
    "a page of somebody else's": of("GET", lambda a: sized(a.but(status=200), HTML)),
    "error 500": of("GET", lambda a: sized(a.but(status=500), ERROR)),
    "no XML": of("GET", lambda a: sized(a.but(status=403), b"\x00\xff not XML")),
    "gone": of("GET", lambda a: sized(a.but(status=404), b"")),
    "no length": of("HEAD", lambda a: a.without("content-length")),
    "a length of words": of("HEAD", lambda a: a.but(Content_Length="many")),
    "a shorter length": of("HEAD", lambda a: a.but(Content_Length="10")),
    "a longer length": of("HEAD", lambda a: a.but(Content_Length=str(len(DATA) + 10))),
    "a time that is none": of("HEAD", lambda a: a.but(Last_Modified="yesterday")),
    "no time": of("HEAD", lambda a: a.without("last-modified")),
    "not there any more": of("HEAD", lambda a: a.but(status=404)),
    "forbidden": of("HEAD", lambda a: a.but(status=403)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(OF_BYTES))
def test_what_a_storage_says_is_taken_only_if_it_is_true(house: House, name: str) -> None:
    house.storage.lie = OF_BYTES[name]
    for read in (
        lambda: house.store.path(NAME).read_bytes(),
        lambda: house.store.read_bytes(NAME, 1 << 20),
    ):
        try:
            assert read() == DATA  # a lie that does no harm, as more bytes than were asked for
        except Unavailable:
            pass
    try:
        assert house.store.verify(NAME).size == len(DATA)
    except (Unavailable, Corrupt):
        pass
    house.storage.lie = None
    house.store._known.clear()
    for _ in range(2):  # what was begun with wrong bytes may have to be thrown away first
        try:
            house.store.path(NAME)
        except Unavailable:
            pass
    assert house.store.path(NAME).read_bytes() == DATA, "it did not recover when the storage was honest again"


def test_other_bytes_are_the_storages_fault_and_not_the_senders(house: House) -> None:
    house.storage.lie = OF_BYTES["other bytes"]
    with pytest.raises(Unavailable, match="gave 37000 bytes that are not those of its name"):
        house.store.path(NAME)
    with pytest.raises(Corrupt, match="restore the object"):
        house.store.verify(NAME)
    assert not house.store._local.has(NAME)


WRONG_LENGTHS = ("a shorter length", "a longer length")


@pytest.mark.parametrize("lie", WRONG_LENGTHS)
@pytest.mark.parametrize("learn", ["stored", "fetched", "verified", "cached"])
def test_how_large_a_blob_is_is_known_once_its_bytes_were_here(house: House, lie: str, learn: str) -> None:
    """Whatever the storage says then, for whom it is told to takes another size for damage."""
    store = house.store
    match learn:
        case "stored":
            store.put_bytes(DATA)
            store._local.remove(NAME)
        case "fetched":
            store.path(NAME)
            store._local.remove(NAME)
        case "verified":
            store.verify(NAME)
        case "cached":
            store._local.put_bytes(DATA)  # by a process before this one
    store._known.clear()
    house.storage.lie = OF_BYTES[lie]
    assert store.size(NAME) == store.verify(NAME).size == len(DATA)
    assert store.path(NAME).read_bytes() == DATA


@pytest.mark.parametrize("lie", WRONG_LENGTHS)
def test_a_length_that_is_believed_brings_no_byte_and_is_forgotten_when_the_storage_is_honest(
    house: House, lie: str
) -> None:
    house.storage.lie = OF_BYTES[lie]
    assert house.store.size(NAME) != len(DATA)  # nothing else is known of it
    with pytest.raises(Unavailable):
        house.store.path(NAME)
    house.storage.lie = None
    house.store._known.clear()
    for _ in range(2):  # what was begun may have to be thrown away first
        with contextlib.suppress(Unavailable):
            house.store.path(NAME)
    assert house.store.size(NAME) == len(house.store.path(NAME).read_bytes()) == len(DATA)


def test_a_stale_answer_to_a_part_is_not_put_together_with_another(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole object, where a part of it was asked for: from its beginning, as some storages do."""
    monkeypatch.setattr("consortium.store_s3._READ_BYTES", 10_000)

    def whole(command: str, path: str, answer: Answer) -> Answer:
        if command != "GET" or "/blobs/" not in path:
            return answer
        headers = {name: value for name, value in answer.headers.items() if name != "content-range"}
        return sized(Answer(200, headers, b""), DATA)

    house.storage.lie = whole
    with pytest.raises(Unavailable, match="no answer of an S3 storage"):
        house.store.path(NAME)
    house.storage.lie = None
    assert house.store.path(NAME).read_bytes() == DATA


def test_who_never_ends_is_cut_short(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "_READ_SECONDS", 0.2)
    monkeypatch.setattr(bucket_module, "_READ_BYTES_A_SECOND", 1 << 30)
    house.storage.lie = of(
        "GET", lambda a: Answer(206, {k: v for k, v in a.headers.items() if k != "content-length"}, b"", drips=True)
    )  # fmt: skip
    with pytest.raises(Unavailable, match="bytes came in time"):
        house.store.path(NAME)


@pytest.mark.parametrize(
    "body",
    [
        HTML,
        b"",
        b"\x00",
        ERROR,
        b"<ListBucketResult><Contents><Size>1</Size></Contents></ListBucketResult>",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
    ],
)
def test_a_listing_that_is_none_is_an_answer_and_no_crash(house: House, body: bytes) -> None:
    house.storage.lie = of("GET", lambda a: sized(a.but(status=200), body), part="list-type=2")
    for read in (house.store.digests, house.store.deliveries):
        try:
            assert read() == []
        except Unavailable:
            pass


def test_a_listing_without_end_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "_NAMES_MAX", 50)
    pages = itertools.count()

    def endless(command: str, path: str, answer: Answer) -> Answer:
        if command != "GET" or "list-type=2" not in path:
            return answer
        item = f"<Contents><Key>elsewhere/{NAME}</Key><Size>1</Size></Contents>"
        page = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{next(pages)}</NextContinuationToken>"
        return sized(
            answer.but(status=200), f"<ListBucketResult>{item * 10}{page}</ListBucketResult>".encode()
        )

    house.storage.lie = endless
    with pytest.raises(Unavailable, match="more than 50 objects"):
        house.store.digests()
    assert next(pages) <= 7


@pytest.mark.parametrize(
    "change",
    [
        lambda a: sized(a.but(status=200), ERROR),
        lambda a: sized(a.but(status=500), ERROR),
        lambda a: sized(a.but(status=302, Location="http://127.0.0.1:1/"), HTML),
    ],
)
def test_what_a_storage_only_says_to_have_taken_is_not_acknowledged(
    house: House, change: Callable[[Answer], Answer]
) -> None:
    """It says yes, or no, and has not got it: whoever sends hears that it is not stored, and may send again."""
    new = b"a new delta"
    digest = digest_of(new)

    def takes_nothing(command: str, path: str, answer: Answer) -> Answer:
        if command == "PUT" and digest in path and "/blobs/" in path:
            return change(answer)
        return answer.but(status=404) if command == "HEAD" and digest in path else answer

    house.storage.lie = takes_nothing
    house.store.append(digest, "sofia", 0, new)
    with pytest.raises(Unavailable):
        house.store.finish(digest, "sofia", len(new))
    assert not house.store.delivered(Digest(digest), "sofia")
    house.storage.lie = None
    house.store.finish(digest, "sofia", len(new))
    assert house.store.delivered(digest, "sofia") and house.store.path(digest).read_bytes() == new
