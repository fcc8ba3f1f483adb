"""How coordinators take turns: one leads, the others stand by and say so, until it is gone.

Where the ledger can be reached from several machines (PostgreSQL) any number of coordinators may be started. The
database lets one of them write; the others answer every call with "not here", the health check with NOT_SERVING,
and try again twice a second. Whoever loses the lead stops answering, and stands by in turn.
"""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from consortium.channels import ENROLMENT_OPTIONS, SERVER_OPTIONS
from consortium.errors import Unavailable
from consortium.failover import STANDS_BY
from consortium.wire_errors import to_status
from coordinator.chain import AnyLedger
from coordinator.config import is_postgres
from coordinator.ledgers import open_ledger

_log = logging.getLogger(__name__)
_TRY_SECONDS = 0.5
_LOOK_SECONDS = 0.5

_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]]
Listen = Callable[[grpc.aio.Server, grpc.aio.Server], dict[str, int]]  #: main and enrolment server -> ports


async def take_the_lead(place: str, stop: asyncio.Event, listen: Listen) -> AnyLedger | None:
    """The ledger, once this process may write to it; until then it stands by. None: it was asked to stop.

    listen  opens both ports of the servers that stand by
    Raises what ``open_ledger`` does for a file: nobody takes over a file.
    """
    if not is_postgres(place):
        return open_ledger(place)
    reason = ""
    async with contextlib.AsyncExitStack() as standing:
        while not stop.is_set():
            try:
                return await asyncio.to_thread(open_ledger, place)
            except Unavailable as error:
                if not reason:
                    await standing.enter_async_context(_standing_by(listen))
                if str(error) != reason:
                    _log.info("standing by: %s", error)
                reason = str(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TRY_SECONDS):
                    await stop.wait()
    return None


async def until_lost(still_leads: Callable[[], None]) -> None:
    """Waits until this process may no longer write to its ledger."""
    while True:
        try:
            still_leads()
        except Unavailable as error:
            _log.error("the lead is lost: %s", error)
            return
        await asyncio.sleep(_LOOK_SECONDS)


class WhileLeading(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc carries no types
    """Nothing is answered by who no longer leads: what it knows may be old, and agents act on it."""

    def __init__(self, still_leads: Callable[[], None]) -> None:
        self._still_leads = still_leads

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        for kind in ("unary_unary", "stream_unary", "unary_stream", "stream_stream"):
            behaviour = getattr(handler, kind)
            if inspect.isasyncgenfunction(behaviour):
                return handler._replace(**{kind: self._stream(behaviour)})
            if inspect.iscoroutinefunction(behaviour):
                return handler._replace(**{kind: self._unary(behaviour)})
        return handler

    def _unary(self, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
            answer = await behaviour(request, context)
            self._still_leads()
            return answer

        return call

    def _stream(self, behaviour: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            async for answer in behaviour(request, context):
                self._still_leads()
                yield answer

        return call


@contextlib.asynccontextmanager
async def _standing_by(listen: Listen) -> AsyncIterator[None]:
    """Both ports answer: not here."""
    main = grpc.aio.server(options=SERVER_OPTIONS)
    enrolment = grpc.aio.server(options=ENROLMENT_OPTIONS)
    checks = health.aio.HealthServicer()
    await checks.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, main)
    for server in (main, enrolment):
        server.add_generic_rpc_handlers((_NotHere(),))
    listen(main, enrolment)
    await asyncio.gather(main.start(), enrolment.start())
    try:
        yield
    finally:
        await asyncio.gather(main.stop(None), enrolment.stop(None))


class _NotHere(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc carries no types
    """The answer to every method: ask another coordinator. Nothing has been done, so it may be asked at once."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        async def refuse(requests: Any, context: grpc.aio.ServicerContext) -> Any:
            status = to_status(
                Unavailable(
                    "this coordinator stands by while another leads; name all of them in `coordinator`"
                )
            )
            marks = (*status.trailing_metadata, (STANDS_BY, "yes"))
            await context.abort(status.code, status.details, marks)

        return grpc.stream_stream_rpc_method_handler(refuse)
