"""Who logs in at a site, and how is the one login shared by all that need it?

One background process of OpenSSH, the master, logs in and stays (ControlMaster, ControlPersist); sessions come
through its control socket, in milliseconds and without another login. The socket's name follows from the settings,
so that ``agent --once`` from cron, the resident agent and the doctor share one login, and so that a person can open
it by hand where the site asks for a second factor.

Failed logins are written down beside the socket, and the next one waits: sites ban addresses that try on.
"""

import contextlib
import fcntl
import getpass
import hashlib
import os
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from consortium.canonical import decode, encode
from consortium.errors import BadInput, Refused, Unavailable
from consortium.files import disk_errors, write_bytes_atomically
from site_agent.ssh.session import SESSION
from site_agent.ssh.settings import Ssh
from site_agent.ssh.trouble import Trouble, trouble_of, wait_seconds, way_out

_LOGIN_SECONDS = 60.0  # TCP, keys and login together; a jump host doubles it
CHECK_SECONDS = 10.0  #: a control socket answers in milliseconds, or its master hangs
_PERSIST_SECONDS = 4 * 3600  # a connection that nobody uses; longer than any agent's pause
_SOCKET_BYTES_MAX = 80  # of 108 (unix(7)); ssh adds 17 of its own while it binds


class Master:
    """Of one host, as ``settings`` say.

    folder  of sockets; None: a private one of this user on this machine
    clock   epoch seconds
    """

    def __init__(self, settings: Ssh, host: str, folder: Path | None, clock: Callable[[], float]) -> None:
        self.host = host
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        key = hashlib.sha256(encode([host, settings])).hexdigest()[:16]
        folder = folder or _socket_folder()
        self.socket = folder / key
        self._note = folder / f"{key}.trouble.json"
        if len(os.fsencode(self.socket)) > _SOCKET_BYTES_MAX:
            raise Refused(f"{self.socket}: too long for a socket's name; set TMPDIR to a shorter folder")

    def open(self, patient: bool = True) -> None:
        """Make sure that a master is there; heal what a dead one left.

        patient  wait out the pause after failed logins; a person who asks does not
        Raises Unavailable with the reason and when it is tried again.
        """
        with self._lock, self._alone():
            if self._answers():
                return
            self.socket.unlink(missing_ok=True)
            if patient:
                self._refrain()
            self._log_in()

    def close(self) -> None:
        """End the master. Sessions under way are cut."""
        self._control("exit")
        self.socket.unlink(missing_ok=True)

    def trouble(self) -> Trouble | None:
        """Why the newest login failed; None if it did not."""
        try:
            return decode(self._note.read_bytes(), Trouble, str(self._note))
        except (FileNotFoundError, BadInput):
            return None

    def command_by_hand(self) -> str:
        """What a person types to log in where the site asks for more than a key; the agent then goes on."""
        by_hand = [word for word in self._login() if word not in ("-f", "-N")]
        by_hand[by_hand.index("BatchMode=yes")] = "BatchMode=no"
        return shlex.join([*by_hand[:1], "-f", "-N", *by_hand[1:]])

    # ---- inside

    def _login(self) -> list[str]:
        settings = self._settings
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "RemoteCommand": "none",
            "RequestTTY": "no",
            "ControlMaster": "yes",
            "ControlPersist": str(_PERSIST_SECONDS),
            "ControlPath": str(self.socket).replace("%", "%%"),
            "ConnectTimeout": "20",
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "LogLevel": "ERROR",
        }
        if settings.known_hosts is not None:
            options |= {
                "UserKnownHostsFile": _quoted(settings.known_hosts),
                "GlobalKnownHostsFile": "/dev/null",
            }
        if settings.identity_file is not None:
            options |= {"IdentityFile": _quoted(settings.identity_file), "IdentitiesOnly": "yes"}
        if settings.user is not None:
            options["User"] = settings.user
        if settings.port is not None:
            options["Port"] = str(settings.port)
        if settings.jump is not None:
            options["ProxyJump"] = settings.jump
        command = ["ssh", "-f", "-N", *(["-F", settings.config_file] if settings.config_file else [])]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        return [*command, "--", self.host]

    def _log_in(self) -> None:
        with tempfile.TemporaryFile() as words:  # not a pipe: the master would hold it open
            try:
                ended = subprocess.run(
                    self._login(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=words,
                    timeout=_LOGIN_SECONDS,
                    check=False,
                    start_new_session=True,
                )
                rc = ended.returncode
            except FileNotFoundError:
                raise Refused("there is no `ssh` on this machine; install OpenSSH's client") from None
            except subprocess.TimeoutExpired:
                rc = -1
            words.seek(0)
            said = words.read().decode(errors="replace")
        if rc == 0 and self._answers():
            self._note.unlink(missing_ok=True)
            return
        self.socket.unlink(missing_ok=True)
        before = self.trouble()
        found = trouble_of(self.host, rc, said, self._clock(), before.failures if before else 0)
        write_bytes_atomically(self._note, encode(found), mode=0o600)
        raise Unavailable(f"{found.sentence}; {way_out(found, self._settings, self.command_by_hand())}")

    def _refrain(self) -> None:
        trouble = self.trouble()
        if trouble is None:
            return
        left = trouble.at + wait_seconds(trouble) - self._clock()
        if left > 0:
            raise Unavailable(
                f"{trouble.sentence}; {trouble.failures} logins failed, the next is in {left:.0f} s "
                f"(`sprachbund site doctor` tries at once and says the way out)"
            )

    def _answers(self) -> bool:
        return self.socket.exists() and self._control("check")

    def _control(self, word: str) -> bool:
        command = ["ssh", *SESSION, "-S", str(self.socket), "-O", word, "--", self.host]
        try:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=CHECK_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        except FileNotFoundError:
            raise Refused("there is no `ssh` on this machine; install OpenSSH's client") from None
        return ended.returncode == 0

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Of all processes that share the socket, one logs in."""
        name = self.socket.with_suffix(".lock")
        with disk_errors(name):  # XDG_RUNTIME_DIR goes when its user logs out everywhere
            lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _quoted(path: str) -> str:
    """A path as ssh's options take it: quoted, because blanks separate; % would begin a token."""
    return '"' + path.replace("%", "%%") + '"'


def _socket_folder() -> Path:
    """A folder of this user alone. Raises Refused if somebody else made it."""
    root = os.environ.get("XDG_RUNTIME_DIR")
    folder = (
        Path(root, "sprachbund") if root else Path(tempfile.gettempdir(), f"sprachbund-{getpass.getuser()}")
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if state.st_uid != os.getuid() or state.st_mode & 0o077 or folder.is_symlink():
        raise Refused(
            f"{folder}: has to be a folder of this user with mode 0700, for whoever reaches it can use the "
            f"connection; remove it, or set XDG_RUNTIME_DIR"
        )
    return folder
