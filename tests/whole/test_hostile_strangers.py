"""What somebody without a certificate can do at the door for those who enrol, and sites with theirs all at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from real_coordinator import PATIENCE_SECONDS, Consortium, in_our_words
from sprachbund.v1 import enrolment_pb2, enrolment_pb2_grpc

from consortium.errors import Unavailable
from consortium.identity import signing_request
from consortium.ids import SiteName
from consortium.signing import new_key
from coordinator import daemon

ENROL = "/sprachbund.v1.EnrolmentService/Enrol"


def request_of(site: str, token: str) -> enrolment_pb2.EnrolRequest:
    return enrolment_pb2.EnrolRequest(token=token, signing_request=signing_request(SiteName(site), new_key()))


async def test_an_invitation_that_many_use_at_once_is_good_for_one(consortium: Consortium) -> None:
    async with consortium.running(), consortium.admin() as admin:
        token = await admin.invite("varna")
        async with contextlib.AsyncExitStack() as channels:
            stubs = [
                enrolment_pb2_grpc.EnrolmentServiceStub(
                    await channels.enter_async_context(consortium.channel(None))
                )
                for _ in range(8)
            ]
            answers = await asyncio.gather(
                *(stub.Enrol(request_of("varna", token)) for stub in stubs for _ in range(4)),
                return_exceptions=True,
            )
        given = [one for one in answers if not isinstance(one, BaseException)]
        assert len(given) == 1
        (site,) = [one for one in (await admin.view()).sites if one.site == "varna"]
        assert site.status == "enrolled"


async def test_strangers_who_say_nothing_keep_nobody_out_and_do_not_stay(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They begin more calls than the door has places, and never end one: who comes then is told to come again."""
    short = {"grpc.max_connection_age_ms": 1000, "grpc.max_connection_age_grace_ms": 1000}
    known = dict(daemon.ENROLMENT_OPTIONS)
    assert sum(known[name] for name in short) <= 60_000
    monkeypatch.setattr(daemon, "ENROLMENT_OPTIONS", tuple({**known, **short}.items()))

    async def silence() -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield b""

    async with consortium.running(), consortium.admin() as admin, consortium.channel(None) as silent:
        calls: list[Any] = [silent.stream_unary(ENROL)(silence()) for _ in range(60)]
        ends = [asyncio.gather(call, return_exceptions=True) for call in calls]
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)  # the last of them find no place
            certificate = b""
            while not certificate:
                # a new one each time: a connection that was cut may have used it up
                request = request_of("varna", await admin.invite("varna"))
                async with consortium.channel(None) as channel:
                    stub: Any = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
                    with contextlib.suppress(Unavailable), in_our_words():
                        certificate = (await stub.Enrol(request)).certificate
                await asyncio.sleep(0.05)
            ended = await asyncio.gather(*ends)
    assert all(isinstance(one, grpc.RpcError) for [one] in ended)
