"""How a Ray is started that Flower's simulation can use, on a busy machine too; or none, said within minutes.

Left to itself, Ray's raylet gives its agents 15 s to write down on which ports they listen, and then aborts: on a busy
machine they are still importing. So all ports are chosen beforehand, and the one that is waited for nevertheless is
written down for its agent. Flower's engine would wait for ever for a Ray that does not come, so Ray is started, and
spoken with, before Flower is. Written for Ray 2.55, the release that flwr 1.41 pins.

Left to itself, it also listens where other machines reach it, and runs whatever code anybody sends: it takes 127.0.0.1
for a mistake, and puts the machine's own address in its place. So it is told that there are no clusters here, as on a
Mac, and to ask everybody for a token.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from consortium.errors import Unavailable
from consortium.files import write_bytes_atomically
from consortium.ports import free_port

_LISTENS = "--dashboard-agent-listen-port"
_PORTS = (
    "--port",
    "--ray-client-server-port",
    "--node-manager-port",
    "--object-manager-port",
    "--dashboard-agent-grpc-port",
    _LISTENS,
    "--runtime-env-agent-port",
    "--metrics-export-port",
)
_HOST = "127.0.0.1"
_START_SECONDS = 180.0  # it took 110 at a load of 25 on two cores
_LOOK_SECONDS = 0.2
_STOP_SECONDS = 20.0
_OBJECT_STORE_BYTES = 100_000_000  # orders and names of envelopes; Ray would take a third of the memory


@contextlib.contextmanager
def ray_at_work(cpus: int) -> Iterator[None]:
    """A Ray of our own, which this process is connected to; ended, with all its processes, afterwards.

    Raises Unavailable with the end of its words if it does not come. If it comes and does not answer, this process
    ends with exit code 1: nothing interrupts Ray's client while it connects.
    """
    # a short name, for the folder holds Unix sockets
    with _for_nobody_else(), tempfile.TemporaryDirectory(prefix="ray-") as folder:
        import ray  # it reads its environment then

        ports = {option: free_port() for option in _PORTS}
        said = Path(folder) / "said"
        with open(said, "wb") as out:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                    *(f"--num-cpus={cpus}", f"--node-ip-address={_HOST}", f"--temp-dir={folder}/ray"),
                    *("--include-dashboard=false", "--disable-usage-stats"),
                    f"--object-store-memory={_OBJECT_STORE_BYTES}",
                    *(f"{option}={port}" for option, port in ports.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        try:
            _wait(process, said, Path(folder) / "ray", ports[_LISTENS])
            with _ends_unless_done(process):
                ray.init(address=f"{_HOST}:{ports['--port']}", log_to_driver=False, configure_logging=False)
            yield
        finally:
            ray.shutdown()
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _for_nobody_else() -> Iterator[None]:
    """In this process's environment, and so in that of all that it starts, whatever its user's says."""
    assert "ray" not in sys.modules, "it would not read what is set here"
    ours = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _ends_unless_done(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """End Ray and this process if what is within takes too long."""

    def end() -> None:
        print(
            f"Ray has started, and lets nobody in after {_START_SECONDS:.0f} s", file=sys.stderr, flush=True
        )
        process.terminate()  # it ends its own processes
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        os._exit(1)

    timer = threading.Timer(_START_SECONDS, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _wait(process: "subprocess.Popen[bytes]", said: Path, home: Path, listens: int) -> None:
    until = time.monotonic() + _START_SECONDS
    while b"Ray runtime started" not in said.read_bytes():
        _write_down(home, listens)
        if process.poll() is not None or time.monotonic() > until:
            how = (
                f"is not there after {_START_SECONDS:.0f} s"
                if process.returncode is None
                else f"ended with exit code {process.returncode}"
            )
            raise Unavailable(f"Ray {how}: {said.read_text(errors='replace').strip()[-2000:]}")
        time.sleep(_LOOK_SECONDS)


def _write_down(home: Path, listens: int) -> None:
    """What the dashboard's agent will write as soon as it has been imported, and the raylet aborts without."""
    for known in home.glob("session_2*/gcs_server_port_*"):
        node = known.name.rpartition("_")[2]
        place = known.with_name(f"dashboard_agent_listen_port_{node}")
        if not place.exists():
            write_bytes_atomically(place, str(listens).encode())
