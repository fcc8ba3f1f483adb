"""How a set of contributions becomes the next model: streamed in chunks, the same bits in any order.

base + K models or deltas -> guards -> method -> outer step -> sharded model, checksums, next outer state.
Memory is a few chunks per thread, whatever the size of the model. The result depends on the set of inputs,
the base, the outer state and the recipe; not on order, threads, chunks or machine (all of it is IEEE
elementwise arithmetic, exact sums and exact selections).
"""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from consortium.canonical import digest_of_fact
from consortium.errors import Refused
from consortium.folders import fresh_folder
from consortium.ids import Digest
from consortium.manifests import FileRef, Ingredient, VersionManifest
from consortium.merging import kernels
from consortium.merging.checksums import Checksums, PieceHasher, TensorChecksums, write_checksums
from consortium.merging.exact import F64Array
from consortium.merging.operands import MergeInput, open_operands, verify
from consortium.merging.outer import outer_step
from consortium.merging.outer_state import OuterState
from consortium.merging.plan import Layout
from consortium.merging.recipe import PLAIN_STEP, Recipe
from consortium.merging.survey import chunks, scratch_rows
from consortium.merging.work import Span, Work
from consortium.store import ref_of
from consortium.tensor_writer import CheckpointWriter, copy_companions
from consortium.tensors import CHUNK, Checkpoint, DType, F32Array, encode
from consortium.versions import OUTER_STATE

__all__ = ["MergeInput", "MergeResult", "Progress", "merge"]

_DTYPES: dict[str, DType] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

Progress = Callable[[int, int], None]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


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
    dtype = _DTYPES[recipe.dtype]
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
        folder = stack.enter_context(fresh_folder(out_dir))
        with contextlib.ExitStack() as writing:
            model = writing.enter_context(CheckpointWriter(folder, work.shapes, dtype, recipe.shard_bytes))
            state = OuterState(momentum, folder / OUTER_STATE, recipe.outer, work.shapes)
            write = _Writing(work, model, writing.enter_context(state), dtype)
            merged = in_order(pool, write.span, work.spans(model.lanes(threads)), 2 * threads)
            writing.enter_context(contextlib.closing(merged))  # no thread outlives the files
            pieces: dict[str, list[str]] = {name: [] for name in work.shapes}
            done, total = 0, sum(math.prod(shape) for shape in work.shapes.values())
            for span, digest in merged:
                pieces[span.plan.name].append(digest)
                done += len(span.elements)
                if progress:
                    progress(done, total)
        checksums = Checksums(
            tensors={
                name: TensorChecksums(dtype=dtype, shape=shape, pieces=tuple(pieces[name]))
                for name, shape in sorted(work.shapes.items())
            }
        )
        write_checksums(folder, checksums)
        copy_companions(work.companions_dir, folder, dtype, layout.num_layers if layout else None)
        names = sorted(path.name for path in folder.iterdir()) if hash_files else []
        refs = dict(
            zip(names, in_order(pool, lambda name: ref_of(folder / name), names, threads), strict=True)
        )
    return MergeResult(
        checksums=checksums,
        files={name: ref for name, ref in refs.items() if name != OUTER_STATE},
        outer_state={name: ref for name, ref in refs.items() if name == OUTER_STATE},
        ingredients=_ingredients(inputs, recipe),
        recipe=recipe,
        notes=work.standing.notes,
    )


class _Writing:
    """From the rows of a span to bytes on disk."""

    def __init__(self, work: Work, model: CheckpointWriter, state: OuterState, dtype: DType) -> None:
        self._work, self._model, self._state, self._dtype = work, model, state, dtype
        self._step = work.recipe.outer

    def span(self, span: Span) -> tuple[Span, str]:
        """Merge and write a span; returns it with the digest of its bytes."""
        hasher, name = PieceHasher(), span.plan.name
        for start, stop in chunks(span.elements, self._work.chunk, span.width):
            rows_KN = scratch_rows("rows", span.reader.num_rows, stop - start)
            merged_N = scratch_rows("merged", 2, stop - start).reshape(-1).view(np.float64)
            next_N = scratch_rows("next", 1, stop - start)[0]
            span.reader.rows(start, rows_KN)
            try:
                span.merge_chunk(rows_KN, start, merged_N)
            except Refused as error:
                raise Refused(f"tensor {name!r}, elements from {start}: {error}") from error
            self._step_to(span, start, merged_N, next_N)
            stored = encode(next_N, self._dtype)
            hasher.update(stored.view(np.uint8).data)
            self._model.write_stored(name, start, stored)
        self._model.start_writeback(name, span.elements)
        return span, hasher.hexdigest()

    def _step_to(self, span: Span, start: int, merged_N: F64Array, next_N: F32Array) -> None:
        work = self._work
        if not work.relative and self._step == PLAIN_STEP:
            next_N[:] = merged_N
            return
        theta_N = span.reader.base(start, next_N.size)
        if not work.relative:
            merged_N -= theta_N
        if self._step == PLAIN_STEP:
            kernels.apply_step(theta_N, merged_N, 1.0, next_N)
            return
        before_SN = self._state.read(span.plan.name, start, next_N.size)
        next_N[:], kept_SN = outer_step(theta_N, merged_N, before_SN, self._step)
        self._state.write(span.plan.name, start, kept_SN)


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[_In], _Out], items: Iterable[_In], ahead: int
) -> Generator[_Out, None, None]:
    """``work`` on every item, results in the order of items, at most ``ahead`` begun before they are wanted.

    The error raised is that of the first item that failed, whichever thread was quicker.
    """
    begun: deque[Future[_Out]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()
        wait(begun)


def _ingredients(inputs: Iterable[MergeInput], recipe: Recipe) -> tuple[Ingredient, ...]:
    found = [
        Ingredient(delta=given.ref, weight=1 if recipe.weights == "uniform" else given.weight)
        for given in inputs
        if given.ref is not None
    ]
    return tuple(sorted(found, key=lambda item: (item.delta.digest, item.weight)))
