"""What takes longer than anybody waits for: it goes on in a thread, and is asked for again."""

import threading
from collections.abc import Callable, Hashable


class Progress:
    """Bytes moved of bytes to move; told by the thread that moves them."""

    def __init__(self) -> None:
        self.total = 0
        self.moved = 0

    def count(self, moved: int) -> None:
        self.moved += moved

    def __str__(self) -> str:
        if not self.total:
            return "begun"
        return f"{self.moved / 1e6:.0f} of {self.total / 1e6:.0f} MB"


class _Errand:
    def __init__(self, work: Callable[[Progress], None]) -> None:
        self.progress = Progress()
        self.error: Exception | None = None
        self._work = work
        self.thread = threading.Thread(target=self._run, daemon=True)  # the end of the agent waits for none
        self.thread.start()

    def _run(self) -> None:
        try:
            self._work(self.progress)
        except Exception as error:  # whoever asks next is told: not to know of one is not to have succeeded
            self.error = error


class Errands:
    """Each under its key, once at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, _Errand] = {}

    @property
    def under_way(self) -> tuple[str, ...]:
        """How far those are that have not ended, by key."""
        with self._lock:
            found = [
                (str(key), errand) for key, errand in self._under_way.items() if errand.thread.is_alive()
            ]
        return tuple(f"{key}: {errand.progress}" for key, errand in sorted(found, key=lambda pair: pair[0]))

    def do(self, key: Hashable, work: Callable[[Progress], None], seconds: float) -> str | None:
        """Begin ``work``, unless it is under way, and wait so long for its end.

        Returns how far it is, None once it has ended; raises the error it ended with. Either way the next call
        begins it anew: it has to find by itself what is done.
        """
        with self._lock:
            errand = self._under_way.get(key)
            if errand is None:
                errand = self._under_way[key] = _Errand(work)
        errand.thread.join(seconds)
        if errand.thread.is_alive():
            return str(errand.progress)
        with self._lock:
            if self._under_way.get(key) is errand:
                del self._under_way[key]
        if errand.error is not None:
            raise errand.error
        return None
