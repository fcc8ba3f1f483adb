"""How a command speaks: its result on stdout, for people or as canonical JSON; everything else on stderr."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_WIDTH = 100  # of what is not a terminal, unless COLUMNS says otherwise
_WIDTH_MIN = 80


def screen(stderr: bool = False) -> "Console":
    """Where people read: as wide as the terminal, but never too narrow for our tables."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH
    console.width = max(console.width, _WIDTH_MIN)
    return console


def put(fact: Any) -> None:
    """One line of canonical JSON on stdout."""
    from consortium.canonical import encode
    from consortium.harmless import harmless_json

    sys.stdout.write(harmless_json(encode(fact).decode()) + "\n")
    sys.stdout.flush()


def show(content: "RenderableType") -> None:
    """Print for people. Words may come from another party; a screen of ours has seen to that itself."""
    if isinstance(content, str):
        screen().print(_harmless(content), soft_wrap=True)
    else:
        screen().print(content)


def answer(as_json: bool, fact: Any, content: "RenderableType") -> None:
    """The result of a command: ``fact`` for scripts, ``content`` for people."""
    if as_json:
        put(fact)
    else:
        show(content)


def note(sentence: str) -> None:
    """Something beside the result, such as progress."""
    screen(stderr=True).print(_harmless(sentence), style="bright_black", soft_wrap=True)


def complain(sentence: str) -> None:
    """Why the command failed; every line may hold words of another party."""
    from rich.text import Text

    screen(stderr=True).print(
        Text.assemble(("sprachbund: ", "bold red"), _harmless(sentence)), soft_wrap=True
    )


@contextlib.contextmanager
def transfer_bar(quiet: bool) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """A bar for each transfer, on stderr: call with a name and its bytes, then the result with bytes moved."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = screen(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:

        def begin(name: str, size: int) -> Callable[[int], None]:
            task = progress.add_task(_harmless(name), total=size)
            return lambda moved: progress.update(task, completed=moved)

        yield begin


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each kind of thing, on stderr: call with what it is, how many are done, and of how many."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    console, tasks = screen(stderr=True), dict[str, TaskID]()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:

        def tell(what: str, done: int, all_: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(_harmless(what))
            progress.update(tasks[what], completed=done, total=all_)

        yield tell


def _harmless(text: str) -> str:
    from consortium.harmless import harmless

    return "\n".join(harmless(line) for line in text.splitlines())
