"""Whether an agent lives and is ready, and its metrics, over HTTP on the loopback address alone.

    /healthz   200 while its loop turns, else 503     /readyz   200 if the coordinator answered the last Sync
    /metrics   Prometheus

It listens on 127.0.0.1 only, answers GET only, and never says why in detail: everybody on the host may ask.
"""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from consortium.errors import Unavailable
from site_agent.metrics import CONTENT_TYPE, exposition
from site_agent.told import Told

_TURN_SECONDS_MAX = 600.0  # as the watchdog of the systemd unit
_REQUEST_SECONDS = 5.0
_AT_ONCE = 16  # a login node has hundreds of users, and each connection is a thread of the agent's


class _FewAtOnce(ThreadingHTTPServer):
    """Hangs up on those who come when so many are being answered."""

    daemon_threads = True
    # with fewer, who comes in a crowd is not even hung up on, and tries again for seconds
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()


class Health:
    """Serves from a thread of its own; ``close`` ends it.

    told  is called in that thread for each scrape; it may only read
    Raises Unavailable if the port is taken.
    """

    def __init__(self, port: int, told: Callable[[], Told]) -> None:
        self._turned_at = time.monotonic()
        self._told = told
        try:
            self._server = _FewAtOnce(("127.0.0.1", port), _handler(self))
        except OSError as error:
            raise Unavailable(
                f"metrics_port {port}: {error.strerror}; choose another, or stop who listens there"
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def turned(self) -> None:
        """The agent's loop went round once more."""
        self._turned_at = time.monotonic()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        match path:
            case "/healthz":
                turns = time.monotonic() - self._turned_at < _TURN_SECONDS_MAX
                return _in_words(turns, "the loop turns", "the loop has stopped")
            case "/readyz":
                return _in_words(self._told().is_connected, "in touch", "the coordinator does not answer")
            case "/metrics":
                return 200, CONTENT_TYPE, exposition(self._told())
        return 404, "text/plain; charset=utf-8", b"there are /metrics, /healthz and /readyz\n"


def _in_words(is_good: bool, good: str, bad: str) -> tuple[int, str, bytes]:
    status, words = (200, good) if is_good else (503, bad)
    return status, "text/plain; charset=utf-8", f"{words}\n".encode()


def _handler(health: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_SECONDS
        server_version = "sprachbund-agent"
        sys_version = ""

        def do_GET(self) -> None:
            status, kind, body = health.answer(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: a scrape every few seconds is no news."""

    return Handler
