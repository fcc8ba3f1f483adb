"""An error arrives as what it was, and nothing else leaks."""

import logging

import grpc
import pytest
from artifact_bench import Coordinator, site_credentials
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sprachbund.v1 import artifact_pb2

from consortium.errors import (
    BadInput,
    Broken,
    Corrupt,
    DiskFull,
    Refused,
    SprachbundError,
    TooOften,
    Unavailable,
)
from consortium.ids import digest_of
from consortium.wire_errors import from_rpc_error

SOFIA = site_credentials("sofia")
STAT = artifact_pb2.StatRequest(digest=digest_of(b""))
DOWNLOAD = artifact_pb2.DownloadRequest(digest=digest_of(b""))


async def failure(coordinator: Coordinator, trouble: Exception, streamed: bool) -> grpc.aio.AioRpcError:
    coordinator.trouble = trouble
    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        call = anext(aiter(stub.Download(DOWNLOAD))) if streamed else stub.Stat(STAT)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
    return failed.value


class Banned(Refused):
    """A subclass that the other side does not know."""


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("error", "arrives_as", "code"),
    [
        (BadInput("campaign.yaml:3: no"), BadInput, grpc.StatusCode.INVALID_ARGUMENT),
        (Corrupt("blob abc: got def"), Corrupt, grpc.StatusCode.DATA_LOSS),
        (Refused("site sofia is suspended; ask an admin"), Refused, grpc.StatusCode.PERMISSION_DENIED),
        (Banned("страната не членува"), Refused, grpc.StatusCode.PERMISSION_DENIED),
        (TooOften("20 certificates", 90.5), TooOften, grpc.StatusCode.PERMISSION_DENIED),
        (Unavailable("try later"), Unavailable, grpc.StatusCode.UNAVAILABLE),
        (DiskFull("free some space"), DiskFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (Broken("entry 3: its hash does not fit"), Broken, grpc.StatusCode.INTERNAL),
    ],
)
async def test_each_error_comes_out_as_it_went_in(
    coordinator: Coordinator,
    error: SprachbundError,
    arrives_as: type[SprachbundError],
    code: grpc.StatusCode,
    streamed: bool,
) -> None:
    failed = await failure(coordinator, error, streamed)
    told = from_rpc_error(failed)
    assert (type(told), str(told), failed.code()) == (arrives_as, str(error), code)
    info = error_details_pb2.ErrorInfo()  # as any other language's client reads it
    assert rpc_status.from_call(failed).details[0].Unpack(info)
    assert info.domain == "sprachbund"
    if isinstance(told, TooOften):
        assert told.again_seconds == 91.0  # whole seconds, never too early


async def test_a_very_long_sentence_still_fits(coordinator: Coordinator) -> None:
    told = from_rpc_error(await failure(coordinator, BadInput("ѣ" * 9000), streamed=False))
    assert isinstance(told, BadInput)
    assert str(told) == "ѣ" * 750


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_unknown_failure_is_logged_and_only_its_number_is_told(
    coordinator: Coordinator, caplog: pytest.LogCaptureFixture, streamed: bool
) -> None:
    with caplog.at_level(logging.ERROR, "coordinator.errors_on_wire"):
        failed = await failure(coordinator, KeyError("secret-path"), streamed)
    told = from_rpc_error(failed)
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert isinstance(told, Broken)
    assert "secret-path" not in str(told)
    (record,) = caplog.records
    number = str(told).rpartition(" ")[2]
    assert number in record.getMessage()
    assert "secret-path" in caplog.text


def bare(code: grpc.StatusCode, details: str, trailing: bytes = b"") -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata(("grpc-status-details-bin", trailing)) if trailing else grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (bare(grpc.StatusCode.UNAVAILABLE, "connection reset"), Unavailable, "unavailable: connection reset"),
        (bare(grpc.StatusCode.INTERNAL, "RST_STREAM"), Unavailable, "internal: RST_STREAM"),
        (bare(grpc.StatusCode.DEADLINE_EXCEEDED, ""), Unavailable, "deadline exceeded"),
        (bare(grpc.StatusCode.UNIMPLEMENTED, "no such method"), BadInput, "no such method"),
        (bare(grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"), Refused, "larger than max"),
        (
            bare(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!"),
            Unavailable,
            "nothing has been done: try again",
        ),
        (bare(grpc.StatusCode.DATA_LOSS, "x", b"\xff\xff not a status"), Corrupt, "x"),
        (bare(grpc.StatusCode.UNAVAILABLE, "SSL: CERTIFICATE_VERIFY_FAILED"), Unavailable, "compare ca.pem"),
    ],
)
def test_what_grpc_says_by_itself_has_a_place_in_our_tree(
    error: grpc.aio.AioRpcError, kind: type[SprachbundError], words: str
) -> None:
    told = from_rpc_error(error)
    assert type(told) is kind
    assert words in str(told)
