"""What a caller is told when a request fails: our sentence, or a number to look up in the log."""

import inspect
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from consortium.errors import Broken, SprachbundError
from consortium.wire_errors import to_status

_log = logging.getLogger(__name__)

_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]]


class ErrorsOnWire(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc carries no types
    """Turns our errors into rich statuses, and anything else into INTERNAL with a correlation id."""

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        for kind in ("unary_unary", "stream_unary", "unary_stream", "stream_stream"):
            behaviour = getattr(handler, kind)
            if inspect.iscoroutinefunction(behaviour):
                return handler._replace(**{kind: _guarded(behaviour, handler_call_details.method)})
            if inspect.isasyncgenfunction(behaviour):
                return handler._replace(**{kind: _guarded_stream(behaviour, handler_call_details.method)})
        return handler


def _guarded(behaviour: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:
            await _abort(context, error, method)

    return call


def _guarded_stream(
    behaviour: Callable[..., AsyncIterator[Any]], method: str
) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(request, context):
                yield response
        except Exception as error:
            await _abort(context, error, method)

    return call


async def _abort(context: grpc.aio.ServicerContext, error: Exception, method: str) -> None:
    if isinstance(error, grpc.aio.AbortError):  # the servicer has said it all
        raise error
    if not isinstance(error, SprachbundError):
        number = secrets.token_hex(6)
        _log.error("%s failed, number %s", method, number, exc_info=error)
        error = Broken(f"the coordinator failed; its log has the reason under number {number}")
    status = to_status(error)
    await context.abort(status.code, status.details, status.trailing_metadata)
