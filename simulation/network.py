"""How calls reach the coordinator: gRPC's channels and servers, on simulated wires.

The generated stubs and the real servicers, with the real interceptors before them, are joined here; every message
passes as bytes. A channel is opened by the host that runs; what the wire does to a call, its caller sees as gRPC
would show it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from consortium.identity import Credentials
from simulation.calls import Call, Metadata, Unary, unavailable
from simulation.loop import Process, VirtualLoop, current
from simulation.pieces import Download, Upload
from simulation.wires import SILENCE_SECONDS, Wire


class Port:
    """What a servicer is added to, in place of a grpc.aio.Server; ``method`` finds it behind its interceptors."""

    def __init__(self, interceptors: Sequence[Any], options: Any = None) -> None:
        self._interceptors = tuple(interceptors)
        self._handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        pass  # the same again, found by asking

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            self._handlers[method] = _intercepted(self._interceptors, method, handler)

    def method(self, name: str) -> Any:
        return self._handlers.get(name)


class _Details:
    """grpc.HandlerCallDetails, as far as interceptors ask."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata: Metadata = ()


def _intercepted(interceptors: tuple[Any, ...], method: str, handler: Any) -> Any:
    async def found(details: Any) -> Any:
        return handler

    continuation = found
    for interceptor in reversed(interceptors):
        continuation = _behind(interceptor, continuation)
    return _at_once(continuation(_Details(method)))


def _behind(interceptor: Any, continuation: Any) -> Any:
    async def found(details: Any) -> Any:
        return await interceptor.intercept_service(continuation, details)

    return found


def _at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("an interceptor waits for something")


class Network:
    """All wires, and the coordinator's ports at their other end.

    heard  is told of every answer as it leaves: (place, method, request, response); requests of streams are empty
    lent   which channel an upload takes in place of its own
    spoke, reached  are told what a program asks, before any liar, and of the answer that has come back to it
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.wires: dict[str, Wire] = {}
        self.ports: dict[str, Port] = {}
        self.server: Process | None = None
        self.heard: Callable[[str, str, bytes, bytes], None] = lambda place, method, request, response: None
        self.served: Callable[[str, str, Any], None] = lambda place, method, request: None
        self.spoke: Callable[[Channel, str, Any], None] = lambda channel, method, request: None
        self.reached: Callable[[Channel, str, Any, Any], None] = lambda channel, method, request, answer: None
        self.said: Callable[[str, str, bytes], bytes] = lambda place, method, request: request
        self.lent: Callable[[Channel], Channel] = lambda channel: channel
        self.gave: Callable[[str, str], None] = lambda place, digest: None
        self.took: Callable[[str, str], None] = lambda place, digest: None
        self.weight: Callable[[str], float] = lambda digest: 1.0
        self._calls: dict[Call, None] = {}

    def open_channel(
        self,
        target: str,
        authority: bytes,
        own: Credentials | None = None,
        *,
        proxy: str | None = None,
        program: str = "",
    ) -> "Channel":
        """In place of ``consortium.channels.open_channel``."""
        process = current()
        assert process is not None, "only programs call"
        return Channel(self, self.wires[process.host.name], process, target, own, program)

    def later(self, seconds: float, what: Callable[..., object], *given: Any) -> None:
        """Outside of every process: nobody's death undoes it."""
        self.loop.call_later(seconds, what, *given, context=self.loop.outside)

    def up(self, process: Process, ports: dict[str, Port]) -> None:
        self.server, self.ports = process, ports

    def down(self) -> None:
        """The coordinator is gone: whoever talks with it hears so."""
        self.server, self.ports = None, {}
        for call in list(self._calls):
            if not call.channel.wire.is_cut:
                self.later(call.channel.wire.latency, call.fail, unavailable("connection reset by peer"))

    def cut(self, wire: Wire) -> None:
        """Nothing passes; whoever waits notices after a while."""
        wire.is_cut = True
        for call in list(self._calls):
            if call.channel.wire is wire:
                self.later(SILENCE_SECONDS, call.fail, unavailable("keepalive watchdog timeout"))
                self.later(SILENCE_SECONDS, call.cancel_there)

    def hang_up(self, process: Process) -> None:
        """A caller died; the other side notices."""
        for call in list(self._calls):
            if call.channel.process is process:
                call.abandon()

    def waiting(self, method: str) -> Iterator[tuple[str, float]]:
        """Whose calls the coordinator has not answered yet, and since how many seconds it has them."""
        for call in self._calls:
            if call.method == method and call.is_served:
                yield call.channel.wire.place, self.loop.time() - call.arrived_at

    def begin(self, call: Call) -> None:
        self._calls[call] = None

    def forget(self, call: Call) -> None:
        self._calls.pop(call, None)


class Channel:
    """In place of a grpc.aio.Channel; the generated stubs ask no more of it."""

    def __init__(
        self,
        network: Network,
        wire: Wire,
        process: Process,
        target: str,
        own: Credentials | None,
        program: str,
    ) -> None:
        self.network, self.wire, self.process = network, wire, process
        self.target, self.own, self.program = target, own, program

    def unary_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        def call(request: Any, timeout: float | None = None) -> asyncio.Future[Any]:
            self.network.spoke(self, method, request)
            data = self.network.said(self.wire.place, method, request_serializer(request))
            return Unary(self, method, response_deserializer, request).ask(data, timeout)

        return call

    def stream_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        return lambda: Upload(self, method, request_serializer, response_deserializer)

    def unary_stream(self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        return lambda request: Download(self, method, request, request_serializer, response_deserializer)

    def stream_stream(self, method: str, *_: Any, **__: Any) -> Any:
        return None  # reflection: no program of ours asks

    async def close(self, grace: float | None = None) -> None:
        pass

    async def __aenter__(self) -> "Channel":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass
