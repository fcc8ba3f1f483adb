"""How a set of contributions becomes the next model: streamed in chunks, the same bits in any order.

base + K models or deltas -> guards -> method -> outer step -> sharded model, checksums, next outer state.
Memory is a few chunks per thread, whatever the size of the model. The result depends on the set of inputs,
the base, the outer state and the recipe; not on order, threads, chunks or machine (all of it is IEEE
elementwise arithmetic, exact sums and exact selections).
"""

import contextlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from consortium.canonical import digest_of_fact
from consortium.errors import BadInput
from consortium.ids import Digest
from consortium.manifests import FileRef, Ingredient, VersionManifest
from consortium.merging.checksums import Checksums
from consortium.merging.in_order import in_order
from consortium.merging.operands import MergeInput, open_operands, verify
from consortium.merging.plan import Layout
from consortium.merging.recipe import Recipe
from consortium.merging.sums import open_sum
from consortium.merging.survey import CHUNK
from consortium.merging.work import SumWork, Work
from consortium.merging.writing import Progress, Written, write_model
from consortium.tensors import Checkpoint
from consortium.versions import OUTER_STATE

__all__ = ["MergeInput", "MergeResult", "Progress", "merge", "merge_sum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    checksums: Checksums  #: of the weights; its digest is the same however they are sharded
    files: dict[str, FileRef]  #: of the model, relative paths; empty if they were not to be hashed
    outer_state: dict[str, FileRef]  #: for the next merge; empty if the recipe keeps none
    ingredients: tuple[Ingredient, ...]  #: the inputs that have a ref, sorted by digest, with their weights
    recipe: Recipe
    notes: tuple[str, ...]  #: what guards and robust methods did to whom, a sentence each

    def manifest_onto(self, base: Digest) -> VersionManifest:
        """What to call the result of merging onto version ``base``."""
        return VersionManifest(
            base=base,
            files=self.files,
            recipe=digest_of_fact(self.recipe),
            ingredients=self.ingredients,
            outer_state=self.outer_state,
            decisions=self.notes,
        )


def merge(
    base_dir: Path | None,
    inputs: Sequence[MergeInput],
    momentum: Path | None,
    recipe: Recipe,
    out_dir: Path,
    threads: int = 2,
    progress: Progress | None = None,
    chunk: int = CHUNK,
    layout: Layout | None = None,
    hash_files: bool = True,
) -> MergeResult:
    """Merge models or deltas and write a Hugging Face folder ``out_dir``.

    base_dir    what deltas are relative to; None only for methods that need no base
    inputs      any order; a file that has a ref is verified against it
    momentum    ``outer.safetensors`` of the merge that made the base; None: start from zero
    progress    called with (elements done, elements in all), from the calling thread
    chunk       elements per step of one thread; changes speed and memory, never bits
    layout      which layers of which input (by position in ``inputs``) go where; None: all from their namesakes
    hash_files  make the sha256 of every file, which versions are made of; checksums are made in any case
    Raises Refused (no contributions, zero weights, out of range), Corrupt (bytes that are not what their
    digest or format says), BadInput (tensors that do not fit, NaN, ``out_dir`` exists), DiskFull or
    Unavailable. Then, as after a kill, ``out_dir`` is not there.
    """
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for _ in in_order(pool, verify, inputs, threads):
            pass
        base = stack.enter_context(Checkpoint(base_dir)) if base_dir else None
        operands = open_operands(inputs, stack)
        if layout is not None:
            positions = {id(operand.given): place for place, operand in enumerate(operands)}
            layout = layout.renumbered([positions[id(given)] for given in inputs])
        work = Work(base, operands, recipe, layout, pool, chunk)
        written = write_model(work, momentum, out_dir, pool, threads, progress, hash_files)
    return _result(written, _ingredients(inputs, recipe), recipe, work.standing.notes)


def merge_sum(
    base_dir: Path,
    sum_dir: Path,
    momentum: Path | None,
    recipe: Recipe,
    out_dir: Path,
    threads: int = 2,
    progress: Progress | None = None,
    hash_files: bool = True,
) -> MergeResult:
    """``merge`` of what is in a stored sum (``sums``), for method ``linear`` weighed by tokens.

    The same bits as ``merge`` of its contributions, if the sum's unit is the one that they give.
    """
    if recipe.method != "linear" or recipe.weights != "tokens" or recipe.parameters or recipe.embedding_rows:
        raise BadInput(
            "a stored sum is a mean by tokens; take method linear with weights tokens and no parameters"
        )
    with (
        ThreadPoolExecutor(threads) as pool,
        Checkpoint(base_dir) as base,
        open_sum(sum_dir) as stored,
    ):
        work = SumWork(base, stored, recipe)
        written = write_model(work, momentum, out_dir, pool, threads, progress, hash_files)
        return _result(written, stored.facts.ingredients, recipe, ())


def _result(
    written: Written, ingredients: tuple[Ingredient, ...], recipe: Recipe, notes: tuple[str, ...]
) -> MergeResult:
    return MergeResult(
        checksums=written.checksums,
        files={name: ref for name, ref in written.refs.items() if name != OUTER_STATE},
        outer_state={name: ref for name, ref in written.refs.items() if name == OUTER_STATE},
        ingredients=ingredients,
        recipe=recipe,
        notes=notes,
    )


def _ingredients(inputs: Iterable[MergeInput], recipe: Recipe) -> tuple[Ingredient, ...]:
    found = [
        Ingredient(
            delta=given.ref,
            weight=1 if recipe.weights == "uniform" else given.weight,
            row_counts=given.row_counts_ref,
        )
        for given in inputs
        if given.ref is not None
    ]
    return tuple(sorted(found, key=lambda item: (item.delta.digest, item.weight)))
