"""How an agent outside keeps one OpenSSH connection to a site open, and runs shell scripts over it.

One background process, the master, logs in and stays (ControlMaster, ControlPersist); every script is a session
of that connection, opened through its control socket in milliseconds and without another login. The socket's
name follows from the settings, so that ``agent --once`` from cron, the resident agent and the doctor share one
login, and so that a person can open it by hand where the site asks for a second factor.

A script travels on standard input, behind a command line that any login shell takes the same way, and frames
its output with a mark: what the site's start-up files print is cut off, and an answer without its closing mark
was broken off. Sessions never log in themselves: without a master they fail at once.

Failed logins are written down beside the socket, and the next one waits: sites ban addresses that try on.
"""

import contextlib
import fcntl
import getpass
import hashlib
import os
import secrets
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput, Refused, Unavailable
from consortium.files import write_bytes_atomically
from site_agent.ssh.settings import Ssh
from site_agent.ssh.trouble import Trouble, trouble_of, wait_seconds, way_out

_LOGIN_SECONDS = 60.0  # TCP, keys and login together; a jump host doubles it
_CHECK_SECONDS = 10.0  # a control socket answers in milliseconds, or its master hangs
_PERSIST_SECONDS = 4 * 3600  # a connection that nobody uses; longer than any agent's pause
_SESSIONS = 4  # at once from one process; sshd allows 10 a connection unless told otherwise
_OPENINGS = 6  # tries to open a session when all of sshd's are taken
_OPENING_SECONDS = 0.5
_SOCKET_BYTES_MAX = 80  # of 108 (unix(7)); ssh adds 17 of its own while it binds
_HIDDEN = "umask 077; export LC_ALL=C"
_QUIET = ("-T", "-o", "LogLevel=ERROR")
#: What a session needs: nothing of the configuration, and no way to dial by itself.
_SESSION = (
    "-F",
    "none",
    *_QUIET,
    "-o",
    "BatchMode=yes",
    "-o",
    "ControlMaster=no",
    "-o",
    "ProxyCommand=false",
)


class Answer(Fact):
    """What a script said, whole."""

    rc: int
    out: bytes
    err: bytes


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
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(_SESSIONS)
        key = hashlib.sha256(encode([self.host, settings])).hexdigest()[:16]
        folder = folder or _socket_folder()
        self.socket = folder / key
        self._note = folder / f"{key}.trouble.json"
        if len(os.fsencode(self.socket)) > _SOCKET_BYTES_MAX:
            raise Refused(f"{self.socket}: too long for a socket's name; set TMPDIR to a shorter folder")

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
                return self._framed(session.mark, out, err)
            time.sleep(_OPENING_SECONDS * (opening + 1))
        raise Unavailable(
            f"{self.host}: all sessions that sshd allows on one connection are taken; try again later"
        )

    @contextlib.contextmanager
    def session(self, script: str, arguments: Sequence[str] = ()) -> Iterator["Session"]:
        """A running script whose three streams the caller reads and writes; ended when the block ends.

        The script's own input begins where the caller begins to write. Raises Unavailable without a connection.
        """
        self.open()
        with self._begun(script, arguments) as session:
            yield session

    @contextlib.contextmanager
    def _begun(self, script: str, arguments: Sequence[str]) -> Iterator["Session"]:
        mark = secrets.token_hex(8).encode()
        text = _framed_script(mark.decode(), script, arguments)
        fetch = f"sh -c 'eval \"$(dd bs=1 count={len(text)} 2>/dev/null)\"'"  # no csh or fish trips over it
        with self._free, tempfile.TemporaryFile() as complaints:  # a pipe nobody reads would fill up
            process = subprocess.Popen(
                ["ssh", *_SESSION, "-S", str(self.socket), "--", self.host, fetch],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                bufsize=0,  # who reads a line leaves the rest to who reads bytes
                start_new_session=True,  # a Ctrl-C for the agent is none for what it does at the site
            )
            assert process.stdin is not None and process.stdout is not None
            try:
                with contextlib.suppress(BrokenPipeError):  # the answer says why
                    process.stdin.write(text)
                    process.stdin.flush()
                yield Session(process, mark, complaints)
            finally:
                if process.poll() is None:
                    process.kill()
                for pipe in (process.stdin, process.stdout):
                    with contextlib.suppress(OSError):
                        pipe.close()
                process.wait()

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
        command = ["ssh", *_SESSION, "-S", str(self.socket), "-O", word, "--", self.host]
        try:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_CHECK_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        except FileNotFoundError:
            raise Refused("there is no `ssh` on this machine; install OpenSSH's client") from None
        return ended.returncode == 0

    def _leave_if_silent(self) -> None:
        """After a timeout: a master whose line is dead is left behind, so that the next call logs in anew."""
        with self._begun(":", ()) as session:
            try:
                session.process.communicate(timeout=_CHECK_SECONDS)
            except subprocess.TimeoutExpired:
                self.close()

    def _framed(self, mark: bytes, out: bytes, err: bytes) -> Answer:
        """The answer between the marks. Raises Unavailable if it is not whole."""
        try:
            inner, _, rc = _between(mark, out).rpartition(mark + b" ")
            complaints, _, _ = _between(mark, err).rpartition(mark + b" ")
            return Answer(rc=int(rc), out=inner, err=complaints)
        except ValueError:
            said = err.replace(mark, b"").decode(errors="replace").strip()
            raise Unavailable(
                f"{self.host}: the connection broke before the answer was whole"
                + (f" ({said[-300:]})" if said else "")
                + "; whether the command did its work is not known"
            ) from None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Of all processes that share the socket, one logs in."""
        lock = os.open(self.socket.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


class Session:
    """A script that runs at the site. Its output begins after a line that ends in the mark."""

    def __init__(self, process: "subprocess.Popen[bytes]", mark: bytes, complaints: IO[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process = process
        self.mark = mark
        self.stdin: IO[bytes] = process.stdin
        self.stdout: IO[bytes] = process.stdout
        self._complaints = complaints

    def skip_to_output(self) -> bool:
        """Read past what start-up files print; False if the script never began."""
        while line := self.stdout.readline():
            if line.endswith(self.mark + b"\n"):
                return True
        return False

    def complaints(self) -> bytes:
        """What came on the script's second stream so far, its marks included."""
        self._complaints.seek(0)
        return self._complaints.read()


def _framed_script(mark: str, script: str, arguments: Sequence[str]) -> bytes:
    """The script between its marks, on both streams. Raises BadInput for an argument no command can take."""
    if any("\0" in argument for argument in arguments):
        raise BadInput(f"{list(arguments)!r}: no argument of a command can hold a NUL")
    lines = (
        _HIDDEN,
        f"echo {mark}; echo {mark} >&2",
        f"( set -- {shlex.join(arguments)}\n{script}\n)",
        "r=$?",
        f'printf "{mark} %s" "$r"; printf "{mark} %s" "$r" >&2',
    )
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _between(mark: bytes, stream: bytes) -> bytes:
    """What follows the opening mark's line. Raises ValueError if the closing mark is missing."""
    _, opened, rest = stream.partition(mark + b"\n")
    if not opened or mark + b" " not in rest:
        raise ValueError
    return rest


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
