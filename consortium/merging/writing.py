"""From the spans of a merge to a model folder: merged, stepped, encoded, hashed and written by threads."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from consortium.errors import Refused
from consortium.folders import fresh_folder
from consortium.manifests import FileRef
from consortium.merging import kernels
from consortium.merging.checksums import Checksums, PieceHasher, TensorChecksums, write_checksums
from consortium.merging.exact import F64Array
from consortium.merging.in_order import in_order
from consortium.merging.methods import WeightedSum
from consortium.merging.outer import outer_step
from consortium.merging.outer_state import OuterState
from consortium.merging.recipe import PLAIN_STEP, Recipe
from consortium.merging.survey import chunks, scratch_rows
from consortium.merging.work import Span
from consortium.store import ref_of
from consortium.tensor_writer import CheckpointWriter, copy_companions
from consortium.tensors import DType, F32Array, encode
from consortium.versions import OUTER_STATE

_DTYPES: dict[str, DType] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

Progress = Callable[[int, int], None]


class ToWrite(Protocol):
    """What ``write_model`` needs to know of a merge."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def relative(self) -> bool:
        """Whether spans give deltas from the base, or weights."""

    @property
    def chunk(self) -> int: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def num_layers(self) -> int | None:
        """What the config must say, if it is not what the companions say."""

    @property
    def companions_dir(self) -> Path: ...
    def spans(self, lanes: Sequence[Sequence[str]]) -> Iterator[Span]: ...


@dataclass(frozen=True, slots=True)
class Written:
    checksums: Checksums
    refs: dict[str, FileRef]  #: of all files, if they were to be hashed


def write_model(
    work: ToWrite,
    momentum: Path | None,
    out_dir: Path,
    pool: ThreadPoolExecutor,
    threads: int,
    progress: Progress | None,
    hash_files: bool,
) -> Written:
    """Carry the merge out and make ``out_dir``, whole or not at all. Arguments and errors: ``merge.merge``."""
    recipe, dtype = work.recipe, _DTYPES[work.recipe.dtype]
    with fresh_folder(out_dir) as folder:
        with contextlib.ExitStack() as writing:
            model = writing.enter_context(CheckpointWriter(folder, work.shapes, dtype, recipe.shard_bytes))
            state = OuterState(momentum, folder / OUTER_STATE, recipe.outer, work.shapes)
            write = _Writing(work, model, writing.enter_context(state), dtype)
            merged = in_order(pool, write.span, work.spans(model.lanes(threads)), 2 * threads)
            writing.enter_context(contextlib.closing(merged))  # no thread outlives the files
            pieces: dict[str, list[str]] = {name: [] for name in work.shapes}
            done, total = 0, sum(math.prod(shape) for shape in work.shapes.values())
            for span, digest in merged:
                pieces[span.name].append(digest)
                done += len(span.elements)
                if progress:
                    progress(done, total)
        tensors = {
            name: TensorChecksums(dtype=dtype, shape=shape, pieces=tuple(pieces[name]))
            for name, shape in sorted(work.shapes.items())
        }
        checksums = Checksums(tensors=tensors)
        write_checksums(folder, checksums)
        copy_companions(work.companions_dir, folder, dtype, work.num_layers)
        names = sorted(path.name for path in folder.iterdir()) if hash_files else []
        found = in_order(pool, lambda name: ref_of(folder / name), names, threads)
        return Written(checksums, dict(zip(names, found, strict=True)))


class _Writing:
    """From the rows of a span to bytes on disk."""

    def __init__(self, work: ToWrite, model: CheckpointWriter, state: OuterState, dtype: DType) -> None:
        self._work, self._model, self._state, self._dtype = work, model, state, dtype
        self._step = work.recipe.outer

    def span(self, span: Span) -> tuple[Span, str]:
        """Merge and write a span; returns it with the digest of its bytes."""
        hasher, name = PieceHasher(), span.name
        for start, stop in chunks(span.elements, self._work.chunk, span.width):
            merged_N = scratch_rows("merged", 2, stop - start).reshape(-1).view(np.float64)
            next_N = scratch_rows("next", 1, stop - start)[0]
            try:
                scale = _merge(span, start, merged_N)
            except Refused as error:
                raise Refused(f"tensor {name!r}, elements from {start}: {error}") from error
            self._step_to(span, start, merged_N, scale, next_N)
            stored = encode(next_N, self._dtype)
            hasher.update(stored.view(np.uint8).data)
            self._model.write_stored(name, start, stored)
        self._model.start_writeback(name, span.elements)
        return span, hasher.hexdigest()

    def _step_to(self, span: Span, start: int, merged_N: F64Array, scale: float, next_N: F32Array) -> None:
        work = self._work
        if not work.relative and self._step == PLAIN_STEP:
            kernels.scale_to(merged_N, scale, next_N)
            return
        theta_N = span.reader.base(start, next_N.size)
        if self._step == PLAIN_STEP:
            kernels.apply_step(theta_N, merged_N, scale, next_N)
            return
        merged_N *= scale
        if not work.relative:
            merged_N -= theta_N
        before_SN = self._state.read(span.name, start, next_N.size)
        next_N[:], kept_SN = outer_step(theta_N, merged_N, before_SN, self._step)
        self._state.write(span.name, start, kept_SN)


def _merge(span: Span, start: int, out_N: F64Array) -> float:
    if isinstance(span.merge_chunk, WeightedSum):
        return span.reader.weighted_sum(span.merge_chunk.factors, start, out_N)
    rows_KN = scratch_rows("rows", span.reader.num_rows, out_N.size)
    span.reader.rows(start, rows_KN)
    return span.merge_chunk(rows_KN, start, out_N)
