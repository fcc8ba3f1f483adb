"""Which bytes go out and come in over ``ArtifactService``: decode, ask whether it is allowed, stream.

A blob that a caller may not read and one that does not exist are answered alike, so that digests cannot be
probed. A site that uploads a blob must send all of its bytes even when the store has it: possession is
proven, not claimed. Disk and hashing run in threads; the event loop only moves messages.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable

import grpc
from sprachbund.v1 import artifact_pb2, artifact_pb2_grpc

from consortium import ids
from consortium.blobs import Blobs
from consortium.channels import CHUNK_BYTES, UPLOAD_ACCEPTED
from consortium.errors import BadInput, Refused, Unavailable
from consortium.files import disk_errors
from consortium.identity import Identity
from consortium.ids import Digest
from consortium.pieces import Piece
from consortium.roles import Role

PARTIALS_PER_OWNER = 8  # the oldest goes when a ninth is begun: abandoned uploads cannot fill the disk

Identify = Callable[[grpc.aio.ServicerContext], Identity]  #: raises Refused for who may not call at all
MayRead = Callable[[Identity, Digest], tuple[bool, str]]  #: allowed, and the reason
MayWrite = Callable[[Identity, Digest, int], tuple[bool, str]]  #: the same, for a blob of so many bytes
#: (who calls, the site that a blob is carried for) -> as whom the call counts; raises Refused
ActFor = Callable[[Identity, str], Identity]


class ArtifactService(artifact_pb2_grpc.ArtifactServiceServicer):
    """may_carry: what may be written on behalf of a site; the site itself asks ``may_write``.

    why_gone   when and by which rule a blob was let go; None: it was not
    """

    def __init__(
        self,
        store: Blobs,
        identify: Identify,
        may_read: MayRead,
        may_write: MayWrite,
        act_for: ActFor | None = None,
        may_carry: MayWrite | None = None,
        why_gone: Callable[[Digest], str | None] = lambda digest: None,
    ) -> None:
        self._store = store
        self._identify = identify
        self._may_read = may_read
        self._may_write = may_write
        self._act_for = act_for
        self._may_carry = may_carry or may_write
        self._why_gone = why_gone
        self._turns: dict[str, asyncio.Semaphore] = {}  # by owner: no more at once than partials are kept
        self._begin: dict[str, asyncio.Lock] = {}  # by owner: room is made for one after the other
        self._under_way: dict[str, Counter[Digest]] = {}  # by owner

    async def Stat(
        self, request: artifact_pb2.StatRequest, context: grpc.aio.ServicerContext
    ) -> artifact_pb2.StatResponse:
        caller = self._caller(context, request.site)
        digest = ids.digest(request.digest)
        allowed, _ = self._may_read(caller, digest)
        return await asyncio.to_thread(self._stat, digest, owner_of(caller), allowed)

    async def Upload(
        self, request_iterator: AsyncIterator[artifact_pb2.UploadRequest], context: grpc.aio.ServicerContext
    ) -> artifact_pb2.UploadResponse:
        self._identify(context)  # before anything is read
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("part") != "header":
            raise BadInput("upload: the first message must be the header")
        site = first.header.site
        caller = self._caller(context, site)
        digest, size, offset = ids.digest(first.header.digest), first.header.size, first.header.offset
        allowed, reason = (self._may_carry if site else self._may_write)(caller, digest, size)
        if not allowed:
            raise Refused(f"upload of {digest}, {size} bytes: {reason}")
        owner = owner_of(caller)
        under_way = self._under_way.setdefault(owner, Counter())
        async with self._turns.setdefault(owner, asyncio.Semaphore(PARTIALS_PER_OWNER)):
            under_way[digest] += 1
            try:
                return await self._receive(request_iterator, context, owner, digest, size, offset)
            finally:
                under_way[digest] -= 1
                under_way += Counter()  # forgets zeros

    async def _receive(
        self,
        messages: AsyncIterator[artifact_pb2.UploadRequest],
        context: grpc.aio.ServicerContext,
        owner: str,
        digest: Digest,
        size: int,
        offset: int,
    ) -> artifact_pb2.UploadResponse:
        await asyncio.to_thread(self._store.require_room, size - offset)
        if offset == 0:
            async with self._begin.setdefault(owner, asyncio.Lock()):
                await asyncio.to_thread(self._take_place, digest, owner, frozenset(self._under_way[owner]))
        await context.send_initial_metadata(((UPLOAD_ACCEPTED, "yes"),))
        async for message in messages:
            data = message.data
            if message.WhichOneof("part") != "data" or len(data) > CHUNK_BYTES:
                raise BadInput(
                    f"upload of {digest}: after the header only data, at most {CHUNK_BYTES} bytes a message"
                )
            if offset + len(data) > size:
                raise BadInput(
                    f"upload of {digest}: more than the announced {size} bytes; hash the file again"
                )
            offset = await asyncio.to_thread(self._store.append, digest, owner, offset, data)
        if offset == size:
            await asyncio.to_thread(self._store.finish, digest, owner, size)
        return artifact_pb2.UploadResponse(received=offset, complete=offset == size)

    async def Download(
        self, request: artifact_pb2.DownloadRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Piece]:
        caller = self._caller(context, request.site)
        digest = ids.digest(request.digest)
        allowed, reason = self._may_read(caller, digest)
        if not allowed:
            raise Refused(f"blob {digest}: {reason}")
        try:
            path = await asyncio.to_thread(
                self._store.path, digest
            )  # may have to be fetched from a bucket first
        except Unavailable:
            if (why := self._why_gone(digest)) is not None:  # trying again cannot help
                raise Refused(f"blob {digest}: {why}") from None
            raise
        with disk_errors(path), open(path, "rb") as file:
            size, offset = os.fstat(file.fileno()).st_size, request.offset
            if offset > size:
                raise BadInput(f"blob {digest}: has {size} bytes, but {offset} are asked to be skipped")
            message = Piece(size=size)
            while True:
                message.data = await asyncio.to_thread(os.pread, file.fileno(), CHUNK_BYTES, offset)
                if not message.data and offset < size:
                    raise Unavailable(
                        f"blob {digest}: ends at {offset} of {size} bytes; the store is damaged"
                    )
                yield message
                offset += len(message.data)
                if offset >= size:
                    return
                message = Piece()

    def _caller(self, context: grpc.aio.ServicerContext, site: str) -> Identity:
        """As whom the call counts: whoever calls, or the site for which an admin carries a bundle."""
        caller = self._identify(context)
        if not site:
            return caller
        if self._act_for is None:
            raise Refused(f"blobs for site {site}: nobody carries for sites here")
        return self._act_for(caller, site)

    def _take_place(self, digest: Digest, owner: str, busy: frozenset[Digest]) -> None:
        """Make room for a new partial, and begin it, so that whoever comes next sees it."""
        if not self._store.received(digest, owner):
            self._store.make_room(owner, PARTIALS_PER_OWNER - 1, busy)
            self._store.append(digest, owner, 0, b"")

    def _stat(self, digest: Digest, owner: str, may_read: bool) -> artifact_pb2.StatResponse:
        # who may read it is told of it and need not send it, so it counts as stored now: no cleaning takes it away
        if (may_read and self._store.renew(digest)) or self._store.delivered(digest, owner):
            return artifact_pb2.StatResponse(complete=True, received=self._store.size(digest))
        return artifact_pb2.StatResponse(received=self._store.received(digest, owner))


def owner_of(caller: Identity) -> str:
    """Under which name the store keeps what a caller sends: a site's own, ``<role>.<name>`` for people."""
    return caller.name if caller.role is Role.SITE else f"{caller.role}.{caller.name}"
