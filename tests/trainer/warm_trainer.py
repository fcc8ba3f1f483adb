"""How does a test start the trainer many times without paying for torch each time? It forks from one that has it.

``import torch`` takes a second or two of a processor, a small test's training a tenth of that. So one process imports
it once and does nothing else; whoever wants a trainer has it fork. What is forked has a pid, an environment and an
output of its own, runs the trainer's program from its first line, hears signals and can be killed, as if it had been
started by itself; that it makes the same bytes is tested (``test_trainer_process.py``). What is tested of starting
itself (torchrun, what is imported) starts real programs.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_PATIENCE_SECONDS = 400.0


class Trainer:
    """A forked program: of ``subprocess.Popen`` what tests ask."""

    def __init__(self, nursery: "Nursery", pid: int, output: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery, self._output = nursery, output
        self._ended = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it, as far as it has ended."""
        if self.returncode is None and select.select([self._ended], [], [], 0.0)[0]:
            self.returncode = self._nursery.ask(reap=self.pid)
            os.close(self._ended)
        return self.returncode

    def wait(self, seconds: float = _PATIENCE_SECONDS) -> int:
        """Raises AssertionError with what it said if it does not end."""
        if self.returncode is None:
            select.select([self._ended], [], [], seconds)
        code = self.poll()
        assert code is not None, f"trainer {self.pid} does not end: {self.said()}"
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # until it is reaped its pid is nobody else's
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def said(self) -> str:
        return self._output.read_text(errors="replace")


class Nursery:
    """The process that has imported torch. To be closed."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nursery-")
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # as the trainer asks for, before it imports torch
        )

    def start(self, program: str, arguments: Sequence[str], **environment: str) -> Trainer:
        """Run ``program``, Python source, with these arguments and, beside ours, this environment."""
        self._count += 1
        output = Path(self._folder.name) / f"{self._count}.txt"
        all_of_it = {**os.environ, **environment}
        pid = self.ask(program=program, arguments=list(arguments), environment=all_of_it, output=str(output))
        return Trainer(self, pid, output)

    def ask(self, **question: Any) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process that trainers fork from has ended: {self._process.poll()}"
        return int(answer)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(_PATIENCE_SECONDS)
        self._process.stdout.close()
        self._folder.cleanup()


_open: list[Nursery] = []  # one for all tests of this process

#: The trainer, as ``python -m`` runs it.
TRAINER = "import runpy; runpy.run_module('site_agent.trainer', run_name='__main__', alter_sys=True)"


@contextlib.contextmanager
def started(arguments: Sequence[str], program: str = TRAINER, **environment: str) -> Iterator[Trainer]:
    """A trainer that is killed at the end of the block, if it still runs."""
    if not _open:
        _open.append(Nursery())
    trainer = _open[0].start(program, arguments, **environment)
    try:
        yield trainer
    finally:
        trainer.kill()
        trainer.wait()


def close() -> None:
    while _open:
        _open.pop().close()


# ---- the process that has imported torch


def _serve() -> None:
    import torch.distributed.fsdp  # another second, for ranks that share a model
    import torch.distributed.tensor  # noqa: F401

    import site_agent.trainer.evaluation
    import site_agent.trainer.training  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        if "reap" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["reap"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _become(**asked)
        print(answer, flush=True)


def _become(program: str, arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Does not return."""
    code = 1
    try:
        said = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for there, here in ((nothing, 0), (said, 1), (said, 2)):
            os.dup2(there, here)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["-c", *arguments]
        exec(compile(program, "<trainer>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else leaving.code is not None
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
