"""How a blob travels between a site and the coordinator, over connections that break.

The receiver's partial is the only memory of a transfer: after a break the sender asks how much arrived and
goes on from there. What is stored is never sent again; what was under way is (gRPC's window, a few chunks at
most). The digest verifies the whole.
"""

import asyncio
import logging
import os
import random
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from sprachbund.v1 import artifact_pb2

from consortium.canonical import Fact
from consortium.channels import CHUNK_BYTES, UPLOAD_ACCEPTED
from consortium.errors import Corrupt, DiskFull, SprachbundError, Unavailable
from consortium.files import disk_errors
from consortium.ids import Digest, short
from consortium.manifests import FileRef
from consortium.store import BlobStore, ref_of_section
from consortium.wire_errors import from_rpc_error

_log = logging.getLogger(__name__)

_OWNER = "download"  # of partials in the receiver's own store
_STAT_SECONDS = 30.0


class Retries(Fact):
    """How patient a transfer is. Only failures in a row without progress count."""

    attempts: int = 8
    first_seconds: float = 0.5  #: doubles each time, with jitter, so that sites do not come back all at once
    longest_seconds: float = 30.0


PATIENT = Retries()

Moved = Callable[[int], None]  #: is told how many bytes of the blob have been moved so far


def _untold(moved: int) -> None:
    pass


async def upload(
    stub: Any, path: Path, ref: FileRef, retries: Retries = PATIENT, moved: Moved = _untold
) -> None:
    """Bring the file at ``path``, whose true name is ``ref``, to the coordinator, until it is whole there.

    stub     an ``ArtifactServiceStub`` on an aio channel, ``pieces.ArtifactCalls`` for speed
    moved    is told how many bytes have been sent, after every chunk
    Raises what the coordinator says (Refused, BadInput, Corrupt), or Unavailable when patience ends.
    """
    with disk_errors(path):
        size = path.stat().st_size
    if size != ref.size:
        raise Corrupt(f"{path}: has {size} bytes, {ref.size} were announced; it changed after it was hashed")
    await upload_section(stub, path, 0, ref, "", retries, moved)


async def upload_section(
    stub: Any,
    path: Path,
    begin: int,
    ref: FileRef,
    site: str,
    retries: Retries = PATIENT,
    moved: Moved = _untold,
) -> None:
    """The same for the part of a file that begins at byte ``begin``; ``site``: on whose behalf, if not one's own."""

    async def received() -> int | None:
        request = artifact_pb2.StatRequest(digest=ref.digest, site=site)
        stat = await stub.Stat(request, timeout=_STAT_SECONDS)
        return None if stat.complete else int(stat.received)

    async def send(offset: int) -> None:
        await _send(stub, path, begin, ref, site, offset, moved)

    async def damaged_on_the_way() -> bool:
        return await asyncio.to_thread(ref_of_section, path, begin, ref.size) == ref

    await _until_whole(received, send, damaged_on_the_way, f"upload of {short(ref.digest)}", retries)


async def download(
    stub: Any,
    ref: FileRef,
    store: BlobStore,
    retries: Retries = PATIENT,
    moved: Moved = _untold,
    site: str = "",
) -> None:
    """Bring blob ``ref`` from the coordinator into ``store``; returns when it is whole and verified there.

    site  on whose behalf, if not one's own
    Raises what the coordinator says (Refused, BadInput, Corrupt), DiskFull, Unavailable when patience ends.
    """

    async def received() -> int | None:
        return None if store.has(ref.digest) else store.received(ref.digest, _OWNER)

    async def receive(offset: int) -> None:
        request = artifact_pb2.DownloadRequest(digest=ref.digest, offset=offset, site=site)
        async for message in stub.Download(request):
            if message.size and message.size != ref.size:
                raise Corrupt(
                    f"blob {ref.digest}: the coordinator has {message.size} bytes, expected {ref.size}"
                )
            if offset + len(message.data) > ref.size:
                raise Corrupt(f"blob {ref.digest}: the coordinator sends more than its {ref.size} bytes")
            offset = await asyncio.to_thread(store.append, ref.digest, _OWNER, offset, message.data)
            moved(offset)
        await asyncio.to_thread(store.finish, ref.digest, _OWNER, ref.size)

    async def damaged_on_the_way() -> bool:
        return True

    async with _one_at_a_time(store, ref):
        await _until_whole(received, receive, damaged_on_the_way, f"download of {short(ref.digest)}", retries)


async def fetch(
    stub: Any, digest: Digest, store: BlobStore, retries: Retries = PATIENT, moved: Moved = _untold
) -> None:
    """``download`` of a blob that an order names by its digest alone: how large it is, is asked for.

    Raises Unavailable, too, if it is not whole at the coordinator, or had another size when it came than was said: the
    coordinator may have to believe its storage until it has read the bytes, and the order is none the worse for it.
    """
    told = await _told(stub, digest)
    try:
        await download(stub, told, store, retries, moved)
    except Corrupt as error:
        if (now := await _told(stub, digest)) == told:
            raise
        raise Unavailable(
            f"blob {digest}: the coordinator said {told.size} bytes, now it says {now.size}; try again"
        ) from error


async def _told(stub: Any, digest: Digest) -> FileRef:
    try:
        stat = await stub.Stat(artifact_pb2.StatRequest(digest=digest), timeout=_STAT_SECONDS)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    if not stat.complete:
        raise Unavailable(f"blob {digest} is not whole at the coordinator yet")
    return FileRef(digest=digest, size=stat.received)


async def _until_whole(
    received: Callable[[], Awaitable[int | None]],
    move: Callable[[int], Awaitable[None]],
    damaged_on_the_way: Callable[[], Awaitable[bool]],
    what: str,
    retries: Retries,
) -> None:
    """Move what is missing until ``received`` says None, which means whole."""
    failures, furthest, resumed, started_over = 0, 0, False, False
    while True:
        try:
            offset = await received()
            if offset is None:
                return
            if offset > furthest:
                failures, furthest = 0, offset
            resumed = offset > 0
            await move(offset)
            return
        except grpc.RpcError as rpc_error:
            error = from_rpc_error(rpc_error)
        except SprachbundError as own:
            error = own
        if isinstance(error, Corrupt):
            # a power cut may leave a torn partial on the other side: it is gone now, so start over, once
            if started_over or not resumed or not await damaged_on_the_way():
                raise error
            started_over, furthest = True, 0
        elif not isinstance(error, Unavailable) or isinstance(error, DiskFull):
            raise error
        failures += 1
        if failures >= retries.attempts:
            raise Unavailable(
                f"{what}: gave up after {failures} failures without progress; last: {error}"
            ) from error
        _log.info("%s: %s; trying again", what, error)
        pause = min(retries.longest_seconds, retries.first_seconds * 2 ** (failures - 1))
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))


async def _send(
    stub: Any, path: Path, begin: int, ref: FileRef, site: str, offset: int, moved: Moved
) -> None:
    call, piece = stub.Upload(), getattr(stub, "piece", artifact_pb2.UploadRequest)
    try:
        header = artifact_pb2.UploadHeader(digest=ref.digest, size=ref.size, offset=offset, site=site)
        await call.write(artifact_pb2.UploadRequest(header=header))
        # Data written into a call that the other side has already ended may hide its reason behind an INTERNAL
        # of our own (grpc/grpc issue 36066): so wait for the coordinator to accept the header
        if UPLOAD_ACCEPTED not in await call.initial_metadata():
            offset = ref.size
        with disk_errors(path), open(path, "rb") as file:
            while offset < ref.size:
                length = min(CHUNK_BYTES, ref.size - offset)
                data = await asyncio.to_thread(os.pread, file.fileno(), length, begin + offset)
                if not data:
                    raise Corrupt(
                        f"{path}: ends at {offset} of {ref.size} bytes; it changed after it was hashed"
                    )
                await call.write(piece(data=data))
                offset += len(data)
                moved(offset)
        await call.done_writing()
    except (asyncio.InvalidStateError, grpc.aio.InternalError):
        pass  # the coordinator has answered before the end; the reason comes with the answer
    except BaseException:
        call.cancel()
        raise
    response = await call
    if not response.complete:
        raise Unavailable(f"blob {ref.digest}: the coordinator has {response.received} of {ref.size} bytes")


# two jobs of one agent may want the same base at once: the second waits and finds it there
_locks: "weakref.WeakValueDictionary[tuple[int, str], asyncio.Lock]" = weakref.WeakValueDictionary()


def _one_at_a_time(store: BlobStore, ref: FileRef) -> asyncio.Lock:
    return _locks.setdefault((id(store), ref.digest), asyncio.Lock())
