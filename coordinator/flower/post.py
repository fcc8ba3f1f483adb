"""How a ServerApp's process reaches the coordinator: blocking calls that outlast its restarts.

Flower's Grid is synchronous, our channels are not: one thread runs the event loop. A coordinator that is away is waited
for; everything said to it may be repeated.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from sprachbund.v1 import artifact_pb2_grpc, flower_pb2, flower_pb2_grpc

from consortium.canonical import Fact, decode, encode
from consortium.errors import Unavailable
from consortium.flower.runs import FlowerOrder, FlowerRun
from consortium.ids import CampaignId, Digest, JobId
from consortium.ids import digest as digest_in
from consortium.manifests import FileRef
from consortium.store import BlobStore
from consortium.transfer import download, upload
from consortium.wire_errors import from_rpc_error

_log = logging.getLogger(__name__)
_CALL_SECONDS = 30.0
_WAIT_SECONDS = 20.0  # of one question for replies; the coordinator answers when there is news
_PATIENCE_SECONDS = (0.5, 15.0)  # between calls to a coordinator that is away: the first, the longest

T = TypeVar("T")


class Reply(Fact):
    """What became of one message."""

    job: JobId
    letter: FileRef | None  #: None: there will be no reply, and ``reason`` says why
    reason: str = ""


class Post(Protocol):
    """What a Grid needs of whoever carries its messages."""

    def open_run(self, run: FlowerRun) -> FlowerRun: ...
    def push(self, run: CampaignId, orders: Sequence[FlowerOrder]) -> None: ...
    def replies(self, run: CampaignId, jobs: Sequence[JobId], known: int | None) -> list[Reply]: ...
    def complete_run(self, run: CampaignId, reason: str) -> None: ...
    def keep(self, path: Path) -> FileRef: ...
    def keep_bytes(self, data: bytes) -> FileRef: ...
    def find(self, ref: FileRef) -> Path: ...


class CoordinatorPost:
    """Over gRPC. ``folder`` keeps copies of the blobs that went either way; it may be thrown away at any time.

    Raises what the coordinator says; never because it is away for a while.
    """

    def __init__(self, connect: Callable[[], grpc.aio.Channel], folder: Path) -> None:
        self._store = BlobStore(folder)
        self._sent: set[Digest] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="post", daemon=True)
        self._thread.start()
        self._channel = self._run(_opened(connect))
        self._flower: Any = flower_pb2_grpc.FlowerServiceStub(self._channel)
        self._artifacts: Any = artifact_pb2_grpc.ArtifactServiceStub(self._channel)

    def close(self) -> None:
        self._run(self._channel.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open_run(self, run: FlowerRun) -> FlowerRun:
        request = flower_pb2.OpenRunRequest(run=encode(run))
        answer = self._ask(lambda: self._flower.OpenRun(request, timeout=_CALL_SECONDS))
        return decode(answer.run, FlowerRun, "Flower run")

    def push(self, run: CampaignId, orders: Sequence[FlowerOrder]) -> None:
        request = flower_pb2.PushRequest(run=run, orders=[encode(order) for order in orders])
        while missing := self._ask(lambda: self._flower.Push(request, timeout=_CALL_SECONDS)).missing:
            for name in missing:  # cleaned away since they were brought, or the store was restored
                self._sent.discard(digest_in(name))
                self.keep(self._store.path(digest_in(name)))

    def replies(self, run: CampaignId, jobs: Sequence[JobId], known: int | None) -> list[Reply]:
        """Of ``jobs``, those that are answered or given up; waits a while for more than ``known``. None: waits not."""
        wait = Duration(seconds=0 if known is None else int(_WAIT_SECONDS))
        request = flower_pb2.RepliesRequest(run=run, jobs=jobs, known=known or 0, wait=wait)
        answer = self._ask(lambda: self._flower.Replies(request, timeout=_WAIT_SECONDS + _CALL_SECONDS))
        return [_reply(one) for one in answer.replies]

    def complete_run(self, run: CampaignId, reason: str) -> None:
        request = flower_pb2.CompleteRunRequest(run=run, reason=reason)
        self._ask(lambda: self._flower.CompleteRun(request, timeout=_CALL_SECONDS))

    def keep(self, path: Path) -> FileRef:
        """Bring a file to the coordinator, once; the same bytes are not sent again."""
        ref = self._store.put_file(path)
        if ref.digest not in self._sent:
            self._ask(lambda: upload(self._artifacts, self._store.path(ref.digest), ref))
            self._sent.add(ref.digest)
        return ref

    def keep_bytes(self, data: bytes) -> FileRef:
        ref = self._store.put_bytes(data)
        return self.keep(self._store.path(ref.digest))

    def find(self, ref: FileRef) -> Path:
        """A blob of the coordinator's, fetched if it is not here."""
        if not self._store.has(ref.digest):
            self._ask(lambda: download(self._artifacts, ref, self._store))
        return self._store.path(ref.digest)

    # ---- inside

    def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call until the coordinator has answered it."""
        pause, longest = _PATIENCE_SECONDS
        while True:
            try:
                return self._run(_in_our_words(call))
            except Unavailable as error:
                _log.warning("the coordinator is away, its answer is waited for: %s", error)
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _opened(connect: Callable[[], grpc.aio.Channel]) -> grpc.aio.Channel:
    return connect()  # within the loop that it will belong to


async def _in_our_words(call: Callable[[], Awaitable[T]]) -> T:
    try:
        return await call()
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _reply(said: flower_pb2.FlowerReply) -> Reply:
    letter = FileRef(digest=digest_in(said.letter), size=said.letter_bytes) if said.letter else None
    return Reply(job=JobId(said.job), letter=letter, reason=said.reason)
