"""How do tests get a PostgreSQL? They start one of their own, on a socket in a folder of its own, as nobody.

PostgreSQL refuses to run as root. Where there is no server program everything that needs one is skipped with the
reason; SPRACHBUND_REQUIRE_POSTGRES=1 makes that a failure.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_port

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "16MB",
    "max_connections": "40",
    "log_min_messages": "fatal",
}


def programs() -> Path | None:
    """The folder with ``initdb`` and ``postgres``, the newest there is."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    elsewhere = shutil.which("postgres")
    return Path(elsewhere).parent if elsewhere else None


class Server:
    """A PostgreSQL server that belongs to whoever made it."""

    def __init__(self, port: int, settings: dict[str, str] | None = None) -> None:
        found = programs()
        assert found is not None
        self.programs, self.port = found, port
        self.root = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._user = 65534 if os.getuid() == 0 else None
        if self._user is not None:
            os.chown(self.root, self._user, self._user)
        self.log = self.root / "log"
        self._settings = {**_SETTINGS, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._schemas = 0
        try:
            self._run("initdb", "-D", str(self.data), "-U", "sprachbund", "--auth=trust", "-N", "-E", "UTF8")
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def data(self) -> Path:
        return self.root / "data"

    def start(self) -> None:
        options = [f"-c{name}={value}" for name, value in self._settings.items()]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [
                    self.programs / "postgres",
                    "-D",
                    self.data,
                    "-p",
                    str(self.port),
                    "-k",
                    self.root,
                    *options,
                ],
                stdout=log,
                stderr=log,
                user=self._user,
                group=self._user,
                extra_groups=[] if self._user is not None else None,
                cwd="/",
            )
        ready = [self.programs / "pg_isready", "-q", "-h", self.root, "-p", str(self.port)]
        deadline = time.monotonic() + 120
        while subprocess.run(ready).returncode:
            assert self._process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def kill(self, how: int = signal.SIGQUIT) -> None:
        """End it at once, as a crash would; ``start`` recovers."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait()

    def close(self) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def address(self, schema: str = "public", password: str = "") -> str:
        word = f":{password}" if password else ""
        return (
            f"postgresql://sprachbund{word}@127.0.0.1:{self.port}/postgres?options=-csearch_path%3D{schema}"
        )

    def new_ledger(self) -> str:
        """The address of an empty schema: a ledger-to-be."""
        import psycopg

        self._schemas += 1
        name = f"ledger_{self._schemas}"
        with psycopg.connect(self.address(), autocommit=True) as db:
            db.execute(f"CREATE SCHEMA {name}")  # type: ignore[arg-type]
        return self.address(name)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self.programs / program, *arguments],
            check=True,
            capture_output=True,
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user is not None else None,
            cwd="/",
        )


def require_postgres() -> None:
    """Skip the test, or fail it where a PostgreSQL is required."""
    problem = None if programs() else "no `postgres` program"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        problem = "no psycopg; pip install 'sprachbund[postgres]'"
    if problem and os.environ.get("SPRACHBUND_REQUIRE_POSTGRES") == "1":
        pytest.fail(f"SPRACHBUND_REQUIRE_POSTGRES=1, and no PostgreSQL: {problem}")
    if problem:
        pytest.skip(f"no PostgreSQL: {problem}; .ci/run installs it on Debian")


@contextlib.contextmanager
def server(settings: dict[str, str] | None = None) -> Iterator[Server]:
    require_postgres()
    running = Server(free_port(), settings)
    try:
        yield running
    finally:
        running.close()
