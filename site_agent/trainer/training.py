"""How a site trains: from the base, over the site's text, to a delta; the same bits on CPU however often it stops."""

import contextlib
import math
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from consortium.canonical import replace
from consortium.ids import Digest, Language
from consortium.jobs import Train
from consortium.tensors import Checkpoint
from site_agent.trainer import saves
from site_agent.trainer.adamw import AdamW, freeze
from site_agent.trainer.batches import Batches, Stream
from site_agent.trainer.delivery import deliver, deliver_saved
from site_agent.trainer.folder import FailureReason, JobFailed, JobFolder, Preparation, ProgressLog, Stopped
from site_agent.trainer.groups import factors_of
from site_agent.trainer.kernels.encoding import gpu_encoder
from site_agent.trainer.memory import MemoryPlan, Setup, Sizes, plan_memory, sizes_of, what_fits
from site_agent.trainer.mixture import random_bits
from site_agent.trainer.model import Model, load_model, read_config
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.room import room
from site_agent.trainer.saves import Account, Made
from site_agent.trainer.sharing import Sharding, Shared, sharding_of, share
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
    # a model that is shared in shards may be larger than one GPU: it comes there block by block
    place = ranks.device if sharding == "none" else torch.device("cpu")
    sizes, memory = _planned(folder, work, ranks, sharding)
    model = load_model(folder.base, ranks.device, place)
    freeze(model.weights, work)
    shared = share(model, ranks, sharding)
    training = _Training(
        folder, work, ranks, shared, data, is_asked_to_stop, is_asked_to_finish, sizes, memory
    )
    encoder = None
    if ranks.is_first and not shared.is_sharded:  # tried before hours of training, not after
        encoder = gpu_encoder(work.delta_dtype, shared.model.weights, ranks.device)
    account = training.run()
    if shared.is_sharded:  # no rank has the whole model; its checkpoint has
        training.save(account)
    if ranks.is_first:
        model = shared.model

        def count_tokens() -> npt.NDArray[np.int64]:
            return data.batches.token_counts(account.step, model.vocabulary_size)

        if shared.is_sharded:
            deliver_saved(folder, work, count_tokens)
        else:
            deliver(folder, work, model.arrays(), account, training.made(account), count_tokens, encoder)
        shutil.rmtree(folder.path / "checkpoint", ignore_errors=True)
    ranks.wait()


class _Training:
    def __init__(
        self,
        folder: JobFolder,
        work: Train,
        ranks: Ranks,
        shared: Shared,
        data: TrainingData,
        is_asked_to_stop: Callable[[], bool],
        is_asked_to_finish: Callable[[], bool],
        sizes: Sizes | None,
        memory: MemoryPlan | None,
    ) -> None:
        self._work, self._ranks, self._data, self._shared = work, ranks, data, shared
        self._folder = folder
        self._is_asked_to_stop, self._is_asked_to_finish = is_asked_to_stop, is_asked_to_finish
        self._optimizer = AdamW(shared.model.weights, work, shared.total_norm)
        self._rows_max = folder.site.device_sequences or work.batch_sequences
        self._saves = folder.path / "checkpoint"
        self._origin = saves.origin_of(work, data.digests, shared.model.backend)
        self._progress = ProgressLog(folder.path, work.steps, enabled=ranks.is_first)
        self._tokens_a_step = work.batch_sequences * work.sequence_tokens
        wants_bf16 = computes_in_bf16(work, ranks)
        self._autocast = torch.autocast(ranks.device.type, torch.bfloat16, enabled=wants_bf16)
        self._flush_steps = _GPU_FLUSH_STEPS if ranks.device.type == "cuda" else 1
        shared.model.network.train()
        device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else ""
        peak = peak_of(device) if wants_bf16 else None
        self._watch = Watch(shared.model.network, sizes, work.sequence_tokens, peak)
        self._memory = memory
        self._flushed_at, self._flush_seconds = time.monotonic(), math.inf  # of the newest look at losses

    def run(self) -> Account:
        account = saves.restore(self._saves, self._origin, self._optimizer.state, self._ranks)
        self._report(account, now=True)
        started, before = time.monotonic(), account.seconds
        pending: list[Tensor] = []
        step = account.step
        if step and self._ranks.agree(self._is_asked_to_finish()):
            return account
        while step < self._work.steps:
            nats = self._backward(step)
            is_finite = self._optimizer.step(step)
            pending.append(torch.stack((nats, is_finite.float(), self._optimizer.norm)))
            step += 1
            is_due = step % self._work.checkpoint_steps == 0 and step < self._work.steps
            if step % self._flush_steps and not is_due and step < self._work.steps:
                continue
            account, stopping, finishing = self._flush(account, pending)
            account = replace(account, seconds=before + time.monotonic() - started)
            stopping = stopping and step < self._work.steps
            if is_due or stopping:
                self.save(account)
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

    def save(self, account: Account) -> None:
        """Write a training checkpoint. To be called by all ranks."""
        saves.save(self._saves, self._origin, account, self.made(account), self._optimizer.state, self._ranks)

    def made(self, account: Account) -> Made:
        return _made(self._work, self._data, self._shared.model, self._optimizer, account.step, self._ranks)

    def _backward(self, step: int) -> Tensor:
        """Leave in the weights the gradient of the whole batch's mean loss; return this rank's nats."""
        ranks = self._ranks
        with self._watch.waiting():
            rows = torch.from_numpy(self._data.batches.rows(step, ranks.rank, ranks.world)).to(ranks.device)
        languages: list[Language] | None = None
        # in the step that a line will be written after: steps may take longer than lines are apart
        is_last = step + 1 == self._work.steps
        soon = math.inf if is_last else 2 * self._flush_seconds
        if (is_last or not (step + 1) % self._flush_steps) and self._progress.is_due_within(soon):
            languages = self._data.batches.languages(step, ranks.rank, ranks.world)
        torch.manual_seed(int(random_bits(1, self._work.seed, "dropout", step, ranks.rank)[0] >> 1))
        nats = torch.zeros((), device=ranks.device)
        parts = torch.split(rows, self._rows_max)
        for number, part in enumerate(parts):
            watched: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if languages is not None:
                begin = number * self._rows_max
                watched = self._watch.languages(part, languages[begin : begin + len(part)])
            with self._shared.part_of_batch(is_last=part is parts[-1]):
                with self._autocast, watched:
                    loss = self._shared.objective(part)
                # world: the mean over ranks that follows makes a sum of it again
                (loss * (ranks.world / self._tokens_a_step)).backward()
            nats += loss.detach()
        return nats

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
            account = saves.advanced(
                account, tokens=self._tokens_a_step, nats=nats, is_finite=finite == self._ranks.world
            )
            if account.skipped_in_a_row == _SKIPS_MAX:
                raise JobFailed(
                    FailureReason.NON_FINITE,
                    f"the gradient was not finite in {_SKIPS_MAX} steps in a row, the last one step "
                    f"{account.step} of {self._work.steps}; lower the learning rate or the clipping norm",
                )
        return account, stops > 0, finishes > 0

    def _report(self, account: Account, now: bool = False) -> None:
        left = (self._work.steps - account.step) * self._tokens_a_step

        def more(tokens_per_second: float) -> dict[str, object]:
            plan = {} if self._memory is None else {"planned_bytes": self._memory.peak}
            return self._watch.numbers(tokens_per_second, left, self._ranks.world) | plan

        done = account.step * self._tokens_a_step
        self._progress.report(account.step, done, account.loss_last, now=now, more=more)


def _planned(
    folder: JobFolder, work: Train, ranks: Ranks, sharding: Sharding
) -> tuple[Sizes | None, MemoryPlan | None]:
    """How large the model is and what memory its training takes; said on stderr. Nothing of a model we cannot read.

    Raises JobFailed if this machine has less.
    """
    with Checkpoint(folder.base) as base:
        frozen = [name for name, factor in factors_of(base, work.groups).items() if not factor]
        sizes = sizes_of(read_config(folder.base), base.shapes, frozen)
    if sizes is None:
        return None, None
    sequences, is_cpu = -(-work.batch_sequences // ranks.world), ranks.device.type != "cuda"
    setup = Setup(
        sequences=sequences,
        sequences_at_once=min(sequences, folder.site.device_sequences or sequences),
        sequence_tokens=work.sequence_tokens,
        is_bf16=computes_in_bf16(work, ranks),
        has_base=work.proximal > 0,
        ranks=ranks.world,
        shards={"none": 1, "fsdp": ranks.world, "hsdp": ranks.world // ranks.nodes}[sharding],
        is_cpu=is_cpu,
    )
    plan = plan_memory(sizes, setup)
    if ranks.is_first:
        print(plan.lines(), file=sys.stderr)
    here = ranks.world // ranks.nodes if is_cpu else 1  # ranks that share the memory
    found = room() if is_cpu else torch.cuda.mem_get_info(ranks.device)[0]
    if found is not None and plan.peak * here > found:
        fits = what_fits(sizes, setup, found // here)
        way_out = (
            f"set `device_sequences: {fits}` at this site, which fits"
            if fits
            else "not even one sequence at a time fits: share the model among more ranks (`shard: true`), or shorten "
            "sequences"
        )
        raise JobFailed(
            FailureReason.OUT_OF_MEMORY,
            f"{setup.sequences_at_once} sequences of {work.sequence_tokens} tokens at once take "
            f"{plan.peak * here >> 20} MiB here, {found >> 20} MiB are left; {way_out}",
        )
    return sizes, plan


def computes_in_bf16(work: Train, ranks: Ranks) -> bool:
    return work.precision == "bf16" or (work.precision == "auto" and ranks.device.type == "cuda")


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
                tokens = prepared[language].tokens(access).tokens
                streams.append(Stream(language=language, access=access, tokens=tokens))  # type: ignore[arg-type]
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


def _made(work: Train, data: TrainingData, model: Model, optimizer: AdamW, step: int, ranks: Ranks) -> Made:
    tokens, public = data.batches.tokens(step)
    where = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else platform.machine()
    return Made(
        data=data.digests,
        tokens=tokens,
        public_tokens=public,
        software={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "model": model.backend,
            "device": f"{where}, {ranks.world} rank(s)",
            "threads": str(torch.get_num_threads()),
        },
        weights={name: optimizer.names[id(weight)] for name, weight in model.weights.items()},
    )
