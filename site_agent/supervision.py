"""What a service manager is told: that the agent is ready, that its loop still turns, that it leaves.

The protocol is one datagram to the socket that ``NOTIFY_SOCKET`` names; source: sd_notify(3). Without such a
socket nothing is told, so the agent is the same under cron, in a Slurm job and by hand.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping

_USEC = 1e6


class Supervisor:
    """To be told by the loop itself: after each turn, and within one for as long as that may rightly take.

    seconds_max  what the loop may wait at most, so that the watchdog is not missed; None: as long as it likes
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address  # abstract: unix(7)
        self._status = ""
        self._told_at = float("-inf")
        self.seconds_max: float | None = None
        wanted = environment.get("WATCHDOG_USEC", "")
        for_us = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        if self._address and for_us and wanted.isdigit() and int(wanted):
            self.seconds_max = int(wanted) / _USEC / 3  # half is the rule; a third leaves one turn to be slow

    @property
    def is_there(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._address)

    def is_ready(self) -> None:
        self._tell("READY=1")

    def turned(self, status: str) -> None:
        """The loop has looked, decided and acted. ``status`` is shown by ``systemctl status``."""
        words = []
        if status != self._status:
            self._status = status
            words.append(f"STATUS={status}")
        if self.seconds_max is not None and time.monotonic() - self._told_at >= self.seconds_max / 2:
            words.append("WATCHDOG=1")
            self._told_at = time.monotonic()
        if words:
            self._tell(*words)

    def is_leaving(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, *words: str) -> None:
        if not self._address:
            return
        # a manager that is gone, or reads nothing, is no reason to leave, nor to stand still
        with contextlib.suppress(OSError):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
                connection.setblocking(False)
                connection.sendto("\n".join(words).encode(), self._address)
