"""What a site's agent asks: Sync, and a new certificate."""

import asyncio
import hashlib

import grpc
from sprachbund.v1 import (
    site_pb2,
    site_pb2_grpc,
)

from consortium import identity
from consortium.canonical import encode
from consortium.channels import WAITED
from consortium.errors import Refused
from consortium.ids import AttemptId, SiteName
from consortium.signing import ASSIGNMENT, key_of_certificate, sign
from coordinator.config import CoordinatorConfig
from coordinator.core import commands as cm
from coordinator.core.access import may_renew
from coordinator.core.budgets import used_up
from coordinator.core.state import Job
from coordinator.driver import Driver
from coordinator.founding import Keys
from coordinator.guard import caller, still_allowed
from coordinator.services.words import (
    checkpoint_message,
    duration_message,
    seconds_of,
    short,
    sight,
    sync_command,
    timestamp_message,
)

_ORDERS_MAX = 10_000  # a few KiB each
_WAIT_SECONDS_MAX = 60.0  # a long poll; keepalive pings go every 30 s


class SiteService(site_pb2_grpc.SiteServiceServicer):
    def __init__(self, driver: Driver, keys: Keys, config: CoordinatorConfig) -> None:
        self._driver = driver
        self._keys = keys
        self._config = config
        self._orders: dict[AttemptId, tuple[bytes, bytes]] = {}
        self._newest: dict[SiteName, site_pb2.SyncRequest] = {}  # of each site, the one that is believed

    async def Sync(
        self, request: site_pb2.SyncRequest, context: grpc.aio.ServicerContext
    ) -> site_pb2.SyncResponse:
        driver, site = self._driver, SiteName(caller().name)
        command = sync_command(site, request)
        loop = asyncio.get_running_loop()
        until, waited = loop.time() + min(seconds_of(request.wait), _WAIT_SECONDS_MAX), 0.0
        self._newest[site] = request
        while True:
            if self._newest[site] is request:
                response = self.hear(site, request, command)
            else:  # what it said has been heard; said again, it would contradict what the site has said since
                driver.fence(site, request.incarnation)
                response = self._response(site, request)
            begins = loop.time()
            if response.revision != request.seen or response.settled or begins >= until:
                context.set_trailing_metadata(((WAITED, f"{waited:.6f}"),))
                return response
            waited += await driver.news_for(site, until - begins)
            still_allowed()

    def hear(
        self, site: SiteName, request: site_pb2.SyncRequest, command: cm.SyncSite
    ) -> site_pb2.SyncResponse:
        """Take in what ``site`` says, and say what is wanted of it now; ``command`` is the request in our words."""
        driver = self._driver
        driver.arrive(site, short(request.incarnation, "incarnation"), command.courier)
        now, held = driver.clock(), {job.attempt for job in driver.state.live(site)}
        for line, report in zip(request.attempts, command.reports, strict=True):
            if report.attempt in held:  # another site's lease is not for this one to renew
                driver.renewed[report.attempt] = now
                driver.sights[report.attempt] = sight(line, report)
        driver.execute(command)
        return self._response(site, request)

    def _response(self, site: SiteName, request: site_pb2.SyncRequest) -> site_pb2.SyncResponse:
        driver = self._driver
        live = driver.state.live(site)
        wanted = []
        for job in live:
            assert job.attempt is not None
            body, signature = self._signed(job, job.attempt, site)
            lease = driver.state.programme(job.campaign).lease_seconds(driver.state.sites[site])
            wanted.append(
                site_pb2.SignedAssignment(
                    attempt=job.attempt,
                    lease=duration_message(lease),
                    job=body,
                    signature=signature,
                )
            )
        names = {job.attempt for job in live}
        budgets = used_up(driver.state.sites[site], driver.clock())
        # an answer that first says so comes at once: a site that speaks anew before each answer would never hear it
        news = encode([sorted(names), [one.kind for one in budgets]])
        revision = int(hashlib.sha256(news).hexdigest()[:15], 16)
        return site_pb2.SyncResponse(
            revision=revision,
            wanted=wanted,
            # what goes on though nobody wants it is stopped first and then told, with all that it has used
            settled=sorted(
                line.attempt
                for line in request.attempts
                if line.attempt not in names and line.phase == site_pb2.ATTEMPT_PHASE_ENDED
            ),
            checkpoint=checkpoint_message(driver.checkpoint()),
            next=duration_message(0),
            now=timestamp_message(driver.clock()),
            upload_bytes_max=self._config.upload_bytes_max,
            used_up=[
                site_pb2.UsedUpBudget(
                    kind=f"BUDGET_KIND_{one.kind.upper()}",
                    again=duration_message(one.again_seconds),
                    reason=one.reason,
                )
                for one in budgets
            ],
        )

    def _signed(self, job: Job, attempt: AttemptId, site: SiteName) -> tuple[bytes, bytes]:
        """The order for an attempt and its signature: made once, said in every Sync of the days that it takes."""
        found = self._orders.get(attempt)
        if found is None:
            if len(self._orders) >= _ORDERS_MAX:
                self._orders.clear()
            body = encode(job.assignment(attempt, site))
            found = self._orders[attempt] = body, sign(self._keys.ledger, ASSIGNMENT, body)
        return found

    async def RenewCertificate(
        self, request: site_pb2.RenewCertificateRequest, context: grpc.aio.ServicerContext
    ) -> site_pb2.RenewCertificateResponse:
        who, known = caller(), self._driver.state.sites[SiteName(caller().name)]
        newest = known.certificate.encode()
        asked = identity.check_signing_request(request.signing_request, known.name)
        has_newest_key = asked == key_of_certificate(newest)
        verdict = may_renew(known, who.fingerprint, has_newest_key)
        if not verdict.allowed:
            raise Refused(verdict.reason)
        is_repeated = has_newest_key and who.fingerprint != known.fingerprint
        certificate = newest if is_repeated else self.renew(known.name, request.signing_request)
        return site_pb2.RenewCertificateResponse(certificate=certificate)

    def renew(self, site: SiteName, signing_request: bytes) -> bytes:
        """A new certificate (PEM) for the key in ``signing_request``; the one before is refused from now on."""
        certificate = self._keys.authority.site(
            signing_request, site, self._driver.clock(), self._config.certificate_days
        )
        who = identity.identity_of(certificate, self._driver.state.consortium)
        self._driver.execute(
            cm.RenewCertificate(
                site=site,
                certificate=certificate.decode(),
                fingerprint=who.fingerprint,
                not_after=who.not_after,
            )
        )
        return certificate
