"""How the native model is compiled: block by block, each one graph of fixed shapes, and float8 before that.

One block's code serves all of them, so that a model of 22 layers costs the compiling of one. The blocks' ``forward`` is
what is compiled, not the module: what FSDP hangs on a module stays outside the graph, and no parameter is renamed.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from consortium.errors import BadInput
from site_agent.trainer.llama import Llama

# of layers in float8: smaller ones lose more to casting than they gain (torchao's own advice)
_WIDTH_MIN = 2048


def compile_blocks(network: Llama, backend: str = "inductor") -> None:
    """Have every block, and the loss, compiled when it is first used: of one in parts what is between the products.

    Anything in them that is not one graph raises at that moment, rather than be slow in silence.
    """
    for layer in network.model.layers:
        layer.forward = _compiled(layer.forward, backend)
    network.cost, network.turn = _compiled(network.cost, backend), _compiled(network.turn, backend)


def use_float8(network: Llama) -> None:
    """Compute the blocks' wide products in float8, weights stay as they are. Raises BadInput without torchao."""
    try:
        from torchao.float8 import convert_to_float8_training
    except ImportError as error:
        raise BadInput(f"engine.float8: {error}; install torchao where jobs run, or leave it out") from error

    def is_wide(module: nn.Module, name: str) -> bool:
        weight = getattr(module, "weight", None)
        return isinstance(weight, Tensor) and min(weight.shape) >= _WIDTH_MIN

    convert_to_float8_training(network.model.layers, module_filter_fn=is_wide)


def _compiled(function: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)
    return compiled
