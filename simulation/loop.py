"""Virtual time: an asyncio event loop that never waits, and the processes that live and die in it.

The real shells are asyncio programs, so the simulation is an event loop for them: time stands still while something
runs and jumps to the next timer when nothing does. Everything happens in one thread, and in an order that follows
from (time, sequence) alone. What the shells do in threads is done at once, in place.

A ``Process`` dies as by SIGKILL: not one more callback of it runs, no ``finally``, no farewell. Its coroutines are
kept until the world ends, or the garbage collector would close them, which is a farewell.
"""

import asyncio
import contextvars
import heapq
from asyncio import base_events
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any


class Killed(BaseException):
    """Raised where a process dies in the middle of something; nobody catches it for good."""


class Process:
    """A program on a host. ``host`` says what its clock shows and what its disk does."""

    def __init__(self, name: str, host: Any) -> None:
        self.name = name
        self.host = host
        self.alive = True
        self.steps_left: int | None = None  #: of its callbacks, until it dies; None: it lives
        self.writes_left: int | None = None  #: of what it asks of its disk
        self.tears = False  #: whether it dies in the middle of its last write
        self.on_death: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[Any]] = []
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin ``work`` as a part of this process."""
        context = self.context.copy()
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.append(task)
        return task

    def kill(self) -> None:
        """No more of it runs. Harmless on one that is dead."""
        if self.alive:
            self.alive = False
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            loop.bury(self)
            loop.call_soon(self.on_death, context=loop.outside)

    def die(self) -> None:
        """The same from within; does not return."""
        self.kill()
        raise Killed(self.name)


_PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


def current() -> Process | None:
    """The process that is running; None: the world itself."""
    return _PROCESS.get()


class _Handle:
    """asyncio.Handle, as far as asyncio asks: a world makes and runs seven thousand of them."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "owner")

    def __init__(self, callback: Any, args: tuple[Any, ...], context: Context | None) -> None:
        self.callback: Any = callback
        self.args: Any = args
        self.context = contextvars.copy_context() if context is None else context
        self.owner: Process | None = self.context.get(_PROCESS)
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        self.callback = self.args = None

    def cancelled(self) -> bool:
        return self.is_cancelled


class VirtualLoop(base_events.BaseEventLoop):
    """To be used with ``run_until_complete``; ``time()`` begins at 0, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, _Handle]] = []
        self._sequence = 0
        self.steps = 0  #: callbacks run so far
        self.outside = Context()  #: of what no process does
        self.outside.run(_PROCESS.set, None)
        self.seconds_of_work: Callable[[Any, tuple[Any, ...]], float] = lambda function, given: 0.0
        self.trouble: BaseException | None = None  #: what no task is there to answer for
        self._graves: list[Any] = []
        self.set_exception_handler(self._note_trouble)

    def time(self) -> float:
        return self._now

    # ---- scheduling

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        handle = _Handle(callback, args, context)
        if handle.owner is not None and not handle.owner.alive:
            self._graves.append(handle)
            handle.is_cancelled = True
        else:
            self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        timer = _Handle(callback, args, context)
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, timer))
        return timer  # one that is cancelled is passed over when its time comes

    def _run_once(self) -> None:
        """Until the loop is to stop: nobody is waited for in between, so there is nothing to come back for."""
        ready: Any = self._ready  # type: ignore[attr-defined]
        while True:
            if not ready and not self._stopping:  # type: ignore[attr-defined]
                self._go_on_to_the_next_timer()
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle.is_cancelled and self._may_run(handle):
                    self.steps += 1
                    try:
                        handle.context.run(handle.callback, *handle.args)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:
                        self._note(error)
            if self._stopping:  # type: ignore[attr-defined]
                return

    def _go_on_to_the_next_timer(self) -> None:
        ready, timers = self._ready, self._timers  # type: ignore[attr-defined]
        while timers and timers[0][2].is_cancelled:
            heapq.heappop(timers)
        if not timers:
            raise RuntimeError("the simulated world stands still: nothing is going to happen any more")
        self._now = now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if not handle.is_cancelled:
                ready.append(handle)

    def _may_run(self, handle: _Handle) -> bool:
        """Whether who began it lives; it may die at this very step."""
        owner = handle.owner
        if owner is None:
            return True
        if owner.alive:
            if owner.steps_left is None:
                return True
            owner.steps_left -= 1
            if owner.steps_left > 0:
                return True
            self._graves.append(handle)
            owner.kill()
            return False
        self._graves.append(handle)
        return False

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """At once; what takes time by ``seconds_of_work`` is known only after it."""
        future: asyncio.Future[Any] = self.create_future()
        seconds = self.seconds_of_work(func, args)
        try:
            result = func(*args)
        except Exception as error:
            self._later(seconds, _fail, future, error)
        else:
            self._later(seconds, _resolve, future, result)
        return future

    def _later(self, seconds: float, callback: Any, *args: Any) -> None:
        if seconds > 0.0:
            self.call_later(seconds, callback, *args)
        else:
            callback(*args)

    # ---- death

    def bury(self, process: Process) -> None:
        """Keep whatever still waits in the name of a dead process, and never run it."""
        self._graves.append(process)

    def _note_trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, BaseException):
            self._note(error)

    def _note(self, error: BaseException) -> None:
        if not isinstance(error, Killed) and self.trouble is None:
            self.trouble = error

    # ---- what asyncio expects of a loop that has a system below it

    def add_signal_handler(  # type: ignore[override]
        self, sig: int, callback: Any, *args: Any
    ) -> None:
        pass  # no process of this world is sent a signal that it could hear

    def _write_to_self(self) -> None:
        pass

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        self._graves.append(agen)

    def _process_events(self, event_list: Any) -> None:
        pass


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
