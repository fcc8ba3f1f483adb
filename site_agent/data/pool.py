"""How many processes prepare text together, and go on where others were killed.

The one that was called plans and hands out; workers answer on pipes. A worker whose pipe ends leaves at once,
so nothing is left behind when the caller dies. What is done is told by the segments' files alone.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from consortium.canonical import Fact, decode, encode, replace
from consortium.errors import BadInput, Broken, Corrupt, DiskFull, Refused, SprachbundError, Unavailable
from consortium.ids import Language
from site_agent.data.contents import Plan, finish
from site_agent.data.reading import UnitReader
from site_agent.data.schedule import Schedule, Task
from site_agent.data.segments import Encode, Head, read_head, segment_path

_KINDS: dict[int, type[SprachbundError]] = {
    kind.exit_code: kind for kind in (BadInput, Corrupt, Refused, Unavailable, DiskFull, Broken)
}
# From this part of a segment on disk, several processes read a unit, each decompressing it all
_SHARED_PART = 4
_NAMED = 5  # broken files named in one message


class Orders(Fact):
    """The first line that a worker reads."""

    plans: tuple[Plan, ...]
    tokenizer: str | None


class Answer(Fact):
    """A line for every task: the head of the segment, if one was made, or what went wrong."""

    head: Head | None = None
    error: str = ""
    exit_code: int = 0


class Progress(Fact):
    """How far a language is; told after every segment and merge."""

    language: Language
    read_bytes: int  #: of the files on disk, about
    all_bytes: int
    documents: int
    tokens: int
    is_done: bool


Tell = Callable[[Progress], None]


class Worker(Protocol):
    def do(self, task: Task) -> Answer: ...


class Hands:
    """Does tasks in this process."""

    def __init__(
        self,
        plans: Sequence[Plan],
        encode_texts: Callable[[], Encode] | None,
        beat: Callable[[], None] | None = None,
    ) -> None:
        self._plans, self._make = plans, encode_texts
        self._beat = beat or (lambda: None)
        self._encode: Encode | None = None
        self._reader: tuple[int, int, UnitReader] | None = None

    def do(self, task: Task) -> Answer:
        try:
            return Answer(head=self._do(task))
        except SprachbundError as error:
            self._reader = None
            return Answer(error=str(error), exit_code=error.exit_code)

    def _do(self, task: Task) -> Head | None:
        plan = self._plans[task.plan]
        self._beat()
        if task.unit is None:
            finish(plan, self._beat)
            return None
        if self._make is not None and plan.words is not None and self._encode is None:
            self._encode = self._make()
        if self._reader is None or self._reader[:2] != (task.plan, task.unit):
            if self._reader is not None:
                self._reader[2].close()
            unit = plan.units[task.unit]
            reader = UnitReader(unit, plan.words, plan.split, self._encode, plan.segment_bytes)
            self._reader = (task.plan, task.unit, reader)
        key = plan.key_of(plan.units[task.unit])
        return self._reader[2].make(task.number, segment_path(plan.folder, key, task.number))


class _Process:
    """Does tasks in another process."""

    def __init__(self, orders: Orders) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "site_agent.data.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._send(encode(orders))

    def do(self, task: Task) -> Answer:
        assert self._child.stdout is not None
        self._send(encode(task))
        line = self._child.stdout.readline()
        if not line:
            raise Unavailable(
                f"a process that prepared text ended with {self._child.wait()}; killed for its memory? Use fewer "
                "`--processes`; what is done is kept"
            )
        return decode(line, Answer, "answer of a worker")

    def close(self) -> None:
        """End it, in whatever it does."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # a task that it did not live to read
                    pipe.close()

    def _send(self, line: bytes) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # the answer that does not come says it


def work_through(
    plans: Sequence[Plan],
    processes: int = 1,
    encode_texts: Callable[[], Encode] | None = None,
    tokenizer: Path | None = None,
    tell: Tell | None = None,
    merge: bool = True,
    beat: Callable[[], None] | None = None,
) -> None:
    """Make what ``plans`` lack; it is all there when this returns.

    encode_texts  makes the tokenizer, for one process: the work is done in this one
    tokenizer     the same for several
    merge         False: segments only
    beat          called every few seconds, of one process; what it raises ends the work
    Raises what stood in the way, after all else has been done: files that are broken or changed, say.
    """
    told = _Telling(plans, tell)
    schedule = Schedule(
        [[unit.size > plan.segment_bytes // _SHARED_PART for unit in plan.units] for plan in plans], merge
    )
    for number, plan in enumerate(plans):
        for index, unit in enumerate(plan.units):
            heads = _heads(plan, plan.key_of(unit))
            schedule.resume(number, index, heads)
            for head in heads.values():
                told.segment(number, head)
    errors: list[SprachbundError] = []
    with _workers(plans, processes, encode_texts, tokenizer, beat) as workers:
        change = threading.Condition()

        def serve(index: int, worker: Worker) -> None:
            while True:
                with change:
                    while (task := schedule.next(index)) is None and not schedule.is_over and not fatal:
                        change.wait()
                    if task is None or fatal:
                        return
                try:
                    answer = worker.do(task)
                except BaseException as error:  # this process's own: told by the thread that waits
                    with change:
                        fatal.append(error)
                        change.notify_all()
                    return
                with change:
                    if answer.error:
                        errors.append(_KINDS.get(answer.exit_code, Unavailable)(answer.error))
                    schedule.done(task, answer.head, bool(answer.error))
                    told.answer(task, answer)
                    change.notify_all()

        fatal: list[BaseException] = []
        if len(workers) == 1:
            serve(0, workers[0])
        else:
            threads = [
                threading.Thread(target=serve, args=(index, worker), daemon=True)
                for index, worker in enumerate(workers)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    if fatal:
        raise fatal[0]
    _raise_for(errors)


def _raise_for(errors: Sequence[SprachbundError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        ordered = sorted(errors, key=lambda error: (error.exit_code, str(error)))
        more = f"; and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
        raise type(ordered[0])("; ".join(str(error) for error in ordered[:_NAMED]) + more) from None


@contextlib.contextmanager
def _workers(
    plans: Sequence[Plan],
    processes: int,
    encode_texts: Callable[[], Encode] | None,
    tokenizer: Path | None,
    beat: Callable[[], None] | None,
) -> Iterator[Sequence[Worker]]:
    if processes == 1:
        yield [Hands(plans, encode_texts, beat)]
        return
    orders = Orders(plans=tuple(plans), tokenizer=str(tokenizer) if tokenizer else None)
    made: list[_Process] = []
    try:
        made.extend(_Process(orders) for _ in range(processes))
        yield made
    finally:
        for worker in made:
            worker.close()


def _heads(plan: Plan, key: str) -> dict[int, Head]:
    """Segments of a unit that are there already, by number."""
    found = {}
    for path in sorted(plan.folder.glob(f"{key}-*.segment")):
        try:
            found[int(path.stem.rpartition("-")[2])] = read_head(path)
        except (Corrupt, ValueError):
            path.unlink(missing_ok=True)
    return found


class _Telling:
    """Adds up what is told."""

    def __init__(self, plans: Sequence[Plan], tell: Tell | None) -> None:
        self._tell = tell
        self._now = [
            Progress(
                language=plan.language,
                read_bytes=0,
                all_bytes=plan.size,
                documents=0,
                tokens=0,
                is_done=False,
            )
            for plan in plans
        ]

    def segment(self, plan: int, head: Head) -> None:
        now = self._now[plan]
        self._now[plan] = replace(
            now,
            read_bytes=min(now.all_bytes, now.read_bytes + head.read_bytes),
            documents=now.documents + head.documents,
            tokens=now.tokens + head.tokens,
        )
        if self._tell:
            self._tell(self._now[plan])

    def answer(self, task: Task, answer: Answer) -> None:
        if answer.head is not None:
            self.segment(task.plan, answer.head)
        elif task.unit is None and not answer.error:
            now = self._now[task.plan]
            self._now[task.plan] = replace(now, read_bytes=now.all_bytes, is_done=True)
            if self._tell:
                self._tell(self._now[task.plan])
