"""Can the site talk to its coordinator: proxy, TLS in both directions, the identity, the ledger's past."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from consortium.channels import CLOCK, open_channel, user_agent
from consortium.errors import Refused, Unavailable
from consortium.failover import addresses
from consortium.proxies import proxy_for, without_password
from consortium.wire_errors import from_rpc_error
from site_agent.config import SiteConfig
from site_agent.doctor.check import Check, check
from site_agent.identity import SiteIdentity, has_enrolled
from site_agent.witness import Witness

_CALL_SECONDS = 10.0
_CLOCK_SECONDS_MAX = 60.0  # certificates are made valid 300 s early; leave some of it
_DAY_SECONDS = 86_400.0
_NETWORK = "see the network, proxy and address"
_ADMIN = "talk to the consortium's admin"
_AUDITOR = "do not go on; show it to the auditor"


def network_checks(config: SiteConfig) -> Iterator[Check]:
    home = Path(config.home)
    yield check("identity", lambda: _identity(home), "run `sprachbund site enrol` with a fresh invitation")
    network, admin, rewritten = (_NETWORK, _ADMIN, _AUDITOR) if has_enrolled(home) else ("enrol first",) * 3
    if config.by_courier:
        yield Check(name="coordinator", is_good=True, detail="bundles carry everything; nobody is called")
    else:
        yield check(
            "proxy", lambda: _proxy(config), "correct `proxy` in the site's config, or the environment"
        )
        clocks: list[float] = []
        yield check("coordinator", lambda: _coordinator(config, home, clocks), network, if_refused=admin)
        for ahead in clocks:
            yield clock(ahead, "just now")
    yield check("ledger", lambda: _ledger(home), rewritten)


def _proxy(config: SiteConfig) -> str:
    found = proxy_for(addresses(config.coordinator)[0], config.proxy_setting, os.environ)
    return f"through {without_password(found)}" if found else "none, straight to the coordinator"


def _identity(home: Path) -> str:
    identity = SiteIdentity.load(home)
    days = identity.seconds_left(time.time()) / _DAY_SECONDS
    if days <= 0:
        raise Refused(f"the certificate expired {-days:.1f} days ago")
    return f"site {identity.trust.site} of {identity.trust.consortium}, certified for {days:.0f} more days"


def clock(ahead_seconds: float, when: str) -> Check:
    """Of the coordinator's clock over this one, and when it was compared."""
    is_near = abs(ahead_seconds) < _CLOCK_SECONDS_MAX
    return Check(
        name="clock",
        is_good=is_near,
        detail=f"the coordinator's is {ahead_seconds:+.1f} s ahead ({when})",
        way_out="" if is_near else "have this machine's clock set (NTP)",
        exit_code=0 if is_near else Unavailable.exit_code,
    )


def _coordinator(config: SiteConfig, home: Path, clocks: list[float]) -> str:
    """The difference of the clocks is appended to ``clocks``; one that is older than 0.5 tells none."""
    identity = SiteIdentity.load(home)

    async def ask() -> None:
        async with open_channel(
            config.coordinator,
            identity.authority,
            identity.credentials,
            proxy=config.proxy_setting,
            program=user_agent(version("sprachbund"), "doctor"),
        ) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_SECONDS)
            began = time.time()  # the connection is there now
            call = health.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_SECONDS)
            await call
            middle = (began + time.time()) / 2
            told = dict(await call.trailing_metadata()).get(CLOCK, "")
            with contextlib.suppress(ValueError):
                clocks.append(float(told) - middle)

    try:
        asyncio.run(ask())
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    return f"{config.coordinator} answers over TLS, and both sides know each other"


def _ledger(home: Path) -> str:
    path = home / "checkpoints.jsonl"
    Witness(path, SiteIdentity.load(home).ledger_key)
    heads = len(path.read_bytes().splitlines()) if path.exists() else 0
    return f"{heads} signed heads kept"
