"""Where a training job can go on from: training checkpoints in ``checkpoint/step-<n>/``, the last two kept.

A checkpoint appears whole, by one rename, and its ``state.json`` has the digest of its tensors: one that does not
match, or that another job, text or model made, is passed over for the one before, or for the start. Tensors lie in
it whole, whatever number of ranks wrote it, so that any number of ranks can go on from it. Importing this imports
no torch: a partial result is made from a checkpoint where nothing trains. Why torch.distributed.checkpoint does not
write them, says docs/training.md.
"""

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from consortium.canonical import Fact, decode, digest_of_fact, encode, replace
from consortium.errors import BadInput
from consortium.files import write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.ids import Digest, Language
from consortium.jobs import Train
from consortium.manifests import FileRef
from consortium.store import ref_of
from consortium.tensor_writer import TensorWriter
from consortium.tensors import F32Array, TensorFile

if TYPE_CHECKING:
    from torch import Tensor

    from site_agent.trainer.ranks import Ranks

WEIGHT = "weight/"  #: what the names of weights begin with; the optimizer's other tensors have other prefixes

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
    moments_before: Digest | None = None  #: that the job began with; None: with zeros
    steps_before: int = 0  #: that these have seen, of earlier jobs


class Made(Fact):
    """What a result says beside the account's numbers."""

    data: dict[str, Digest]  #: ``<language>.<access>`` -> documents trained on
    tokens: dict[Language, int]
    public_tokens: dict[Language, int]
    software: dict[str, str]
    weights: dict[str, str]  #: a weight's name in the base -> its name in the checkpoint; tied ones share one


class State(Fact):
    """``state.json``."""

    schema: int = 2
    origin: Digest  #: of everything the numbers depend on
    account: Account
    tensors: FileRef
    made: Made


def origin_of(work: Train, data: Mapping[str, Digest], backend: str) -> Digest:
    """What a checkpoint has to have been made from, to be gone on from."""
    return digest_of_fact([work, dict(data), backend])


class Saver:
    """Writes the training checkpoints of a job.

    is_behind  whether training goes on while one is written: of a copy, so that there has to be memory for all of it.
               The copy is taken at once, and what went wrong with the writing is raised by the next call
    """

    def __init__(self, folder: Path, origin: Digest, ranks: "Ranks", is_behind: bool) -> None:
        self._folder, self._origin, self._ranks = folder, origin, ranks
        self._thread = ThreadPoolExecutor(1, "saver") if is_behind and ranks.is_first else None
        self._writing: Future[None] | None = None

    def save(
        self, account: Account, made: Made, tensors: "Mapping[str, Tensor]", is_needed: bool = False
    ) -> None:
        """Write the checkpoint of ``account.step``, then forget all but the last two. To be called by all ranks.

        tensors    float32, by names of the caller's own; sharded ones are gathered one after the other
        is_needed  it has to be there when this returns, at every rank
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if not self._ranks.is_first:
            for _ in _gathered(tensors):
                pass
        elif self._thread is None:
            self._write(account, made, shapes, _gathered(tensors))
        else:
            self.wait()  # one copy at a time
            # what comes from a GPU is a copy already
            copies = [
                (name, values.copy() if tensors[name].device.type == "cpu" else values)
                for name, values in _gathered(tensors)
            ]
            self._writing = self._thread.submit(self._write, account, made, shapes, copies)
        if is_needed:
            self.wait()
            self._ranks.wait()

    def wait(self) -> None:
        """Until what is being written is there. Raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        if kind is None:
            self.wait()

    def _write(
        self,
        account: Account,
        made: Made,
        shapes: Mapping[str, tuple[int, ...]],
        values: Iterable[tuple[str, F32Array]],
    ) -> None:
        place = self._folder / f"step-{account.step:09d}"
        if place.exists():  # made by an earlier start, passed over as broken, or saved a moment ago
            shutil.rmtree(place)
        with fresh_folder(place) as fresh:
            with TensorWriter(fresh / _TENSORS, shapes, "F32") as writer:
                for name, each in values:
                    writer.write(name, 0, each)
            state = State(origin=self._origin, account=account, tensors=ref_of(fresh / _TENSORS), made=made)
            write_bytes_atomically(fresh / "state.json", encode(state))
        for old in _newest_first(self._folder)[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path, origin: Digest | None = None) -> tuple[State, Path] | None:
    """The newest checkpoint that is whole and, if one is given, of ``origin``; and the file of its tensors."""
    for place in _newest_first(folder):
        with contextlib.suppress(BadInput, FileNotFoundError):
            state = decode((place / "state.json").read_bytes(), State, str(place / "state.json"))
            if origin in (None, state.origin) and state.tensors == ref_of(place / _TENSORS):
                return state, place / _TENSORS
    return None


def restore(folder: Path, origin: Digest, tensors: "Mapping[str, Tensor]", ranks: "Ranks") -> Account | None:
    """Fill ``tensors`` from the newest checkpoint that is whole and of the same origin. By all ranks.

    Returns its account; None, and nothing filled, if there is none. Digests are the first rank's work.
    """
    from site_agent.trainer.sharing import fill

    found = newest(folder, origin) if ranks.is_first else None
    step = ranks.first_says(found[0].account.step if found else -1)
    if step < 0:
        return None
    place = folder / f"step-{step:09d}"
    state = decode((place / "state.json").read_bytes(), State, str(place / "state.json"))
    with TensorFile(place / _TENSORS) as file:
        for name, tensor in tensors.items():
            fill(tensor, file, name)
    return state.account


def _gathered(tensors: "Mapping[str, Tensor]") -> "Iterator[tuple[str, F32Array]]":
    from site_agent.trainer.sharing import whole

    for name, tensor in tensors.items():
        yield name, whole(tensor).numpy().reshape(-1)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


class SavedWeights(Mapping[str, "F32Array"]):
    """The weights in a checkpoint's file, by their names in the base; read when asked for."""

    def __init__(self, file: TensorFile, names: Mapping[str, str]) -> None:
        self._file, self._names = file, names

    def __getitem__(self, name: str) -> F32Array:
        return self._file.array(WEIGHT + self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


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
