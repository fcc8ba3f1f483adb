"""A TCP line from an agent to the coordinator that can be cut, slowed, stalled and refused, its bytes changed."""

import contextlib
import socket
import threading
import time


class HostileLine:
    """Listens on ``port`` of 127.0.0.1 and carries bytes to ``target``, another port there, and back."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._damage = 0  #: bytes still to be changed
        self._left: int | None = None  #: bytes until every connection is cut
        self.delay_seconds = 0.0  #: before each piece is passed on
        self.refuses = False  #: whether whoever dials is hung up on
        self.damaged = 0  #: bytes changed so far
        self.carried = {"up": 0, "down": 0}  #: bytes to the coordinator, and from it
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection now."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for end in [end for pair in pairs for end in pair]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut_after(self, count: int) -> None:
        """Break every connection once so many more bytes have gone either way."""
        self._left = count

    def corrupt(self) -> None:
        """Change one bit of the next piece that passes."""
        self._damage += 1

    def stall(self) -> None:
        """Nothing passes, and nobody is told, until ``heal``."""
        self._flowing.clear()

    def heal(self) -> None:
        self.delay_seconds, self.refuses, self._left, self._damage = 0.0, False, None, 0
        self._flowing.set()

    def close(self) -> None:
        self.heal()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self.refuses:
                    raise ConnectionRefusedError
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            pair = (near, far)
            with self._lock:
                self._pairs.add(pair)
            for source, sink, way in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._carry, args=(pair, source, sink, way), daemon=True).start()

    def _carry(
        self, pair: tuple[socket.socket, socket.socket], source: socket.socket, sink: socket.socket, way: str
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 15):
                self._flowing.wait()
                if self.delay_seconds:
                    time.sleep(self.delay_seconds)
                if self._damage > 0:
                    self._damage -= 1
                    self.damaged += 1
                    middle = len(data) // 2
                    data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
                if self._left is not None:
                    self._left -= len(data)
                    if self._left <= 0:
                        self._left = None
                        self.cut()
                        return
                self.carried[way] += len(data)
                sink.sendall(data)
        with self._lock:
            self._pairs.discard(pair)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
