"""The gRPC services: decode, hand over a command, encode. If a method needs an "if", the core wants to know."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from typing import Literal

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sprachbund.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    enrolment_pb2,
    enrolment_pb2_grpc,
    site_pb2,
    site_pb2_grpc,
)

from consortium import identity, ids
from consortium.canonical import decode, encode
from consortium.capacity import Allocation, Usage, Window
from consortium.errors import BadInput, Refused, Unavailable
from consortium.forecasts import Assumptions
from consortium.ids import SiteName
from consortium.jobs import Outcome, Phase
from consortium.manifests import Holding
from consortium.releases import misfit
from consortium.signing import ASSIGNMENT, Checkpoint, key_of_certificate, sign
from coordinator.config import CoordinatorConfig
from coordinator.core import commands as cm
from coordinator.core.forecast import forecast
from coordinator.core.state import restore
from coordinator.core.view import Sight
from coordinator.driver import Driver, opening_of
from coordinator.founding import Keys
from coordinator.guard import caller
from coordinator.reading import unknown_subject
from policies import windows
from policies.campaign import Campaign
from policies.membership import Membership

_RELEASE = version("sprachbund")
_WAIT_SECONDS_MAX = 60.0  # a long poll; keepalive pings go every 30 s
_HOLDINGS_MAX = 1000  # two for every language there is text in; they go to the ledger
_NAME_CHARACTERS_MAX = 100
_WINDOWS_MAX = 20  # and allocations

Carry = Callable[[bytes, identity.Identity], admin_pb2.CarryResponse]  #: a bundle's head, and who carries it


class SiteService(site_pb2_grpc.SiteServiceServicer):
    def __init__(self, driver: Driver, keys: Keys, config: CoordinatorConfig) -> None:
        self._driver = driver
        self._keys = keys
        self._config = config

    async def Sync(
        self, request: site_pb2.SyncRequest, context: grpc.aio.ServicerContext
    ) -> site_pb2.SyncResponse:
        driver, site = self._driver, SiteName(caller().name)
        command = sync_command(site, request)
        loop = asyncio.get_running_loop()
        until = loop.time() + min(_seconds(request.wait), _WAIT_SECONDS_MAX)
        while True:
            response = self.hear(site, request, command)
            left = until - loop.time()
            if response.revision != request.seen or response.settled or left <= 0:
                return response
            await driver.news(left)

    def hear(
        self, site: SiteName, request: site_pb2.SyncRequest, command: cm.SyncSite
    ) -> site_pb2.SyncResponse:
        """Take in what ``site`` says, and say what is wanted of it now; ``command`` is the request in our words."""
        driver = self._driver
        driver.arrive(site, _short(request.incarnation, "incarnation"), command.courier)
        now, held = driver.clock(), {job.attempt for job in driver.state.live(site)}
        for line, report in zip(request.attempts, command.reports, strict=True):
            if report.attempt in held:  # another site's lease is not for this one to renew
                driver.renewed[report.attempt] = now
                driver.sights[report.attempt] = _sight(line, report)
        driver.execute(command)
        return self._response(site, request)

    def _response(self, site: SiteName, request: site_pb2.SyncRequest) -> site_pb2.SyncResponse:
        driver = self._driver
        live = driver.state.live(site)
        wanted = []
        for job in live:
            assert job.attempt is not None
            body = encode(job.assignment(job.attempt, site))
            lease = driver.state.campaigns[job.campaign].lease_seconds(driver.state.sites[site])
            wanted.append(
                site_pb2.SignedAssignment(
                    attempt=job.attempt,
                    lease=_duration(lease),
                    job=body,
                    signature=sign(self._keys.ledger, ASSIGNMENT, body),
                )
            )
        names = {job.attempt for job in live}
        revision = int(hashlib.sha256(encode(sorted(names))).hexdigest()[:15], 16)
        return site_pb2.SyncResponse(
            revision=revision,
            wanted=wanted,
            # what goes on though nobody wants it is stopped first and then told, with all that it has used
            settled=sorted(
                line.attempt
                for line in request.attempts
                if line.attempt not in names and line.phase == site_pb2.ATTEMPT_PHASE_ENDED
            ),
            checkpoint=_checkpoint(driver.checkpoint()),
            next=_duration(0),
            now=_timestamp(driver.clock()),
            upload_bytes_max=self._config.upload_bytes_max,
        )

    async def RenewCertificate(
        self, request: site_pb2.RenewCertificateRequest, context: grpc.aio.ServicerContext
    ) -> site_pb2.RenewCertificateResponse:
        certificate = self.renew(SiteName(caller().name), request.signing_request)
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


class EnrolmentService(enrolment_pb2_grpc.EnrolmentServiceServicer):
    def __init__(self, driver: Driver, keys: Keys, config: CoordinatorConfig) -> None:
        self._driver = driver
        self._keys = keys
        self._config = config

    async def Enrol(
        self, request: enrolment_pb2.EnrolRequest, context: grpc.aio.ServicerContext
    ) -> enrolment_pb2.EnrolResponse:
        return self.enrol(request)

    def enrol(self, request: enrolment_pb2.EnrolRequest) -> enrolment_pb2.EnrolResponse:
        """The certificate that an invitation's token is worth. Raises what the core refuses."""
        token_hash = identity.token_hash(request.token)
        if (again := self._enrolled_before(token_hash, request.signing_request)) is not None:
            return self._response(again)
        invited = self._driver.state.tokens.get(token_hash)
        # The core refuses an unknown token with the reason; a name is needed only to sign for a known one.
        site = invited.site if invited else SiteName("unknown")
        certificate = b""
        fingerprint, not_after = "", 0.0
        if invited:
            certificate = self._keys.authority.site(
                request.signing_request, site, self._driver.clock(), self._config.certificate_days
            )
            who = identity.identity_of(certificate, self._driver.state.consortium)
            fingerprint, not_after = who.fingerprint, who.not_after
        self._driver.execute(
            cm.EnrolSite(
                site=site,
                token_hash=token_hash,
                certificate=certificate.decode(),
                fingerprint=fingerprint,
                not_after=not_after,
            )
        )
        return self._response(certificate)

    def _enrolled_before(self, token_hash: str, signing_request: bytes) -> bytes | None:
        """The certificate that this token gave for this very key: the first answer may have been lost."""
        for site in self._driver.state.sites.values():
            if site.token_hash == token_hash:
                certificate = site.certificate.encode()
                asked = identity.check_signing_request(signing_request, site.name)
                return certificate if asked == key_of_certificate(certificate) else None
        return None

    def _response(self, certificate: bytes) -> enrolment_pb2.EnrolResponse:
        return enrolment_pb2.EnrolResponse(
            certificate=certificate,
            authority=self._keys.authority.pem,
            ledger_key=self._keys.ledger.public_key().public_bytes_raw(),
        )


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    def __init__(
        self, driver: Driver, membership: Membership, config: CoordinatorConfig, carry: Carry
    ) -> None:
        self._driver = driver
        self._membership = membership
        self._config = config
        self._carry = carry
        self._forecasting: asyncio.Task[bytes] | None = None  # one at a time: each has a copy of the state

    def _done(self, command: cm.Command) -> admin_pb2.CommandResponse:
        decision = self._driver.execute(command)
        return admin_pb2.CommandResponse(reason=decision.reason, sequence=self._driver.sequence)

    async def SubmitCampaign(
        self, request: admin_pb2.SubmitCampaignRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.CommandResponse:
        return self._done(
            cm.SubmitCampaign(campaign=decode(request.campaign, Campaign, "campaign"), sender=caller().name)
        )

    async def StopCampaign(
        self, request: admin_pb2.StopCampaignRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.CommandResponse:
        campaign = ids.campaign_id(request.campaign)
        return self._done(cm.StopCampaign(campaign=campaign, reason=_said(request.reason)))

    async def IssueToken(
        self, request: admin_pb2.IssueTokenRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.IssueTokenResponse:
        verdict = self._membership.judge(request.country)
        token, token_hash = identity.new_token()
        seconds = _seconds(request.valid) or self._config.token_hours * 3600.0
        self._driver.execute(
            cm.IssueToken(
                site=ids.site_name(request.site),
                organisation=_short(request.organisation, "organisation"),
                country=self._membership.country(request.country),
                token_hash=token_hash,
                valid_until=self._driver.clock() + seconds,
                membership=verdict.reason if verdict.allowed else None,
                refusal=verdict.reason,
            )
        )
        return admin_pb2.IssueTokenResponse(token=token)

    async def SetSite(
        self, request: admin_pb2.SetSiteRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.CommandResponse:
        if request.command not in _SITE_STATUS:
            raise BadInput(f"site {request.site}: command {request.command}; use drain, resume or suspend")
        status = _SITE_STATUS[request.command]
        site = ids.site_name(request.site)
        return self._done(cm.SetSite(site=site, status=status, reason=_said(request.reason)))

    async def Promote(
        self, request: admin_pb2.PromoteRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.CommandResponse:
        return self._done(_move(request, "promote"))

    async def RollBack(
        self, request: admin_pb2.PromoteRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.CommandResponse:
        return self._done(_move(request, "roll_back"))

    async def GetView(
        self, request: admin_pb2.GetViewRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.View:
        return admin_pb2.View(view=encode(self._driver.view()))

    async def Watch(
        self, request: admin_pb2.WatchRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[admin_pb2.View]:
        seconds = max(0.1, _seconds(request.interval) or 1.0)
        while True:
            yield admin_pb2.View(view=encode(self._driver.view()))
            await asyncio.sleep(seconds)

    async def Why(
        self, request: admin_pb2.WhyRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.WhyResponse:
        lines = self._driver.why(request.subject)
        if not lines:
            raise BadInput(unknown_subject(request.subject))
        return admin_pb2.WhyResponse(
            subject=request.subject,
            lines=[admin_pb2.StoryLine(at=x.at, sequence=x.sequence, text=x.text) for x in lines],
        )

    async def Carry(
        self, request: admin_pb2.CarryRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.CarryResponse:
        return self._carry(request.said, caller())

    async def Forecast(
        self, request: admin_pb2.ForecastRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ForecastResponse:
        spec = decode(request.campaign, Campaign, "campaign")
        assumed = decode(request.assumptions or b"{}", Assumptions, "assumptions")
        for site in assumed.sites:
            for window in site.windows or ():
                windows.check(window)
        if self._forecasting is not None and not self._forecasting.done():
            raise Unavailable("another forecast is under way; ask again in a moment")
        snapshot, now = self._driver.state.snapshot(), self._driver.clock()

        def foresee() -> bytes:
            state = restore(snapshot)
            return encode(forecast(state, spec, now, lambda site, at: opening_of(site.windows, at), assumed))

        # elsewhere, for it takes a second where there are many rounds; a thread goes on when nobody waits any more
        self._forecasting = asyncio.create_task(asyncio.to_thread(foresee))
        return admin_pb2.ForecastResponse(forecast=await asyncio.shield(self._forecasting))


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
        return _checkpoint(self._driver.checkpoint())


# --- wire words ---------------------------------------------------------------------------------------

_PHASES = {
    site_pb2.ATTEMPT_PHASE_STAGING: Phase.STAGING,
    site_pb2.ATTEMPT_PHASE_QUEUED: Phase.QUEUED,
    site_pb2.ATTEMPT_PHASE_RUNNING: Phase.RUNNING,
    site_pb2.ATTEMPT_PHASE_UPLOADING: Phase.UPLOADING,
    site_pb2.ATTEMPT_PHASE_ENDED: Phase.ENDED,
}
_OUTCOMES = {
    site_pb2.ATTEMPT_OUTCOME_SUCCEEDED: Outcome.SUCCEEDED,
    site_pb2.ATTEMPT_OUTCOME_FAILED: Outcome.FAILED,
    site_pb2.ATTEMPT_OUTCOME_PREEMPTED: Outcome.PREEMPTED,
    site_pb2.ATTEMPT_OUTCOME_EXPIRED: Outcome.EXPIRED,
    site_pb2.ATTEMPT_OUTCOME_REFUSED: Outcome.REFUSED,
    site_pb2.ATTEMPT_OUTCOME_CORRUPT: Outcome.CORRUPT,
    site_pb2.ATTEMPT_OUTCOME_CANCELLED: Outcome.CANCELLED,
}
_SITE_STATUS: dict[int, Literal["enrolled", "draining", "suspended"]] = {
    admin_pb2.SITE_COMMAND_DRAIN: "draining",
    admin_pb2.SITE_COMMAND_RESUME: "enrolled",
    admin_pb2.SITE_COMMAND_SUSPEND: "suspended",
}


def sync_command(site: SiteName, request: site_pb2.SyncRequest) -> cm.SyncSite:
    """What a Sync says, in our words. Raises BadInput for what is not in the contract, Refused for an unfit release."""
    if why := misfit(request.site.agent_version, _RELEASE):
        raise Refused(why)
    if len(request.site.holdings) > _HOLDINGS_MAX:
        raise BadInput(
            f"{len(request.site.holdings)} holdings; at most {_HOLDINGS_MAX}, one a language and access"
        )
    if max(len(request.site.allocations), len(request.site.windows)) > _WINDOWS_MAX:
        raise BadInput(f"more than {_WINDOWS_MAX} allocations or windows; a week needs fewer")
    if len({a.name for a in request.site.allocations}) < len(request.site.allocations):
        raise BadInput("two allocations of one name; what is used could not be told apart")
    return cm.SyncSite(
        site=site,
        agent_version=request.site.agent_version[:100],
        slots=min(request.site.slots, 10_000),
        draining=request.site.draining,
        merges=request.site.merges,
        allocations=tuple(_allocation(a) for a in sorted(request.site.allocations, key=lambda a: a.name)),
        windows=tuple(_window(w) for w in request.site.windows),
        gpus=min(request.site.gpus, 100_000),
        launcher=request.site.launcher[:_NAME_CHARACTERS_MAX],
        holdings=tuple(
            Holding(
                language=ids.language(h.language),
                access="public" if h.is_public else "private",
                documents=h.documents,
                bytes=h.text_bytes,
                heldout_documents=h.heldout_documents,
                licence=h.licence[:200],
                digest=ids.digest(h.digest),
            )
            for h in sorted(request.site.holdings, key=lambda h: (h.language, h.is_public))
        ),
        reports=tuple(_report(line) for line in request.attempts),
    )


def _report(line: site_pb2.AttemptReport) -> cm.Report:
    if line.phase not in _PHASES:
        raise BadInput(
            f"attempt {line.attempt!r}: phase {line.phase} is not in the contract; upgrade the agent"
        )
    ended = line.phase == site_pb2.ATTEMPT_PHASE_ENDED
    if ended and line.outcome not in _OUTCOMES:
        raise BadInput(f"attempt {line.attempt!r}: ended, but outcome {line.outcome} is not in the contract")
    return cm.Report(
        attempt=ids.attempt_id(line.attempt),
        phase=_PHASES[line.phase],
        outcome=_OUTCOMES[line.outcome] if ended else None,
        reason=line.reason[:1000],
        envelope=ids.digest(line.contribution) if line.contribution else None,
        usage=_usage(line) if line.HasField("usage") else None,
        detail=line.detail[:1000],
        started=line.started,
    )


def _usage(line: site_pb2.AttemptReport) -> Usage:
    told = line.usage
    joules = told.joules if told.HasField("joules") else None
    for name, number in (
        ("gpu_seconds", told.gpu_seconds),
        ("seconds", told.seconds),
        ("queued_seconds", told.queued_seconds),
        ("joules", joules or 0.0),
    ):
        if not 0.0 <= number < 1e15:  # NaN fails too; 1e15 s are thirty million years
            raise BadInput(
                f"attempt {line.attempt!r}: usage.{name} is {number}; it must be a number from 0 on"
            )
    return Usage(
        gpu_seconds=told.gpu_seconds,
        seconds=told.seconds,
        queued_seconds=told.queued_seconds,
        joules=joules,
        source="sacct" if told.source == site_pb2.USAGE_SOURCE_SACCT else "clock",
    )


def _allocation(told: site_pb2.Allocation) -> Allocation:
    if not 0.0 <= told.gpu_hours < 1e12:
        raise BadInput(f"allocation {told.name!r}: {told.gpu_hours} GPU-hours; it must be a number from 0 on")
    return Allocation(
        name=_short(told.name, "allocation"),
        gpu_hours=told.gpu_hours,
        until=told.until.seconds + told.until.nanos / 1e9 if told.HasField("until") else None,
    )


def _window(told: site_pb2.Window) -> Window:
    return windows.check(
        Window(
            cron=_short(told.cron, "cron"),
            seconds=_seconds(told.length),
            timezone=_short(told.timezone, "timezone") or "UTC",
        )
    )


def _sight(line: site_pb2.AttemptReport, report: cm.Report) -> Sight:
    progress = line.progress
    return Sight(
        phase=report.phase.value,
        step=progress.step,
        steps=progress.steps,
        tokens=progress.tokens,
        loss=progress.loss or None,
        tokens_per_second=progress.tokens_per_second,
    )


def _move(request: admin_pb2.PromoteRequest, verb: Literal["promote", "roll_back"]) -> cm.MoveHead:
    return cm.MoveHead(
        campaign=ids.campaign_id(request.campaign),
        version=request.version,
        verb=verb,
        reason=_said(request.reason),
    )


def _short(name: str, what: str) -> str:
    if len(name) > _NAME_CHARACTERS_MAX:
        raise BadInput(f"{what} {name[:20]!r}… has {len(name)} characters; at most {_NAME_CHARACTERS_MAX}")
    return name


def _seconds(duration: Duration) -> float:
    """As a number: protobuf's own conversion overflows on what a hostile caller may send."""
    seconds = float(duration.seconds + duration.nanos / 1e9)
    if seconds < 0:
        raise BadInput(f"{seconds:g} s; a duration cannot be negative")
    return seconds


def _said(reason: str) -> str:
    if not reason.strip():
        raise BadInput("a reason is needed: it stands in the ledger for the auditor")
    return reason.strip()[:1000]


def _checkpoint(checkpoint: Checkpoint) -> site_pb2.LedgerCheckpoint:
    return site_pb2.LedgerCheckpoint(
        sequence=checkpoint.sequence,
        head=checkpoint.head,
        signature=checkpoint.signature,
        public_key=checkpoint.public_key,
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(int(seconds * 1e6))
    return duration


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(int(seconds * 1e6))
    return stamp
