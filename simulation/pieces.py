"""Calls that carry a blob, up or down: pieces that share the wire, any of which may be lost, and all of it with it."""

import asyncio
import collections
from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any

from simulation.calls import Call, Context, Ended, Metadata, parsed

if TYPE_CHECKING:
    from simulation.network import Channel

_DOWNLOAD = "/sprachbund.v1.ArtifactService/Download"


class Upload(Call):
    """What ``stub.Upload()`` gives: write, initial_metadata, done_writing, await."""

    def __init__(self, channel: "Channel", method: str, serialize: Any, deserialize: Any) -> None:
        super().__init__(channel, method)
        loop = self.network.loop
        self._serialize, self._deserialize = serialize, deserialize
        self._final: asyncio.Future[Any] = loop.create_future()
        self._accepted: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._pieces: collections.deque[bytes | None] = collections.deque()
        self._came: asyncio.Future[None] | None = None
        self._weight, self._digest = 1.0, ""
        self._has_begun = False

    async def write(self, message: Any) -> None:
        if self._final.done():
            raise asyncio.InvalidStateError("the call is over")
        data = self._serialize(message)
        if not self._has_begun:
            self._has_begun, self.channel = True, self.network.lent(self.channel)
            self._digest = message.header.digest
            self._weight = self.network.weight(self._digest)
            self.send(self.arrive, self._serve)
        size = int(len(message.data) * self._weight)
        if size:
            await asyncio.sleep(self.channel.wire.occupy(size, "up"))
        self.send(self._come, data)

    async def done_writing(self) -> None:
        self.send(self._come, None)

    async def initial_metadata(self) -> dict[str, Any]:
        return await asyncio.shield(self._accepted)

    def cancel(self) -> None:
        self.abandon()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._final.__await__()

    def _come(self, data: bytes | None) -> None:
        self._pieces.append(data)
        if self._came is not None and not self._came.done():
            self._came.set_result(None)

    async def _serve(self, handler: Any) -> None:
        async def messages() -> AsyncIterator[Any]:
            while True:
                while not self._pieces:
                    self._came = self.network.loop.create_future()
                    await self._came
                data = self._pieces.popleft()
                if data is None:
                    return
                yield parsed(handler, data)

        response = await handler.stream_unary(messages(), Context(self))
        data = handler.response_serializer(response)
        wire = self.channel.wire
        self.network.heard(wire.place, self.method, b"", data)
        self.send(self._succeed, data)

    def accept(self, metadata: Metadata) -> None:
        self.network.took(self.channel.wire.place, self._digest)
        self.send(self._hear_acceptance, metadata)

    def _hear_acceptance(self, metadata: Metadata) -> None:
        if not self._accepted.done():
            self._accepted.set_result(dict(metadata))

    def _succeed(self, data: bytes) -> None:
        if not self._final.done():
            self._final.set_result(self._deserialize(data))
            self._hear_acceptance(())
        self.over()

    def fail(self, end: Ended) -> None:
        if not self._final.done():
            self._final.set_exception(end.as_rpc_error())
            self._final.exception()  # it may be that nobody asks: then it is no news
            self._hear_acceptance(())
        self.over()


class Download(Call):
    """What ``stub.Download(request)`` gives: messages, one after the other."""

    def __init__(
        self, channel: "Channel", method: str, request: Any, serialize: Any, deserialize: Any
    ) -> None:
        super().__init__(channel, method)
        self._deserialize = deserialize
        self._request: bytes = serialize(request)
        self._digest = str(getattr(request, "digest", ""))
        self._weight = self.network.weight(self._digest) if method == _DOWNLOAD else 1.0
        self._came: collections.deque[bytes | Ended | None] = collections.deque()
        self._waits: asyncio.Future[None] | None = None
        self._has_begun = False
        self.send(self.arrive, self._serve)

    def __aiter__(self) -> "Download":
        return self

    async def __anext__(self) -> Any:
        try:
            while not self._came:
                self._waits = self.network.loop.create_future()
                await self._waits
        except asyncio.CancelledError:
            self.abandon()
            raise
        data = self._came.popleft()
        if data is None:
            raise StopAsyncIteration
        if isinstance(data, Ended):
            raise data.as_rpc_error()
        return self._deserialize(data)

    async def _serve(self, handler: Any) -> None:
        request = self.decoded(handler, self._request)
        async for message in handler.unary_stream(request, Context(self)):
            if self.method == _DOWNLOAD and not self._has_begun:
                self._has_begun = True
                self.network.gave(self.channel.wire.place, self._digest)
            size = int(len(message.data) * self._weight) if hasattr(message, "data") else 0
            if size:
                await asyncio.sleep(self.channel.wire.occupy(size, "down"))
            self.send(self._come, handler.response_serializer(message))
        self.send(self._come, None)

    def _come(self, data: bytes | Ended | None) -> None:
        if self.is_over:
            return
        self._came.append(data)
        if data is None or isinstance(data, Ended):
            self.over()
        if self._waits is not None and not self._waits.done():
            self._waits.set_result(None)

    def fail(self, end: Ended) -> None:
        self._come(end)
