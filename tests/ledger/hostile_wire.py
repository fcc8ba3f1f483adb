"""What can a wire do to a database's session? It holds one message back, loses answers, goes silent, or is cut.

Between a client and a PostgreSQL server, for one session at a time. Nothing is decided by time: a test says when.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit


class Wire:
    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        assert parts.hostname and parts.port and parts.username
        self._server = (parts.hostname, parts.port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        port = self._listening.getsockname()[1]
        self.address = urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}"))
        self.holds: bytes | None = None  #: the first message with these bytes in it is held back
        self.held = threading.Event()  #: it has come
        self.goes_on = threading.Event()  #: and may go
        self.loses_answers = False  #: from the held message on, though it arrives
        self.is_silent = threading.Event()  #: takes everything, and passes on nothing
        self.has_lost = threading.Event()  #: an answer, or a message while silent
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Both ends hear that the line is gone."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.goes_on.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes who waits for the next client
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in (self._listening, *self._ends):
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self._ends.append(client)
                server = socket.create_connection(self._server)
                self._ends.append(server)
                for work, ends in ((self._up, (client, server)), (self._down, (server, client))):
                    self._threads.append(threading.Thread(target=work, args=ends, daemon=True))
                    self._threads[-1].start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        for data in self._messages(client, server):
            if self.holds is not None and self.holds in data and not self.held.is_set():
                self.held.set()
                self.goes_on.wait()
            self._pass(data, server)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        for data in self._messages(server, client):
            if self.loses_answers and self.held.is_set():
                self.has_lost.set()
            else:
                self._pass(data, client)

    def _messages(self, source: socket.socket, other: socket.socket) -> Iterator[bytes]:
        """Until one of both ends is gone; then the other one hears of it, unless the wire is silent."""
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                yield data
        if not self.is_silent.is_set():
            with contextlib.suppress(OSError):
                other.shutdown(socket.SHUT_WR)

    def _pass(self, data: bytes, to: socket.socket) -> None:
        if self.is_silent.is_set():
            self.has_lost.set()
            return
        with contextlib.suppress(OSError):
            to.sendall(data)


@contextlib.contextmanager
def wire(address: str) -> Iterator[Wire]:
    made = Wire(address)
    try:
        yield made
    finally:
        made.close()
