"""What there is to do in one merge: inputs in their own order, plans, methods prepared, in spans for threads."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from consortium.deltas import check_delta
from consortium.errors import BadInput, Refused
from consortium.merging.exact import F64Array
from consortium.merging.methods import METHODS, WHOLE_LINES, MergeChunk, Subject
from consortium.merging.operands import Operand
from consortium.merging.plan import Layout, TensorPlan, plan_tensors
from consortium.merging.reading import TensorReader
from consortium.merging.recipe import PLAIN_STEP, Recipe
from consortium.merging.recipes.signatures import SIGNATURES
from consortium.merging.rows import token_counts, weighing_rows
from consortium.merging.standing import Standing, stand
from consortium.merging.sums import StoredSum
from consortium.merging.survey import BLOCK, CHUNK, Survey, spans, total_gram
from consortium.tensors import Checkpoint


@dataclass(frozen=True, slots=True)
class Span:
    """About a million elements of one tensor, for one thread."""

    name: str
    elements: range
    reader: TensorReader
    merge_chunk: MergeChunk
    width: int | None  #: of a line, where a chunk must hold whole ones


class Work:
    """One merge, before anything is written.

    relative  whether methods see deltas from the base, and give one
    Raises BadInput and Refused for what does not fit together.
    """

    def __init__(
        self,
        base: Checkpoint | None,
        operands: Sequence[Operand],
        recipe: Recipe,
        layout: Layout | None,
        pool: ThreadPoolExecutor,
        chunk: int,
    ) -> None:
        self.base, self.recipe, self.chunk = base, recipe, chunk
        self.relative = base is not None and SIGNATURES[recipe.method].operand == "deltas"
        self._pool, self._operands = pool, tuple(operands)
        self._require_base(layout)
        self.plans = self._plan(layout)
        self._require_weights()
        self.standing = self._stand()
        if len(self.standing.kept) < len(self._operands):
            if layout is not None:
                raise BadInput("guards leave an input out, but slices name each; remove the one or the other")
            self._operands = tuple(self._operands[position] for position in self.standing.kept)
            self.plans = self._plan(None)
        self.shapes = {plan.name: plan.shape for plan in self.plans}
        self.num_layers = layout.num_layers if layout else None

    @property
    def companions_dir(self) -> Path:
        """Whose config and tokenizer the result takes."""
        return self.base.directory if self.base else self._operands[0].given.path

    def spans(self, lanes: Sequence[Sequence[str]]) -> Iterator[Span]:
        """All spans of all tensors, taken in turn from each lane: what different files hold, side by side."""
        by_name = {plan.name: plan for plan in self.plans}
        return in_turn(self._lane(by_name[name] for name in names) for names in lanes)

    def _lane(self, plans: Iterable[TensorPlan]) -> Iterator[Span]:
        width = None
        for plan in plans:
            reader = self._reader(plan, self.standing.scales)
            subject = self._subject(plan, reader)
            if self.recipe.method in WHOLE_LINES:
                width = subject.num_columns
            try:
                counts = token_counts(
                    self.recipe, plan, [self._operands[at].row_counts for at, _ in plan.sources]
                )
                merge_chunk = (
                    METHODS[self.recipe.method](subject) if counts is None else weighing_rows(subject, counts)
                )
            except Refused as error:
                raise Refused(f"tensor {plan.name!r}: {error}") from error
            for elements in spans(plan.shape):
                yield Span(plan.name, elements, reader, merge_chunk, width)

    def _reader(self, plan: TensorPlan, scales: Sequence[float] | None = None) -> TensorReader:
        with_base = self.recipe.method == "slerp"
        return TensorReader(plan, self.base, self._operands, self.relative, with_base, scales)

    def _survey(self, reader: TensorReader) -> Survey:
        return Survey(reader, self._pool, -(-self.chunk // BLOCK) * BLOCK)

    def _subject(self, plan: TensorPlan, reader: TensorReader) -> Subject:
        places = [position for position, _ in plan.sources]
        coefficients = self.standing.coefficients
        return Subject(
            plan=plan,
            survey=self._survey(reader),
            weights=self._weights(plan),
            keys=tuple(self._operands[position].key for position in places),
            cohorts=self.standing.cohorts,
            seed=self.recipe.seed,
            coefficients=tuple(coefficients[position] for position in places) if coefficients else None,
        )

    def _weights(self, plan: TensorPlan) -> tuple[Fraction, ...]:
        tokens = self.recipe.weights == "tokens"
        return tuple(
            Fraction(own.get("weight", 1.0)) * (self._operands[position].given.weight if tokens else 1)
            for (position, _), own in zip(plan.sources, plan.own, strict=True)
        )

    def _plan(self, layout: Layout | None) -> tuple[TensorPlan, ...]:
        return plan_tensors(
            self.recipe,
            [operand.given.settings for operand in self._operands],
            self.base.shapes if self.base else None,
            [operand.tensors.shapes for operand in self._operands],
            layout,
            [operand.tensors.label for operand in self._operands],
        )

    def _stand(self) -> Standing:
        def gram() -> F64Array:
            if not self.relative:
                raise BadInput("guards compare changes to a base; name the base model, or remove the guards")
            return total_gram(self._survey(self._reader(plan)).gram() for plan in self.plans)

        whole = self.plans[0]  # what is decided over the whole model takes the settings without filters
        return stand(
            self.recipe,
            whole.shared,
            [float(weight) for weight in self._weights(whole)],
            [operand.given.cohort for operand in self._operands],
            [operand.tensors.label for operand in self._operands],
            gram,
        )

    def _require_weights(self) -> None:
        without = [plan.name for plan in self.plans if not any(self._weights(plan))]
        if without and (not self.relative or len(without) == len(self.plans)):
            raise Refused(
                f"tensor {without[0]!r}: the weights of all {len(self._operands)} contributions sum to zero; "
                "give one of them a weight"
            )

    def _require_base(self, layout: Layout | None) -> None:
        if not self._operands:
            raise Refused("nothing to merge: there is no contribution; wait for one or fail the round")
        for operand in self._operands:
            if operand.is_delta and self.base is None:
                raise BadInput(f"{operand.tensors.label}: is a change to a base; name the base model")
        if (self.base is None or layout is not None) and self.recipe.outer != PLAIN_STEP:
            raise BadInput(
                "an outer step goes on from a base with the same layers; name the base and no slices, "
                "or take the plain step (learning_rate 1, momentum 0)"
            )


class SumWork:
    """The merge of a stored sum: nothing is left to add up, so that there are no rows to read."""

    relative, num_layers, chunk = True, None, CHUNK

    def __init__(self, base: Checkpoint, stored: StoredSum, recipe: Recipe) -> None:
        check_delta(base, stored.tensors)
        self.recipe, self.shapes, self.companions_dir = recipe, base.shapes, base.directory
        self._base, self._stored = base, stored

    def spans(self, lanes: Sequence[Sequence[str]]) -> Iterator[Span]:
        return in_turn(self._lane(names) for names in lanes)

    def _lane(self, names: Iterable[str]) -> Iterator[Span]:
        for name in names:
            plan = TensorPlan(name=name, shape=self.shapes[name], base=name, sources=(), shared={}, own=())
            reader = TensorReader(plan, self._base, (), relative=True)
            for elements in spans(plan.shape):
                yield Span(name, elements, reader, self._mean_of(name), None)

    def _mean_of(self, name: str) -> MergeChunk:
        return lambda _, start, out_N: self._stored.read_mean(name, start, out_N)


def in_turn(lanes: Iterable[Iterator[Span]]) -> Iterator[Span]:
    """One from each lane, again and again, until all are empty."""
    waiting = deque(lanes)
    while waiting:
        lane = waiting.popleft()
        span = next(lane, None)
        if span is not None:
            waiting.append(lane)
            yield span
