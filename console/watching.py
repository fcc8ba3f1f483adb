"""How the live view is kept up: on a terminal as a screen, elsewhere as lines; it outlives the coordinator."""

import asyncio
import contextlib
import signal
from types import TracebackType

from rich.console import RenderableType
from rich.live import Live

from console.client import Coordinator
from console.output import note, put, screen, show
from console.screens import live
from console.screens.changes import changes, without_clock
from consortium.errors import Unavailable
from consortium.views import ConsortiumView

_AGAIN_SECONDS = 2.0


class Watcher(contextlib.AbstractContextManager["Watcher"]):
    """Shows one view after another. Ctrl-C, or SIGTERM, is the ordinary end of it."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._console = screen()
        self._last: ConsortiumView | None = None
        self._live: Live | None = None

    def __enter__(self) -> "Watcher":
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # until ``follow`` hears it
        if self._console.is_terminal and not self._as_json:
            self._live = Live(console=self._console, auto_refresh=False, screen=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._live:
            self._live.stop()
            if self._last:
                self._console.print(self._picture(self._last))
        return kind is KeyboardInterrupt

    async def follow(self, coordinator: Coordinator, seconds: float) -> None:
        """Until SIGTERM. Raises Unavailable only if the coordinator has not answered once."""
        # heard between two pictures: an exception in the midst of one may leave the terminal with half of it
        asked_to_end = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked_to_end.set)
        looking = asyncio.ensure_future(self._look(coordinator, seconds))
        ending = asyncio.ensure_future(asked_to_end.wait())
        try:
            await asyncio.wait({looking, ending}, return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                await looking
        finally:
            looking.cancel()
            ending.cancel()
            await asyncio.gather(looking, ending, return_exceptions=True)

    async def _look(self, coordinator: Coordinator, seconds: float) -> None:
        while True:
            try:
                async for view in coordinator.views(seconds):
                    self._see(view)
            except Unavailable as error:
                if self._last is None:
                    raise
                note(f"{error} (looking again every {_AGAIN_SECONDS:.0f} s)")
            await asyncio.sleep(_AGAIN_SECONDS)

    def _see(self, view: ConsortiumView) -> None:
        before, self._last = self._last, view
        if self._live:
            self._live.start()
            self._live.update(self._picture(view), refresh=True)
        elif self._as_json:
            if before is None or without_clock(before) != without_clock(view):
                put(view)
        else:
            for line in changes(before, view):
                show(line)

    def _picture(self, view: ConsortiumView) -> RenderableType:
        return live(view, self._console.width, max(24, self._console.height))
