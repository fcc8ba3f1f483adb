"""What is wrong with a site, before it costs somebody a night: one check a line, each with its way out."""

import asyncio
import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from consortium.canonical import Fact
from consortium.channels import open_channel
from consortium.errors import Refused, SprachbundError, Unavailable
from consortium.files import write_bytes_atomically
from consortium.wire_errors import from_rpc_error
from site_agent.config import SiteConfig, Text
from site_agent.identity import SiteIdentity, has_enrolled
from site_agent.launchers import make_launcher
from site_agent.status import SiteStatus, site_status
from site_agent.text import files_of
from site_agent.witness import Witness

_FREE_BYTES_MIN = 5 << 30  # a small base model, a training checkpoint and a delta
_CALL_SECONDS = 10.0
_CLOCK_SECONDS_MAX = 60.0  # certificates are made valid 300 s early; leave some of it
_DAY_SECONDS = 86_400.0


class Check(Fact):
    name: str
    is_good: bool
    detail: str
    way_out: str = ""  #: what to do, if it is not good
    exit_code: int = 0  #: of the kind of error it is; see consortium/errors.py


def doctor(config: SiteConfig) -> list[Check]:
    """Every check, good or not. Does not speak to the coordinator in the agent's place."""
    home = Path(config.home)
    checks = [
        _check("home", lambda: _home(home), "make the folder writable for this user, or change `home`"),
        _check("space", lambda: _space(home), "free some space, or move `home` to a larger file system"),
        _check("identity", lambda: _identity(home), "run `sprachbund site enrol` with a fresh invitation"),
        *_enrolled(config, home),
        _check("launcher", lambda: _launcher(config), "choose another `launcher` in the site's config"),
        _check("software", _software, "install the project's dependencies into this environment"),
    ]
    for text in config.text:
        name = f"text {text.language}"
        checks.append(_check(name, partial(_text, text), "correct its `path`"))
    try:
        checks += _agent(site_status(config))
    except SprachbundError as error:
        checks.append(Check(name="spool", is_good=False, detail=str(error), way_out="see `spool/` by hand"))
    return checks


def _enrolled(config: SiteConfig, home: Path) -> Iterator[Check]:
    """What needs an identity; without one, that is all that is wrong with it."""
    network, admin, rewritten = (
        (
            "see the network, proxy and address",
            "talk to the consortium's admin",
            "do not go on; show it to the auditor",
        )
        if has_enrolled(home)
        else ("enrol first",) * 3
    )
    yield _check("coordinator", lambda: _coordinator(config, home), network, if_refused=admin)
    yield _check("ledger", lambda: _ledger(home), rewritten)


def _check(name: str, look: Callable[[], str], way_out: str, if_refused: str | None = None) -> Check:
    try:
        return Check(name=name, is_good=True, detail=look())
    except (SprachbundError, OSError) as error:
        code = error.exit_code if isinstance(error, SprachbundError) else Unavailable.exit_code
        if if_refused is not None and isinstance(error, Refused):
            way_out = if_refused
        return Check(name=name, is_good=False, detail=str(error), way_out=way_out, exit_code=code)


def _home(home: Path) -> str:
    probe = home / f".doctor.{os.getpid()}"
    write_bytes_atomically(probe, b"")
    probe.unlink()
    return f"{home} can be written to"


def _space(home: Path) -> str:
    free = shutil.disk_usage(home).free
    if free < _FREE_BYTES_MIN:
        raise OSError(f"{free / 1e9:.1f} GB are free, a job may need {_FREE_BYTES_MIN / 1e9:.1f}")
    return f"{free / 1e9:.0f} GB are free"


def _identity(home: Path) -> str:
    identity = SiteIdentity.load(home)
    days = identity.seconds_left(time.time()) / _DAY_SECONDS
    if days <= 0:
        raise OSError(f"the certificate expired {-days:.1f} days ago")
    return f"site {identity.trust.site} of {identity.trust.consortium}, certified for {days:.0f} more days"


def _coordinator(config: SiteConfig, home: Path) -> str:
    identity = SiteIdentity.load(home)

    async def ask() -> None:
        async with open_channel(config.coordinator, identity.authority, identity.credentials) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_CALL_SECONDS
            )

    try:
        asyncio.run(ask())
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    return f"{config.coordinator} answers, and both sides know each other"


def _ledger(home: Path) -> str:
    path = home / "checkpoints.jsonl"
    Witness(path, SiteIdentity.load(home).ledger_key)
    heads = len(path.read_bytes().splitlines()) if path.exists() else 0
    return f"{heads} signed heads kept"


def _launcher(config: SiteConfig) -> str:
    make_launcher(config)
    return f"{config.launcher}, {config.slots} jobs at once"


def _software() -> str:
    missing = [name for name in ("torch", "transformers", "tokenizers") if not importlib.util.find_spec(name)]
    if missing:
        raise OSError(f"not installed: {', '.join(missing)}")
    return "torch, transformers and tokenizers are installed"


def _text(text: Text) -> str:
    files = files_of(text)
    size = sum(path.stat().st_size for path, _ in files)
    return f"{len(files)} files, {size / 1e6:.1f} MB"


def _agent(status: SiteStatus) -> Iterator[Check]:
    agent = status.agent
    if agent is None:
        yield Check(name="agent", is_good=True, detail="has never synced here")
    else:
        since = "never" if agent.synced_at is None else f"{time.time() - agent.synced_at:.0f} s ago"
        runs = {True: "runs", False: "does not run", None: f"was started on {agent.host}"}[agent.is_running]
        yield Check(
            name="agent",
            is_good=not agent.trouble,
            detail=f"{runs}; last Sync {since}" + (f"; {agent.trouble}" if agent.trouble else ""),
            way_out="the message says it" if agent.trouble else "",
        )
        yield Check(
            name="clock",
            is_good=abs(agent.clock_ahead_seconds) < _CLOCK_SECONDS_MAX,
            detail=f"the coordinator's is {agent.clock_ahead_seconds:+.1f} s ahead",
            way_out="have this machine's clock set (NTP)",
        )
    yield Check(
        name="spool",
        is_good=not status.broken,
        detail=f"{len(status.attempts)} attempts"
        + (f"; broken: {', '.join(status.broken)}" if status.broken else ""),
        way_out="look at them in spool/broken, then delete them",
    )
