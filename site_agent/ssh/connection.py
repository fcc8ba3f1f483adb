"""How an agent outside runs shell scripts at a site: over one login, which it opens when it needs it."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from consortium.errors import Unavailable
from site_agent.ssh.master import CHECK_SECONDS, Master
from site_agent.ssh.session import Answer, Session, begun, whole_answer
from site_agent.ssh.settings import Ssh
from site_agent.ssh.trouble import Trouble

_SESSIONS = 4  # at once from one process; sshd allows 10 a connection unless told otherwise
_OPENINGS = 6  # tries to open a session when all of sshd's are taken
_OPENING_SECONDS = 0.5


class Connection:
    """One host of the site, reached as ``settings`` say.

    host    another than ``settings.host``: the transfer host
    folder  of sockets; None: a private one of this user on this machine
    """

    def __init__(
        self,
        settings: Ssh,
        host: str | None = None,
        folder: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.host = host or settings.host
        self._master = Master(settings, self.host, folder, clock)
        self._free = threading.BoundedSemaphore(_SESSIONS)

    def run(
        self, script: str, arguments: Sequence[str] = (), stdin: bytes = b"", timeout: float = 90.0
    ) -> Answer:
        """What the POSIX shell script says at the site, with ``arguments`` as its ``$1`` and so on.

        timeout  seconds for all of it; whether the script still runs at the site afterwards is not known
        Raises Unavailable if there is no connection, or it broke before the answer was whole.
        """
        for opening in range(_OPENINGS):
            with self.session(script, arguments) as session:
                try:
                    out, _ = session.process.communicate(stdin, timeout=timeout)
                except subprocess.TimeoutExpired:
                    self._leave_if_silent()
                    raise Unavailable(f"{self.host}: no answer within {timeout:.0f} s") from None
                err = session.complaints()
            if b"open refused by peer" not in err or session.mark in out:
                return whole_answer(self.host, session.mark, out, err)
            time.sleep(_OPENING_SECONDS * (opening + 1))
        raise Unavailable(
            f"{self.host}: all sessions that sshd allows on one connection are taken; try again later"
        )

    @contextlib.contextmanager
    def session(self, script: str, arguments: Sequence[str] = ()) -> Iterator[Session]:
        """A running script whose three streams the caller reads and writes; ended when the block ends.

        The script's own input begins where the caller begins to write. Raises Unavailable without a connection.
        """
        self.open()
        with self._begun(script, arguments) as session:
            yield session

    @property
    def socket(self) -> Path:
        return self._master.socket

    def open(self, patient: bool = True) -> None:
        """See ``Master.open``."""
        self._master.open(patient)

    def close(self) -> None:
        """End the master. Sessions under way are cut."""
        self._master.close()

    def trouble(self) -> Trouble | None:
        """Why the newest login failed; None if it did not."""
        return self._master.trouble()

    def command_by_hand(self) -> str:
        """See ``Master.command_by_hand``."""
        return self._master.command_by_hand()

    @contextlib.contextmanager
    def _begun(self, script: str, arguments: Sequence[str]) -> Iterator[Session]:
        with self._free, begun(self.host, self.socket, script, arguments) as session:
            yield session

    def _leave_if_silent(self) -> None:
        """After a timeout: a master whose line is dead is left behind, so that the next call logs in anew."""
        with self._begun(":", ()) as session:
            try:
                session.process.communicate(timeout=CHECK_SECONDS)
            except subprocess.TimeoutExpired:
                self.close()
