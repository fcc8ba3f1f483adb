"""What the kernels of this folder compute, in plain torch: the formula beside the fused form, on any device.

``consortium/codecs/formats.py`` defines every byte. Operations are IEEE float32, rounded once each, in the order
written, so the bits are those of the codecs in NumPy and C; temporaries are several times the input, which is
what the fused form is for.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from consortium.codecs.formats import BLOCK, PEAK, scale_max

BlockCoded = Literal["int8", "int4"]

_SCALE_MAX = {name: float(scale_max(peak)) for name, peak in PEAK.items()}


class Coded(NamedTuple):
    """Codes (uint8; for int8 the two's complement) and scales (float32) as ``formats`` has them, and what is left."""

    codes: Tensor
    scales_B: Tensor
    residual_N: Tensor


def encode(after_N: Tensor, before_N: Tensor, residual_N: Tensor, encoding: BlockCoded) -> Coded:
    """Code t = (after - before) + residual, float32; the scale of a block that has a NaN or infinity is NaN."""
    peak = float(PEAK[encoding])
    count = after_N.numel()
    t_BL = functional.pad((after_N - before_N) + residual_N, (0, -count % BLOCK)).view(-1, BLOCK)
    largest_B = t_BL.abs().amax(dim=1)
    scales_B = torch.clamp(largest_B / peak, max=_SCALE_MAX[encoding])
    scales_B = torch.where(torch.isfinite(largest_B), scales_B, torch.nan)
    divisor_B = torch.where(scales_B == 0, torch.inf, scales_B)
    codes_BL = torch.round(torch.clamp(t_BL / divisor_B[:, None], -peak, peak)) + 0.0  # a code has no -0
    rest_N = (t_BL - codes_BL * scales_B[:, None]).view(-1)[:count]
    codes_N = codes_BL.to(torch.int8).view(torch.uint8).view(-1)
    if encoding == "int8":
        return Coded(codes_N[:count], scales_B, rest_N)
    halves_H2 = codes_N.view(-1, 2) & 15
    return Coded((halves_H2[:, 0] | halves_H2[:, 1] << 4)[: -(-count // 2)], scales_B, rest_N)
