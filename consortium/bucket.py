"""How files get into an S3 bucket and out of it: whole or not at all, in parts that a crash does not lose.

boto3 speaks the protocol; it is imported when a bucket is used. Each part carries its MD5, which every S3-compatible
storage checks on arrival (newer checksums are not known to all of them); an object appears only when all parts are
there. Parts that arrived before a crash are found again and not sent twice.
"""

import base64
import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from consortium.errors import BadInput, Corrupt, Unavailable
from consortium.files import disk_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 16 << 20  # of a multipart upload; grows where 10,000 parts, S3's limit, would not do
_PARTS_MAX = 10_000
#: Objects of one listing; a storage that goes on for longer lists for ever.
_NAMES_MAX = 10_000_000
#: One reading: connections are slow, and some only pretend that there will be more.
_READ_SECONDS, _READ_BYTES_A_SECOND = 60.0, 64 << 10
_ATTEMPTS = 5
_ABSENT = {"404", "NoSuchKey", "NotFound", "NoSuchUpload"}


class Found(NamedTuple):
    size: int
    stored_at: float  #: seconds since the epoch, the storage's clock


class Bucket:
    """One bucket, or one folder of it. Methods may be called from any thread."""

    def __init__(
        self, url: str, endpoint: str | None = None, region: str | None = None, part_bytes: int = PART_BYTES
    ) -> None:
        """url: ``s3://bucket/prefix``. Whose it is says the usual chain of AWS: environment, then ~/.aws."""
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.hostname or parts.query or parts.username:
            raise BadInput(
                f"store: {parts.scheme}://{parts.hostname or ''}… is no bucket; write s3://bucket/prefix"
            )
        self.url = url
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._part_bytes = part_bytes
        self._client = _client(endpoint, region)

    def find(self, name: str) -> Found | None:
        """Size and time of an object; None if there is none."""
        found: list[Found] = []
        with contextlib.suppress(_Absent), self._errors(name):
            head = self._client.head_object(Bucket=self._bucket, Key=self._key(name))
            found.append(Found(_length(head["ContentLength"]), head["LastModified"].timestamp()))
        return found[0] if found else None

    def names(self, folder: str) -> Iterator[str]:
        """All objects below ``folder``, by the rest of their names."""
        prefix, count = self._key(folder) + "/", 0
        with self._errors(folder):
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix
            ):
                for item in page.get("Contents", ()):
                    count += 1
                    if count > _NAMES_MAX:
                        raise Unavailable(
                            f"{self.url}: {folder} lists more than {_NAMES_MAX} objects; look at it"
                        )
                    if item["Key"].startswith(prefix):  # others were not asked for
                        yield item["Key"].removeprefix(prefix)

    def read(self, name: str, begin: int, size: int) -> bytes:
        """At most ``size`` bytes of an object from ``begin`` on, whatever the storage sends; not checked otherwise.

        Raises Unavailable if there is none, if it is not the part that was asked for, or comes too slowly.
        """
        if size <= 0:
            return b""
        with self._errors(name):
            wanted = f"bytes={begin}-{begin + size - 1}"
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name), Range=wanted)
            with contextlib.closing(answer["Body"]) as body:
                if begin and not answer.get("ContentRange", "").startswith(f"bytes {begin}-"):
                    raise ValueError(f"bytes {answer.get('ContentRange')!r} for {wanted!r}")
                return _read(body._raw_stream, size)  # type: ignore[attr-defined]

    def put(self, name: str, data: bytes) -> None:
        with self._errors(name):
            self._client.put_object(
                Bucket=self._bucket, Key=self._key(name), Body=data, ContentMD5=_md5(data)
            )

    def remove(self, name: str) -> None:
        with self._errors(name):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(name))

    def upload(self, name: str, path: Path) -> None:
        """Bring a file in under ``name``; it is durable there when this returns, and not visible before."""
        size = path.stat().st_size
        if size <= self._part_bytes:
            with disk_errors(path):
                data = path.read_bytes()
            self.put(name, data)
        else:
            with contextlib.suppress(_Absent):  # another coordinator may have ended the very same upload
                self._upload_parts(name, path, size)
        found = self.find(name)
        if found is None or found.size != size:
            raise Unavailable(f"{self.url}: {name} has {found and found.size} of {size} bytes; try again")

    # ---- inside

    def _upload_parts(self, name: str, path: Path, size: int) -> None:
        length = max(self._part_bytes, -(-size // _PARTS_MAX))
        bucket, key, client = self._bucket, self._key(name), self._client
        with self._errors(name):
            upload = self._begun(name) or _begin(client, bucket, key)
            there = self._parts(name, upload)
            done, digests = [], b""
            with disk_errors(path), open(path, "rb") as file:
                for number, begin in enumerate(range(0, size, length), 1):
                    data = os.pread(file.fileno(), min(length, size - begin), begin)
                    md5 = hashlib.md5(data, usedforsecurity=False)
                    digests += md5.digest()
                    tag = there.get(number)
                    if tag != (md5.hexdigest(), len(data)):
                        answer = client.upload_part(
                            Bucket=bucket,
                            Key=key,
                            UploadId=upload,
                            PartNumber=number,
                            Body=data,
                            ContentMD5=_md5(data),
                        )
                        tag = (answer["ETag"].strip('"'), len(data))
                    done.append((number, *tag))
            ended = client.complete_multipart_upload(
                Bucket=bucket,
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": [{"PartNumber": n, "ETag": tag} for n, tag, _ in done]},
            )
            want = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(done)}"
            whole = ended["ETag"].strip('"')
            # where the storage encrypts with keys of its own, tags are no MD5 and say nothing
            if (
                b"".join(bytes.fromhex(tag) for _, tag, _ in done if len(tag) == 32) == digests
                and whole != want
            ):
                self.remove(name)
                raise Corrupt(f"{self.url}: {name} was put together wrongly (tag {whole}, expected {want})")

    def _begun(self, name: str) -> str | None:
        """The upload of this object that was begun first and not ended."""
        key = self._key(name)
        answer = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=key)
        mine = [item for item in answer.get("Uploads", ()) if item["Key"] == key]
        return min(mine, key=lambda item: (item["Initiated"], item["UploadId"]))["UploadId"] if mine else None

    def _parts(self, name: str, upload: str) -> dict[int, tuple[str, int]]:
        """The parts that arrived: number -> tag, size."""
        pages = self._client.get_paginator("list_parts").paginate(
            Bucket=self._bucket, Key=self._key(name), UploadId=upload
        )
        parts = (part for page in pages for part in page.get("Parts", ()))
        return {part["PartNumber"]: (part["ETag"].strip('"'), part["Size"]) for part in parts}

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turn what the storage says into our errors."""
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ClientError as error:
            if error.response.get("Error", {}).get("Code", "") in _ABSENT:
                raise _Absent(f"{self.url}: {name} is not there; try again") from error
            raise Unavailable(
                f"{self.url}: {name}: {error}; check the bucket's name and the credentials' rights"
            ) from error
        except (BotoCoreError, HTTPError, OSError) as error:
            raise Unavailable(f"{self.url}: {name}: {error}; check the way to the storage") from error
        except (
            ResponseParserError,
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise Unavailable(
                f"{self.url}: {name}: this is no answer of an S3 storage: {error!r}; check the endpoint"
            ) from error


class _Absent(Unavailable):
    """There is no such object, or no such upload."""


def _length(said: int) -> int:
    if said < 0:
        raise ValueError(f"a length of {said} bytes")
    return said


def _read(stream: Any, size: int) -> bytes:
    """At most ``size`` bytes of urllib3's response; a ``StreamingBody`` waits for all, however slowly they come."""
    parts, length, until = [], 0, time.monotonic() + _READ_SECONDS + size / _READ_BYTES_A_SECOND
    while length < size and (data := stream.read1(min(size - length, 1 << 20))):
        parts.append(data)
        length += len(data)
        if time.monotonic() > until and length < size:
            raise ValueError(f"{length} of {size} bytes came in time")
    return b"".join(parts)


def _begin(client: "S3Client", bucket: str, key: str) -> str:
    return client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _client(endpoint: str | None, region: str | None) -> "S3Client":
    try:
        import boto3
        from botocore.config import Config
    except ImportError as absent:
        raise BadInput(
            "the store is a bucket, for which boto3 is missing here; `pip install 'sprachbund[s3]'`"
        ) from absent
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        request_checksum_calculation="when_required",  # Ceph and others know no CRC64 trailers
        response_checksum_validation="when_required",
        max_pool_connections=16,
    )
    return boto3.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
