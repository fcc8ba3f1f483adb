"""How does one script run over a connection that is open, and how is its answer known to be whole?

It travels on standard input, behind a command line that any login shell takes the same way, and frames its output
with a mark: what the site's start-up files print is cut off, and an answer without its closing mark was broken off.
Sessions never log in themselves: without a master they fail at once.
"""

import contextlib
import secrets
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from consortium.canonical import Fact
from consortium.errors import BadInput, Unavailable

_HIDDEN = "umask 077; export LC_ALL=C"
_QUIET = ("-T", "-o", "LogLevel=ERROR")
#: Options of every session: nothing of the configuration, and no way to dial by itself.
SESSION = (
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


def write_all(pipe: IO[bytes], data: bytes) -> None:
    """Also where the pipe takes a part only: as after a SIGSTOP and SIGCONT in the midst of it; source: write(2)."""
    left = memoryview(data)
    while left:
        left = left[pipe.write(left) :]


@contextlib.contextmanager
def begun(host: str, socket: Path, script: str, arguments: Sequence[str]) -> Iterator[Session]:
    """The script, begun; what is left of it ends when the block does."""
    mark = secrets.token_hex(8).encode()
    text = _framed_script(mark.decode(), script, arguments)
    fetch = f"sh -c 'eval \"$(dd bs=1 count={len(text)} 2>/dev/null)\"'"  # no csh or fish trips over it
    with tempfile.TemporaryFile() as complaints:  # a pipe nobody reads would fill up
        process = subprocess.Popen(
            ["ssh", *SESSION, "-S", str(socket), "--", host, fetch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            bufsize=0,  # who reads a line leaves the rest to who reads bytes
            start_new_session=True,  # a Ctrl-C for the agent is none for what it does at the site
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # the answer says why
                write_all(process.stdin, text)
                process.stdin.flush()
            yield Session(process, mark, complaints)
        finally:
            if process.poll() is None:
                process.kill()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()
            process.wait()


def whole_answer(host: str, mark: bytes, out: bytes, err: bytes) -> Answer:
    """The answer between the marks. Raises Unavailable if it is not whole."""
    try:
        inner, _, rc = _between(mark, out).rpartition(mark + b" ")
        complaints, _, _ = _between(mark, err).rpartition(mark + b" ")
        return Answer(rc=int(rc), out=inner, err=complaints)
    except ValueError:
        said = err.replace(mark, b"").decode(errors="replace").strip()
        raise Unavailable(
            f"{host}: the connection broke before the answer was whole"
            + (f" ({said[-300:]})" if said else "")
            + "; whether the command did its work is not known"
        ) from None


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
