"""What a caller is told when a request fails: our sentence, or a number to look up in the log."""

import inspect
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from consortium.errors import BadInput, Broken, SprachbundError
from consortium.pieces import READ, WRITTEN
from consortium.wire_errors import to_status

_log = logging.getLogger(__name__)

_Parse = Callable[[bytes], Any]
_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]]


class ErrorsOnWire(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc carries no types
    """Turns our errors into rich statuses, and anything else into INTERNAL with a correlation id."""

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        parse = READ.get(method, handler.request_deserializer)
        handler = handler._replace(response_serializer=WRITTEN.get(method, handler.response_serializer))
        handler = handler._replace(
            request_deserializer=None
        )  # gRPC calls what it cannot parse an internal error
        for kind in ("unary_unary", "stream_unary", "unary_stream", "stream_stream"):
            behaviour = getattr(handler, kind)
            if inspect.iscoroutinefunction(behaviour):
                return handler._replace(**{kind: _guarded(behaviour, handler_call_details.method, parse)})
            if inspect.isasyncgenfunction(behaviour):
                return handler._replace(
                    **{kind: _guarded_stream(behaviour, handler_call_details.method, parse)}
                )
        return handler


def _guarded(
    behaviour: Callable[..., Awaitable[Any]], method: str, parse: _Parse
) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await behaviour(_parsed(request, parse), context)
        except Exception as error:
            await _abort(context, error, method)

    return call


def _guarded_stream(
    behaviour: Callable[..., AsyncIterator[Any]], method: str, parse: _Parse
) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(_parsed(request, parse), context):
                yield response
        except Exception as error:
            await _abort(context, error, method)

    return call


def _parsed(request: Any, parse: _Parse) -> Any:
    """A message, or a stream of them, of the bytes that came. Raises BadInput."""
    if hasattr(request, "__aiter__"):
        return _each_parsed(request, parse)
    try:
        return parse(request)
    except DecodeError as error:
        raise BadInput(f"what was sent is no message of this call ({error}); send one of protos/") from error


async def _each_parsed(requests: AsyncIterator[bytes], parse: _Parse) -> AsyncIterator[Any]:
    async for request in requests:
        yield _parsed(request, parse)


async def _abort(context: grpc.aio.ServicerContext, error: Exception, method: str) -> None:
    if isinstance(error, grpc.aio.AbortError):  # the servicer has said it all
        raise error
    if not isinstance(error, SprachbundError):
        number = secrets.token_hex(6)
        _log.error("%s failed, number %s", method, number, exc_info=error)
        error = Broken(f"the coordinator failed; its log has the reason under number {number}")
    status = to_status(error)
    await context.abort(status.code, status.details, status.trailing_metadata)
