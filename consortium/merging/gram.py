"""How contributions lie to each other and to their base: one streamed pass over all of them, nothing written."""

import contextlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consortium.merging.exact import F64Array
from consortium.merging.layers import Layout, output_tensors
from consortium.merging.operands import MergeInput, open_operands, verify
from consortium.merging.plan import TensorPlan
from consortium.merging.reading import TensorReader
from consortium.merging.survey import CHUNK, Survey
from consortium.tensors import Checkpoint, F32Array


@dataclass(frozen=True, slots=True)
class GramPass:
    grams: dict[
        str, F64Array
    ]  #: tensor -> (K, K) inner products of deltas, of weights if there is no base; 0 for who is not in it
    base_squares: dict[str, float] | None  #: tensor -> squared norm of the base; None without one
    sizes: dict[str, int]  #: tensor -> elements


def gram_pass(
    base_dir: Path | None,
    inputs: Sequence[MergeInput],
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
    layout: Layout | None = None,
) -> GramPass:
    """Inner products of all pairs, for every tensor, in float64, rows in the order of ``inputs``.

    progress  called with (elements done, elements in all)
    layout    which layers stand against each other; None: namesakes
    Raises what ``merge`` raises for inputs that do not fit together.
    """
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        list(pool.map(verify, inputs))
        base = stack.enter_context(Checkpoint(base_dir)) if base_dir else None
        by_given = {id(operand.given): operand for operand in open_operands(inputs, stack)}
        operands = [by_given[id(given)] for given in inputs]
        outputs = output_tensors(
            base.shapes if base else None,
            [operand.tensors.shapes for operand in operands],
            layout,
            [operand.tensors.label for operand in operands],
        )
        plans = [
            TensorPlan(
                name=output.name,
                shape=output.shape,
                base=output.base,
                sources=tuple((source.input, source.name) for source in output.sources),
                shared={},
                own=(),
            )
            for output in sorted(outputs, key=lambda one: one.name)
        ]
        sizes = {plan.name: math.prod(plan.shape) for plan in plans}
        grams, done, total = {}, 0, sum(sizes.values())
        for plan in plans:
            reader = TensorReader(plan, base, operands, relative=base is not None)
            found = Survey(_BaseFirst(reader) if base else reader, pool, CHUNK).gram()
            present = ([0] if base else []) + [position + bool(base) for position, _ in plan.sources]
            grams[plan.name] = np.zeros((len(inputs) + bool(base),) * 2)
            grams[plan.name][np.ix_(present, present)] = found  # slices may lack an input here and there
            done += sizes[plan.name]
            if progress:
                progress(done, total)
    if base is None:
        return GramPass(grams, None, sizes)
    squares = {name: float(gram_KK[0, 0]) for name, gram_KK in grams.items()}
    return GramPass({name: gram_KK[1:, 1:] for name, gram_KK in grams.items()}, squares, sizes)


class _BaseFirst:
    """The deltas of a tensor, with the base's weights before them: its norm comes with the same reading."""

    def __init__(self, reader: TensorReader) -> None:
        self._reader = reader
        self.num_rows, self.num_elements, self.shape = reader.num_rows + 1, reader.num_elements, reader.shape

    def rows(self, start: int, out_KN: F32Array) -> None:
        self._reader.rows(start, out_KN[1:])
        self.row(0, start, out_KN[0])

    def row(self, k: int, start: int, out_N: F32Array) -> None:
        if k:
            self._reader.row(k - 1, start, out_N)
        else:
            np.copyto(out_N, self._reader.base(start, out_N.size))
