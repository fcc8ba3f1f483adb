"""What the outer optimizer makes of a merged delta: the next weights and what it keeps for the next step.

Presets: FedAvg (sgd, learning rate 1, no momentum; McMahan et al. 2017, arXiv:1602.05629), FedAvgM (sgd, no
Nesterov; Hsu et al. 2019, arXiv:1909.06335), DiLoCo (sgd, 0.7, 0.9, Nesterov; Douillard et al. 2023,
arXiv:2311.08105: the same as ``torch.optim.SGD(nesterov=True)`` on the pseudo-gradient), FedAdam, FedYogi
and FedAdagrad (Reddi et al. 2021, arXiv:2003.00295, algorithm 2: no bias correction, unlike Flower's
FedAdam). All is float64, one element at a time: + - * / and sqrt are the same bits on every machine.
"""

from collections.abc import Sequence

import numpy as np

from consortium.deltas import pseudo_gradient
from consortium.merging import kernels
from consortium.merging.exact import F64Array
from consortium.merging.recipe import OuterStep
from consortium.merging.survey import scratch_rows
from consortium.tensors import F32Array


def state_names(step: OuterStep) -> tuple[str, ...]:
    """What the optimizer keeps from one step to the next, each of the model's shape; often nothing."""
    if step.optimizer != "sgd":
        return ("momentum", "variance")
    return ("momentum",) if step.momentum != 0.0 else ()


def outer_step(
    theta_N: F32Array, delta_N: F64Array, state_SN: Sequence[F32Array] | None, step: OuterStep
) -> tuple[F64Array, tuple[F64Array, ...]]:
    """The weights after the step and the state to keep, both float64; the state as ``state_names`` has it.

    theta_N   weights that the deltas started from
    delta_N   merged delta
    state_SN  what the last step left; None: the first step (momentum 0, variance tau squared)
    The formulas are those of ``recipe.OuterStep``.
    """
    gradient_N = pseudo_gradient(delta_N)
    if not state_names(step):
        return theta_N - step.learning_rate * gradient_N, ()
    before_SN = None if state_SN is None else [row_N.astype(np.float64) for row_N in state_SN]
    if step.optimizer == "sgd":
        kept_N = gradient_N if before_SN is None else step.momentum * before_SN[0] + gradient_N
        direction_N = gradient_N + step.momentum * kept_N if step.nesterov else kept_N
        return theta_N - step.learning_rate * direction_N, (kept_N,)
    if before_SN is None:
        before_SN = [np.zeros_like(gradient_N), np.full_like(gradient_N, step.tau * step.tau)]
    momentum_N, variance_N = before_SN
    momentum_N = step.beta1 * momentum_N + (1.0 - step.beta1) * gradient_N
    square_N = gradient_N * gradient_N
    if step.optimizer == "adam":
        variance_N = step.beta2 * variance_N + (1.0 - step.beta2) * square_N
    elif step.optimizer == "yogi":
        variance_N = variance_N - (1.0 - step.beta2) * square_N * np.sign(variance_N - square_N)
    else:
        variance_N = variance_N + square_N
    direction_N = momentum_N / (np.sqrt(variance_N) + step.tau)
    return theta_N - step.learning_rate * direction_N, (momentum_N, variance_N)


def outer_step_into(
    theta_N: F32Array,
    merged_N: F64Array,
    scale: float,
    state_SN: Sequence[F32Array] | None,
    step: OuterStep,
    next_N: F32Array,
) -> tuple[F32Array, ...]:
    """``outer_step`` on the delta ``scale * merged``, rounded to float32: the weights into ``next_N``.

    Returns the state to keep, in this thread's buffers. Momentum SGD, which gigabytes go through, is one kernel.
    """
    if step.optimizer == "sgd" and step.momentum != 0.0:
        kept_N = scratch_rows("kept", 1, next_N.size)[0]
        before_N = state_SN[0] if state_SN is not None else None
        kernels.sgd_step(
            *(theta_N, merged_N, scale, before_N),
            *(step.learning_rate, step.momentum, step.nesterov),
            *(next_N, kept_N),
        )
        return (kept_N,)
    after_N, kept_SN = outer_step(theta_N, merged_N * scale, state_SN, step)
    next_N[:] = after_N
    return tuple(row_N.astype(np.float32) for row_N in kept_SN)
