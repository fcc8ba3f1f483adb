"""What the outer optimizer makes of a merged delta: the next weights and the next momentum.

Presets: FedAvg (learning rate 1, no momentum; McMahan et al. 2017, arXiv:1602.05629) and DiLoCo (0.7, 0.9,
Nesterov; Douillard et al. 2023, arXiv:2311.08105). The same as ``torch.optim.SGD(nesterov=True)`` on the
pseudo-gradient, in float64.
"""

import numpy as np

from consortium.deltas import pseudo_gradient
from consortium.merging.exact import F64Array
from consortium.merging.recipe import OuterStep
from consortium.tensors import F32Array


def outer_step(
    theta_N: F32Array, delta_N: F64Array, momentum_N: F32Array | None, step: OuterStep
) -> tuple[F64Array, F64Array | None]:
    """The weights after the step, and the momentum to keep (None if the step has none), both float64.

    theta_N     weights that the deltas started from
    delta_N     merged delta
    momentum_N  what the last step left; None: the first step
    """
    gradient_N = pseudo_gradient(delta_N)
    if step.momentum == 0.0:
        return theta_N - step.learning_rate * gradient_N, None
    kept_N = gradient_N
    if momentum_N is not None:
        kept_N = step.momentum * momentum_N.astype(np.float64) + gradient_N
    direction_N = gradient_N + step.momentum * kept_N if step.nesterov else kept_N
    return theta_N - step.learning_rate * direction_N, kept_N
