"""What an auditor reads, and what everybody may."""

from collections.abc import AsyncIterator

import grpc
from sprachbund.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    site_pb2,
)

from consortium.canonical import encode
from coordinator.driver import Driver
from coordinator.services.words import checkpoint_message


class AuditService(audit_pb2_grpc.AuditServiceServicer):
    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def ReadLedger(
        self, request: audit_pb2.ReadLedgerRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[audit_pb2.LedgerEvent]:
        for entry in self._driver.entries(min(request.from_sequence, self._driver.sequence + 1)):
            yield audit_pb2.LedgerEvent(sequence=entry.seq, entry=entry.entry, hash=entry.hash)

    async def GetCheckpoint(
        self, request: audit_pb2.GetCheckpointRequest, context: grpc.aio.ServicerContext
    ) -> site_pb2.LedgerCheckpoint:
        return checkpoint_message(self._driver.checkpoint())


class ReleaseService(audit_pb2_grpc.ReleaseServiceServicer):
    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def ListReleases(
        self, request: audit_pb2.ListReleasesRequest, context: grpc.aio.ServicerContext
    ) -> audit_pb2.ListReleasesResponse:
        return audit_pb2.ListReleasesResponse(releases=encode(self._driver.releases()))
