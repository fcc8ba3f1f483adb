"""Where a training job can go on from: training checkpoints in ``checkpoint/step-<n>/``, the last two kept.

A checkpoint appears whole, by one rename, and its ``state.json`` has the digest of its tensors: one that does not
match, or that another job, text or model made, is passed over for the one before, or for the start.
"""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from consortium.canonical import Fact, decode, encode, replace
from consortium.errors import BadInput
from consortium.files import write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.ids import Digest
from consortium.manifests import FileRef
from consortium.store import ref_of
from consortium.tensor_writer import TensorWriter
from consortium.tensors import TensorFile

_KEPT = 2
_TENSORS = "state.safetensors"


class Account(Fact):
    """What has been trained so far, in numbers. Losses are nats per token."""

    step: int = 0  #: done; the next one to do, and all that the data needs to go on
    updates: int = 0  #: of the weights; a step with a non-finite gradient makes none
    skipped_in_a_row: int = 0
    loss_first: float | None = None
    loss_last: float | None = None
    loss_sum: float = 0.0  #: over the updates
    seconds: float = 0.0  #: spent training, over all starts of the job


class _State(Fact):
    schema: int = 1
    origin: Digest  #: of everything the numbers depend on
    account: Account
    tensors: FileRef


def save(folder: Path, origin: Digest, account: Account, tensors: Mapping[str, Tensor]) -> None:
    """Write the checkpoint of ``account.step``, then forget all but the last two.

    tensors  float32, by names of the caller's own
    """
    place = folder / f"step-{account.step:09d}"
    if place.exists():  # made by an earlier start, passed over as broken, or saved a moment ago
        shutil.rmtree(place)
    with fresh_folder(place) as fresh:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        with TensorWriter(fresh / _TENSORS, shapes, "F32") as writer:
            for name, tensor in tensors.items():
                writer.write(name, 0, tensor.detach().cpu().numpy().reshape(-1))
        state = _State(origin=origin, account=account, tensors=ref_of(fresh / _TENSORS))
        write_bytes_atomically(fresh / "state.json", encode(state))
    for old in _newest_first(folder)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path, origin: Digest, tensors: Mapping[str, Tensor]) -> Account:
    """Fill ``tensors`` from the newest checkpoint that is whole and of the same origin.

    Returns its account; an empty one, and nothing filled, if there is none.
    """
    for place in _newest_first(folder):
        with contextlib.suppress(BadInput, FileNotFoundError):
            state = decode((place / "state.json").read_bytes(), _State, str(place / "state.json"))
            if state.origin == origin and state.tensors == ref_of(place / _TENSORS):
                _fill(place / _TENSORS, tensors)
                return state.account
    return Account()


@torch.no_grad()
def _fill(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with TensorFile(path) as file:
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(file.array(name)))


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def advanced(account: Account, *, tokens: int, nats: float, is_finite: bool) -> Account:
    """The account after one more step of ``tokens`` targets."""
    if not is_finite:
        return replace(account, step=account.step + 1, skipped_in_a_row=account.skipped_in_a_row + 1)
    loss = nats / tokens
    return replace(
        account,
        step=account.step + 1,
        updates=account.updates + 1,
        skipped_in_a_row=0,
        loss_first=loss if account.loss_first is None else account.loss_first,
        loss_last=loss,
        loss_sum=account.loss_sum + loss,
    )
