"""How rows of embeddings are averaged by who saw the token: what a site never trained on, it does not dilute.

AdamW's decay moves rows that a site never saw, and a plain mean lets twenty sites that never met a Maltese
word outvote the one that did. Row r of the merged delta is sum_k w_k c_kr D_kr / sum_k w_k c_kr, with c_kr how
often contribution k saw token r, at most ``count_max``; a row that nobody saw stays as it was.
"""

import math
from collections.abc import Sequence

import numpy as np

from consortium.errors import BadInput
from consortium.merging.exact import F64Array
from consortium.merging.methods import MergeChunk, Subject, by_line
from consortium.merging.plan import TensorPlan
from consortium.merging.recipe import Recipe
from consortium.tensors import F32Array

WITH_EMBEDDING_ROWS = ("linear", "task_arithmetic")  #: methods that only average


def token_counts(
    recipe: Recipe, plan: TensorPlan, given_K: Sequence[F32Array | None]
) -> Sequence[F32Array] | None:
    """The counts to weigh this tensor's rows by; None if the recipe does not ask for it.

    Raises BadInput where counts are missing or of another length than the tensor, and for methods that do
    more than average.
    """
    rows = recipe.embedding_rows
    if rows is None or not any(part in plan.name for part in rows.tensors):
        return None
    if recipe.method not in WITH_EMBEDDING_ROWS:
        raise BadInput(
            f"embedding_rows goes with method {' or '.join(WITH_EMBEDDING_ROWS)}, not {recipe.method}; remove one "
            "of them"
        )
    found = []
    for k, counts_V in enumerate(given_K):
        if counts_V is None or counts_V.shape != plan.shape[:1]:
            said = "no token counts" if counts_V is None else f"counts of {counts_V.size} tokens"
            raise BadInput(
                f"tensor {plan.name!r}: input {k + 1} comes with {said}; embedding_rows needs one for each of its "
                f"{plan.shape[0] if plan.shape else 0} rows from every input"
            )
        found.append(np.minimum(counts_V, np.float32(rows.count_max)))
    return found


def weighing_rows(s: Subject, counts_KV: Sequence[F32Array]) -> MergeChunk:
    """The average with a weight for every row."""
    weights_K1 = np.array([[float(weight)] for weight in s.weights])
    return by_line(_shares(np.array(counts_KV, np.float64) * weights_K1), math.prod(s.plan.shape[1:]))


def _shares(weighed_KV: F64Array) -> F64Array:
    totals_V = np.array([math.fsum(column) for column in weighed_KV.T])  # rounds once: no order matters
    shares_KV = np.zeros_like(weighed_KV)
    np.divide(weighed_KV, totals_V, out=shares_KV, where=totals_V != 0)
    return shares_KV
