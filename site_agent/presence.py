"""What a running agent leaves in ``agent.json``: that it is there, and how its talk with the coordinator goes."""

import os
import socket
import time
from pathlib import Path

from consortium.canonical import replace
from consortium.ids import SiteName
from site_agent.conversation import Conversation
from site_agent.processes import began
from site_agent.status import SEEN_SECONDS, AgentStatus, read_status, write_status


class Presence:
    """Writes when something changed or a minute has passed: each write is two fsyncs on a shared file system."""

    def __init__(self, home: Path, site: SiteName, incarnation: str) -> None:
        self._home = home
        self._written_at = 0.0
        self.status = AgentStatus(
            site=site,
            pid=os.getpid(),
            host=socket.gethostname(),
            incarnation=incarnation,
            started_at=time.time(),
            synced_at=None,
            began=began(os.getpid()),
        )

    def note(self, talk: Conversation) -> None:
        """Raises Unavailable if it cannot be written."""
        before, now = self.status, time.time()
        news = talk.news
        status = replace(
            before,
            synced_at=talk.synced_at,
            trouble=talk.trouble,
            clock_ahead_seconds=news.clock_ahead_seconds if news else 0.0,
            seen_at=now,
            used_up=news.used_up if news else (),
        )
        is_news = _substance(status) != _substance(before)
        self.status = status
        if is_news or now - self._written_at >= SEEN_SECONDS:
            write_status(self._home, status)
            self._written_at = now

    def leave(self) -> None:
        """An orderly end, unless a newer agent of this home has written its own by now."""
        found = read_status(self._home)
        if found is not None and found.incarnation == self.status.incarnation:
            write_status(self._home, replace(self.status, seen_at=time.time(), stopped=True))


def _substance(status: AgentStatus) -> tuple[object, ...]:
    """What people should not have to wait for a minute to see."""
    return status.trouble, status.synced_at is None, [one.budget for one in status.used_up]
