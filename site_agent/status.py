"""How a site stands, for ``site status``: from what the agent leaves on disk, whether it runs or not."""

import os
import socket
import time
from pathlib import Path

from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput
from consortium.files import write_bytes_atomically
from consortium.ids import SiteName
from site_agent.config import SiteConfig
from site_agent.core.facts import AttemptFiles, UsedUp
from site_agent.mode import Mode, read_mode
from site_agent.processes import began
from site_agent.spool import Spool

SEEN_SECONDS = 60.0  #: an agent that goes on says so at least this often
_GONE_SECONDS = 5 * SEEN_SECONDS  # on another host, after this nobody need be expected to come back


class AgentStatus(Fact):
    """``agent.json``: written by the agent when it starts, when something changes, every minute, when it leaves.

    A hint for people and for a second agent on the same home; who may speak for the site is decided at the
    coordinator alone.
    """

    site: SiteName
    pid: int
    host: str
    incarnation: str
    started_at: float  #: seconds since the epoch
    synced_at: float | None  #: last answer; None: none since the start
    trouble: str = ""  #: why the last Sync failed
    clock_ahead_seconds: float = 0.0  #: of the coordinator's clock over this one
    began: str = ""  #: of the process, in ticks since boot: tells it from a later one with its pid
    seen_at: float = 0.0  #: when this was written
    stopped: bool = False  #: it left in an orderly way
    used_up: tuple[UsedUp, ...] = ()  #: what the coordinator did not take down at the last Sync

    @property
    def is_running(self) -> bool | None:
        """None: it ran on another host, from where nobody can tell."""
        if self.stopped:
            return False
        if self.host != socket.gethostname():
            return None
        ticks = began(self.pid)
        return ticks != "" and self.began in ("", ticks)

    def is_at_work(self, now: float) -> bool:
        """Whether another agent had better leave this home to it."""
        running = self.is_running
        return now - self.seen_at < _GONE_SECONDS if running is None else running


class SiteStatus(Fact):
    agent: AgentStatus | None  #: None: no agent has ever synced here
    attempts: tuple[AttemptFiles, ...]
    broken: tuple[str, ...]  #: what lies in ``spool/broken``
    mode: Mode = Mode()


def write_status(home: Path, status: AgentStatus) -> None:
    write_bytes_atomically(home / "agent.json", encode(status))


def read_status(home: Path) -> AgentStatus | None:
    """Raises BadInput if the file is not one."""
    path = home / "agent.json"
    try:
        return decode(path.read_bytes(), AgentStatus, str(path))
    except FileNotFoundError:
        return None


def at_work(home: Path) -> AgentStatus | None:
    """The other agent that is at work on this home, as far as can be told from here."""
    try:
        found = read_status(home)
    except BadInput:
        return None
    if found is None or not found.is_at_work(time.time()):
        return None
    is_this = (found.host, found.pid) == (socket.gethostname(), os.getpid())
    return None if is_this else found


def site_status(config: SiteConfig) -> SiteStatus:
    """Everything the site's home tells. Raises Unavailable if it cannot be read."""
    home = Path(config.home)
    spool = Spool(home / "spool")
    attempts, _ = spool.look()
    broken = sorted(place.name for place in (home / "spool" / "broken").glob("*"))
    return SiteStatus(agent=read_status(home), attempts=attempts, broken=tuple(broken), mode=read_mode(home))
