"""How fast each pair of a head's numbers turns with the position, and how its turns are scaled for longer texts.

RoPE: Su et al. 2021, arXiv:2104.09864. Linear scaling: Chen et al. 2023, arXiv:2306.15595. YaRN: Peng et al. 2023,
arXiv:2309.00071. The rule of Llama 3.1: Grattafiori et al. 2024, arXiv:2407.21783, and its reference code. In float32,
operation by operation as in transformers: the same bits.
"""

import math

import torch
from torch import Tensor

from site_agent.trainer.shape import Rope


def turns(rope: Rope, head_width: int, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (S, K) of the first ``length`` positions, the half-split way."""
    steps_F, scale = _steps(rope, head_width)
    angles_SF = torch.outer(torch.arange(length).float(), steps_F)
    angles_SK = torch.cat((angles_SF, angles_SF), dim=-1)
    return angles_SK.cos() * scale, angles_SK.sin() * scale


def _steps(rope: Rope, head_width: int) -> tuple[Tensor, float]:
    """Radians a position (K / 2,), and what cosines and sines are multiplied by."""
    slow_F = rope.theta ** (torch.arange(0, head_width, 2).float() / head_width)
    match rope.kind:
        case "default":
            return 1.0 / slow_F, 1.0
        case "linear":
            return 1.0 / slow_F / rope.factor, 1.0
        case "llama3":
            return _llama3(1.0 / slow_F, rope), 1.0
        case "yarn":
            return _yarn(slow_F, rope, head_width), _yarn_scale(rope)


def _llama3(steps_F: Tensor, rope: Rope) -> Tensor:
    """Slow turns are slowed down by ``factor``, fast ones stay, those between are interpolated."""
    waves_F = 2 * math.pi / steps_F
    longest, shortest = rope.original_tokens / rope.low, rope.original_tokens / rope.high
    scaled_F = torch.where(waves_F > longest, steps_F / rope.factor, steps_F)
    share_F = (rope.original_tokens / waves_F - rope.low) / (rope.high - rope.low)
    between_F = (1 - share_F) * scaled_F / rope.factor + share_F * scaled_F
    return torch.where((waves_F >= shortest) & (waves_F <= longest), between_F, scaled_F)


def _yarn(slow_F: Tensor, rope: Rope, head_width: int) -> Tensor:
    def dimension(rotations: float) -> float:
        """At which so many rotations fit into the original length."""
        ratio = rope.original_tokens / (rotations * 2 * math.pi)
        return (head_width * math.log(ratio)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.fast), dimension(rope.slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_width - 1)
    if low == high:
        high += 0.001
    ramp_F = torch.clamp((torch.arange(head_width // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    kept_F = 1 - ramp_F
    return 1.0 / (rope.factor * slow_F) * (1 - kept_F) + 1.0 / slow_F * kept_F


def _yarn_scale(rope: Rope) -> float:
    if rope.attention is not None:
        return rope.attention
    return 1.0 if rope.factor <= 1 else 0.1 * math.log(rope.factor) + 1.0
