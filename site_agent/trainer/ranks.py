"""The processes that train one model together: one, or as many as torchrun started."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
from torch import Tensor, nn

from consortium.allocator import MOST, keep_freed_memory
from consortium.errors import BadInput
from consortium.jobs import Train

_PATIENCE = timedelta(days=1)  # of ranks for each other: the first one may have terabytes to tokenise


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    rank: int
    world: int
    device: torch.device
    nodes: int = 1  #: machines, real or virtual, with as many ranks each

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all ranks, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def agree(self, flag: bool) -> bool:
        """Whether it is so at any rank."""
        return bool(self.total(torch.tensor(float(flag), device=self.device)))

    def first_says(self, number: int) -> int:
        """The first rank's ``number``, at all ranks."""
        return int(self.total(torch.tensor(number if self.is_first else 0, device=self.device)))

    def wait(self) -> None:
        """Until all ranks are here."""
        self.agree(False)

    def share_gradients(self, objective: nn.Module) -> nn.Module:
        """The objective whose gradients are the mean over all ranks after ``backward``."""
        if self.world == 1:
            return objective
        return nn.parallel.DistributedDataParallel(objective)


def computes_in_bf16(work: Train, ranks: Ranks) -> bool:
    return work.precision == "bf16" or (work.precision == "auto" and ranks.device.type == "cuda")


@contextlib.contextmanager
def joined(device: Literal["auto", "cpu", "cuda"], threads: int) -> Iterator[Ranks]:
    """This process among its ranks, as torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK) says.

    Raises BadInput if a GPU is asked for and there is none.
    """
    torch.set_num_threads(threads)
    has_gpu = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise BadInput(
            "the site's settings ask for a GPU and torch sees none; set `device: auto` or start it on one"
        )
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    where = torch.device("cpu")
    if has_gpu:
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(where)
    else:
        # What use_deterministic_algorithms(True) does, without importing the compiler (1.2 s of CPU). It costs
        # nothing on CPU, and on GPUs up to a tenth of the speed.
        torch.set_deterministic_debug_mode("error")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        # every step needs the memory that the one before it had: else the kernel zeroes it anew each time
        keep_freed_memory(MOST)
    if world > 1:
        torch.distributed.init_process_group("nccl" if has_gpu else "gloo", timeout=_PATIENCE)
    try:
        nodes = max(1, world // int(os.environ.get("LOCAL_WORLD_SIZE", str(world))))
        yield Ranks(rank=rank, world=world, device=where, nodes=nodes)
    finally:
        if world > 1:
            torch.distributed.destroy_process_group()
