"""How the ranks of one job share its model: each has all of it, a shard, or a shard within its node.

Sharding is FSDP2 (Zhao et al. 2023, arXiv:2304.11277; ``torch.distributed.fsdp.fully_shard``): every block of the
model is gathered for its forward and backward pass and dropped again; weights, gradients and moments lie in
float32 in shards of rows. What a rank does with its own shard it does on ``local`` tensors; what is written to
disk is made ``whole`` tensor by tensor, so that it does not depend on how many ranks there were.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from consortium.tensors import TensorFile
from site_agent.trainer.model import Model
from site_agent.trainer.ranks import Ranks

Sharding = Literal["none", "fsdp", "hsdp"]

_SHARD = "shard"


def sharding_of(site: Sharding, is_asked: bool, world: int) -> Sharding:
    """How a job shares its model: as the site says, in shards if the order asks for them; one rank has it whole."""
    if world == 1:
        return "none"
    return "fsdp" if site == "none" and is_asked else site


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A model as the ranks share it.

    model      its weights are what the optimizer steps: whole, or in shards
    objective  see ``Model.objective``; after a backward pass within ``last_part`` gradients are means over ranks
    group      the ranks that have one copy of the model between them; None: each has a whole one
    """

    model: Model
    objective: nn.Module
    group: Any = None

    @property
    def is_sharded(self) -> bool:
        return self.group is not None

    @contextlib.contextmanager
    def part_of_batch(self, is_last: bool) -> Iterator[None]:
        """Around forward and backward of one part: gradients are shared among ranks with the last."""
        if self.is_sharded:
            self.model.network.set_requires_gradient_sync(is_last)  # type: ignore[operator]
            yield
        elif is_last or not isinstance(self.objective, nn.parallel.DistributedDataParallel):
            yield
        else:
            with self.objective.no_sync():
                yield

    def total_norm(self, gradients: list[Tensor]) -> Tensor:
        """The Euclidean norm over all tensors of the model, the same at all ranks.

        gradients  this rank's local ones
        """
        norm = norm_of(gradients)
        if not self.is_sharded:
            return norm
        squares = norm.square()
        torch.distributed.all_reduce(squares, group=self.group)
        return squares.sqrt()


def share(model: Model, ranks: Ranks, sharding: Sharding, in_bf16: bool = False) -> Shared:
    """Share ``model``, which every rank has loaded, by ``sharding``; a single rank has it whole in any case.

    in_bf16  of a sharded model: blocks are gathered and computed in bf16; the shards stay float32, and gradients are
             summed over ranks in it
    """
    if sharding == "none" or ranks.world == 1:
        return Shared(model=model, objective=ranks.share_gradients(model.objective))
    # imports the compiler, which takes a second or more
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    kind = ranks.device.type
    if sharding == "hsdp" and ranks.nodes > 1:
        shape, names = (ranks.nodes, ranks.world // ranks.nodes), ("replica", _SHARD)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
    else:
        mesh = init_device_mesh(kind, (ranks.world,), mesh_dim_names=(_SHARD,))
    policy = MixedPrecisionPolicy()
    if in_bf16:  # what is handed to a block stays as it is: angles need their 32 bits
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for block in blocks_of(model.network):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model.network, mesh=mesh, mp_policy=policy)
    state = model.network.state_dict(keep_vars=True)
    sharded = dataclasses.replace(model, weights={name: state[name] for name in model.weights})
    return Shared(model=sharded, objective=sharded.objective, group=mesh.get_group(_SHARD))


def norm_of(gradients: list[Tensor]) -> Tensor:
    """In float32 also of gradients in 16 bits, whose own norm would have three digits."""
    if all(gradient.dtype == torch.float32 for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    norms = torch._foreach_norm(gradients, 2, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def local(tensor: Tensor) -> Tensor:
    """This rank's part of ``tensor``: the same memory."""
    if hasattr(tensor, "to_local"):  # a DTensor; its class is not imported where nothing is sharded
        part: Tensor = tensor.to_local()
        return part
    return tensor


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, in main memory. To be called by all ranks, in the same order."""
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu()


def gathered(part: Tensor, sharded: Tensor) -> Tensor:
    """All of a tensor, on the device, of which each rank has the ``part`` that it has of ``sharded``.

    To be called by all ranks, in the same order. Of what is not sharded, ``part`` itself.
    """
    if not hasattr(sharded, "placements"):
        return part
    from torch.distributed.tensor import DTensor

    assert isinstance(sharded, DTensor)
    laid_out = DTensor.from_local(
        part,
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=sharded.shape,
        stride=sharded.stride(),
    )
    all_of_it: Tensor = laid_out.full_tensor()
    return all_of_it


def rows_here(whole: Tensor, sharded: Tensor) -> Tensor:
    """Of ``whole``, the rows that this rank has of ``sharded``."""
    begin = _first_row(sharded)
    return whole[begin : begin + len(local(sharded))]


def _first_row(tensor: Tensor) -> int:
    """Of this rank's part."""
    if not hasattr(tensor, "placements"):
        return 0
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    (dimension,) = (index for index, place in enumerate(tensor.placements) if place.is_shard(0))
    share_of_rows = -(-tensor.shape[0] // mesh.size(dimension))  # the last ranks may have fewer, or none
    return int(min(mesh.get_coordinate()[dimension] * share_of_rows, tensor.shape[0]))


@torch.no_grad()
def fill(tensor: Tensor, file: TensorFile, name: str) -> None:
    """Copy ``name`` of ``file`` into ``tensor``: of a sharded one, only the rows that this rank has."""
    part, begin = local(tensor), _first_row(tensor)
    values = torch.empty(part.shape, dtype=torch.float32)
    if part.numel():
        file.read(name, begin * math.prod(part.shape[1:]), values.view(-1).numpy())
    part.copy_(values)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The model's layers: the elements of its longest list of modules."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=lambda modules: len(modules), default=()))
