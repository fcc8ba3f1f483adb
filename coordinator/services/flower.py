"""What the process asks that runs a Flower ServerApp."""

import asyncio
from collections.abc import Sequence

import grpc
from sprachbund.v1 import flower_pb2, flower_pb2_grpc

from consortium import ids
from consortium.blobs import Blobs
from consortium.canonical import decode, encode
from consortium.errors import BadInput
from consortium.flower.letters import LETTER
from consortium.flower.runs import FlowerOrder, FlowerRun
from consortium.ids import Digest, JobId
from coordinator.core import commands as cm
from coordinator.core.flower import opened
from coordinator.core.state import Job
from coordinator.driver import Driver
from coordinator.guard import caller
from coordinator.services.words import said, seconds_of

_WAIT_SECONDS_MAX = 60.0  # a long poll, as Sync's
_ORDERS_MAX = 10_000  # of one call; each becomes an entry of the ledger


class FlowerService(flower_pb2_grpc.FlowerServiceServicer):
    def __init__(self, driver: Driver, store: Blobs) -> None:
        self._driver = driver
        self._store = store

    async def OpenRun(
        self, request: flower_pb2.OpenRunRequest, context: grpc.aio.ServicerContext
    ) -> flower_pb2.OpenRunResponse:
        run = decode(request.run, FlowerRun, "Flower run")
        self._driver.execute(cm.OpenFlowerRun(run=run, sender=caller().name))
        return flower_pb2.OpenRunResponse(run=encode(opened(self._driver.state, run.run)))

    async def Push(
        self, request: flower_pb2.PushRequest, context: grpc.aio.ServicerContext
    ) -> flower_pb2.PushResponse:
        if len(request.orders) > _ORDERS_MAX:
            raise BadInput(f"{len(request.orders)} messages in one call; at most {_ORDERS_MAX}")
        orders = tuple(decode(order, FlowerOrder, "Flower order") for order in request.orders)
        command = cm.PushFlowerMessages(run=ids.campaign_id(request.run), orders=orders)
        if missing := await asyncio.to_thread(self._missing, orders):
            return flower_pb2.PushResponse(reason="inputs are missing", missing=missing)
        return flower_pb2.PushResponse(reason=self._driver.execute(command).reason)

    def _missing(self, orders: Sequence[FlowerOrder]) -> list[Digest]:
        """Inputs that are not in the store; the others count as stored now, so that no cleaning takes them away
        before the ledger names them.
        """
        inputs = sorted({digest for order in orders for digest in order.inputs})
        return [digest for digest in inputs if not self._store.renew(digest)]

    async def Replies(
        self, request: flower_pb2.RepliesRequest, context: grpc.aio.ServicerContext
    ) -> flower_pb2.RepliesResponse:
        opened(self._driver.state, ids.campaign_id(request.run))
        loop = asyncio.get_running_loop()
        until = loop.time() + min(seconds_of(request.wait), _WAIT_SECONDS_MAX)
        while True:
            jobs = (self._driver.state.jobs.get(JobId(name)) for name in request.jobs)
            ready = [job for job in jobs if job is not None and job.campaign == request.run and job.is_final]
            left = until - loop.time()
            if len(ready) > request.known or left <= 0:
                return flower_pb2.RepliesResponse(replies=[_reply(job) for job in ready])
            await self._driver.news(left)

    async def CompleteRun(
        self, request: flower_pb2.CompleteRunRequest, context: grpc.aio.ServicerContext
    ) -> flower_pb2.CompleteRunResponse:
        command = cm.CompleteFlowerRun(run=ids.campaign_id(request.run), reason=said(request.reason))
        return flower_pb2.CompleteRunResponse(reason=self._driver.execute(command).reason)


def _reply(job: Job) -> flower_pb2.FlowerReply:
    if job.contribution is None:
        return flower_pb2.FlowerReply(job=job.id, reason=job.reason)
    letter = job.contribution.artifacts[LETTER]
    return flower_pb2.FlowerReply(job=job.id, letter=letter.digest, letter_bytes=letter.size)
