"""What an attempt's directory says of its lives: where each began, why it was sent away, how long it is quiet.

lives.jsonl   a line a life: its number, how far the newest training checkpoint and the text were when it was
              launched, and why the agent sent it away, if it did
watch.json    when the agent saw the running life get further last, by the agent's own clock: the modification
              times of a shared file system are another machine's
"""

import contextlib
import os
import re
import time
from pathlib import Path

from consortium.canonical import Fact, decode, encode, replace
from consortium.errors import BadInput
from consortium.files import read_small, write_bytes_atomically
from site_agent.core.facts import Launch, Meant
from site_agent.trainer.folder import TEXT_FILE, read_text_file

LIVES_FILE = "lives.jsonl"
_WATCH_FILE = "watch.json"
_WATCH_SECONDS = 60.0  # between notes of a life that gets further; a stall is measured no finer
_STEP = re.compile(r"step-(\d{1,18})")


class _Watch(Fact):
    """The newest note of a running life."""

    mark: str  #: of the life and its progress file
    since: float  #: epoch seconds


def read_launches(directory: Path | str) -> tuple[Launch, ...]:
    """By life. Lines that cannot be read are passed over: then a life counts as one without progress."""
    found: dict[int, Launch] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in read_small(f"{directory}/{LIVES_FILE}").splitlines():
            with contextlib.suppress(BadInput):
                launch = decode(line, Launch)
                found[launch.life] = launch
    return tuple(found[life] for life in sorted(found))


def note_launch(directory: Path, life: int) -> None:
    """Write down that ``life`` is about to begin, and from where; once."""
    launches = read_launches(directory)
    if not any(launch.life == life for launch in launches):
        begun = Launch(life=life, step=checkpoint_of(directory)[0], text_bytes=text_bytes_of(directory))
        _write(directory, (*launches, begun))


def note_sent_away(directory: Path, life: int, why: str, meant: Meant) -> None:
    """Write down why the agent sends ``life`` away, before it does."""
    launches = {launch.life: launch for launch in read_launches(directory)}
    before = launches.get(life, Launch(life=life))
    after = replace(before, asked=why, meant=meant)
    if after != before:
        _write(directory, tuple((launches | {life: after}).values()))


def checkpoint_of(directory: Path | str) -> tuple[int, bool]:
    """How far the newest training checkpoint is, and whether a partial result can be made of it.

    A checkpoint is there once its ``state.json`` is: that comes last. Of an evaluation, scores saved are counted.
    """
    saves = f"{directory}/checkpoint"
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = os.listdir(saves)
    steps = [
        int(named[1])
        for name in names
        if (named := _STEP.fullmatch(name)) and os.path.exists(f"{saves}/{name}/state.json")
    ]
    if steps:
        return max(steps), True
    return sum(1 for name in names if name.startswith("subject-") and name.endswith(".json")), False


def text_bytes_of(directory: Path | str) -> int:
    """How much text the lives have prepared and kept; it only grows. Bytes of the site's files, about."""
    return sum(read_text_file(f"{directory}/{TEXT_FILE}").values())


def quiet_seconds(directory: Path, life: int, now: float | None = None) -> float:
    """How long running ``life`` has written no new progress line; counted from when it was first seen to run.

    now  epoch seconds
    """
    now = time.time() if now is None else now
    path = directory / _WATCH_FILE
    try:
        mark = f"{life}:{os.stat(f'{directory}/progress.jsonl').st_size}"
    except FileNotFoundError:
        mark = f"{life}:0"
    watch = _Watch(mark="", since=0.0)
    with contextlib.suppress(FileNotFoundError, BadInput):
        watch = decode(read_small(path), _Watch, str(path))
    if watch.mark == mark:
        return max(0.0, now - watch.since)
    if watch.mark.partition(":")[0] != str(life) or not 0 <= now - watch.since < _WATCH_SECONDS:
        write_bytes_atomically(path, encode(_Watch(mark=mark, since=now)), makes_folders=False)
    return 0.0


def forget_quiet(directory: Path) -> None:
    """It does not run, or not any more: the next time it does, the count begins anew."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{directory}/{_WATCH_FILE}")


def _write(directory: Path, launches: tuple[Launch, ...]) -> None:
    lines = b"".join(encode(launch) + b"\n" for launch in launches)
    write_bytes_atomically(directory / LIVES_FILE, lines, makes_folders=False)
