"""How contributions are merged: the method, its settings, the outer step, as one immutable fact.

A recipe speaks of no particular input: ``merge.MergeInput`` does. ``recipes.files`` reads both from YAML that
mergekit understands too.
"""

from typing import Literal

from consortium.canonical import Fact

#: The names that ``methods.METHODS`` knows; those above the gap are mergekit's own.
MethodName = Literal[
    "linear",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "sce",
    "model_stock",
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    #
    "norm_preserving",
    "coordinate_median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "geometric_median",
    "centered_clipping",
]


class Setting(Fact):
    """A parameter's value for the tensors that ``filter`` names; of several, the first that fits counts.

    value   a switch, a number, or a gradient: numbers spread evenly from the first layer to the last
    filter  part of a tensor's name; None: every tensor
    """

    value: bool | int | float | tuple[float, ...]
    filter: str | None = None


Settings = dict[str, tuple[Setting, ...]]


class OuterStep(Fact):
    """One step of the outer optimizer on the merged delta D; g = -D is the pseudo-gradient.

    sgd       b <- momentum * b + g; theta <- theta - learning_rate * (g + momentum * b) with Nesterov,
              theta - learning_rate * b without (FedAvg: 1 and 0; FedAvgM; DiLoCo: 0.7, 0.9, Nesterov)
    adam      m <- beta1 m + (1 - beta1) g; v <- beta2 v + (1 - beta2) g^2
    yogi      the same with v <- v - (1 - beta2) g^2 sign(v - g^2)
    adagrad   the same with v <- v + g^2; all three: theta <- theta - learning_rate * m / (sqrt(v) + tau)
    Sources: FedAvg, arXiv:1602.05629; DiLoCo, arXiv:2311.08105; adaptive ones, Reddi et al. 2021,
    arXiv:2003.00295 (no bias correction; v starts at tau^2).
    """

    optimizer: Literal["sgd", "adam", "yogi", "adagrad"] = "sgd"
    learning_rate: float = 0.7
    momentum: float = 0.9  #: sgd only
    nesterov: bool = True  #: sgd only
    beta1: float = 0.9  #: the adaptive ones
    beta2: float = 0.99
    tau: float = 1e-3  #: of the size of a delta's elements: with tau far above them it is a huge-step SGD


PLAIN_STEP = OuterStep(learning_rate=1.0, momentum=0.0, nesterov=False)  #: theta + D


class Guards(Fact):
    """What happens to deltas before any method sees them, judged over the whole model."""

    clip: float | None = None  #: longer than this many times the cohort's median norm: scaled down to it
    cosine_min: float | None = None  #: less like the mean of its cohort's others than this: left out


class EmbeddingRows(Fact):
    """Rows of embeddings weighed by how often each contribution saw the token; never seen: left as it was."""

    tensors: tuple[str, ...] = ("embed_tokens", "lm_head")  #: parts of tensor names
    count_max: int = 1 << 20  #: tokens beyond which more say nothing


class Recipe(Fact):
    """What the merge does with a set of contributions. Its digest is part of every version it makes."""

    schema: int = 1
    method: MethodName = "linear"
    parameters: Settings = {}  #: of the method, where an input has none of its own
    weights: Literal["uniform", "tokens"] = "tokens"  #: times an input's own ``weight``, if it has one
    #: among whom the robust methods and the guards compare: those of the same languages, or everyone
    cohorts: Literal["languages", "all"] = "languages"
    guards: Guards = Guards()
    embedding_rows: EmbeddingRows | None = None
    outer: OuterStep = PLAIN_STEP  #: what docs/languages-results.md supports; an OuterStep() is DiLoCo's
    seed: int = 0  #: of the methods that draw
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  #: of the published weights
    shard_bytes: int = 1 << 30  #: of one safetensors file of the published model


PLAIN_AVERAGE = Recipe()
