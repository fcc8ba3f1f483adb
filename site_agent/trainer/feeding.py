"""How the batch of a step gets to the device: made one step ahead by a thread, copied while the device computes.

What is in a batch is ``batches.py``'s business and depends on the step alone, so reading ahead changes no bit and a
job that is stopped has nothing to put back. On a CPU the thread would take from the step what it gives: there each
batch is made when it is asked for.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from site_agent.trainer.attention import Documents, documents_of
from site_agent.trainer.batches import Batch, Batches
from site_agent.trainer.packing import bounds_of
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.sending import sent


class Part(NamedTuple):
    """What goes through the model at once, on the device."""

    ids_BS: Tensor
    targets_BS: Tensor
    documents: Documents | None


class Fed(NamedTuple):
    """A rank's part of the batch of a step.

    targets  tokens predicted in the step by all ranks
    """

    parts: list[Part]
    targets: int


class Feed:
    """The batches of a job for one rank, from any step on.

    rows_max        sequences that go through the model at once
    is_in_one_call  see ``attention.can_do_in_one_call``
    is_ahead        whether a thread makes the next one meanwhile
    """

    def __init__(
        self,
        batches: Batches,
        ranks: Ranks,
        steps: int,
        rows_max: int,
        is_in_one_call: bool,
        is_ahead: bool | None = None,
    ) -> None:
        self._batches, self._ranks, self._steps = batches, ranks, steps
        self._rows_max, self._is_in_one_call = rows_max, is_in_one_call
        is_gpu = ranks.device.type == "cuda"
        self._thread = None
        if is_gpu if is_ahead is None else is_ahead:
            # the current device is a thread's own: without this, every rank's pinned memory would be the first GPU's
            begin = (torch.cuda.set_device, (ranks.device,)) if is_gpu else (None, ())
            self._thread = ThreadPoolExecutor(1, "feed", *begin)
        self._next: tuple[int, Future[Fed]] | None = None

    def __call__(self, step: int) -> Fed:
        """The batch of ``step``; it may wait for it."""
        if self._thread is None:
            return self._made(step)
        begun, self._next = self._next, None
        fed = begun[1].result() if begun and begun[0] == step else self._made(step)
        if step + 1 < self._steps:
            self._next = step + 1, self._thread.submit(self._made, step + 1)
        return fed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _made(self, step: int) -> Fed:
        batch = self._batches.batch(step, self._ranks.rank, self._ranks.world)
        begins = range(0, len(batch.ids_BS), self._rows_max)
        parts = [self._part(batch, begin, begin + self._rows_max) for begin in begins]
        return Fed(parts, self._batches.num_targets(step))

    def _part(self, batch: Batch, begin: int, end: int) -> Part:
        device, documents = self._ranks.device, None
        ids_BS, targets_BS = (
            torch.from_numpy(whole[begin:end]) for whole in (batch.ids_BS, batch.targets_BS)
        )
        if batch.documents is not None:
            rows, row_tokens = ids_BS.shape
            most = self._batches.documents_max
            assert most is not None
            documents = documents_of(
                bounds_of(batch.documents[begin:end], row_tokens),
                rows,
                row_tokens,
                rows * most + 1,
                device,
                self._is_in_one_call,
            )
        return Part(sent(ids_BS, device), sent(targets_BS, device), documents)
