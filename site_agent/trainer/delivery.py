"""How a training job's result is written: from the weights in memory, or from a training checkpoint.

The latter needs no torch, no GPU and, unless tokens are to be counted, no text: so a partial result can be made
wherever the job directory is, once no life may start any more.
"""

import contextlib
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from consortium.canonical import replace
from consortium.deltas import Encoder, StillRows, write_coded_delta, write_delta
from consortium.errors import BadInput
from consortium.ids import Digest
from consortium.jobs import Train
from consortium.manifests import FileRef, Losses
from consortium.merging.layers import layer_of
from consortium.merging.operands import write_row_counts
from consortium.store import ref_of
from consortium.tensors import Checkpoint, F32Array, TensorFile
from site_agent.trainer import moments, saves
from site_agent.trainer.folder import MOMENTS, RESIDUAL, JobFolder, write_contribution
from site_agent.trainer.saves import Account, Made, SavedWeights

#: How often each token was trained on, (vocabulary,); asked for once, and only where the order needs it.
Counts = Callable[[], npt.NDArray[np.int64]]


def deliver(
    folder: JobFolder,
    work: Train,
    weights: Mapping[str, F32Array],
    account: Account,
    made: Made,
    count_tokens: Counts,
    encoder: Encoder | None = None,
    left: moments.Left | None = None,
) -> None:
    """Write ``result/``: the delta from the base to ``weights``, and the manifest with the steps really done.

    encoder  codes ``weights`` where they lie, for a delta in int8 or int4; None: the codecs do, here
    left     the optimizer's moments, if the order keeps them
    """
    counts_V = count_tokens() if work.token_counts or work.unseen_rows == "keep" else None
    with folder.result() as result:
        unseen_V = None if counts_V is None or work.unseen_rows == "move" else counts_V == 0
        delta, residual_before, residual = _write_delta(folder, work, weights, result, unseen_V, encoder)
        artifacts = {"delta": delta}
        if counts_V is not None and work.token_counts:
            artifacts["token_counts"] = write_row_counts(result / "token_counts.safetensors", counts_V)
        kept = None if left is None else moments.write_moments(result / MOMENTS, work, account, left)
        contribution = replace(
            folder.contribution(artifacts),
            base=work.base,
            residual_before=residual_before,
            residual=residual,
            moments_before=account.moments_before or UNSET,
            moments=kept or UNSET,
            steps=account.step,
            planned_steps=work.steps,
            tokens=made.tokens,
            public_tokens=made.public_tokens,
            losses=_losses(account),
            data=made.data,
            software=made.software,
            seconds=round(account.seconds, 3),
        )
        write_contribution(result, contribution)


def finish(folder: JobFolder, work: Train) -> None:
    """Make the partial result of ``folder`` from its newest training checkpoint, without training.

    Raises BadInput if there is none.
    """

    def count_tokens() -> npt.NDArray[np.int64]:
        return _counted_anew(folder, work)

    deliver_saved(folder, work, count_tokens)
    shutil.rmtree(folder.path / "checkpoint", ignore_errors=True)


def deliver_saved(folder: JobFolder, work: Train, count_tokens: Counts) -> Account:
    """Write ``result/`` from the newest training checkpoint of this very job; returns its account.

    Raises BadInput if there is none that is whole.
    """
    found = saves.newest(folder.path / "checkpoint")
    if found is None:
        raise BadInput(
            f"{folder.path / 'checkpoint'}: holds no whole training checkpoint; the job has to run longer first"
        )
    state, path = found
    if state.origin != saves.origin_of(work, state.made.data, state.made.software["model"]):
        raise BadInput(f"{path.parent}: is a checkpoint of another job; move it away")
    with TensorFile(path) as file:
        weights = SavedWeights(file, state.made.weights)
        left = moments.left_in(file) if moments.are_kept(work) else None
        deliver(folder, work, weights, state.account, state.made, count_tokens, left=left)
    return state.account


def _write_delta(
    folder: JobFolder,
    work: Train,
    weights: Mapping[str, F32Array],
    result: Path,
    unseen_V: npt.NDArray[np.bool_] | None,
    encoder: Encoder | None,
) -> tuple[FileRef, Digest | None, Digest | None]:
    """The delta, and digests of the residual it was made with and of the one it leaves, if its encoding does."""
    path, encoding = result / "delta.safetensors", work.delta_dtype
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(Checkpoint(folder.base))
        still = None if unseen_V is None else rows_of_tokens(base.shapes, unseen_V)
        if encoding == "bf16" or encoding == "fp32":
            return write_delta(base, weights, path, encoding, still), None, None
        before = _usable_residual(folder, work)
        residual = stack.enter_context(TensorFile(folder.residual)) if before else None
        delta, after = write_coded_delta(
            base, weights, path, encoding, residual, result / RESIDUAL, work.delta_density, still, encoder
        )
        return delta, before, after.digest


def rows_of_tokens(shapes: Mapping[str, tuple[int, ...]], tokens_V: npt.NDArray[np.bool_]) -> StillRows:
    """The rows of ``tokens_V`` in every tensor that has a row for each token: embeddings, head, the head's bias.

    These lie outside the layers, and their first dimension is the vocabulary.
    """
    return {
        name: tokens_V
        for name, shape in shapes.items()
        if shape[:1] == tokens_V.shape and layer_of(name) is None
    }


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


def _counted_anew(folder: JobFolder, work: Train) -> npt.NDArray[np.int64]:
    """The token counts of the newest checkpoint: they are not in it, but the text is as it was."""
    import torch

    from site_agent.trainer.model import read_config
    from site_agent.trainer.ranks import Ranks
    from site_agent.trainer.training import batches_of

    data = batches_of(folder, work, Ranks(rank=0, world=1, device=torch.device("cpu")))
    found = saves.newest(folder.path / "checkpoint")
    if found is None or found[0].made.data != data.digests:
        raise BadInput(
            f"{folder.path}: its text has changed since it was trained on; its tokens cannot be counted"
        )
    vocabulary_size: int = read_config(folder.base)["vocab_size"]
    return data.batches.token_counts(found[0].account.step, vocabulary_size)


def _losses(account: Account) -> Losses | None:
    if account.loss_first is None or account.loss_last is None:
        return None
    return Losses(first=account.loss_first, last=account.loss_last, mean=account.loss_sum / account.updates)
