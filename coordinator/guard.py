"""Who is calling, and may they: every method of every service passes here before its servicer runs."""

import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import grpc

from consortium.channels import peer_identity, program_of
from consortium.errors import Refused, Unavailable
from consortium.identity import Identity
from consortium.ids import SiteName
from consortium.roles import Role
from coordinator.core.access import Verdict, may_call, may_go_on
from coordinator.driver import Driver

_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]]
_caller: ContextVar[Identity] = ContextVar("caller")
_standing: ContextVar[Callable[[], None]] = ContextVar("standing")

_CALLS_AT_ONCE = 64  # of one holder: an agent has one Sync and a transfer an attempt
_LONG_AT_ONCE = 16  # of those calls that read everything, or go on for ever
_LONG = frozenset({"/sprachbund.v1.AuditService/ReadLedger", "/sprachbund.v1.AdminService/Watch"})
_BYTES_A_CALL = 64 << 10  # a longer message counts as several calls: what it takes to read grows with it
_BURST_SECONDS = 10.0  # of the average rate may come at once: the shards of a model
_HOLDERS_MAX = 10_000  # whose pace is remembered; who is idle for so long starts afresh


def caller(context: grpc.aio.ServicerContext | None = None) -> Identity:
    """Whoever the guard let in to the call that is running."""
    return _caller.get()


def still_allowed() -> None:
    """Raise Refused if the caller's standing ended since the call was let in. For calls that wait."""
    _standing.get()()


class Pace:
    """How often each holder of a certificate calls: a bucket that fills by ``per_second`` and holds a burst."""

    def __init__(self, per_second: float, clock: Callable[[], float] | None = None) -> None:
        self._per_second = per_second
        self._burst = max(1.0, per_second * _BURST_SECONDS)
        self._clock = clock or time.monotonic
        self._left: dict[str, tuple[float, float]] = {}  # calls left, and when that was so
        self._at_once: dict[str, int] = {}

    @contextlib.contextmanager
    def call(self, who: str, method: str = "", size: int = 0) -> Iterator[None]:
        """For as long as the call lasts. Raises Unavailable for one too many.

        size  bytes of its request, where it is one message
        """
        counted = [who]
        if method in _LONG:
            counted.append(f"{who} {method}")
            self._require_fewer(counted[-1], _LONG_AT_ONCE)
        self._take(who, size)
        self._require_fewer(who, _CALLS_AT_ONCE)
        for key in counted:
            self._at_once[key] = self._at_once.get(key, 0) + 1
        try:
            yield
        finally:
            for key in counted:
                self._at_once[key] -= 1
                if not self._at_once[key]:
                    del self._at_once[key]

    def _take(self, who: str, size: int) -> None:
        """One call out of the bucket; what is refused empties it, too."""
        now = self._clock()
        left, before = self._left.pop(who, (self._burst, now))
        left = min(self._burst, left + (now - before) * self._per_second)
        self._left[who] = (max(0.0, left - 1.0 - size // _BYTES_A_CALL), now)
        if len(self._left) > _HOLDERS_MAX:
            del self._left[next(iter(self._left))]  # the longest idle
        if left < 1.0:
            raise Unavailable(
                f"{who} calls more than {self._per_second:g} times a second; wait and call more slowly"
            )

    def _require_fewer(self, key: str, most: int) -> None:
        if self._at_once.get(key, 0) >= most:
            raise Unavailable(f"{key} has {most} calls under way; wait until some have ended")


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc carries no types
    """Checks certificate, role, enrolment, suspension and incarnation at each call, and standing at each message.

    So a suspension ends streams that are under way, too.
    """

    def __init__(self, driver: Driver, calls_per_second: float) -> None:
        self._driver = driver
        self._pace = Pace(calls_per_second)

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        for kind in ("unary_unary", "stream_unary", "unary_stream", "stream_stream"):
            behaviour = getattr(handler, kind)
            if behaviour is None:
                continue
            if inspect.isasyncgenfunction(behaviour):
                return handler._replace(**{kind: self._stream(behaviour, method)})
            return handler._replace(**{kind: self._unary(behaviour, method)})
        return handler

    @contextlib.contextmanager
    def _admitted(self, context: grpc.aio.ServicerContext, method: str, request: Any) -> Iterator[None]:
        driver = self._driver
        identity = peer_identity(context.auth_context(), driver.state.consortium, time.time())
        who = identity.role, identity.name, identity.fingerprint
        _require(may_call(driver.state, *who, method))
        if identity.role is Role.SITE:
            _, incarnation = program_of(context.invocation_metadata())
            driver.fence(SiteName(identity.name), incarnation)
        size = request.ByteSize() if hasattr(request, "ByteSize") else 0
        with self._pace.call(f"{identity.role} {identity.name}", method, size):
            _caller.set(identity)
            _standing.set(lambda: _require(may_go_on(driver.state, *who)))
            yield

    def _unary(self, behaviour: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
            with self._admitted(context, method, request):
                return await behaviour(_watched(request), context)

        return call

    def _stream(
        self, behaviour: Callable[..., AsyncIterator[Any]], method: str
    ) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            with self._admitted(context, method, request):
                async for response in behaviour(_watched(request), context):
                    still_allowed()
                    yield response

        return call


def _watched(request: Any) -> Any:
    """A stream of requests whose sender's standing is asked for at each; a single request as it is."""
    return _each(request) if hasattr(request, "__aiter__") else request


async def _each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        still_allowed()
        yield request


def _require(verdict: Verdict) -> None:
    if not verdict.allowed:
        raise Refused(verdict.reason)
