"""How a site enrols: an invitation in, a certificate out, for a key that never leaves home."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
from sprachbund.v1 import enrolment_pb2, enrolment_pb2_grpc

from consortium.channels import open_channel
from consortium.errors import BadInput, Refused, Unavailable
from consortium.failover import addresses
from consortium.identity import signing_request
from consortium.invitation import Invitation
from consortium.loading import read
from consortium.wire_errors import from_rpc_error
from site_agent.config import SiteConfig
from site_agent.identity import SiteIdentity, Trust, has_enrolled, next_key

_CALL_SECONDS = 30.0


def read_invitation(path: Path) -> Invitation:
    """The invitation in a YAML or JSON file. Raises BadInput with every line that is wrong."""
    return read(path).convert(Invitation)


def enrol(config: SiteConfig, invitation: Invitation) -> SiteIdentity:
    """Enrol the site of ``config``; the identity is in ``home/identity`` when this returns.

    A site that is enrolled already, by this very consortium, keeps what it has. Raises BadInput or Refused if
    the invitation is not for this site or its token is used or expired, Unavailable if nobody answers.
    """
    if invitation.site != config.site:
        raise BadInput(
            f"the invitation is for site {invitation.site}, this is {config.site}; use this site's own"
        )
    home = Path(config.home)
    if has_enrolled(home):
        present = SiteIdentity.load(home)
        if present.trust.authority.strip() != invitation.authority.strip():
            raise Refused(
                f"{home}: enrolled in consortium {present.trust.consortium}, the invitation is to another "
                f"({invitation.consortium}) or its authority has changed; "
                f"choose another home, or remove {home / 'identity'}"
            )
        if present.seconds_left(time.time()) > 0:
            return present
    identity = asyncio.run(ask(config, invitation, home))
    identity.save(home)
    return identity


async def ask(config: SiteConfig, invitation: Invitation, home: Path) -> SiteIdentity:
    """A new identity, which is nowhere yet but here; raises as ``enrol``."""
    key = next_key(home)
    signed = signing_request(config.site, key)
    request = enrolment_pb2.EnrolRequest(token=invitation.token, signing_request=signed)
    *others, last = addresses(invitation.enrolment)
    for target in others:  # coordinators that take turns
        try:
            answer = await _enrol(target, invitation, request)
            break
        except Unavailable:
            continue
    else:
        answer = await _enrol(last, invitation, request)
    if answer.authority.strip() != invitation.authority.encode().strip():
        raise Refused(
            f"{invitation.enrolment}: its authority is not the invitation's; ask the admin which is right"
        )
    trust = Trust(
        consortium=invitation.consortium,
        site=config.site,
        authority=invitation.authority,
        ledger_key=answer.ledger_key.hex(),
    )
    identity = SiteIdentity(trust, key, answer.certificate)
    identity.check()
    return identity


async def _enrol(target: str, invitation: Invitation, request: enrolment_pb2.EnrolRequest) -> Any:
    async with open_channel(target, invitation.authority.encode()) as channel:
        stub: Any = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
        try:
            return await stub.Enrol(request, timeout=_CALL_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
