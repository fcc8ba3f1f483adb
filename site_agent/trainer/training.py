"""How a site trains: from the base, over the site's text, to a delta; the same bits on CPU however often it stops."""

import contextlib
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from consortium.canonical import digest_of_fact, replace
from consortium.deltas import write_coded_delta, write_delta
from consortium.ids import Digest
from consortium.jobs import Train
from consortium.manifests import FileRef, Losses
from consortium.merging.operands import write_row_counts
from consortium.store import ref_of
from consortium.tensors import Checkpoint, TensorFile
from site_agent.trainer import saves
from site_agent.trainer.adamw import AdamW
from site_agent.trainer.batches import Batches, Stream
from site_agent.trainer.folder import (
    RESIDUAL,
    FailureReason,
    JobFailed,
    JobFolder,
    ProgressLog,
    Stopped,
    write_contribution,
)
from site_agent.trainer.mixture import random_bits
from site_agent.trainer.model import Model, load_model
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.saves import Account
from site_agent.trainer.words import prepared_languages

_SKIPS_MAX = 3  # steps in a row without a finite gradient: it will not come back by itself
_GPU_FLUSH_STEPS = 8  # between looks at the losses; each makes the GPU wait for the host


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    batches: Batches
    digests: dict[str, Digest]  #: ``<language>.<access>`` -> documents trained on


def train(folder: JobFolder, work: Train, ranks: Ranks, is_asked_to_stop: Callable[[], bool]) -> None:
    """Do the training job in ``folder``; its result is there when this returns.

    Raises Stopped with a training checkpoint on disk, JobFailed, BadInput.
    """
    if work.batch_sequences < ranks.world:
        raise JobFailed(
            FailureReason.BAD_INPUT,
            f"a batch of {work.batch_sequences} sequences cannot be shared by {ranks.world} ranks; start fewer",
        )
    data = _prepare(folder, work, ranks)
    model = load_model(folder.base, ranks.device)
    account = _Training(folder, work, ranks, model, data, is_asked_to_stop).run()
    if ranks.is_first:
        _deliver(folder, work, model, data, account, ranks)
        shutil.rmtree(folder.path / "checkpoint", ignore_errors=True)
    ranks.wait()


class _Training:
    def __init__(
        self,
        folder: JobFolder,
        work: Train,
        ranks: Ranks,
        model: Model,
        data: _Data,
        is_asked_to_stop: Callable[[], bool],
    ) -> None:
        self._work, self._ranks, self._data = work, ranks, data
        self._is_asked_to_stop = is_asked_to_stop
        self._optimizer = AdamW(model.weights, work)
        self._objective = ranks.share_gradients(model.objective)
        self._rows_max = folder.site.device_sequences or work.batch_sequences
        self._saves = folder.path / "checkpoint"
        self._origin = digest_of_fact([work, data.digests, model.backend])
        self._progress = ProgressLog(folder.path, work.steps, enabled=ranks.is_first)
        self._tokens_a_step = work.batch_sequences * work.sequence_tokens
        wants_bf16 = work.precision == "bf16" or (work.precision == "auto" and ranks.device.type == "cuda")
        self._autocast = torch.autocast(ranks.device.type, torch.bfloat16, enabled=wants_bf16)
        self._flush_steps = _GPU_FLUSH_STEPS if ranks.device.type == "cuda" else 1
        model.network.train()

    def run(self) -> Account:
        account = saves.restore(self._saves, self._origin, self._optimizer.state)
        self._report(account, now=True)
        started, before = time.monotonic(), account.seconds
        pending: list[Tensor] = []
        step = account.step
        while step < self._work.steps:
            nats = self._backward(step)
            is_finite = self._optimizer.step(step)
            pending.append(torch.stack((nats, is_finite.float())))
            step += 1
            is_due = step % self._work.checkpoint_steps == 0 and step < self._work.steps
            if step % self._flush_steps and not is_due and step < self._work.steps:
                continue
            account, stopping = self._flush(account, pending)
            account = replace(account, seconds=before + time.monotonic() - started)
            stopping = stopping and step < self._work.steps
            if is_due or stopping:
                self._save(account)
            self._report(account, now=stopping)
            if stopping:
                raise Stopped
        self._report(account, now=True)
        return account

    def _backward(self, step: int) -> Tensor:
        """Leave in the weights the gradient of the whole batch's mean loss; return this rank's nats."""
        ranks = self._ranks
        rows = torch.from_numpy(self._data.batches.rows(step, ranks.rank, ranks.world)).to(ranks.device)
        torch.manual_seed(int(random_bits(1, self._work.seed, "dropout", step, ranks.rank)[0] >> 1))
        nats = torch.zeros((), device=ranks.device)
        parts = torch.split(rows, self._rows_max)
        for part in parts:
            with contextlib.ExitStack() as stack:
                if ranks.world > 1 and part is not parts[-1]:
                    stack.enter_context(self._objective.no_sync())  # type: ignore[operator]
                with self._autocast:
                    loss = self._objective(part)
                # world: the mean over ranks that follows makes a sum of it again
                (loss * (ranks.world / self._tokens_a_step)).backward()
            nats += loss.detach()
        return nats

    def _flush(self, account: Account, pending: list[Tensor]) -> tuple[Account, bool]:
        """Account for the steps since the last time; whether all ranks are to stop."""
        asked = torch.full((1, 2), float(self._is_asked_to_stop()), device=self._ranks.device)
        *steps, (votes, _) = self._ranks.total(torch.cat((torch.stack(pending), asked))).tolist()
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
        return account, votes > 0

    def _save(self, account: Account) -> None:
        if self._ranks.is_first:
            saves.save(self._saves, self._origin, account, self._optimizer.state)
        self._ranks.wait()

    def _report(self, account: Account, now: bool = False) -> None:
        self._progress.report(account.step, account.step * self._tokens_a_step, account.loss_last, now=now)


def _prepare(folder: JobFolder, work: Train, ranks: Ranks) -> _Data:
    languages = sorted({*work.languages, *work.public_languages})
    prepared = prepared_languages(folder, ranks, languages, work.split_seed, folder.base)
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
    return _Data(batches=Batches(work, streams), digests=digests)


def _deliver(
    folder: JobFolder, work: Train, model: Model, data: _Data, account: Account, ranks: Ranks
) -> None:
    tokens, public = data.batches.tokens(account.step)
    where = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else platform.machine()
    with folder.result() as result:
        delta, residual_before, residual = _write_delta(folder, work, model, result)
        artifacts = {"delta": delta}
        if work.token_counts:
            counts_V = data.batches.token_counts(account.step, model.vocabulary_size)
            artifacts["token_counts"] = write_row_counts(result / "token_counts.safetensors", counts_V)
        contribution = replace(
            folder.contribution(artifacts),
            base=work.base,
            residual_before=residual_before,
            residual=residual,
            steps=account.step,
            planned_steps=work.steps,
            tokens=tokens,
            public_tokens=public,
            losses=_losses(account),
            data=data.digests,
            software={
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "model": model.backend,
                "device": f"{where}, {ranks.world} rank(s)",
                "threads": str(torch.get_num_threads()),
            },
            seconds=round(account.seconds, 3),
        )
        write_contribution(result, contribution)


def _write_delta(
    folder: JobFolder, work: Train, model: Model, result: Path
) -> tuple[FileRef, Digest | None, Digest | None]:
    """The delta, and digests of the residual it was made with and of the one it leaves, if its encoding does."""
    path, encoding = result / "delta.safetensors", work.delta_dtype
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(Checkpoint(folder.base))
        if encoding == "bf16" or encoding == "fp32":
            return write_delta(base, model.arrays(), path, encoding), None, None
        before = _usable_residual(folder, work)
        residual = stack.enter_context(TensorFile(folder.residual)) if before else None
        delta, after = write_coded_delta(
            base, model.arrays(), path, encoding, residual, result / RESIDUAL, work.delta_density
        )
        return delta, before, after.digest


def _usable_residual(folder: JobFolder, work: Train) -> Digest | None:
    """The residual that the order names, if it is here and whole. Else the manifest says that there was none."""
    found = ref_of(folder.residual).digest if work.residual and folder.residual.is_file() else None
    if found == work.residual:
        return found
    print(
        f"{folder.residual}: the order names residual {work.residual}, here is {found or 'none'}; the delta begins "
        "without, and says so",
        file=sys.stderr,
    )
    return None


def _losses(account: Account) -> Losses | None:
    if account.loss_first is None or account.loss_last is None:
        return None
    return Losses(first=account.loss_first, last=account.loss_last, mean=account.loss_sum / account.updates)
