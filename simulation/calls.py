"""One call over a simulated wire: its pieces as bytes, and its ending as gRPC would show it to caller and servicer."""

import abc
import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

import grpc

from simulation.wires import SILENCE_SECONDS

if TYPE_CHECKING:
    from simulation.network import Channel

Metadata = tuple[tuple[str, str | bytes], ...]


class Ended(Exception):
    """A call that did not succeed, before its caller has heard of it."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> None:
        super().__init__(details)
        self.code, self.details, self.trailing = code, details, trailing

    def as_rpc_error(self) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(
            self.code, grpc.aio.Metadata(), grpc.aio.Metadata(*self.trailing), self.details, "simulated"
        )


def unavailable(why: str) -> Ended:
    return Ended(grpc.StatusCode.UNAVAILABLE, why)


class Context:
    """grpc.aio.ServicerContext, as far as our servicers ask."""

    def __init__(self, call: "Call") -> None:
        self._call = call
        self._trailing: Metadata = ()

    def auth_context(self) -> dict[str, list[bytes]]:
        own = self._call.channel.own
        return {"x509_pem_cert": [own.certificate]} if own is not None else {}

    def invocation_metadata(self) -> Metadata:
        return (("user-agent", self._call.channel.program),)

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        self._trailing = tuple(metadata)

    async def send_initial_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        self._call.accept(tuple(metadata))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        self._call.status = Ended(code, details, tuple(trailing_metadata))
        raise grpc.aio.AbortError(details)

    def peer(self) -> str:
        return f"ipv4:{self._call.channel.wire.place}"


class Call(abc.ABC):
    """One call, from its first byte to its caller's knowing how it ended."""

    def __init__(self, channel: "Channel", method: str) -> None:
        self.channel, self.method = channel, method
        self.network = channel.network
        self.status: Ended | None = None
        self.is_over = False
        self.arrived_at = 0.0  #: at the coordinator, on the loop's clock
        self._task: asyncio.Task[Any] | None = None
        self.network.begin(self)

    @property
    def is_served(self) -> bool:
        """Whether the coordinator works on it, as far as its caller could know."""
        return self._task is not None and not self._task.done() and not self.channel.wire.is_cut

    # ---- the server's side

    def arrive(self, serve: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        """At the coordinator, if there is one."""
        network, wire = self.network, self.channel.wire
        if self.is_over:
            return
        if wire.is_cut:
            network.later(SILENCE_SECONDS, self.fail, unavailable("keepalive watchdog timeout"))
            return
        port = network.ports.get(self.channel.target)
        if network.server is None or not network.server.alive or port is None:
            network.later(wire.latency, self.fail, unavailable("failed to connect: connection refused"))
            return
        handler = port.method(self.method)
        if handler is None:
            self.leave(Ended(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
            return
        self.arrived_at = network.loop.time()
        self._task = network.server.spawn(self._guarded(serve(handler)))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except grpc.aio.AbortError:
            assert self.status is not None
            self.leave(self.status)
        except asyncio.CancelledError:  # whoever cancels it, or lost it, knows
            raise
        except Exception as error:  # as gRPC shows what no interceptor has caught
            self.leave(Ended(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}"))

    def decoded(self, handler: Any, data: bytes) -> Any:
        try:
            request = parsed(handler, data)
        except Exception as error:
            raise Undecodable from error
        self.network.served(self.channel.wire.place, self.method, request)
        return request

    def accept(self, metadata: Metadata) -> None:
        """What the server says before its answer; only an upload's caller waits for it."""
        return None

    def leave(self, end: Ended) -> None:
        """An ending without a response leaves the coordinator."""
        wire = self.channel.wire
        if wire.is_cut:
            self.network.later(SILENCE_SECONDS, self.fail, unavailable("keepalive watchdog timeout"))
        else:
            self.network.later(wire.latency, self.fail, end)

    # ---- the caller's side

    @abc.abstractmethod
    def fail(self, end: Ended) -> None:
        """The caller hears that it did not succeed, unless it has heard of an ending already."""

    def send(self, what: Callable[..., object], *given: Any) -> None:
        """One piece of a stream, either way; with one that is lost, all of it is."""
        wire = self.channel.wire
        if wire.is_cut:
            self.network.later(SILENCE_SECONDS, self.fail, unavailable("keepalive watchdog timeout"))
        elif wire.loses():
            self.network.later(wire.notice_seconds(), self.fail, unavailable("connection reset"))
            self.network.later(wire.latency, self.cancel_there)
        else:
            self.network.later(wire.latency, what, *given)

    def over(self) -> None:
        self.is_over = True
        self.network.forget(self)

    def abandon(self) -> None:
        """The caller does not care any more; the coordinator hears of it, if it can."""
        if not self.is_over:
            self.over()
            if not self.channel.wire.is_cut:
                self.network.later(self.channel.wire.latency, self.cancel_there)

    def cancel_there(self) -> None:
        """The coordinator stops working on it."""
        if self._task is not None and not self._task.done():
            self._task.cancel()


class Undecodable(Exception):
    pass


def parsed(handler: Any, data: bytes) -> Any:
    """As gRPC hands a request over: parsed, or as bytes to a handler that parses them itself."""
    return handler.request_deserializer(data) if handler.request_deserializer is not None else data


class Unary(Call):
    def __init__(self, channel: "Channel", method: str, deserialize: Any, asked: Any) -> None:
        super().__init__(channel, method)
        self._deserialize, self._asked = deserialize, asked
        self._future: asyncio.Future[Any] = self.network.loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._request = b""

    def ask(self, data: bytes, timeout: float | None) -> asyncio.Future[Any]:
        network, wire, self._request = self.network, self.channel.wire, data
        self._future.add_done_callback(self._heard, context=network.loop.outside)
        if timeout is not None:
            late = Ended(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
            self._timer = network.loop.call_later(timeout, self.fail, late, context=network.loop.outside)
        if wire.is_cut:
            network.later(SILENCE_SECONDS, self.fail, unavailable("failed to connect: no route to host"))
        elif wire.loses():
            network.later(wire.notice_seconds(), self.fail, unavailable("connection reset"))
        else:
            network.later(wire.trip_seconds(len(data)), self.arrive, self._serve)
            if wire.repeats():
                network.later(wire.trip_seconds(len(data)) * 2.0, self._arrive_again)
        return self._future

    def _arrive_again(self) -> None:
        """The same bytes once more; nobody hears the answer."""
        server = self.network.server
        port = self.network.ports.get(self.channel.target)
        handler = port.method(self.method) if port is not None else None
        if server is not None and server.alive and handler is not None and not self.channel.wire.is_cut:
            server.spawn(self._serve_for_nobody(handler))

    async def _serve_for_nobody(self, handler: Any) -> None:
        try:
            await handler.unary_unary(self.decoded(handler, self._request), Context(self))
        except Exception:  # nobody hears it
            return

    async def _serve(self, handler: Any) -> None:
        try:
            request = self.decoded(handler, self._request)
        except Undecodable:
            self.leave(Ended(grpc.StatusCode.INTERNAL, "Exception deserializing request!"))
            return
        response = await handler.unary_unary(request, Context(self))
        self._answer(handler.response_serializer(response))

    def _answer(self, data: bytes) -> None:
        network, wire = self.network, self.channel.wire
        network.heard(wire.place, self.method, self._request, data)
        if wire.is_cut:
            network.later(SILENCE_SECONDS, self.fail, unavailable("keepalive watchdog timeout"))
        elif wire.loses():
            network.later(wire.notice_seconds(), self.fail, unavailable("connection reset"))
        else:
            network.later(wire.trip_seconds(len(data)), self._succeed, data)

    def _succeed(self, data: bytes) -> None:
        if not self._future.done():
            answer = self._deserialize(data)
            self.network.reached(self.channel, self.method, self._asked, answer)
            self._future.set_result(answer)

    def fail(self, end: Ended) -> None:
        if not self._future.done():
            self._future.set_exception(end.as_rpc_error())

    def _heard(self, future: asyncio.Future[Any]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if future.cancelled() or not self.is_over:
            self.abandon()
