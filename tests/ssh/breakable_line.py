"""A TCP line to a server that tests can cut after so many bytes, freeze, or take down."""

import contextlib
import socket
import threading


class Wire:
    """Listens on ``port`` of 127.0.0.1 and carries bytes to ``target``, another port there, and back."""

    def __init__(self, target):
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs = []
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self.dialled = 0  # connections accepted
        self.left = {"up": None, "down": None}  # bytes until the line is cut; None: never
        self.carried = {"up": 0, "down": 0}
        self.is_down = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        """Break every connection now."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for end in [end for pair in pairs for end in pair]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut_after(self, way, count):
        """Break the connections once ``count`` more bytes went ``up`` (to the site) or ``down``."""
        self.left[way] = count

    def freeze(self):
        self._flowing.clear()

    def thaw(self):
        self._flowing.set()

    def close(self):
        self.thaw()
        self.is_down = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # else the accept under way keeps the port open
        self._listener.close()
        self.cut()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.dialled += 1
            if self.is_down:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                if not (is_cut := self.is_down):
                    self._pairs.append((near, far))
            if is_cut:  # while it was dialled
                near.close()
                far.close()
                continue
            for source, sink, way in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._carry, args=(source, sink, way), daemon=True).start()

    def _carry(self, source, sink, way):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 15):
                self._flowing.wait()
                self.carried[way] += len(data)
                if self.left[way] is not None:
                    self.left[way] -= len(data)
                    if self.left[way] <= 0:
                        self.left[way] = None
                        self.cut()
                        return
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
