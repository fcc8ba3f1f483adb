"""What those who run the consortium ask."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
from sprachbund.v1 import (
    admin_pb2,
    admin_pb2_grpc,
)

from consortium import identity, ids
from consortium.canonical import decode, encode
from consortium.errors import BadInput, Unavailable
from consortium.forecasts import Assumptions
from coordinator.config import CoordinatorConfig
from coordinator.core import commands as cm
from coordinator.core.fitting import fitting
from coordinator.core.forecast import forecast
from coordinator.core.snapshot import keep, restore
from coordinator.core.view import SHOWN_MAX
from coordinator.driver import Driver, opening_of
from coordinator.guard import caller
from coordinator.reading import unknown_subject
from coordinator.services.words import PEOPLE, SITE_STATUS, move, said, seconds_of, short
from policies import windows
from policies.campaign import Campaign
from policies.membership import Membership

_CAMPAIGN_BYTES_MAX = 1 << 20
_TOKEN_SECONDS_MAX = 30 * 86_400.0  #: an invitation that a courier carries may be under way for weeks

_VIEW_BYTES_MAX = 15 << 20  # a message may have 16 MiB (``consortium.channels``)

_SHARED_SHARE = 0.9  # all who watch see one view for so much of their interval, of a second at most

Carry = Callable[[bytes, identity.Identity], admin_pb2.CarryResponse]  #: a bundle's head, and who carries it


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    def __init__(
        self, driver: Driver, membership: Membership, config: CoordinatorConfig, carry: Carry
    ) -> None:
        self._driver = driver
        self._membership = membership
        self._config = config
        self._carry = carry
        self._most = SHOWN_MAX  # so many things that are over fitted into the last view
        self._made: tuple[float, int, admin_pb2.View | None] = 0.0, 0, None  # when, of which sequence
        self._forecasting: asyncio.Task[bytes] | None = None  # one at a time: each has a copy of the state

    def _done(self, command: cm.Command) -> admin_pb2.CommandResponse:
        decision = self._driver.execute(command)
        return admin_pb2.CommandResponse(reason=decision.reason, sequence=self._driver.sequence)

    async def SubmitCampaign(
        self, request: admin_pb2.SubmitCampaignRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.CommandResponse:
        return self._done(cm.SubmitCampaign(campaign=_campaign(request.campaign), sender=caller().name))

    async def StopCampaign(
        self, request: admin_pb2.StopCampaignRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.CommandResponse:
        campaign = ids.campaign_id(request.campaign)
        return self._done(cm.StopCampaign(campaign=campaign, reason=said(request.reason)))

    async def IssueToken(
        self, request: admin_pb2.IssueTokenRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.IssueTokenResponse:
        verdict = self._membership.judge(request.country)
        token, token_hash = identity.new_token()
        seconds = seconds_of(request.valid) or self._config.token_hours * 3600.0
        if seconds > _TOKEN_SECONDS_MAX:
            raise BadInput(
                f"an invitation for {seconds / 3600:g} h; at most {_TOKEN_SECONDS_MAX / 3600:g} h, "
                "since whoever finds it meanwhile may use it; give another one later"
            )
        self._driver.execute(
            cm.IssueToken(
                site=ids.site_name(request.site),
                organisation=short(request.organisation, "organisation"),
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
        if request.command not in SITE_STATUS:
            raise BadInput(f"site {request.site}: command {request.command}; use drain, resume or suspend")
        status = SITE_STATUS[request.command]
        site = ids.site_name(request.site)
        return self._done(cm.SetSite(site=site, status=status, reason=said(request.reason)))

    async def Revoke(
        self, request: admin_pb2.RevokeRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.CommandResponse:
        if request.role not in PEOPLE:
            raise BadInput(
                f"role {short(request.role, 'role')!r}: write admin, auditor or reader; a site is suspended"
            )
        role = PEOPLE[request.role]
        name, reason = ids.site_name(request.name), said(request.reason)
        return self._done(cm.RevokePerson(role=role, name=name, by=caller().name, reason=reason))

    async def Promote(
        self, request: admin_pb2.PromoteRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.CommandResponse:
        return self._done(move(request, "promote"))

    async def RollBack(
        self, request: admin_pb2.PromoteRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.CommandResponse:
        return self._done(move(request, "roll_back"))

    def _view(self) -> admin_pb2.View:
        """As it is now, with as much of what is over as a message holds. Made on the loop's thread, which alone may
        look at a state that changes.
        """
        view, most = fitting(lambda most: encode(self._driver.view(most)), self._most, _VIEW_BYTES_MAX)
        # next time no more than fitted, and more again as soon as there is much room
        self._most = min(SHOWN_MAX, 2 * most if 2 * len(view) < _VIEW_BYTES_MAX else most)
        made = admin_pb2.View(view=view)
        self._made = asyncio.get_running_loop().time(), self._driver.sequence, made
        return made

    def _recent(self, seconds: float) -> admin_pb2.View:
        """One that somebody else was given less than so long ago, if no event came since; else a new one."""
        at, sequence, made = self._made
        is_recent = asyncio.get_running_loop().time() - at < seconds and sequence == self._driver.sequence
        return made if made is not None and is_recent else self._view()

    async def GetView(
        self, request: admin_pb2.GetViewRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.View:
        return self._view()

    async def Watch(
        self, request: admin_pb2.WatchRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[admin_pb2.View]:
        seconds = max(0.1, seconds_of(request.interval) or 1.0)
        while True:
            yield self._recent(_SHARED_SHARE * min(1.0, seconds))
            await asyncio.sleep(seconds)

    async def Why(
        self, request: admin_pb2.WhyRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.WhyResponse:
        lines = await self._driver.why(request.subject)
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
        spec = _campaign(request.campaign)
        assumed = decode(request.assumptions or b"{}", Assumptions, "assumptions")
        for site in assumed.sites:
            for window in site.windows or ():
                windows.check(window)
        if self._forecasting is not None and not self._forecasting.done():
            raise Unavailable("another forecast is under way; ask again in a moment")
        kept, now = keep(self._driver.state), self._driver.clock()

        def foresee() -> bytes:
            state = restore(kept)
            return encode(forecast(state, spec, now, lambda site, at: opening_of(site.windows, at), assumed))

        # elsewhere, for it takes a second where there are many rounds; a thread goes on when nobody waits any more
        self._forecasting = asyncio.create_task(asyncio.to_thread(foresee))
        return admin_pb2.ForecastResponse(forecast=await asyncio.shield(self._forecasting))


def _campaign(data: bytes) -> Campaign:
    if len(data) > _CAMPAIGN_BYTES_MAX:
        raise BadInput(
            f"the campaign has {len(data)} bytes, at most {_CAMPAIGN_BYTES_MAX}: it stands in the ledger for good"
        )
    return decode(data, Campaign, "campaign")
