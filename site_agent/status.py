"""How a site stands, for ``site status``: from what the agent leaves on disk, whether it runs or not."""

import os
import socket
from pathlib import Path

from consortium.canonical import Fact, decode, encode
from consortium.files import write_bytes_atomically
from consortium.ids import SiteName
from site_agent.config import SiteConfig
from site_agent.core.facts import AttemptFiles
from site_agent.spool import Spool


class AgentStatus(Fact):
    """``agent.json``: written by the agent after every Sync."""

    site: SiteName
    pid: int
    host: str
    incarnation: str
    started_at: float  #: seconds since the epoch
    synced_at: float | None  #: last answer; None: none since the start
    trouble: str = ""  #: why the last Sync failed
    clock_ahead_seconds: float = 0.0  #: of the coordinator's clock over this one

    @property
    def is_running(self) -> bool | None:
        """None: it ran on another host, from where nobody can tell."""
        if self.host != socket.gethostname():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


class SiteStatus(Fact):
    agent: AgentStatus | None  #: None: no agent has ever synced here
    attempts: tuple[AttemptFiles, ...]
    broken: tuple[str, ...]  #: what lies in ``spool/broken``


def write_status(home: Path, status: AgentStatus) -> None:
    write_bytes_atomically(home / "agent.json", encode(status))


def site_status(config: SiteConfig) -> SiteStatus:
    """Everything the site's home tells. Raises Unavailable if it cannot be read."""
    home = Path(config.home)
    path = home / "agent.json"
    spool = Spool(home / "spool")
    attempts, _ = spool.look()
    broken = sorted(place.name for place in (home / "spool" / "broken").glob("*"))
    agent = decode(path.read_bytes(), AgentStatus, str(path)) if path.exists() else None
    return SiteStatus(agent=agent, attempts=attempts, broken=tuple(broken))
