"""How contributions are merged: the method, the weights and the outer step, as one immutable fact."""

from typing import Literal

from consortium.canonical import Fact


class OuterStep(Fact):
    """One step of the outer optimizer on the merged delta.

    With D the weighted mean of the deltas, g = -D the pseudo-gradient, b the momentum (0 at first):
    ``b <- momentum * b + g``; ``theta <- theta - learning_rate * (g + momentum * b)`` with Nesterov,
    ``theta - learning_rate * b`` without. Learning rate 1 and momentum 0 is plain averaging (FedAvg).
    Source: DiLoCo, Douillard et al. 2023, arXiv:2311.08105 (0.7, 0.9, Nesterov).
    """

    learning_rate: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True


class Recipe(Fact):
    """What the merge does with a set of contributions. Its digest is part of every version it makes."""

    schema: int = 1
    method: Literal["linear"] = "linear"
    weights: Literal["uniform", "tokens"] = "tokens"
    outer: OuterStep = OuterStep()
    dtype: Literal["float32", "bfloat16"] = "float32"  #: of the published weights
    shard_bytes: int = 1 << 30  #: of one safetensors file of the published model


PLAIN_AVERAGE = Recipe(outer=OuterStep(learning_rate=1.0, momentum=0.0, nesterov=False))
