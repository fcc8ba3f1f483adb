"""How a site trains: from the base, over the site's text, to a delta; the same bits on CPU however often it stops."""

import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from consortium.canonical import replace
from consortium.ids import Digest
from consortium.jobs import Train
from site_agent.trainer import saves
from site_agent.trainer.adamw import AdamW, freeze
from site_agent.trainer.batches import Batches, Stream
from site_agent.trainer.delivery import deliver, deliver_saved
from site_agent.trainer.folder import FailureReason, JobFailed, JobFolder, Preparation, ProgressLog, Stopped
from site_agent.trainer.mixture import random_bits
from site_agent.trainer.model import Model, load_model
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.saves import Account, Made
from site_agent.trainer.sharing import Shared, sharding_of, share
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
    model = load_model(folder.base, ranks.device, place)
    freeze(model.weights, work)
    shared = share(model, ranks, sharding)
    training = _Training(folder, work, ranks, shared, data, is_asked_to_stop, is_asked_to_finish)
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
            deliver(folder, work, model.arrays(), account, training.made(account), count_tokens)
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
        wants_bf16 = work.precision == "bf16" or (work.precision == "auto" and ranks.device.type == "cuda")
        self._autocast = torch.autocast(ranks.device.type, torch.bfloat16, enabled=wants_bf16)
        self._flush_steps = _GPU_FLUSH_STEPS if ranks.device.type == "cuda" else 1
        shared.model.network.train()

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
            pending.append(torch.stack((nats, is_finite.float())))
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
        rows = torch.from_numpy(self._data.batches.rows(step, ranks.rank, ranks.world)).to(ranks.device)
        torch.manual_seed(int(random_bits(1, self._work.seed, "dropout", step, ranks.rank)[0] >> 1))
        nats = torch.zeros((), device=ranks.device)
        parts = torch.split(rows, self._rows_max)
        for part in parts:
            with self._shared.part_of_batch(is_last=part is parts[-1]):
                with self._autocast:
                    loss = self._shared.objective(part)
                # world: the mean over ranks that follows makes a sum of it again
                (loss * (ranks.world / self._tokens_a_step)).backward()
            nats += loss.detach()
        return nats

    def _flush(self, account: Account, pending: list[Tensor]) -> tuple[Account, bool, bool]:
        """Account for the steps since the last time; whether all ranks are to stop, and to finish."""
        wishes = [[float(self._is_asked_to_stop()), float(self._is_asked_to_finish())]]
        asked = torch.tensor(wishes, device=self._ranks.device)
        *steps, (stops, finishes) = self._ranks.total(torch.cat((torch.stack(pending), asked))).tolist()
        pending.clear()
        for nats, finite in steps:
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
        self._progress.report(account.step, account.step * self._tokens_a_step, account.loss_last, now=now)


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
