"""Nobody speaks to the coordinator without a valid certificate of this consortium, nor the other way round."""

import asyncio
import time

import grpc
import pytest
from artifact_bench import AUTHORITY, SERVER, Coordinator, site_credentials
from sprachbund.v1 import artifact_pb2

from consortium.channels import enrolment_credentials, server_credentials
from consortium.errors import Unavailable
from consortium.identity import DAY_SECONDS, Authority, Credentials
from consortium.ids import digest_of
from consortium.wire_errors import from_rpc_error

STAT = artifact_pb2.StatRequest(digest=digest_of(b""))
FOREIGN = Authority.create("balkan", time.time())  # the same name; another key
YEAR_AGO = time.time() - 365 * DAY_SECONDS
IN_A_YEAR = time.time() + 365 * DAY_SECONDS
SOFIA = site_credentials("sofia")


@pytest.mark.parametrize(
    "own",
    [
        site_credentials("sofia", now=YEAR_AGO),
        site_credentials("sofia", now=IN_A_YEAR),
        site_credentials("sofia", authority=FOREIGN),
        Credentials(SERVER.certificate, SERVER.key),  # good for serving, not for calling
        None,
    ],
    ids=["expired", "not yet valid", "wrong authority", "a server's", "none"],
)
async def test_a_bad_certificate_is_refused_at_the_handshake(
    coordinator: Coordinator, own: Credentials | None
) -> None:
    coordinator.trouble = AssertionError("the handshake let it through")
    async with coordinator.serving(), coordinator.stub(own) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Stat(STAT)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    told = from_rpc_error(failed.value)
    assert isinstance(told, Unavailable)
    assert "refuses this party's certificate" in str(told)


@pytest.mark.parametrize(
    "server",
    [
        FOREIGN.coordinator([], time.time()),
        AUTHORITY.coordinator([], time.time() - 9999 * DAY_SECONDS),
        SOFIA,  # a site that poses as the coordinator
    ],
    ids=["wrong authority", "expired", "a site's"],
)
async def test_an_agent_does_not_talk_to_a_false_coordinator(
    coordinator: Coordinator, server: Credentials
) -> None:
    async with coordinator.serving(server_credentials(AUTHORITY.pem, server)):
        async with coordinator.stub(SOFIA) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.Stat(STAT)
    assert "compare ca.pem" in str(from_rpc_error(failed.value))


async def test_the_enrolment_port_answers_a_caller_without_a_certificate(coordinator: Coordinator) -> None:
    async with coordinator.serving(enrolment_credentials(SERVER)), coordinator.stub(None) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Stat(STAT)
    assert "no client certificate; enrol first" in str(from_rpc_error(failed.value))


async def test_plain_text_is_not_spoken(coordinator: Coordinator) -> None:
    async with coordinator.serving():
        reader, writer = await asyncio.open_connection("127.0.0.1", coordinator.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        await writer.drain()
        assert b"grpc" not in await reader.read()
        writer.close()
