"""What a recipe's inputs are like, from one reading of their weights; nothing is written."""

import contextlib
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from consortium.merging.layers import output_tensors
from consortium.merging.merge import Progress
from consortium.merging.operands import Operand, open_operands
from consortium.merging.plan import TensorPlan
from consortium.merging.reading import TensorReader
from consortium.merging.report import Inspection, inspect
from consortium.merging.run import Ready
from consortium.merging.survey import Survey
from consortium.tensors import CHUNK, Checkpoint, F32Array


def inspect_recipe(
    work: Ready, threads: int = 2, by_layer: bool = False, progress: Progress | None = None
) -> Inspection:
    """Norms, cosines and conflict of the inputs: of their deltas if the recipe has a base, else of their weights.

    progress  called with (elements done, elements in all)
    Raises BadInput and Corrupt as a merge of the same recipe does.
    """
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        base = stack.enter_context(Checkpoint(work.base)) if work.base else None
        by_given = {id(operand.given): operand for operand in open_operands(work.inputs, stack)}
        operands = [by_given[id(given)] for given in work.inputs]
        plans = _plans(work, base, operands)
        elements = {plan.name: math.prod(plan.shape) for plan in plans}
        done, total = 0, sum(elements.values())
        grams = {}
        for plan in plans:
            reader = TensorReader(plan, base, operands, relative=base is not None)
            grams[plan.name] = Survey(_BaseFirst(reader) if base else reader, pool, CHUNK).gram()
            done += elements[plan.name]
            if progress:
                progress(done, total)
    if base is None:
        return inspect(work.names, None, grams, elements, by_layer=by_layer)
    squares = {name: float(gram_KK[0, 0]) for name, gram_KK in grams.items()}
    deltas = {name: gram_KK[1:, 1:] for name, gram_KK in grams.items()}
    return inspect(work.names, work.file.base, deltas, elements, squares, by_layer)


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


def _plans(work: Ready, base: Checkpoint | None, operands: list[Operand]) -> list[TensorPlan]:
    """Which tensors belong together; the method's parameters do not matter here."""
    outputs = output_tensors(
        base.shapes if base else None,
        [operand.tensors.shapes for operand in operands],
        work.file.layout,
        work.names,
    )
    return [
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
