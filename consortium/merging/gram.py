"""How contributions lie to each other and to their base: one streamed pass over all of them, nothing written."""

import contextlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from consortium.merging.exact import F64Array
from consortium.merging.operands import MergeInput, open_operands, verify
from consortium.merging.plan import TensorPlan, plan_tensors
from consortium.merging.reading import TensorReader
from consortium.merging.recipe import Recipe
from consortium.merging.survey import Survey
from consortium.tensors import CHUNK, Checkpoint


@dataclass(frozen=True, slots=True)
class GramPass:
    grams: dict[str, F64Array]  #: tensor -> (K, K) inner products of deltas, of weights if there is no base
    base_squares: dict[str, float]  #: tensor -> squared norm of the base; empty without one
    sizes: dict[str, int]  #: tensor -> elements


def gram_pass(
    base_dir: Path | None,
    inputs: Sequence[MergeInput],
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> GramPass:
    """Inner products of all pairs, for every tensor, in float64, rows in the order of ``inputs``.

    progress  called with (elements done, elements in all)
    Raises what ``merge`` raises for inputs that do not fit together.
    """
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        list(pool.map(verify, inputs))
        base = stack.enter_context(Checkpoint(base_dir)) if base_dir else None
        operands = open_operands(inputs, stack)
        places = [next(at for at, one in enumerate(operands) if one.given is given) for given in inputs]
        plans = plan_tensors(
            Recipe(method="linear", weights="uniform"),
            [{} for _ in operands],
            base.shapes if base else None,
            [operand.tensors.shapes for operand in operands],
            labels=[operand.tensors.label for operand in operands],
        )

        def surveyed(plan: TensorPlan) -> F64Array:
            reader = TensorReader(plan, base, operands, relative=base is not None)
            return Survey(reader, pool, CHUNK).gram()[np.ix_(places, places)]

        def square(plan: TensorPlan) -> float:
            alone = TensorReader(replace(plan, sources=(), own=()), base, (), relative=False, with_base=True)
            return float(Survey(alone, pool, CHUNK).gram()[0, 0])

        found = GramPass({}, {}, {})
        total = sum(math.prod(plan.shape) for plan in plans)
        for plan in plans:
            found.grams[plan.name] = surveyed(plan)
            found.sizes[plan.name] = math.prod(plan.shape)
            if base is not None:
                found.base_squares[plan.name] = square(plan)
            if progress:
                progress(sum(found.sizes.values()), total)
        return found
