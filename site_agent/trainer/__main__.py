"""The trainer: ``python -m site_agent.trainer JOB_DIR``, also under torchrun. Needs no agent and no network.

Exit code 0: ``result/`` is there. 75: asked to stop, start it again to go on. Anything else: ``failure.json`` says why,
or, if there is none, the world was not ready (disk, another process) and starting again may help.
Killed at any time and started again, it goes on from the newest training checkpoint and ends in the same bytes.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn

from consortium.errors import BadInput, SprachbundError, Unavailable
from consortium.jobs import Evaluate, Merge, Tokenizer, Train
from site_agent.trainer.folder import (
    CONTINUE_LATER,
    Failure,
    FailureReason,
    JobFailed,
    JobFolder,
    Stopped,
    write_failure,
)


class _Wish:
    """Whether somebody asked this process to leave: by a signal, or by a STOP file."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder, self._signalled = folder, False
        for name in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(name, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def __call__(self) -> bool:
        return self._signalled or self._folder.is_asked_to_stop


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m site_agent.trainer JOB_DIR", file=sys.stderr)
        return BadInput.exit_code
    path = Path(arguments[0]).resolve()
    try:
        folder = JobFolder(path)
        if not folder.has_result:
            (path / "failure.json").unlink(missing_ok=True)
            _work(folder)
        return 0
    except Stopped:
        return CONTINUE_LATER
    except Unavailable as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        write_failure(path, Failure(reason=_reason(error), sentence=str(error) or repr(error)))
        return error.exit_code if isinstance(error, SprachbundError) else 1


def _work(folder: JobFolder) -> None:
    wish = _Wish(folder)
    threads = str(folder.site.threads)
    os.environ |= {
        "OMP_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": threads,  # of the tokenizer
        "HF_HUB_OFFLINE": "1",  # everything is in the job directory
    }
    work = folder.job.work
    if isinstance(work, Tokenizer):
        from site_agent.trainer.bpe import train_tokenizer  # without torch, which takes a second or two

        if int(os.environ.get("RANK", "0")) == 0:
            train_tokenizer(folder, work)
        return
    if isinstance(work, Merge):
        from site_agent.trainer.merging import merge_round  # without torch, too

        if int(os.environ.get("RANK", "0")) == 0:
            merge_round(folder, work, wish)
        return
    from site_agent.trainer.ranks import joined

    with joined(folder.site.device, folder.site.threads) as ranks:
        if isinstance(work, Train):
            from site_agent.trainer.training import train

            train(folder, work, ranks, wish)
        elif isinstance(work, Evaluate):
            from site_agent.trainer.evaluation import evaluate

            evaluate(folder, work, ranks, wish)


def _reason(error: Exception) -> FailureReason:
    if isinstance(error, JobFailed):
        return error.reason
    if isinstance(error, BadInput):
        return FailureReason.BAD_INPUT
    # torch says it in a class of its own on a GPU, in words on a CPU; importing torch to ask would take longer
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "OutOfMemoryError" in words or "can't allocate memory" in words:
        return FailureReason.OUT_OF_MEMORY
    return FailureReason.INTERNAL


def _leave(code: int) -> NoReturn:
    """End this process. Everything is on disk by now.

    One of several ranks does not tear the interpreter down: gloo's threads may still be there, and C++ then ends
    the process with SIGABRT after all the work is done.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
