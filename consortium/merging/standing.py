"""Who takes part in a merge and how much, where that is decided over whole models: guards and Krum's kin."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from consortium.errors import Refused
from consortium.merging.exact import F64Array
from consortium.merging.geometry.robust import (
    Choice,
    Rule,
    centered_clipping,
    cohort_weights,
    cohorts_of,
    geometric_median,
    guarded,
    krum,
    multi_krum,
)
from consortium.merging.recipe import Guards, Recipe
from consortium.merging.recipes.signatures import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Positions are those of the inputs in ``kept``."""

    kept: tuple[int, ...]
    scales: tuple[float, ...] | None  #: what each delta is multiplied by; None: nothing
    cohorts: tuple[tuple[int, ...], ...]
    coefficients: (
        tuple[float, ...] | None
    )  #: of the merged delta, where the method decides over the whole model
    notes: tuple[str, ...]


def stand(
    recipe: Recipe,
    shared: Mapping[str, Value],
    weights_K: Sequence[float],
    cohorts_K: Sequence[str],
    labels_K: Sequence[str],
    gram: Callable[[], F64Array],
) -> Standing:
    """Apply the guards, then the method's rule, to the K inputs.

    gram  makes the (K, K) inner products of whole deltas; called once, or not at all if nobody asks
    Raises Refused if nobody is left, or too few for the rule.
    """
    names_K = list(cohorts_K) if recipe.cohorts == "languages" else [""] * len(cohorts_K)
    rule = _rule(recipe, shared)
    kept, scales, notes = tuple(range(len(names_K))), None, []
    gram_KK = gram() if rule or recipe.guards != Guards() else np.empty((0, 0))
    if recipe.guards != Guards():
        guard = guarded(gram_KK, names_K, recipe.guards)
        notes += _sentences(labels_K, guard)
        kept = tuple(int(k) for k in np.flatnonzero(guard.coefficients_K))
        if not kept:
            raise Refused("the guards left nobody; loosen them, or look with `sprachbund merge --inspect`")
        scales_K = guard.coefficients_K[list(kept)]
        scales = tuple(scales_K.tolist()) if (scales_K != 1.0).any() else None
        gram_KK = gram_KK[np.ix_(kept, kept)] * np.outer(scales_K, scales_K)
    names = [names_K[k] for k in kept]
    coefficients = None
    if rule:
        choice = cohort_weights(gram_KK, [weights_K[k] for k in kept], names, rule)
        notes += _sentences([labels_K[k] for k in kept], choice)
        coefficients = tuple(choice.coefficients_K.tolist())
    return Standing(
        kept=kept,
        scales=scales,
        cohorts=tuple(tuple(members) for members in cohorts_of(names)),
        coefficients=coefficients,
        notes=tuple(notes),
    )


def _rule(recipe: Recipe, shared: Mapping[str, Value]) -> Rule | None:
    rules: Mapping[str, Rule] = {
        "krum": lambda gram_KK, weights: krum(gram_KK, weights, int(shared["byzantine"])),
        "multi_krum": lambda gram_KK, weights: multi_krum(
            gram_KK, weights, int(shared["byzantine"]), int(shared["keep"])
        ),
        "geometric_median": lambda gram_KK, weights: geometric_median(
            gram_KK, weights, float(shared["nu"]), int(shared["iterations"])
        ),
        "centered_clipping": lambda gram_KK, weights: centered_clipping(
            gram_KK, weights, float(shared["tau"]), int(shared["iterations"])
        ),
    }
    return rules.get(recipe.method)


def _sentences(labels_K: Sequence[str], choice: Choice) -> list[str]:
    return [f"{label}: {reason}" for label, reason in zip(labels_K, choice.reasons_K, strict=True)]
