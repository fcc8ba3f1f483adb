"""Which weights Muon steps, and how far: a matrix of a block by its momentum, made orthogonal.

Jordan et al. 2024, kellerjordan.github.io/posts/muon, with the scale of Liu et al. 2025, arXiv:2502.16982, section 2.2.
``torch.optim.Muon`` is the same rule and the reference of the tests; it is not what trains here, because it always
computes in bf16 (on a CPU, whose bits are to be the same on any, with less than three digits), has no way to leave a
step out without asking the device how it went, and knows nothing of shards. Shapes: R rows, C columns.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from consortium.jobs import Muon
from consortium.merging.layers import layer_of

_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: singular values of any size come near 1, within a third
_NORM_MIN = 1e-7
_AS_ADAMW = 0.2  # root mean square of AdamW's steps in units of the learning rate, as Liu et al. found it


def is_stepped(name: str, dimensions: int) -> bool:
    """Whether a weight is Muon's: a matrix of a block. Embeddings and head are tables, whose rows are apart."""
    return dimensions == 2 and layer_of(name) is not None


def orthogonal(matrix_RC: Tensor) -> Tensor:
    """What a matrix U S V' is near U V': Newton and Schulz's iteration of fifth order, in the matrix's own type.

    Of singular values only the signs are kept, roughly: they end between 0.7 and 1.2.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrix_RC.shape[0] > matrix_RC.shape[1]
    x = matrix_RC.T if is_tall else matrix_RC
    x = x / x.norm().clamp(min=_NORM_MIN)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


@torch.no_grad()
def step_matrix(
    weight: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    *,
    rule: Muon,
    learning_rate: float,
    weight_decay: float,
    is_finite: Tensor,
    orthogonal_rows: Callable[[Tensor], Tensor],
    shape: tuple[int, int],
) -> None:
    """Step one matrix, or this rank's rows of it, in place.

    gradient         float32, clipped already; it is not changed
    is_finite        on the device: where it is not, nothing changes
    orthogonal_rows  of the direction's rows here, the rows here of all of it made orthogonal
    shape            of the whole matrix
    """
    kept = momentum.lerp(gradient, 1 - rule.momentum)
    way = orthogonal_rows(gradient.lerp(kept, rule.momentum))  # Nesterov's: as if one step ahead
    moved = weight * (1 - learning_rate * weight_decay)
    moved.add_(way, alpha=-learning_rate * (_AS_ADAMW * math.sqrt(max(shape))))
    momentum.copy_(torch.where(is_finite, kept, momentum))
    weight.copy_(torch.where(is_finite, moved, weight))
