"""The trainer: ``python -m site_agent.trainer JOB_DIR``, also under torchrun. Needs no agent and no network.

Exit code 0: ``result/`` is there. 75: asked to stop, start it again to go on. Anything else: ``failure.json`` says why,
or, if there is none, the world was not ready (disk, another rank) and starting again may help. torchrun would call
75 a failure and fill the log, so under it a stop ends in 0, too; CONTINUE is there if it can go on.
Killed at any time and started again, it goes on from the newest training checkpoint and ends in the same bytes.

``--finish JOB_DIR`` makes a partial result from the newest training checkpoint, without training, on any machine.
"""

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn

from consortium.errors import BadInput, SprachbundError, Unavailable
from consortium.jobs import Evaluate, FlowerMessage, Merge, Tokenizer, Train
from site_agent.trainer.folder import (
    CONTINUE,
    CONTINUE_LATER,
    FINISH,
    STOP,
    Failure,
    FailureReason,
    JobFailed,
    JobFolder,
    Stopped,
    write_failure,
)

_LOOK_SECONDS = 2.0  # between looks for a wish: the file system may be shared by thousands
_RANK = int(os.environ.get("RANK", "0"))
_WORLD = int(os.environ.get("WORLD_SIZE", "1"))
_IS_UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID" in os.environ


class _Wishes:
    """What somebody asked of this process: by a signal, or by a file that the first rank looks for.

    The ranks vote, so one that looks is enough: a shared file system has better to do.
    """

    def __init__(self, folder: JobFolder) -> None:
        self._folder, self._signalled = folder, False
        self._seen = {STOP: False, FINISH: False}
        self._looked_at = -_LOOK_SECONDS
        for name in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(name, self._note)

    def stop(self) -> bool:
        return self._signalled or self._look()[STOP]

    def finish(self) -> bool:
        return self._look()[FINISH]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def _look(self) -> dict[str, bool]:
        clock = time.monotonic()
        if _RANK == 0 and clock - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = clock
            self._seen = {STOP: self._folder.is_asked_to_stop, FINISH: self._folder.is_asked_to_finish}
        return self._seen


def main(arguments: list[str]) -> int:
    is_finishing = arguments[:1] == ["--finish"]
    if len(arguments) != 1 + is_finishing:
        print("usage: python -m site_agent.trainer [--finish] JOB_DIR", file=sys.stderr)
        return BadInput.exit_code
    path = Path(arguments[-1]).resolve()
    try:
        folder = JobFolder(path)
        if folder.has_result:
            return 0
        if is_finishing:
            _finish(folder)
            return 0
        if _RANK == 0:
            for leftover in ("failure.json", CONTINUE):
                (path / leftover).unlink(missing_ok=True)
        _work(folder)
        return 0
    except Stopped:
        return 0 if _IS_UNDER_TORCHRUN else CONTINUE_LATER
    except Unavailable as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if is_finishing:  # what cannot be made of a checkpoint here says nothing of the job
            print(error, file=sys.stderr)
        elif _has_lost_a_rank(error):
            traceback.print_exc()
            print("another rank is gone; starting again may help", file=sys.stderr)
            return Unavailable.exit_code
        else:
            traceback.print_exc()
            write_failure(path, Failure(reason=_reason(error), sentence=str(error) or repr(error)))
        return error.exit_code if isinstance(error, SprachbundError) else 1


def _finish(folder: JobFolder) -> None:
    work = folder.job.work
    if not isinstance(work, Train):
        raise BadInput(f"{folder.path}: only a training job has a partial result; start this one again")
    from site_agent.trainer.delivery import finish  # without torch

    finish(folder, work)


def _work(folder: JobFolder) -> None:
    wishes = _Wishes(folder)
    threads = str(folder.site.threads)
    os.environ |= {
        "OMP_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": threads,  # of the tokenizer
        "HF_HUB_OFFLINE": "1",  # everything is in the job directory
    }
    # not in the home folder, whose quota is small, nor in /tmp, which the next node does not have
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(folder.site.cache) / "compiled"))
    work = folder.job.work
    if isinstance(work, Tokenizer):
        from site_agent.trainer.bpe import train_tokenizer  # without torch, which takes a second or two

        if _RANK == 0:
            train_tokenizer(folder, work, wishes.stop)
        return
    if isinstance(work, Merge):
        from site_agent.trainer.merging import merge_round  # without torch, too

        if _RANK == 0:
            merge_round(folder, work, wishes.stop)
        return
    if isinstance(work, FlowerMessage):
        from site_agent.trainer.client_app import answer  # torch only if the app wants it

        if _RANK == 0:
            answer(folder, work, wishes.stop)
        return
    from site_agent.trainer.ranks import joined

    with joined(folder.site.device, folder.site.threads) as ranks:
        if isinstance(work, Train):
            from site_agent.trainer.training import train

            train(folder, work, ranks, wishes.stop, wishes.finish)
        elif isinstance(work, Evaluate):
            from site_agent.trainer.evaluation import evaluate

            evaluate(folder, work, ranks, wishes.stop)


def _has_lost_a_rank(error: Exception) -> bool:
    """Whether it is only that another rank left or fell: then that one's word counts, or there is none."""
    if _WORLD == 1 or not isinstance(error, RuntimeError):
        return False
    words = f"{type(error).__name__}: {error}".lower()  # gloo has no class of its own
    return any(word in words for word in ("gloo", "nccl", "distbackend", "distnetwork", "diststore"))


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
    if _WORLD > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
