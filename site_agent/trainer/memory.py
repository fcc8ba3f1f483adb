"""How much memory a training job needs, part by part, before it is started."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from consortium.canonical import Fact, replace
from site_agent.trainer.head import bytes_per_logit
from site_agent.trainer.inner_optimizer import CAST

_FLOAT = 4  # bytes of a weight, a gradient, a moment
_MIB = float(1 << 20)
_PROGRAM = 40 << 20  # on a CPU; measured, see docs/training.md. A GPU says what is free behind its context


class Sizes(Fact):
    """What memory depends on in a model. Widths are numbers of values per token."""

    parameters: int
    learning: int  #: of these, not frozen
    in_products: (
        int  #: of these, in matrix products: all but a table of embeddings that is not the head as well
    )
    layers: int
    width: int
    inner: int  #: of the feed-forward
    queries: int  #: of all heads together
    vocabulary: int
    adapted: int = 0  #: of the parameters, those in matrices that have an adapter: there a second time
    of_muon: int = 0  #: of the learning, those that Muon steps: they have one moment
    largest_of_muon: int = 0  #: matrix


class Setup(Fact):
    """What it depends on in a job, of one rank."""

    sequences: int  #: of this rank's part of a batch
    sequences_at_once: int  #: in one forward pass
    sequence_tokens: int
    is_bf16: bool = False  #: computes in bf16 beside weights in float32
    rows_of_logits: int = 0  #: tokens whose logits the loss has at once, its gradients made with them; 0: all
    has_masters: bool = False  #: weights in bf16, and in float32 in the optimizer
    has_base: bool = False  #: keeps a copy of the base, for a proximal term
    ranks: int = 1
    shards: int = 1  #: that the model lies in; 1: every rank has all of it
    is_cpu: bool = True
    works_in_place: bool = False  #: the loss: logits, their logarithms and their gradient are one memory


class MemoryPlan(Fact):
    """Bytes of one rank."""

    weights: int
    gradients: int
    moments: int
    base: int
    copies: int  #: of weights in bf16, of sharded blocks while they compute, of gradients that ranks exchange
    activations: int  #: kept from the forward for the backward pass
    head: int  #: logits, and what the loss makes of them
    program: int  #: what torch takes once it computes
    peak: int  #: the most at one moment

    def lines(self) -> str:
        """For people, in MiB."""
        parts = {name: size for name, size in msgspec.to_builtins(self).items() if name != "peak" and size}
        said = ", ".join(f"{name} {size / _MIB:,.1f}" for name, size in parts.items())
        return f"memory of a rank, MiB: {said}; at most {self.peak / _MIB:,.1f} at once"


def sizes_of(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], frozen: Collection[str] = ()
) -> Sizes | None:
    """Of a Hugging Face config and the tensors beside it; None if it does not say how wide and how deep a model is.

    shapes  of the checkpoint's tensors, a tied one under one name
    frozen  the tensors that learn nothing
    """

    def first(*keys: str) -> int | None:
        return next((config[key] for key in keys if isinstance(config.get(key), int)), None)

    width, layers = first("hidden_size", "n_embd", "d_model"), first("num_hidden_layers", "n_layer")
    heads, vocabulary = first("num_attention_heads", "n_head"), first("vocab_size")
    if width is None or layers is None or heads is None or vocabulary is None:
        return None
    head_width = first("head_dim") or width // heads
    parameters = sum(map(math.prod, shapes.values()))
    tables = [name for name, shape in shapes.items() if shape == (vocabulary, width)]
    return Sizes(
        parameters=parameters,
        learning=parameters - sum(math.prod(shapes[name]) for name in frozen),
        in_products=parameters - (vocabulary * width if len(tables) > 1 else 0),
        layers=layers,
        width=width,
        inner=first("intermediate_size", "n_inner") or 4 * width,
        queries=heads * head_width,
        vocabulary=vocabulary,
    )


def plan_memory(sizes: Sizes, setup: Setup) -> MemoryPlan:
    """What a step needs without recomputing activations.

    Per token a block of a Llama keeps for its backward pass: its input and that of the feed-forward, each before, in
    and after the norm; queries, keys and values for every head; attention's output, twice; and four values of the
    feed-forward's inner width. The loss keeps the logarithms of probabilities and makes two gradients as large, or has
    all three in one place; all that is float32. In bf16 inner values have half the size and the logits are there once
    more. Where one part is the whole batch, gradients come as activations go: then only the larger of them counts, but
    for the head's. AdamW keeps two moments, Muon one of its matrices, of which it works on one at a time, whole.
    """
    tokens = setup.sequences_at_once * setup.sequence_tokens
    in_parts = setup.sequences_at_once < setup.sequences
    value = _FLOAT // 2 if setup.is_bf16 else _FLOAT
    stream = value if setup.has_masters else _FLOAT  # of what goes past the blocks
    # enough for kernels that share keys among heads, too
    block = 4 * sizes.width * stream + value * (2 * sizes.width + 5 * sizes.queries + 4 * sizes.inner)
    activations = tokens * (sizes.layers * block + 2 * sizes.width * stream)
    float32 = _FLOAT if setup.works_in_place else 3 * _FLOAT
    head = tokens * sizes.vocabulary * (float32 + (2 if setup.is_bf16 else 0))
    if setup.rows_of_logits:
        rows = min(setup.rows_of_logits, tokens)
        # a piece's logits; the head's gradient before and after it is scaled; that of what comes before the head
        head = rows * sizes.vocabulary * bytes_per_logit(setup.is_bf16)
        head += sizes.vocabulary * sizes.width * _FLOAT + 2 * tokens * sizes.width * _FLOAT
    mine, learning = -(-sizes.parameters // setup.shards), -(-sizes.learning // setup.shards)
    copies = 2 * sizes.parameters if setup.is_bf16 else 0
    if setup.shards > 1:  # a block that computes, and the next one on its way
        copies = 2 * -(-sizes.parameters // sizes.layers) * (_FLOAT if not setup.is_bf16 else 2 + _FLOAT)
    elif setup.ranks > 1:
        copies += learning * _FLOAT
    copies += sizes.adapted * _FLOAT
    gradients, moments = learning * _FLOAT, (2 * learning - -(-sizes.of_muon // setup.shards)) * _FLOAT
    if setup.has_masters:  # in bf16; sums of parts in float32, or as much of them as is cast at once
        gradients = learning * 2 + (learning if in_parts else min(learning, CAST)) * _FLOAT
    base = learning * _FLOAT if setup.has_base else 0
    passing = activations + head + sizes.vocabulary * sizes.width * _FLOAT
    program = _PROGRAM if setup.is_cpu else 0
    held = mine * _FLOAT + moments + base + copies + program
    # of one matrix: the gradient scaled, the next momentum, the direction, its iteration before and after, the sums
    stepping = gradients + 6 * sizes.largest_of_muon * _FLOAT
    return MemoryPlan(
        weights=mine * _FLOAT,
        gradients=gradients,
        moments=moments,
        base=base,
        copies=copies,
        activations=activations,
        head=head,
        program=program,
        peak=held + (max(gradients + passing, stepping) if in_parts else max(stepping, passing)),
    )


def moments_bytes(sizes: Sizes) -> int:
    """Of all of the optimizer's moments, on whatever ranks: what a site keeps on disk where the order says so."""
    return (2 * sizes.learning - sizes.of_muon) * _FLOAT


def what_fits(sizes: Sizes, setup: Setup, room: int) -> int:
    """The most sequences at once, at most those of ``setup``, for which ``room`` bytes are enough; 0: none are."""
    for sequences in range(setup.sequences_at_once, 0, -1):
        if plan_memory(sizes, replace(setup, sequences_at_once=sequences)).peak <= room:
            return sequences
    return 0
