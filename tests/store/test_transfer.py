"""A blob arrives whole, over mTLS, however often the wire breaks."""

import asyncio
import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from artifact_bench import QUICK, Coordinator, CountingStore, Wire, bytes_of, site_credentials
from processes import PATIENCE_SECONDS
from sprachbund.v1 import artifact_pb2, artifact_pb2_grpc

from consortium.channels import CHUNK_BYTES, UPLOAD_ACCEPTED
from consortium.errors import BadInput, Corrupt, DiskFull, Refused, SprachbundError, Unavailable
from consortium.ids import Digest, digest_of
from consortium.manifests import FileRef
from consortium.store import BlobStore, ref_of
from consortium.transfer import Retries, download, fetch, upload
from consortium.wire_errors import from_rpc_error
from coordinator.artifacts import PARTIALS_PER_OWNER

SOFIA, TIRANA = site_credentials("sofia"), site_credentials("tirana")
ONCE = Retries(attempts=1)
STUBBORN = Retries(
    attempts=10_000, first_seconds=0.02, longest_seconds=0.02
)  # gRPC reconnects after a second, or many
MIB = 1 << 20

MakeFile = Callable[[int], Path]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7])
async def test_there_and_back(coordinator: Coordinator, file: MakeFile, tmp_path: Path, size: int) -> None:
    path, local = file(size), BlobStore(tmp_path / "site")
    ref = ref_of(path)
    coordinator.readable.add(("sofia", ref.digest))
    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        for _ in range(2):  # the second time nothing is left to do
            await upload(stub, path, ref, ONCE)
            await download(stub, ref, local, ONCE)
    assert coordinator.store.verify(ref.digest) == local.verify(ref.digest) == ref
    assert coordinator.store.delivered(ref.digest, "sofia")
    assert sum(end - offset for _, offset, end in coordinator.store.appended) == size
    assert threading.get_ident() not in coordinator.store.threads  # the loop's thread touches no disk


class Forgetful(CountingStore):
    """Says of each blob, so often, another size than it has: as a bucket whose storage lies does before a byte came."""

    lies = 1

    def size(self, digest: Digest) -> int:
        self.lies -= 1
        return super().size(digest) + (7 if self.lies >= 0 else 0)


async def test_a_size_that_was_said_and_is_another_is_no_damage(tmp_path: Path, file: MakeFile) -> None:
    """Of damage an attempt would end; this comes right by asking again."""
    store, local = Forgetful(tmp_path / "coordinator"), BlobStore(tmp_path / "site")
    coordinator = Coordinator(store)
    ref = store.put_file(file(100))
    coordinator.readable.add(("sofia", ref.digest))
    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        with pytest.raises(Unavailable, match="said 107 bytes, now it says 100; try again"):
            await fetch(stub, ref.digest, local, ONCE)
        await fetch(stub, ref.digest, local, ONCE)
        assert local.verify(ref.digest) == ref
        store.lies, local = 9, BlobStore(tmp_path / "elsewhere")
        with pytest.raises(Corrupt, match="has 100 bytes, expected 107"):  # it stays so: somebody has to look
            await fetch(stub, ref.digest, local, ONCE)
        with pytest.raises(Unavailable, match="not whole at the coordinator yet"):
            await fetch(stub, digest_of(b"nobody has this"), local, ONCE)


async def test_however_often_the_wire_breaks_no_byte_is_stored_twice(
    coordinator: Coordinator, file: MakeFile, tmp_path: Path
) -> None:
    size = 12 * MIB
    path, local = file(size), CountingStore(tmp_path / "site")
    ref = ref_of(path)
    coordinator.readable.add(("sofia", ref.digest))
    async with coordinator.serving():
        wire = Wire(coordinator.port, cuts=[3 * MIB, 100, 2 * MIB, MIB // 2, 3 * MIB])
        async with wire.relaying() as port, coordinator.stub(SOFIA, port) as stub:
            await upload(stub, path, ref, STUBBORN)
        assert wire.broken == 5

        wire = Wire(coordinator.port, cuts=[3 * MIB, 100, 2 * MIB, MIB // 2, 3 * MIB])
        async with wire.relaying() as port, coordinator.stub(SOFIA, port) as stub:
            await download(stub, ref, local, STUBBORN)
        assert wire.broken == 5
    for store in (coordinator.store, local):
        ends = [0, *sorted(end for _, _, end in store.appended)]
        assert [offset for _, offset, _ in sorted(store.appended)] == ends[:-1]  # each byte once
        assert store.verify(ref.digest) == ref


async def test_after_a_restart_either_side_asks_only_for_the_rest(
    coordinator: Coordinator, file: MakeFile, tmp_path: Path
) -> None:
    path, size, done = file(4 * MIB), 4 * MIB, 2 * MIB + 5
    ref, site = ref_of(path), tmp_path / "site"
    coordinator.readable.add(("sofia", ref.digest))
    for root, owner in (
        (coordinator.store.root, "sofia"),
        (site, "download"),
    ):  # as killed processes left them
        BlobStore(root).append(ref.digest, owner, 0, path.read_bytes()[:done])
    local = CountingStore(site)
    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        await upload(stub, path, ref, ONCE)
        await download(stub, ref, local, ONCE)
    for store in (coordinator.store, local):
        assert (store.appended[0][1], store.appended[-1][2]) == (done, size)
        assert store.verify(ref.digest) == ref


async def test_a_partial_torn_by_a_power_cut_is_sent_again_from_the_start(
    coordinator: Coordinator, file: MakeFile
) -> None:
    path = file(2 * MIB)
    ref = ref_of(path)
    coordinator.store.append(ref.digest, "sofia", 0, bytes(MIB))  # zeros, where data had been
    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        await upload(stub, path, ref, QUICK)
    assert coordinator.store.verify(ref.digest) == ref


async def test_two_jobs_want_the_same_base_at_once(coordinator: Coordinator, tmp_path: Path) -> None:
    ref, local = coordinator.store.put_bytes(bytes_of(5 * MIB)), CountingStore(tmp_path / "site")
    coordinator.readable.add(("sofia", ref.digest))
    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        await asyncio.gather(*(download(stub, ref, local, ONCE) for _ in range(3)))
    assert sum(end - offset for _, offset, end in local.appended) == ref.size


async def test_bytes_that_are_not_those_announced_are_refused(
    coordinator: Coordinator, file: MakeFile
) -> None:
    path, wrong = file(MIB), FileRef(digest=digest_of(b"something else"), size=MIB)
    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        with pytest.raises(Corrupt, match=f"blob {wrong.digest}: expected .* got 1048576 bytes with"):
            await upload(stub, path, wrong, QUICK)
        with pytest.raises(Corrupt, match="has 1048576 bytes, 5 were announced"):
            await upload(stub, path, FileRef(digest=wrong.digest, size=5), QUICK)
    assert coordinator.store.digests() == []
    assert coordinator.store.received(wrong.digest, "sofia") == 0


async def test_a_damaged_store_is_noticed_by_the_receiver(coordinator: Coordinator, tmp_path: Path) -> None:
    ref = coordinator.store.put_bytes(bytes_of(1000))
    blob = coordinator.store.path(ref.digest)
    blob.chmod(0o644)
    blob.write_bytes(bytes_of(1000, seed=1))
    coordinator.readable.add(("sofia", ref.digest))
    local = BlobStore(tmp_path / "site")
    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        with pytest.raises(Corrupt, match=f"blob {ref.digest}: expected 1000 bytes"):
            await download(stub, ref, local, QUICK)
        with pytest.raises(Corrupt, match="the coordinator has 1000 bytes, expected 999"):
            await download(stub, FileRef(digest=ref.digest, size=999), local, QUICK)
    assert local.digests() == []


async def test_a_full_disk_is_told_at_once_and_the_upload_goes_on_later(
    coordinator: Coordinator, file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(MIB)
    ref = ref_of(path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(DiskFull, match="free some space"):
                await upload(stub, path, ref, QUICK)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=MIB - 1))
            with pytest.raises(DiskFull, match="1048575 bytes are free, 1048576 are needed"):
                await upload(stub, path, ref, QUICK)
        await upload(stub, path, ref, ONCE)
    assert coordinator.store.verify(ref.digest) == ref


async def test_a_coordinator_that_is_away_exhausts_patience(coordinator: Coordinator, file: MakeFile) -> None:
    path = file(10)
    async with coordinator.serving():
        port = coordinator.port
    async with coordinator.stub(SOFIA, port) as stub:
        with pytest.raises(Unavailable, match="gave up after 2 failures without progress; last: unavailable"):
            await upload(stub, path, ref_of(path), Retries(attempts=2, first_seconds=0.01))


async def test_what_a_site_may_not_read_looks_like_what_does_not_exist(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    there = coordinator.store.put_bytes(b"delta of tirana").digest
    absent, answers = digest_of(b"never made"), []
    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        for digest in (there, absent):
            stat = await stub.Stat(artifact_pb2.StatRequest(digest=digest))
            with pytest.raises(Refused, match="none of your jobs needs it") as refused:
                await download(stub, FileRef(digest=digest, size=15), BlobStore(tmp_path / "site"), QUICK)
            answers.append((stat.complete, stat.received, str(refused.value).replace(digest, "")))
    assert answers[0] == answers[1]


async def test_a_site_sees_neither_partials_nor_deliveries_of_another(
    coordinator: Coordinator, file: MakeFile
) -> None:
    path = file(2 * MIB)
    ref = ref_of(path)
    request = artifact_pb2.StatRequest(digest=ref.digest)
    coordinator.store.append(ref.digest, "sofia", 0, path.read_bytes()[:MIB])
    async with coordinator.serving(), coordinator.stub(SOFIA) as sofia, coordinator.stub(TIRANA) as tirana:
        assert (await sofia.Stat(request)).received == MIB
        assert (await tirana.Stat(request)).received == 0
        await upload(sofia, path, ref, ONCE)
        assert (await sofia.Stat(request)).complete
        assert not (await tirana.Stat(request)).complete
        coordinator.store.appended.clear()
        await upload(tirana, path, ref, ONCE)  # it proves that it has every byte
    assert [(owner, end) for owner, begin, end in coordinator.store.appended if end > begin] == [
        ("tirana", MIB),
        ("tirana", 2 * MIB),
    ]


async def test_a_blob_above_the_limit_is_refused_before_a_byte_is_stored(
    coordinator: Coordinator, file: MakeFile
) -> None:
    coordinator.size_max = MIB
    path = file(MIB + 1)
    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        with pytest.raises(Refused, match="1048577 bytes: at most 1048576 bytes are accepted"):
            await upload(stub, path, ref_of(path), QUICK)
    assert coordinator.store.appended == []


HEADER = artifact_pb2.UploadHeader(digest=digest_of(b"x" * 10), size=10)
DATA = artifact_pb2.UploadRequest(data=b"x" * 10)


@pytest.mark.parametrize(
    ("requests", "error", "words"),
    [
        ([], BadInput, "the first message must be the header"),
        ([DATA], BadInput, "the first message must be the header"),
        ([artifact_pb2.UploadRequest()], BadInput, "the first message must be the header"),
        ([{"digest": "../../etc"}], BadInput, "expected 64 lower-case hex digits"),
        ([HEADER, DATA, DATA], BadInput, "more than the announced 10 bytes"),
        ([HEADER, HEADER], BadInput, "after the header only data"),
        ([{"offset": 3}, artifact_pb2.UploadRequest(data=b"1234567")], Unavailable, "go on from 0"),
        ([{"size": 1 << 40}, DATA], Refused, "are accepted"),
        ([{"size": 4 << 20}, artifact_pb2.UploadRequest(data=bytes(2 << 20))], BadInput, "at most 1048576"),
        ([HEADER, artifact_pb2.UploadRequest(data=b"y" * 10)], Corrupt, "expected 10 bytes"),
    ],
)
async def test_a_malformed_upload_is_answered_by_its_fault(
    coordinator: Coordinator, requests: list[object], error: type[SprachbundError], words: str
) -> None:
    messages = []
    for request in requests:
        if isinstance(request, dict):
            request = artifact_pb2.UploadHeader(**{"digest": HEADER.digest, "size": 10, **request})
        if isinstance(request, artifact_pb2.UploadHeader):
            request = artifact_pb2.UploadRequest(header=request)
        messages.append(request)
    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await send(stub, messages)
        told = from_rpc_error(failed.value)
        assert type(told) is error
        assert words in str(told)
        half = await send(stub, [artifact_pb2.UploadRequest(header=HEADER)])
        assert (half.received, half.complete) == (0, False)  # and the service goes on


async def test_no_more_uploads_of_one_owner_are_under_way_than_partials_are_kept(
    coordinator: Coordinator,
) -> None:
    """Begun together, sixty of them would all find room, and then each grow to the largest size."""

    async def begin(number: int) -> Any:
        call = stub.Upload()
        header = artifact_pb2.UploadHeader(digest=digest_of(b"%d" % number), size=10)
        await call.write(artifact_pb2.UploadRequest(header=header))
        return call

    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        calls = [await begin(number) for number in range(PARTIALS_PER_OWNER)]
        for call in calls:
            assert UPLOAD_ACCEPTED in await call.initial_metadata()
        one_more = await begin(PARTIALS_PER_OWNER)
        waiting = asyncio.ensure_future(one_more.initial_metadata())
        assert not (await asyncio.wait([waiting], timeout=0.2))[0]
        calls[0].cancel()
        assert UPLOAD_ACCEPTED in await asyncio.wait_for(waiting, PATIENCE_SECONDS)
        for call in (*calls, one_more):
            call.cancel()


async def send(stub: artifact_pb2_grpc.ArtifactServiceStub, messages: list[object]) -> object:
    """An upload by hand. Waits as ``upload`` does; writing on after an answer may hide it."""
    call = stub.Upload()
    for number, message in enumerate(messages):
        await call.write(message)
        if number == 0 and len(messages) > 1:
            if UPLOAD_ACCEPTED not in await call.initial_metadata():
                break
    with contextlib.suppress(grpc.aio.InternalError):
        await call.done_writing()
    return await call


async def test_reading_past_the_end_is_bad_input(coordinator: Coordinator) -> None:
    ref = coordinator.store.put_bytes(b"short")
    coordinator.readable.add(("sofia", ref.digest))
    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        with pytest.raises(Exception) as failed:  # grpc's, checked below
            async for _ in stub.Download(artifact_pb2.DownloadRequest(digest=ref.digest, offset=6)):
                pass
    assert isinstance(from_rpc_error(failed.value), BadInput)


async def test_abandoned_uploads_of_a_site_do_not_pile_up(coordinator: Coordinator, tmp_path: Path) -> None:
    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        for number in range(12):
            header = artifact_pb2.UploadHeader(digest=digest_of(bytes([number])), size=20)
            await send(stub, [artifact_pb2.UploadRequest(header=header), DATA])
    assert len(list((tmp_path / "coordinator" / "partials" / "sofia").iterdir())) == 8


async def test_uploads_that_begin_at_once_do_not_pile_up_either(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    all_begun = asyncio.Event()

    async def half(number: int) -> Any:
        header = artifact_pb2.UploadHeader(digest=digest_of(b"%d" % number), size=20)
        yield artifact_pb2.UploadRequest(header=header)
        await all_begun.wait()
        yield DATA

    async with coordinator.serving(), coordinator.stub(SOFIA) as stub:
        for number in range(7):
            header = artifact_pb2.UploadHeader(digest=digest_of(bytes([number])), size=20)
            await send(stub, [artifact_pb2.UploadRequest(header=header), DATA])
        calls = [stub.Upload(half(number)) for number in range(PARTIALS_PER_OWNER)]
        for call in calls:
            assert (await call.initial_metadata())[UPLOAD_ACCEPTED] == "yes"
        all_begun.set()
        assert [(await call).received for call in calls] == [10] * len(calls)  # none took another's place
    assert len(list((tmp_path / "coordinator" / "partials" / "sofia").iterdir())) == PARTIALS_PER_OWNER
