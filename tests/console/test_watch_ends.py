"""Whoever ends the live view, whenever, finds the terminal as it was, with the last picture in it."""

import asyncio
import io
import signal
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from consortium_in_views import IN_ROUND_TWO
from rich.console import Console

from console import watching
from consortium.views import ConsortiumView


async def views(seconds: float) -> AsyncIterator[ConsortiumView]:
    while True:
        yield IN_ROUND_TWO
        await asyncio.sleep(0)


def test_a_sigterm_in_the_midst_of_a_picture_is_heard_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    console = Console(file=told, force_terminal=True, width=100, height=40, _environ={})
    monkeypatch.setattr(watching, "screen", lambda: console)
    shows, moments = console._exit_buffer, iter(range(5, -1, -1))

    def ends_there() -> None:
        if next(moments, None) == 0:  # some picture, drawn and not yet on the terminal
            signal.raise_signal(signal.SIGTERM)
        shows()

    monkeypatch.setattr(console, "_exit_buffer", ends_there)
    coordinator: Any = SimpleNamespace(views=views)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with watching.Watcher(as_json=False) as watcher:
            asyncio.run(watcher.follow(coordinator, 0.1))
    finally:
        signal.signal(signal.SIGTERM, before)
    pictures, left, after = told.getvalue().partition("\x1b[?1049l")
    assert pictures.count("\x1b[?1049h") == 1 and left and "Campaign" in after
    assert next(moments, None) is None
