"""Who is calling, and may they: every method of every service passes here before its servicer runs."""

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc

from consortium.channels import peer_identity, program_of
from consortium.errors import Refused
from consortium.identity import Identity
from consortium.ids import SiteName
from consortium.roles import Role
from coordinator.core.access import may_call
from coordinator.driver import Driver

_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]]
_caller: ContextVar[Identity] = ContextVar("caller")


def caller(context: grpc.aio.ServicerContext | None = None) -> Identity:
    """Whoever the guard let in to the call that is running."""
    return _caller.get()


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc carries no types
    """Checks certificate, role, enrolment, suspension and incarnation at each call: a change counts at the next one."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

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

    def _admit(self, context: grpc.aio.ServicerContext, method: str) -> None:
        state = self._driver.state
        identity = peer_identity(context.auth_context(), state.consortium, time.time())
        verdict = may_call(state, identity.role, identity.name, identity.fingerprint, method)
        if not verdict.allowed:
            raise Refused(verdict.reason)
        if identity.role is Role.SITE:
            _, incarnation = program_of(context.invocation_metadata())
            self._driver.fence(SiteName(identity.name), incarnation)
        _caller.set(identity)

    def _unary(self, behaviour: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
            self._admit(context, method)
            return await behaviour(request, context)

        return call

    def _stream(
        self, behaviour: Callable[..., AsyncIterator[Any]], method: str
    ) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            self._admit(context, method)
            async for response in behaviour(request, context):
                yield response

        return call
