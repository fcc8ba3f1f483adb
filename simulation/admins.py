"""What a simulated consortium's admins do: invite every site, submit the campaign, and then meddle in what goes on.

They meddle at moments that the dice say, over the very service that ``sprachbund admin`` calls. What they take from a
site they give back, for a campaign has to end without a person's help afterwards; a campaign that they stop is over.
"""

import asyncio
from collections.abc import Callable
from random import Random as Dice
from typing import Any

import grpc
from sprachbund.v1 import admin_pb2, admin_pb2_grpc

from consortium.canonical import encode
from consortium.errors import BadInput, Refused, SprachbundError, Unavailable
from consortium.identity import Credentials
from consortium.invitation import Invitation
from consortium.wire_errors import from_rpc_error
from coordinator.core.state import CampaignState
from policies.campaign import Campaign
from simulation.coordinators import ENROLMENT, MAIN, CoordinatorHost
from simulation.draws import lognormal
from simulation.loop import Process
from simulation.machine import Host
from simulation.network import Network
from simulation.sites import SiteHost

_TRY_AGAIN_SECONDS = 30.0
_MEDDLED_SECONDS, _MEDDLED_SIGMA = 1800.0, 1.0  # until a site gets back what was taken from it
_STOP_SHARE = 0.04  # of all meddling; what is stopped cannot be meddled with any more

Told = Callable[[str, str], None]  #: of whom, and what was done to it


class Admins:
    """blame  is told what no admin should hear"""

    def __init__(
        self, host: Host, network: Network, coordinator: CoordinatorHost, blame: Callable[[str], None]
    ) -> None:
        self._host, self._network, self._coordinator, self._blame = host, network, coordinator, blame

    def begin(self, sites: list[SiteHost], campaign: Campaign, failed: Callable[[], None]) -> None:
        """``failed`` is called if the campaign cannot be had."""
        Process("admin", self._host).spawn(self._begun(sites, campaign, failed))

    def meddle(self, dice: Dice, site: SiteHost, told: Told) -> None:
        """One thing more or less wise, to ``site`` or to its campaign."""
        Process("meddling admin", self._host).spawn(self._meddled(dice, site, told))

    # ---- inside

    def _stub(self) -> Any:
        folder = self._coordinator.home / "admin"
        own = Credentials((folder / "admin.pem").read_bytes(), (folder / "admin.key").read_bytes())
        return admin_pb2_grpc.AdminServiceStub(self._network.open_channel(MAIN, b"", own))

    async def _begun(self, sites: list[SiteHost], campaign: Campaign, failed: Callable[[], None]) -> None:
        try:
            await self._invite_and_submit(sites, campaign)
        except SprachbundError as error:
            self._blame(f"the campaign cannot be submitted: {error}")
            failed()

    async def _invite_and_submit(self, sites: list[SiteHost], campaign: Campaign) -> None:
        """Again and again until it is done."""
        stub, loop = self._stub(), self._network.loop
        authority = self._coordinator.keys.authority.pem.decode()
        for site in sites:
            request = admin_pb2.IssueTokenRequest(
                site=site.plan.name,
                organisation=site.plan.organisation or site.plan.name,
                country=site.plan.country,
            )
            request.valid.FromSeconds(30 * 86400)
            answer = await _insist(stub.IssueToken, request)
            invitation = Invitation(
                consortium="simulated",
                site=site.plan.name,
                coordinator=MAIN,
                enrolment=ENROLMENT,
                authority=authority,
                token=answer.token,
            )
            loop.call_soon(site.start, invitation, context=loop.outside)
        await _insist(stub.SubmitCampaign, admin_pb2.SubmitCampaignRequest(campaign=encode(campaign)))

    async def _meddled(self, dice: Dice, site: SiteHost, told: Told) -> None:
        stub = self._stub()
        kind = "stop" if dice.random() < _STOP_SHARE else dice.choice(_KINDS)
        rest = lognormal(dice, _MEDDLED_SECONDS, _MEDDLED_SIGMA)
        try:
            if kind in _TAKEN:
                told(site.plan.name, kind)
                command, reason = _TAKEN[kind], "a simulated admin wishes so"
                await self._set(stub, site, command, reason)
                await asyncio.sleep(rest)
                await self._set(stub, site, admin_pb2.SITE_COMMAND_RESUME, "and has changed their mind")
                return
            driver = self._coordinator.driver
            for _, campaign in sorted(driver.state.campaigns.items()) if driver is not None else ():
                told(campaign.spec.campaign, kind)
                await self._change(stub, kind, dice, campaign)
        except (Refused, BadInput) as error:  # it was not to be; a failure of ours looks otherwise
            if "failed; its log has the reason" in str(error):
                self._blame(f"invariant 8: an admin's wish to {kind} is answered: {error}")

    async def _set(self, stub: Any, site: SiteHost, command: admin_pb2.SiteCommand, reason: str) -> None:
        request = admin_pb2.SetSiteRequest(site=site.plan.name, reason=reason, command=command)
        await _insist(stub.SetSite, request)

    async def _change(self, stub: Any, kind: str, dice: Dice, campaign: CampaignState) -> None:
        name = campaign.spec.campaign
        if kind == "stop":
            await _insist(stub.StopCampaign, admin_pb2.StopCampaignRequest(campaign=name, reason="enough"))
            return
        versions = sorted(
            one.name
            for one in campaign.versions.values()
            if kind == "roll back" or one.status != "promoted"  # what is promoted cannot be once more
        )
        if versions:
            version = versions[int(dice.random() * len(versions))]
            call = stub.Promote if kind == "promote" else stub.RollBack
            reason = "a simulated admin likes it better"
            await _insist(call, admin_pb2.PromoteRequest(campaign=name, version=version, reason=reason))


_TAKEN = {"drain": admin_pb2.SITE_COMMAND_DRAIN, "suspend": admin_pb2.SITE_COMMAND_SUSPEND}
_KINDS = (*_TAKEN, *_TAKEN, "promote", "roll back")


async def _insist(ask: Any, request: Any) -> Any:
    """The answer, however long it takes. Raises what trying again cannot help."""
    while True:
        try:
            return await ask(request, timeout=60.0)
        except grpc.RpcError as error:
            refused = from_rpc_error(error)
            if not isinstance(refused, Unavailable):
                raise refused from error
            await asyncio.sleep(_TRY_AGAIN_SECONDS)
