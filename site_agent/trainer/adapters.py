"""How a job trains a few numbers beside frozen weights (LoRA), and which dense weights it has made by that.

A weight W (R, C) of a block becomes W + scale B A with A (r, C) and B (R, r), Hu et al. 2021, arXiv:2106.09685; scale
is alpha / r. B begins as zeros, so that the first step's model is the base. The sum is made anew in every forward pass,
in float32, by one function, and the very same sum is what the job delivers: the contribution is the dense weights that
were trained, less the base, and no merging of adapters afterwards can differ from them in a bit.
"""

import fnmatch
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from consortium.errors import BadInput
from consortium.jobs import Lora, Train
from consortium.merging.layers import layer_of
from site_agent.trainer.mixture import random_bits
from site_agent.trainer.model import Model


class Adapters:
    """The adapters of a model, which are now a part of it; all its own weights are frozen.

    learning  what is trained, by names of its own, float32
    """

    def __init__(self, model: Model, work: Train, lora: Lora) -> None:
        for weight in model.weights.values():
            weight.requires_grad_(False)
        self._pairs: dict[str, _Pair] = {}
        for name in adapted(model.weights, lora):
            weight = model.weights[name]
            pair = _Pair(name, weight, work.seed, lora)
            module = model.network.get_submodule(name.removesuffix(".weight"))
            parametrize.register_parametrization(module, "weight", pair)
            self._pairs[name] = pair
        self.learning: dict[str, Tensor] = {}
        for name, pair in self._pairs.items():
            self.learning |= {f"{name}.lora_a": pair.a_RC, f"{name}.lora_b": pair.b_RR}

    @torch.no_grad()
    def dense(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's weights as they are computed with."""
        return {
            name: self._pairs[name](weight) if name in self._pairs else weight
            for name, weight in weights.items()
        }


def adapted(weights: Mapping[str, Tensor] | Mapping[str, tuple[int, ...]], lora: Lora) -> list[str]:
    """Names of the weights that get an adapter, sorted: matrices of blocks that ``match`` one of the patterns.

    weights  or their shapes
    Raises BadInput for a pattern that fits none, and for a rank that is no less than a matrix has.
    """
    shapes = {
        name: tuple(weight.shape) if isinstance(weight, Tensor) else weight
        for name, weight in weights.items()
    }
    fit = sorted(
        name
        for name, shape in shapes.items()
        if layer_of(name) is not None and len(shape) == 2 and name.endswith(".weight")
    )
    found: set[str] = set()
    for pattern in lora.match:
        members = fnmatch.filter(fit, pattern)
        if not members:
            raise BadInput(
                f"lora: {pattern!r} fits no matrix of a block; write the name of one, such as "
                f"{fit[0] if fit else 'model.layers.0.self_attn.q_proj.weight'}, with * for what may differ"
            )
        found.update(members)
    for name in sorted(found):
        if lora.rank >= min(shapes[name]):
            raise BadInput(
                f"lora: rank {lora.rank} is not below {min(shapes[name])}, the least side of {name}; lower it"
            )
    return sorted(found)


class _Pair(nn.Module):
    def __init__(self, name: str, weight: Tensor, seed: int, lora: Lora) -> None:
        super().__init__()
        rows, columns = weight.shape
        self._scale = lora.alpha / lora.rank
        # uniform, of the variance with which Hu et al.'s code begins; whatever the device, the same numbers
        bits = random_bits(lora.rank * columns, seed, "lora", name) >> 40
        drawn = (torch.from_numpy(bits.astype("float32")) / (1 << 23) - 1) / math.sqrt(columns)
        self.a_RC = nn.Parameter(drawn.view(lora.rank, columns).to(weight.device))
        self.b_RR = nn.Parameter(torch.zeros(rows, lora.rank, device=weight.device))

    def forward(self, weight_RC: Tensor) -> Tensor:
        with torch.autocast(weight_RC.device.type, enabled=False):
            return torch.addmm(weight_RC, self.b_RR, self.a_RC, alpha=self._scale)
