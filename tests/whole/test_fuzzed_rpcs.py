"""Every RPC of every service, fed with nonsense over a real connection: a sentence in answer, and nothing has changed.

Bytes that are no message, messages of strange values, and good ones with bytes flipped. Short in CI and the same every
time; `make soak` goes on for as long as it is given.
"""

import asyncio
import contextlib
import importlib
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import sprachbund.v1
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_coordinator import Consortium
from scripted_sites import ScriptedSite, introduce

from consortium.canonical import replace
from consortium.errors import Broken, SprachbundError
from consortium.wire_errors import from_rpc_error
from coordinator.core.access import WITHOUT_CERTIFICATE
from coordinator.ledger_check import verify_chain

METHODS = {
    f"/{service.full_name}/{method.name}": method
    for found in pkgutil.iter_modules(sprachbund.v1.__path__)
    if found.name.endswith("_pb2")
    for service in importlib.import_module(f"sprachbund.v1.{found.name}").DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
SOAK_EXAMPLES = int(os.environ.get("SPRACHBUND_FUZZ_EXAMPLES", "20000"))

WORDS = st.sampled_from(
    [
        "",
        "sofia",
        "ohrid",
        "demo",
        "demo/v1",
        "demo_r1-train-sofia",
        "demo_r1-train-sofia.a1",
        "bg",
        "BG",
        "admin",
        "../../authority/ca.key",
        "/etc/passwd",
        "a\x00b",
        "\ud7ff\u202e",
        "x" * 70_000,
        "a" * 64,
        "A" * 64,
        "%s{0}",
    ]
)
TEXTS = WORDS | st.text(max_size=40)
BLOBS = st.sampled_from(
    [
        b"",
        b"{}",
        b"null",
        b"[" * 5000,
        b'{"a":' * 5000,
        b'{"schema":1}',
        b"\xff\xfe",
        b"NaN",
        b'{"campaign":NaN}',
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        b"1e999",
        b"\x00" * 4096,
    ]
) | st.binary(max_size=200)
NUMBERS = st.sampled_from([0, 1, 2, 2**31 - 1]) | st.integers(0, 2**31 - 1)
LARGE = st.sampled_from([0, 1, 2**31, 2**63 - 1, 2**64 - 1])
FLOATS = st.sampled_from([0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324]) | st.floats()
F = FieldDescriptor


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor, depth: int = 0) -> Message:
    """A message of this kind, some of its fields set to what nobody would."""
    message = GetMessageClass(kind)()
    for field in kind.fields:
        if not draw(st.booleans()):
            continue
        if field.is_repeated:
            for _ in range(draw(st.integers(0, 3))):
                value = draw(values(field, depth))
                if isinstance(value, Message):
                    getattr(message, field.name).add().CopyFrom(value)
                else:
                    getattr(message, field.name).append(value)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(draw(values(field, depth)))
        else:
            setattr(message, field.name, draw(values(field, depth)))
    return message


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    kind = field.type
    if kind == F.TYPE_MESSAGE:
        return messages(field.message_type, depth + 1)
    if kind == F.TYPE_STRING:
        return TEXTS
    if kind == F.TYPE_BYTES:
        return BLOBS
    if kind == F.TYPE_BOOL:
        return st.booleans()
    if kind in (F.TYPE_DOUBLE, F.TYPE_FLOAT):
        return FLOATS
    if kind == F.TYPE_UINT64:
        return LARGE
    if kind == F.TYPE_INT64:
        return st.sampled_from([0, 1, -1, 2**62, -(2**62)])
    if kind == F.TYPE_ENUM:
        return st.sampled_from([*field.enum_type.values_by_number, 99])
    return NUMBERS


@st.composite
def requests(draw: st.DrawFn, kind: Descriptor) -> bytes:
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=300))
    data = bytearray(draw(messages(kind)).SerializeToString())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        data[at : at + draw(st.integers(0, 1))] = draw(st.binary(max_size=2))
    return bytes(data)


class Target:
    """A coordinator that runs while it is asked, in the loop of whoever asks."""

    def __init__(self, consortium: Consortium, loop: asyncio.AbstractEventLoop) -> None:
        self.consortium = consortium
        self.loop = loop
        self.stack = contextlib.AsyncExitStack()
        self.problems: list[str] = []

    async def start(self) -> None:
        consortium = self.consortium
        consortium.config = replace(consortium.config, calls_per_second=1e6)
        await self.stack.enter_async_context(consortium.running())
        await introduce(consortium)
        self.admin = await self.stack.enter_async_context(consortium.admin())
        self.channels = {}
        for who, own in (
            ("site", ScriptedSite(consortium, "sofia").credentials),
            ("admin", consortium.person("admin", "admin")),
            ("auditor", consortium.person("auditor", "petra")),
            ("nobody", None),
        ):
            self.channels[who] = await self.stack.enter_async_context(consortium.channel(own))

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def sequence(self) -> int:
        return int(self.run(self.admin.view()).sequence)

    async def settle(self, who: str) -> None:
        """Until the coordinator has begun with what came before on this line, late if the machine stood still."""
        with contextlib.suppress(grpc.RpcError):
            await self.channels[who].unary_unary("/grpc.health.v1.Health/Check")(b"")

    async def ask(self, who: str, method: str, data: list[bytes]) -> SprachbundError | None:
        call = self.channels[who].stream_stream(method)(iter(data), timeout=2.0)
        try:
            await call.read()
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                await self.settle(who)
                return None  # it waits for news, as it was asked to
            code, ours = error.code(), from_rpc_error(error)
        else:
            return None
        finally:
            call.cancel()
        if "Internal error from Core" in str(ours):
            return None  # of this very client, which went on writing when it had been answered
        assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), ours
        return ours


@pytest.fixture(scope="module")
def target(enrolled: Consortium, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    loop = asyncio.new_event_loop()
    found = Target(enrolled.copy_to(tmp_path_factory.mktemp("fuzzed") / "consortium"), loop)
    try:
        found.run(found.start())
        yield found
        found.run(found.stack.aclose())
    finally:
        loop.close()
    assert list(verify_chain(found.consortium.home / "ledger.sqlite")) == []


def fuzz(target: Target, caplog: pytest.LogCaptureFixture, data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(sorted(METHODS)))
    who = (
        "nobody"
        if method in WITHOUT_CERTIFICATE
        else data.draw(st.sampled_from(["site", "admin", "auditor"]))
    )
    parts = 1 if not method.endswith("/Upload") else data.draw(st.integers(0, 3))
    sent = [data.draw(requests(METHODS[method].input_type)) for _ in range(parts)]
    before = target.sequence()
    caplog.clear()
    error = target.run(target.ask(who, method, sent))
    assert not isinstance(error, Broken), error
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
    if error is not None:
        assert target.sequence() == before, f"refused with {error}, and yet something happened"


SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=SUPPRESSED)
@given(data=st.data())
def test_nonsense_is_answered_and_changes_nothing(
    target: Target, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    fuzz(target, caplog, data)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@settings(max_examples=SOAK_EXAMPLES, deadline=None, suppress_health_check=SUPPRESSED)
@given(data=st.data())
def test_nonsense_for_long(target: Target, caplog: pytest.LogCaptureFixture, data: st.DataObject) -> None:
    fuzz(target, caplog, data)


def test_bytes_that_are_no_message_are_bad_input(target: Target, tmp_path: Path) -> None:
    for who, method in (
        ("site", "/sprachbund.v1.SiteService/Sync"),
        ("nobody", next(iter(WITHOUT_CERTIFICATE))),
    ):
        error = target.run(target.ask(who, method, [b"\xff\xff\xff"]))
        assert error is not None and "is no message of this call" in str(error)
