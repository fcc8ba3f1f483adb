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
from consortium.merging.kernels import Thinning
from consortium.merging.methods import Elected, Median, WeightedSum
from consortium.merging.outer import outer_step_into
from consortium.merging.outer_state import OuterState
from consortium.merging.reading import StoredArray
from consortium.merging.recipe import PLAIN_STEP, Recipe
from consortium.merging.survey import chunks, scratch_rows
from consortium.merging.work import Span
from consortium.store import ref_of
from consortium.tensor_writer import CheckpointWriter, copy_companions
from consortium.tensors import DType, F32Array, encode
from consortium.versions import OUTER_STATE

_DTYPES: dict[str, DType] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

Progress = Callable[[int, int], None]

_FLOAT16_END = 65520.0  #: from here on float16 rounds to infinity


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
        stored_span = self._from_files(span)
        if stored_span is not None:
            hasher.update(stored_span.view(np.uint8).data)
            self._model.write_stored(name, span.elements.start, stored_span)
            self._start_writeback(span)
            return span, hasher.hexdigest()
        for start, stop in chunks(span.elements, self._work.chunk, span.width):
            next_N = scratch_rows("next", 1, stop - start)[0]
            try:
                self._merge(span, start, next_N)
            except Refused as error:
                raise Refused(f"tensor {name!r}, elements from {start}: {error}") from error
            if self._dtype == "F16":
                _require_float16(next_N, name, start)
            stored = encode(next_N, self._dtype)
            hasher.update(stored.view(np.uint8).data)
            self._model.write_stored(name, start, stored)
        self._start_writeback(span)
        return span, hasher.hexdigest()

    def _start_writeback(self, span: Span) -> None:
        self._model.start_writeback(span.name, span.elements)
        self._state.start_writeback(span.name, span.elements)

    def _from_files(self, span: Span) -> StoredArray | None:
        """The whole span at once, where all is read from files and merged by one kernel: most merges."""
        merge, reader, onto_base = span.merge_chunk, span.reader, self._work.relative
        place = (span.elements, onto_base, self._dtype)
        try:
            if self._step != PLAIN_STEP:
                return self._stepped_from_files(span)
            if isinstance(merge, WeightedSum):
                return reader.sum_files(merge.factors, *place)
            if isinstance(merge, Median):
                found = reader.merge_files([Thinning()] * reader.num_rows, None, 1.0, *place)
                return found and found[0]
            if isinstance(merge, Elected) and merge.thinned.kernels is not None:
                election = (merge.factors_K, merge.weights_K, merge.normalize)
                found = reader.merge_files(merge.thinned.kernels, election, merge.scale, *place)
                if found is not None:
                    merge.require(found[1])
                    return found[0]
        except Refused:
            pass  # what follows says where
        return None

    def _stepped_from_files(self, span: Span) -> StoredArray | None:
        """The same for a sum of deltas and momentum SGD on it, DiLoCo's step among them."""
        merge, step, size = span.merge_chunk, self._step, len(span.elements)
        if not isinstance(merge, WeightedSum) or not self._work.relative:
            return None
        if step.optimizer != "sgd" or not step.momentum:
            return None
        kept_N = scratch_rows("kept span", 1, size)[0]
        outer = (step.learning_rate, step.momentum, step.nesterov)
        before = self._state.place_before(span.name)
        place = (span.elements, self._dtype)
        stored = span.reader.step_files(merge.factors, *place, before, outer, kept_N)
        if stored is not None:
            self._state.write(span.name, span.elements.start, [kept_N])
        return stored

    def _merge(self, span: Span, start: int, next_N: F32Array) -> None:
        """Merge a chunk, take the outer step, keep its state."""
        work, reader, size = self._work, span.reader, next_N.size
        plain = self._step == PLAIN_STEP
        theta_N = reader.base(start, size) if work.relative or not plain else None
        if plain and isinstance(span.merge_chunk, WeightedSum):
            reader.sum_onto(span.merge_chunk.factors, start, theta_N, next_N)
            return
        merged_N = scratch_rows("merged", 2, size).reshape(-1).view(np.float64)
        if isinstance(span.merge_chunk, WeightedSum):
            scale = reader.weighted_sum(span.merge_chunk.factors, start, merged_N)
        else:
            rows_KN = scratch_rows("rows", reader.num_rows, size)
            reader.rows(start, rows_KN)
            scale = span.merge_chunk(rows_KN, start, merged_N)
        if theta_N is None:
            kernels.scale_to(merged_N, scale, next_N)
        elif plain:
            kernels.apply_step(theta_N, merged_N, scale, next_N)
        else:
            self._step_outer(span, start, theta_N, merged_N, scale, next_N)

    def _step_outer(
        self, span: Span, start: int, theta_N: F32Array, merged_N: F64Array, scale: float, next_N: F32Array
    ) -> None:
        if not self._work.relative:
            merged_N *= scale
            merged_N -= theta_N
            scale = 1.0
        before_SN = self._state.read(span.name, start, next_N.size)
        kept_SN = outer_step_into(theta_N, merged_N, scale, before_SN, self._step, next_N)
        self._state.write(span.name, start, kept_SN)


def _require_float16(values_N: F32Array, name: str, start: int) -> None:
    at = int(np.argmax(np.abs(values_N)))
    if abs(values_N[at]) >= _FLOAT16_END:
        raise Refused(
            f"tensor {name!r} is {values_N[at]} at element {start + at}, which float16 cannot hold (65504 at most); "
            "write bfloat16 or float32"
        )
