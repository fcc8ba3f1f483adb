"""How does a test leave no process behind? What it starts is ended with the block, however the block ends.

A Popen that is forgotten when an assertion fails is found by a later garbage collection, whose warning is then
charged to some other test.
"""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterable, Iterator
from typing import AnyStr

PATIENCE_SECONDS = 200.0  #: for what takes no time here; less than pytest's own


@contextlib.contextmanager
def reaped(process: "subprocess.Popen[AnyStr]") -> Iterator["subprocess.Popen[AnyStr]"]:
    """The process; at the end of the block it is killed if it still runs, waited for, and its pipes are closed."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not yet written to it
                    pipe.close()


def code_of(process: "subprocess.Popen[str]") -> int:
    """Its exit code. If it does not end, AssertionError: with its stacks, if PYTHONFAULTHANDLER=1 is set there."""
    try:
        return process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        said = process.communicate()[1]
        raise AssertionError(f"process {process.pid} does not end; it stood here:\n{said}") from None


def wait_until_gone(pids: Iterable[int]) -> None:
    """Until none of these processes runs, whosever children they are. Raises AssertionError if one goes on."""
    for pid in pids:
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            ended, _, _ = select.select([watched], [], [], PATIENCE_SECONDS)
        finally:
            os.close(watched)
        assert ended, f"process {pid} goes on"
