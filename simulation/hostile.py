"""A stolen certificate, or a broken agent: messages that nobody should believe, sent in a site's name.

Each is answered by an error and changes nothing (invariant 8).
"""

from collections.abc import Callable
from pathlib import Path
from random import Random as Dice
from typing import Any

import grpc
from sprachbund.v1 import admin_pb2, admin_pb2_grpc, artifact_pb2, artifact_pb2_grpc, site_pb2, site_pb2_grpc

from consortium.errors import SprachbundError
from consortium.identity import Credentials, signing_request
from consortium.ids import Digest, SiteName, digest_of
from consortium.signing import new_key, private_pem
from simulation.coordinators import MAIN, CoordinatorHost
from simulation.loop import Process
from simulation.network import Network
from simulation.sites import SiteHost
from site_agent.identity import SiteIdentity

_HARMLESS = {  # what an intruder may be told; anything else is our failure
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,  # of bytes that are no message: gRPC's own word
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


_NOBODY = SiteName("nobody")


class _Answered(Exception):
    """What was asked may be granted."""


class Stranger:
    def __init__(self, network: Network, coordinator: CoordinatorHost, blame: Callable[[str], None]) -> None:
        self._network, self._coordinator, self._blame = network, coordinator, blame
        self._stolen: dict[str, SiteIdentity] = {}
        self._nobody: Credentials | None = None

    def intrude(self, dice: Dice, site: SiteHost) -> None:
        """One bad message in the name of ``site``, if it has a certificate by now."""
        process = Process(f"intruder at {site.plan.name}", site.host)
        process.on_death = lambda: self._network.hang_up(process)
        process.spawn(self._say(dice, site, process))

    async def _say(self, dice: Dice, site: SiteHost, process: Process) -> None:
        try:
            identity = SiteIdentity.load(Path(site.config.home))
        except SprachbundError:
            return
        stolen = self._stolen.setdefault(site.plan.name, identity)  # the first time; it is not given back
        channel = self._network.open_channel(MAIN, identity.authority, identity.credentials)
        messages = self._messages(dice, channel, site)
        name, call = messages[int(dice.random() * len(messages))]
        if name == "an old certificate":
            if stolen.certificate == identity.certificate:
                process.kill()
                return
            call = self._old(stolen)
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            if error.code() not in _HARMLESS or "failed; its log has the reason" in details:
                self._blame(f"invariant 8: {name} is answered by {error.code().name}: {details}")
        except _Answered:
            pass  # by right, or the referee has seen it
        else:
            self._blame(f"invariant 8: {name} of {site.plan.name} was accepted")
        process.kill()

    def _messages(self, dice: Dice, channel: Any, site: SiteHost) -> list[tuple[str, Callable[[], Any]]]:
        sites: Any = site_pb2_grpc.SiteServiceStub(channel)
        blobs: Any = artifact_pb2_grpc.ArtifactServiceStub(channel)
        admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
        garbage = channel.unary_unary(
            "/sprachbund.v1.SiteService/Sync", lambda data: data, site_pb2.SyncResponse.FromString
        )
        release = site_pb2.SiteDescription(agent_version="0.1.0", slots=1)

        def sync(**fields: Any) -> Callable[[], Any]:
            request = site_pb2.SyncRequest(site=release, incarnation=dice.randbytes(4).hex() * 30, **fields)
            return lambda: sites.Sync(request, timeout=60.0)

        attempts = _odd("../../etc/passwd", 1)
        odd = _odd("a_b.a1", 99)
        driver = self._coordinator.driver
        known: list[str] = sorted(driver.state.campaigns) if driver is not None else []
        stop = admin_pb2.StopCampaignRequest(campaign=(known or ["any"])[0], reason="because")

        async def read() -> None:
            async for _ in blobs.Download(artifact_pb2.DownloadRequest(digest=dice.randbytes(32).hex())):
                pass

        async def write() -> None:
            call = blobs.Upload()
            await call.write(artifact_pb2.UploadRequest(data=b"no header"))
            await call.done_writing()
            await call

        async def read_another() -> None:
            known = self._coordinator.driver.state.campaigns if self._coordinator.driver else {}
            digests = sorted(
                ref.digest
                for campaign in known.values()
                for version in campaign.versions.values()
                for ref in version.manifest.files.values()
            ) or [Digest("0" * 64)]
            digest = digests[int(dice.random() * len(digests))]
            async for _ in blobs.Download(artifact_pb2.DownloadRequest(digest=digest)):
                pass
            raise _Answered

        async def write_idly() -> None:
            call, data = blobs.Upload(), dice.randbytes(40)
            header = artifact_pb2.UploadHeader(digest=digest_of(data), size=len(data), site=site.plan.name)
            await call.write(artifact_pb2.UploadRequest(header=header))
            await call.write(artifact_pb2.UploadRequest(data=data))
            await call.done_writing()
            await call
            raise _Answered

        return [
            ("reading a model", read_another),
            ("an upload", write_idly),
            ("an old certificate", read_another),
            ("garbage", lambda: garbage(b"\xff" + dice.randbytes(40), timeout=60.0)),
            ("an endless incarnation", sync()),
            ("an attempt that is a path", sync(attempts=attempts)),
            ("a phase of no contract", sync(attempts=odd)),
            ("two allocations of a name", lambda: sites.Sync(_doubled(), timeout=60.0)),
            ("stopping a campaign", lambda: admin.StopCampaign(stop, timeout=60.0)),
            ("reading an unknown blob", read),
            ("an upload without header", write),
            ("a bad digest", lambda: blobs.Stat(artifact_pb2.StatRequest(digest="../.."), timeout=60.0)),
            ("a certificate of nobody", self._as_nobody),
        ]

    def _as_nobody(self) -> Any:
        """A Sync with a certificate of the consortium's own authority, for a site that the ledger does not know."""
        authority = self._coordinator.keys.authority
        if self._nobody is None:
            key = new_key()
            asked = signing_request(_NOBODY, key)
            certificate = authority.site(asked, _NOBODY, self._coordinator.true_time, 30.0)
            self._nobody = Credentials(certificate, private_pem(key))
        channel = self._network.open_channel(MAIN, authority.pem, self._nobody)
        sites: Any = site_pb2_grpc.SiteServiceStub(channel)
        request = site_pb2.SyncRequest(site=site_pb2.SiteDescription(agent_version="0.1.0", slots=1))
        request.incarnation = "nobody"
        return sites.Sync(request, timeout=60.0)

    def _old(self, stolen: SiteIdentity) -> Callable[[], Any]:
        """A Sync with a certificate that the site has replaced by a newer one."""
        channel = self._network.open_channel(MAIN, stolen.authority, stolen.credentials)
        sites: Any = site_pb2_grpc.SiteServiceStub(channel)
        request = site_pb2.SyncRequest(site=site_pb2.SiteDescription(agent_version="0.1.0", slots=1))
        request.incarnation = "stolen"
        return lambda: sites.Sync(request, timeout=60.0)


def _odd(attempt: str, phase: Any) -> list[site_pb2.AttemptReport]:
    return [site_pb2.AttemptReport(attempt=attempt, phase=phase)]


def _doubled() -> site_pb2.SyncRequest:
    twice = [site_pb2.Allocation(name="grant", gpu_hours=1.0)] * 2
    return site_pb2.SyncRequest(
        site=site_pb2.SiteDescription(agent_version="0.1.0", allocations=twice), incarnation="x"
    )
