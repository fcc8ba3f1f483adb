"""How an agent begins: who may be the site's agent now, and for how long.

One agent is at work on a home at a time; the coordinator, which hears the newest, has the last word.
"""

import asyncio
import logging
import time
from pathlib import Path

from consortium.errors import Refused, Unavailable
from site_agent.agent import Agent
from site_agent.config import SiteConfig
from site_agent.identity import SiteIdentity
from site_agent.launchers.base import Launcher
from site_agent.launching import make_launcher
from site_agent.status import at_work

_log = logging.getLogger(__name__)


def run_agent(
    config: SiteConfig, once: bool = False, launcher: Launcher | None = None, take_over: bool = False
) -> int:
    """Be the site's agent until SIGTERM or SIGINT (jobs go on); with ``once``, one Sync and what follows.

    take_over  begin although an agent of this site was seen at work on another host minutes ago

    Returns the exit code: 0; 8 if a newer agent of the site has taken over; with ``once`` 5 if nobody answered.
    Where another agent is at work on this home, ``once`` leaves it to that one. Raises Unavailable if the site
    has not enrolled, or if an agent of it is at work already, Refused if it has to enrol again.
    """
    identity = SiteIdentity.load(Path(config.home))
    if identity.trust.site != config.site:
        raise Refused(
            f"{config.home}: enrolled as site {identity.trust.site}, the config says {config.site}; "
            f"use that site's config, or another home"
        )
    if identity.seconds_left(time.time()) <= 0:
        raise Refused("this site's certificate has expired; ask for a new invitation and enrol again")
    other = at_work(Path(config.home))
    if other is not None and once:
        _log.info("agent %d on %s is at work; nothing is left for this one to do", other.pid, other.host)
        return 0
    if other is not None and other.is_running:
        raise Unavailable(
            f"{config.home}: an agent of this site runs here already, pid {other.pid}; stop it first"
        )
    if other is not None and not take_over:  # one run by hand must not end what a service manager keeps going
        raise Unavailable(
            f"{config.home}: an agent of this site was at work on {other.host} {time.time() - other.seen_at:.0f} s "
            "ago; stop it there, or take its place with --take-over"
        )

    async def run() -> int:
        agent = Agent(config, identity, launcher or make_launcher(config))
        return await (agent.run_once() if once else agent.run())

    return asyncio.run(run())
