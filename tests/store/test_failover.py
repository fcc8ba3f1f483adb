"""A party that knows several coordinators speaks with the one that leads."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from processes import PATIENCE_SECONDS

from consortium import failover
from consortium.errors import Refused, Unavailable
from consortium.failover import STANDS_BY, Failover, addresses
from consortium.wire_errors import to_status

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
METHOD = "/a.Service/Method"


class Coordinator(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers with its name while it leads."""

    def __init__(self, name: bytes) -> None:
        self.name, self.leads, self.refusal = name, False, None
        self.calls = 0
        self.health = health.aio.HealthServicer()
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((self,))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def lead(self, leads: bool = True) -> None:
        self.leads = leads
        await self.health.set("", SERVING if leads else NOT_SERVING)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != METHOD:
            return None

        async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            self.calls += 1
            error = self.refusal or (None if self.leads else Unavailable("stands by"))
            if error is not None:
                status = to_status(error)
                marks = () if self.leads else ((STANDS_BY, "yes"),)
                await context.abort(status.code, status.details, (*status.trailing_metadata, *marks))
            return self.name

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
async def three(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Coordinator]]:
    monkeypatch.setattr(failover, "_ASK_SECONDS", PATIENCE_SECONDS)  # nobody here is silent, but may be slow
    made = [Coordinator(name) for name in (b"first", b"second", b"third")]
    for one in made:
        await one.lead(False)
        await one.server.start()
    yield made
    for one in made:
        await one.server.stop(None)


def channel_to(three: list[Coordinator]) -> Failover:
    return Failover([one.address for one in three], grpc.aio.insecure_channel)


async def until_answered(call: grpc.aio.UnaryUnaryMultiCallable, tries: int = 10) -> bytes:
    """As an agent does: what fails is tried again."""
    for _ in range(tries):
        with contextlib.suppress(grpc.aio.AioRpcError):
            return bytes(await call(b"", timeout=PATIENCE_SECONDS))
    raise AssertionError("nobody answered")


async def test_the_leader_is_found_remembered_and_left_when_it_stands_by(three: list[Coordinator]) -> None:
    first, second, third = three
    await third.lead()
    async with channel_to(three) as channel:
        assert channel.target == third.address  # it was asked for before the first call
        call = channel.unary_unary(METHOD)
        assert await call(b"") == b"third"
        assert (first.calls, second.calls) == (0, 0)
        await third.lead(False)
        await second.lead()
        assert await until_answered(call) == b"second"
    assert channel_to(three).target == second.address  # by all channels of this process


async def test_a_dead_address_is_passed_over(three: list[Coordinator]) -> None:
    first, second, _ = three
    await first.lead()
    channel = channel_to(three)
    call = channel.unary_unary(METHOD)
    assert await call(b"") == b"first"
    await first.server.stop(None)
    await second.lead()
    assert await until_answered(call) == b"second"
    await channel.close()


async def test_an_address_that_is_silent_keeps_nobody_who_leads_from_being_heard(
    three: list[Coordinator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "_ASK_SECONDS", 1e6)
    over = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, line: asyncio.StreamWriter) -> None:
        await over.wait()
        line.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    host, port = silent.sockets[0].getsockname()
    await three[2].lead()
    targets = [f"{host}:{port}", *(one.address for one in three)]
    async with Failover(targets, grpc.aio.insecure_channel) as channel:
        assert channel.target == three[2].address
    over.set()
    silent.close()


@pytest.mark.parametrize("refusal", [Unavailable("too many calls"), Refused("no")])
async def test_what_a_leader_itself_refuses_leads_nowhere_else(
    three: list[Coordinator], refusal: Exception
) -> None:
    first, second, _ = three
    await first.lead()
    first.refusal = refusal
    async with channel_to(three) as channel:
        call = channel.unary_unary(METHOD)
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"")
        first.refusal = None
        assert await call(b"") == b"first"
    assert second.calls == 0


def test_addresses_stand_in_order() -> None:
    assert addresses("c1.example.eu:7443,[::1]:7443") == ("c1.example.eu:7443", "[::1]:7443")
