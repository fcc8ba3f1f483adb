"""How contributions compare before they are merged: lengths, cosines and conflict, per group of layers.

All of it follows from the Gram matrices of the tensors, which one streamed pass gives.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from consortium.canonical import Fact
from consortium.merging.layers import layer_of

F64Array = npt.NDArray[np.float64]

WHOLE = "whole model"
EMBEDDINGS = "embeddings"
REST = "norm and head"

_EMBEDDING = re.compile(r"embed|wte|wpe")


class Group(Fact):
    """Some tensors taken as one long vector; K contributions x_k to it."""

    name: str
    tensors: int
    elements: int
    base_norm: float | None  #: Euclidean; None: the recipe has no base
    norms: tuple[float, ...]  #: |x_k|
    cosines: tuple[tuple[float | None, ...], ...]  #: (K, K); None beside a contribution that is all zero
    mean_cosine: float | None  #: of all pairs that have one
    #: the share of length that the sum loses, 1 - |sum x_k| / sum |x_k|: 0 if all point the same way,
    #: 1 - 1/sqrt(K) if K of equal length are orthogonal, 1 if they cancel out; None if all are zero
    conflict: float | None


class Inspection(Fact):
    contributions: tuple[str, ...]  #: in the recipe's order, as everywhere below
    base: str | None  #: what they are differences from; None: there is no base, they are whole weights
    groups: tuple[Group, ...]  #: the whole model first, then from the input's side to the output's


def inspect(
    contributions: Sequence[str],
    base: str | None,
    grams: Mapping[str, F64Array],
    elements: Mapping[str, int],
    base_squares: Mapping[str, float] | None = None,
    by_layer: bool = False,
) -> Inspection:
    """The figures of K contributions.

    contributions  K names
    base           its name, if there is one
    grams          tensor -> inner products of the contributions' elements, (K, K), float64
    elements       tensor -> how many it has
    base_squares   tensor -> sum of the base's squared elements
    by_layer       a group for every block, rather than for the first, middle and last third of them
    """
    members = {WHOLE: sorted(grams)} | layer_groups(grams, by_layer)
    groups = []
    for name, tensors in members.items():
        gram_KK = np.zeros((len(contributions), len(contributions)))
        for tensor in tensors:
            gram_KK += grams[tensor]
        square = None if base_squares is None else math.fsum(base_squares[tensor] for tensor in tensors)
        count = sum(elements[tensor] for tensor in tensors)
        groups.append(_group(name, len(tensors), count, square, gram_KK))
    return Inspection(contributions=tuple(contributions), base=base, groups=tuple(groups))


def layer_groups(
    tensors: Mapping[str, object] | Sequence[str], by_layer: bool = False
) -> dict[str, list[str]]:
    """Group -> its tensors, sorted: embeddings, thirds of the blocks (or each block), the rest. None is empty."""
    blocks: dict[int, list[str]] = {}
    embeddings: list[str] = []
    rest: list[str] = []
    for name in sorted(tensors):
        if layer := layer_of(name):
            blocks.setdefault(layer.number, []).append(name)
        else:
            (embeddings if _EMBEDDING.search(name) else rest).append(name)
    numbers = sorted(blocks)
    parts = len(numbers) if by_layer else 3
    groups = {EMBEDDINGS: embeddings}
    for part in range(parts):
        span = numbers[len(numbers) * part // parts : len(numbers) * (part + 1) // parts]
        if span:
            title = f"block {span[0]}" if len(span) == 1 else f"blocks {span[0]}-{span[-1]}"
            groups[title] = [name for number in span for name in blocks[number]]
    groups[REST] = rest
    return {title: names for title, names in groups.items() if names}


def _group(name: str, tensors: int, count: int, base_square: float | None, gram_KK: F64Array) -> Group:
    norms_K = np.sqrt(np.diag(gram_KK))
    cosines_KK = [
        [_cosine(gram_KK[i, j], norms_K[i] * norms_K[j]) if i != j else _cosine(1.0, float(norms_K[i] > 0))
         for j in range(len(norms_K))]
        for i in range(len(norms_K))
    ]  # fmt: skip
    pairs = [cosine for i, row in enumerate(cosines_KK) for cosine in row[i + 1 :] if cosine is not None]
    length = float(norms_K.sum())
    return Group(
        name=name,
        tensors=tensors,
        elements=count,
        base_norm=None if base_square is None else float(np.sqrt(base_square)),
        norms=tuple(norms_K.tolist()),
        cosines=tuple(tuple(row) for row in cosines_KK),
        mean_cosine=math.fsum(pairs) / len(pairs) if pairs else None,
        conflict=max(0.0, 1.0 - float(np.sqrt(max(0.0, gram_KK.sum()))) / length) if length > 0 else None,
    )


def _cosine(product: float, length: float) -> float | None:
    return min(1.0, max(-1.0, float(product) / float(length))) if length > 0 else None
