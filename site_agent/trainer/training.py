"""How a site trains: from the base, over the site's text, to a delta; the same bits on CPU however often it stops."""

import contextlib
import gc
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from consortium.canonical import replace
from consortium.ids import Digest, Language
from consortium.jobs import Train
from site_agent.trainer import moments, saves
from site_agent.trainer.batches import Batches, Stream
from site_agent.trainer.delivery import deliver, deliver_saved
from site_agent.trainer.feeding import Feed
from site_agent.trainer.folder import FailureReason, JobFailed, JobFolder, Preparation, ProgressLog, Stopped
from site_agent.trainer.kernels.encoding import gpu_encoder
from site_agent.trainer.memory import MemoryPlan, Sizes
from site_agent.trainer.model import Arrays
from site_agent.trainer.planning import planned
from site_agent.trainer.ranks import Ranks, computes_in_bf16
from site_agent.trainer.room import room
from site_agent.trainer.saves import Account, Made
from site_agent.trainer.sharing import sharding_of
from site_agent.trainer.stepping import Stepper, choose, documents_in_one_call, make_stepper
from site_agent.trainer.watching import Watch, peak_of
from site_agent.trainer.words import prepared_languages

_SKIPS_MAX = 3  # steps in a row without a finite gradient: it will not come back by itself
_GPU_FLUSH_STEPS = 8  # between looks at the losses; each makes the GPU wait for the host


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """What a job trains on."""

    batches: Batches
    digests: dict[str, Digest]  #: ``<language>.<access>`` -> documents trained on


def train(
    folder: JobFolder,
    work: Train,
    ranks: Ranks,
    is_asked_to_stop: Callable[[], bool],
    is_asked_to_finish: Callable[[], bool] = lambda: False,
) -> None:
    """Do the training job in ``folder``; its result is there when this returns.

    Asked to finish, the result is a partial one, of the steps done so far; one at least.
    Raises Stopped with a training checkpoint on disk, JobFailed, BadInput.
    """
    if work.batch_sequences < ranks.world:
        raise JobFailed(
            FailureReason.BAD_INPUT,
            f"a batch of {work.batch_sequences} sequences cannot be shared by {ranks.world} ranks; start fewer",
        )
    preparing = ProgressLog(folder.path, work.steps, enabled=ranks.is_first)
    data = batches_of(folder, work, ranks, Preparation(folder, preparing, is_asked_to_stop))
    sharding = sharding_of(folder.site.sharding, work.shard, ranks.world)
    rows_max = folder.site.device_sequences or work.batch_sequences
    rows_at_once = min(rows_max, -(-work.batch_sequences // ranks.world))
    ways = choose(folder.base, work, ranks, folder.site.engine, rows_at_once=rows_at_once, sharding=sharding)
    sizes, memory = planned(folder, work, ranks, sharding, ways)
    stepper = make_stepper(folder.base, work, ranks, ways, sharding=sharding)
    shared = stepper.shared
    encoder = None
    if (
        ranks.is_first and not shared.is_sharded and work.lora is None
    ):  # tried before hours of training, not after
        encoder = gpu_encoder(work.delta_dtype, stepper.weights, ranks.device)
    training = _Training(
        folder, work, ranks, stepper, data, is_asked_to_stop, is_asked_to_finish, sizes, memory
    )
    account = training.run()
    if ranks.is_first:
        model = shared.model

        def count_tokens() -> npt.NDArray[np.int64]:
            return data.batches.token_counts(account.step, model.vocabulary_size)

        if shared.is_sharded:
            deliver_saved(folder, work, count_tokens)
        else:
            made, left = training.made(account), training.left() if moments.are_kept(work) else None
            deliver(folder, work, Arrays(stepper.weights), account, made, count_tokens, encoder, left)
        shutil.rmtree(folder.path / "checkpoint", ignore_errors=True)
    ranks.wait()


class _Training:
    def __init__(
        self,
        folder: JobFolder,
        work: Train,
        ranks: Ranks,
        stepper: Stepper,
        data: TrainingData,
        is_asked_to_stop: Callable[[], bool],
        is_asked_to_finish: Callable[[], bool],
        sizes: Sizes | None,
        memory: MemoryPlan | None,
    ) -> None:
        self._work, self._ranks, self._data, self._stepper = work, ranks, data, stepper
        self._folder = folder
        self._is_asked_to_stop, self._is_asked_to_finish = is_asked_to_stop, is_asked_to_finish
        self._optimizer, model = stepper.optimizer, stepper.shared.model
        self._feed = Feed(
            data.batches,
            ranks,
            work.steps,
            folder.site.device_sequences or work.batch_sequences,
            documents_in_one_call(work, ranks, model),
        )
        self._saves = folder.path / "checkpoint"
        self._origin = saves.origin_of(work, data.digests, model.backend)
        self._saver = saves.Saver(self._saves, self._origin, ranks, is_behind=self._has_room_for_a_copy())
        self._progress = ProgressLog(folder.path, work.steps, enabled=ranks.is_first)
        is_gpu = ranks.device.type == "cuda"
        self._flush_steps = _GPU_FLUSH_STEPS if is_gpu else 1
        device = torch.cuda.get_device_name(ranks.device) if is_gpu else ""
        peak = peak_of(device) if computes_in_bf16(work, ranks) else None
        self._watch = Watch(model.network, sizes, work.sequence_tokens, peak)
        self._memory = memory
        self._flushed_at, self._flush_seconds = time.monotonic(), math.inf  # of the newest look at losses

    def run(self) -> Account:
        """Train to the end, or as far as is wished. Raises Stopped, JobFailed."""
        with self._feed, self._saver, _no_old_garbage() as begin:
            account = self._run(begin)
            if self._stepper.shared.is_sharded:  # no rank has the whole model; its checkpoint has
                self._save(account, is_needed=True)
        return account

    def _run(self, leave_what_is_there: Callable[[], None]) -> Account:
        optimizer, ranks = self._optimizer, self._ranks
        account = saves.restore(self._saves, self._origin, optimizer.state, ranks)
        if account is None:
            account = moments.begun(self._folder, self._work, optimizer.moments, ranks)
        optimizer.steps_before = account.steps_before
        optimizer.round_weights()
        self._report(account, now=True)
        started, before = time.monotonic(), account.seconds
        pending: list[Tensor] = []
        step = account.step
        if step and self._ranks.agree(self._is_asked_to_finish()):
            return account
        while step < self._work.steps:
            pending.append(self._step(step))
            leave_what_is_there()
            step += 1
            is_due = step % self._work.checkpoint_steps == 0 and step < self._work.steps
            if step % self._flush_steps and not is_due and step < self._work.steps:
                continue
            account, stopping, finishing = self._flush(account, pending)
            account = replace(account, seconds=before + time.monotonic() - started)
            stopping = stopping and step < self._work.steps
            if is_due or stopping:
                self._save(account, is_needed=stopping)
            self._report(account, now=stopping)
            if stopping:
                if self._ranks.is_first:
                    self._folder.say_it_may_go_on()
                self._ranks.wait()
                raise Stopped
            if finishing:
                break
        self._report(account, now=True)
        return account

    def _save(self, account: Account, is_needed: bool) -> None:
        """Write a training checkpoint. To be called by all ranks."""
        self._saver.save(account, self.made(account), self._stepper.saved, is_needed)

    def _has_room_for_a_copy(self) -> bool:
        """Whether the first rank's main memory takes all that is saved a second time: on a CPU it has better uses."""
        if self._ranks.device.type != "cuda":
            return False
        found = room()
        needed = sum(tensor.numel() * 4 for tensor in self._stepper.saved.values())
        return found is None or found > needed * 5 // 4

    def made(self, account: Account) -> Made:
        return _made(self._data, self._stepper, account.step, self._ranks)

    def left(self) -> moments.Left:
        """The optimizer's moments, of a model that this rank has whole."""
        tensors = self._optimizer.moments
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return moments.Left(shapes=shapes, array=Arrays(tensors).__getitem__)

    def _step(self, step: int) -> Tensor:
        ranks = self._ranks
        with self._watch.waiting():
            fed = self._feed(step)
        languages: list[Language] | None = None
        # in the step that a line will be written after: steps may take longer than lines are apart
        is_last = step + 1 == self._work.steps
        soon = math.inf if is_last else 2 * self._flush_seconds
        if (is_last or not (step + 1) % self._flush_steps) and self._progress.is_due_within(soon):
            languages = self._data.batches.languages(step, ranks.rank, ranks.world)
        return self._stepper.step(step, fed, self._watch, languages)

    def _flush(self, account: Account, pending: list[Tensor]) -> tuple[Account, bool, bool]:
        """Account for the steps since the last time; whether all ranks are to stop, and to finish."""
        wishes = [[float(self._is_asked_to_stop()), float(self._is_asked_to_finish()), 0.0]]
        asked = torch.tensor(wishes, device=self._ranks.device)
        *steps, (stops, finishes, _) = self._ranks.total(torch.cat((torch.stack(pending), asked))).tolist()
        pending.clear()
        clock = time.monotonic()
        self._flushed_at, self._flush_seconds = clock, clock - self._flushed_at
        for nats, finite, norm in steps:
            norm /= self._ranks.world  # all ranks have the same
            self._watch.grad_norm = norm if math.isfinite(norm) else None
            tokens = self._data.batches.num_targets(account.step)
            is_finite = finite == self._ranks.world
            account = saves.advanced(account, tokens=tokens, nats=nats, is_finite=is_finite)
            if account.skipped_in_a_row == _SKIPS_MAX:
                raise JobFailed(
                    FailureReason.NON_FINITE,
                    f"the gradient was not finite in {_SKIPS_MAX} steps in a row, the last one step "
                    f"{account.step} of {self._work.steps}; lower the learning rate or the clipping norm",
                )
        return account, stops > 0, finishes > 0

    def _report(self, account: Account, now: bool = False) -> None:
        # what is left is only estimated where sequences are packed: nearly all of their places are taken
        left = (self._work.steps - account.step) * self._work.batch_sequences * self._work.sequence_tokens

        def more(tokens_per_second: float) -> dict[str, object]:
            plan = {} if self._memory is None else {"planned_bytes": self._memory.peak}
            return self._watch.numbers(tokens_per_second, left, self._ranks.world) | plan

        done = sum(self._data.batches.tokens(account.step)[0].values())
        self._progress.report(account.step, done, account.loss_last, now=now, more=more)


@contextlib.contextmanager
def _no_old_garbage() -> Iterator[Callable[[], None]]:
    """Python's collector looks at millions of objects of torch for nothing, for half a second at a time on a full
    machine. What is yielded, called after a step, has it leave alone all that is there after the first.
    """
    is_done = False

    def leave_what_is_there() -> None:
        nonlocal is_done
        if not is_done:
            gc.freeze()
            is_done = True

    try:
        yield leave_what_is_there
    finally:
        gc.unfreeze()


def batches_of(
    folder: JobFolder, work: Train, ranks: Ranks, preparation: Preparation | None = None
) -> TrainingData:
    """All the batches of the job. Raises JobFailed if the site has not the text for it, and Stopped."""
    languages = sorted({*work.languages, *work.public_languages})
    prepared = prepared_languages(folder, ranks, languages, work.split_seed, folder.base, preparation)
    streams = []
    digests: dict[str, Digest] = {}
    for access, wanted in (("private", work.languages), ("public", work.public_languages)):
        if access == "public" and not work.replay_share and work.languages:
            continue
        for language in sorted(set(wanted)):
            part = getattr(prepared[language].contents, access) if language in prepared else None
            if part is not None and part.tokens:
                text = prepared[language].tokens(access)
                streams.append(
                    Stream(
                        language=language,
                        access=access,  # type: ignore[arg-type]
                        tokens=text.tokens,
                        document_tokens=text.lengths,
                    )
                )
                digests[f"{language}.{access}"] = part.digest
            elif access == "private":
                raise JobFailed(
                    FailureReason.NO_DATA,
                    f"this site has no private {language} text to train on; add some to `text:` in its config",
                )
    if not any(stream.access == "public" for stream in streams) and (work.replay_share or not work.languages):
        raise JobFailed(
            FailureReason.NO_DATA,
            f"this site has no public text in {', '.join(work.public_languages) or 'any language'}, the job "
            "needs some; add it to `text:` in the site's config with `access: public`",
        )
    return TrainingData(batches=Batches(work, streams), digests=digests)


def _made(data: TrainingData, stepper: Stepper, step: int, ranks: Ranks) -> Made:
    tokens, public = data.batches.tokens(step)
    where = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else platform.machine()
    return Made(
        data=data.digests,
        tokens=tokens,
        public_tokens=public,
        software={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "model": stepper.shared.model.backend,
            "device": f"{where}, {ranks.world} rank(s)",
            "threads": str(torch.get_num_threads()),
        },
        weights=stepper.saved_names,
    )
