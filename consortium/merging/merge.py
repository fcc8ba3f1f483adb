"""How a set of contributions becomes the next model: streamed in chunks, the same bits in any order.

base + K deltas + momentum -> method -> outer step -> sharded model + next momentum. Memory is a few chunks
per thread, whatever the size of the model. The result depends on the set of contributions, the base, the
momentum and the recipe; not on order, threads, chunks or machine (all of it is IEEE elementwise arithmetic
and exact sums).
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from consortium.canonical import digest_of_fact
from consortium.deltas import check_delta, require_finite
from consortium.errors import BadInput, Corrupt, Refused
from consortium.folders import fresh_folder
from consortium.ids import Digest, short
from consortium.manifests import FileRef, Ingredient, VersionManifest
from consortium.merging.exact import F64Array, shares_of
from consortium.merging.methods import METHODS
from consortium.merging.outer import outer_step
from consortium.merging.recipe import Recipe
from consortium.store import ref_of
from consortium.tensor_writer import CheckpointWriter, TensorWriter, copy_companions
from consortium.tensors import CHUNK, Checkpoint, DType, F32Array, TensorFile, Tensors
from consortium.versions import OUTER_STATE

_DTYPES: dict[str, DType] = {"float32": "F32", "bfloat16": "BF16"}
_SPAN_CHUNKS = 16  #: chunks that a thread takes at a time, so that taking costs nothing

Progress = Callable[[int, int], None]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, slots=True)
class MergeInput:
    """A delta to merge. ``weight`` (tokens, say) counts if the recipe weighs by tokens."""

    path: Path
    ref: FileRef
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    files: dict[str, FileRef]  #: of the model, relative paths
    outer_state: dict[str, FileRef]  #: the momentum for the next merge; empty if the recipe keeps none
    ingredients: tuple[Ingredient, ...]  #: sorted by digest, with the weights that were used
    recipe: Recipe

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
    base_dir: Path,
    inputs: Sequence[MergeInput],
    momentum: Path | None,
    recipe: Recipe,
    out_dir: Path,
    threads: int = 2,
    progress: Progress | None = None,
    chunk: int = CHUNK,
) -> MergeResult:
    """Merge deltas onto the base in ``base_dir`` and write a Hugging Face folder ``out_dir``.

    inputs    any order; every file is verified against its digest
    momentum  ``outer.safetensors`` of the merge that made the base; None: start from zero
    progress  called with (elements done, elements in all), from the calling thread
    chunk     elements per step of one thread; changes speed and memory, never bits
    Raises Refused (no contributions, zero weights, out of range), Corrupt (bytes that are not what their
    digest or format says), BadInput (tensors that do not fit, NaN, ``out_dir`` exists), DiskFull or
    Unavailable. Then, as after a kill, ``out_dir`` is not there.
    """
    ingredients = _ingredients(inputs, recipe)
    shares_K = shares_of([item.weight for item in ingredients])
    paths = {item.ref.digest: item.path for item in inputs}
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(Checkpoint(base_dir))
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for _ in in_order(
            pool, lambda item: _verify(paths[item.delta.digest], item.delta), ingredients, threads
        ):
            pass
        deltas = [stack.enter_context(_delta(paths[item.delta.digest], item, base)) for item in ingredients]
        before = None
        keeps_momentum = recipe.outer.momentum != 0.0
        if keeps_momentum and momentum is not None:
            before = stack.enter_context(TensorFile(momentum, "the outer momentum"))
            check_delta(base, before)
        folder = stack.enter_context(fresh_folder(out_dir))
        with contextlib.ExitStack() as writing:
            dtype = _DTYPES[recipe.dtype]
            model = writing.enter_context(CheckpointWriter(folder, base.shapes, dtype, recipe.shard_bytes))
            after = None
            if keeps_momentum:
                after = writing.enter_context(TensorWriter(folder / OUTER_STATE, base.shapes, "F32"))
            work = _Work(base, deltas, shares_K, before, model, after, recipe, chunk)
            total, done = sum(info.num_elements for info in base.values()), 0
            spans = _spans(base, chunk * _SPAN_CHUNKS)
            counts = in_order(pool, work.merge_span, spans, 2 * threads)
            for count in writing.enter_context(contextlib.closing(counts)):  # no thread outlives the files
                done += count
                if progress:
                    progress(done, total)
        copy_companions(base_dir, folder, dtype)
        names = sorted(path.name for path in folder.iterdir())
        refs = dict(
            zip(names, in_order(pool, lambda name: ref_of(folder / name), names, threads), strict=True)
        )
    outer_state = {name: refs.pop(name) for name in (OUTER_STATE,) if name in refs}
    return MergeResult(files=refs, outer_state=outer_state, ingredients=ingredients, recipe=recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    name: str
    start: int
    stop: int


class _Work:
    """One merge: where it reads and writes, and each thread's buffers."""

    def __init__(
        self,
        base: Tensors,
        deltas: list[TensorFile],
        shares_K: F64Array,
        before: TensorFile | None,
        model: CheckpointWriter,
        after: TensorWriter | None,
        recipe: Recipe,
        chunk: int,
    ) -> None:
        self._base, self._deltas, self._shares_K = base, deltas, shares_K
        self._before, self._model, self._after = before, model, after
        self._method, self._outer, self._chunk = METHODS[recipe.method], recipe.outer, chunk
        self._local = threading.local()

    def merge_span(self, span: _Span) -> int:
        """Merge some elements of a tensor; returns how many."""
        rows_KN = self._rows()
        for start in range(span.start, span.stop, self._chunk):
            size = min(self._chunk, span.stop - start)
            self._merge_chunk(span.name, start, rows_KN[:, :size])
        return span.stop - span.start

    def _merge_chunk(self, name: str, start: int, rows_KN: F32Array) -> None:
        theta_N, momentum_N, deltas_KN = rows_KN[0], rows_KN[1], rows_KN[2:]
        for delta, delta_N in zip(self._deltas, deltas_KN, strict=True):
            _read(delta, name, start, delta_N)
        try:
            merged_N = self._method(deltas_KN, self._shares_K)
        except Refused as error:
            raise Refused(f"tensor {name!r}, elements from {start}: {error}") from error
        _read(self._base, name, start, theta_N)
        if self._before is not None:
            _read(self._before, name, start, momentum_N)
        state_SN = None if self._before is None else (momentum_N,)
        next_N, kept_SN = outer_step(theta_N, merged_N, state_SN, self._outer)
        self._model.write(name, start, next_N)
        if self._after is not None:
            self._after.write(name, start, kept_SN[0])

    def _rows(self) -> F32Array:
        """This thread's rows: weights, momentum, K deltas. Used again, because fresh memory is slow."""
        rows: F32Array | None = getattr(self._local, "rows", None)
        if rows is None:
            rows = self._local.rows = np.empty((2 + len(self._deltas), self._chunk), np.float32)
        return rows


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
        Ingredient(delta=item.ref, weight=1 if recipe.weights == "uniform" else item.weight)
        for item in inputs
    ]
    return tuple(sorted(found, key=lambda item: (item.delta.digest, item.weight)))


def _verify(path: Path, ref: FileRef) -> None:
    got = ref_of(path)
    if got != ref:
        raise Corrupt(
            f"delta {ref.digest}: the file has {got.size} bytes with sha256 {got.digest}, not {ref.size}; "
            "fetch it again"
        )


def _delta(path: Path, item: Ingredient, base: Tensors) -> TensorFile:
    delta = TensorFile(path, f"delta {short(item.delta.digest)}")
    try:
        check_delta(base, delta)
    except BadInput:
        delta.close()
        raise
    return delta


def _read(source: Tensors, name: str, start: int, out: F32Array) -> None:
    source.read(name, start, out)
    require_finite(out, source.label, name, start)


def _spans(base: Tensors, length: int) -> Iterator[_Span]:
    for name, info in base.items():
        for start in range(0, info.num_elements, length):
            yield _Span(name=name, start=start, stop=min(start + length, info.num_elements))
