"""How a sum of contributions is kept, so that one can be added, or taken out again, exactly.

A stored sum is sum_k rint(w_k / 2^b * D_k * 2^36), an int64 for every element, with the list of what is in
it. Integers add and subtract without rounding: taking a contribution out leaves the very bits of a sum that
never had it, whatever came between. Its mean, the sum times 2^b / (2^36 sum_k w_k), is the merged delta of
method ``linear`` with the same unit 2^b (``exact``), bit for bit. That makes leaving a one-shot merge exact;
of later rounds it takes out the direct part only, since the others went on from weights that had it.

A folder: ``sum.safetensors`` (I64) and ``sum.json``.
"""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consortium.canonical import Fact, decode, encode
from consortium.codecs.reading import open_delta
from consortium.deltas import check_delta
from consortium.errors import BadInput, Refused
from consortium.files import disk_errors, write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.ids import short
from consortium.manifests import Ingredient
from consortium.merging import kernels
from consortium.merging.exact import GRID, F64Array, Weight, exact_factors, unit_bits
from consortium.merging.operands import MergeInput, read_finite, verify
from consortium.merging.survey import CHUNK, chunks, scratch_rows, spans
from consortium.tensor_writer import TensorWriter
from consortium.tensors import Checkpoint, StoredDType, TensorFile, Tensors

SUM_FILE, FACTS_FILE = "sum.safetensors", "sum.json"

_UNITS_MAX = 1 << 53  #: beyond it float64, which merges add in, would round
_I64 = npt.NDArray[np.int64]
_DTYPES: tuple[StoredDType, ...] = ("I64",)


class SumFacts(Fact):
    """What is in a stored sum. Weights are in units of 2^unit_bits."""

    schema: int = 1
    unit_bits: int
    ingredients: tuple[Ingredient, ...]  #: sorted by digest


@dataclass(frozen=True, slots=True)
class StoredSum:
    """An opened stored sum."""

    facts: SumFacts
    tensors: Tensors

    def read_mean(self, name: str, start: int, out_N: F64Array) -> float:
        """Fill ``out_N`` with elements of the sum; returns what makes it the mean when multiplied.

        Raises Refused if the weights sum to zero.
        """
        weights: list[Weight] = [item.weight for item in self.facts.ingredients]
        scale = exact_factors(weights, sum(weights), self.facts.unit_bits).scale
        out_N[:] = _read(self.tensors, name, start, out_N.size)
        return GRID * scale


@contextlib.contextmanager
def open_sum(folder: Path) -> Iterator[StoredSum]:
    """Raises BadInput, Corrupt or Unavailable for a folder that holds no stored sum."""
    with disk_errors(folder):
        facts = decode((folder / FACTS_FILE).read_bytes(), SumFacts, str(folder / FACTS_FILE))
    with TensorFile(folder / SUM_FILE, dtypes=_DTYPES) as tensors:
        yield StoredSum(facts, tensors)


def begin_sum(
    base_dir: Path, inputs: Sequence[MergeInput], out_dir: Path, bits: int | None = None, threads: int = 2
) -> SumFacts:
    """Sum deltas of one base in a new folder ``out_dir``.

    inputs  delta files with a ref, in any order
    bits    b of the unit; None: that of the largest weight here, as a merge would take it
    Raises BadInput for deltas that do not fit, Refused beyond the range, Corrupt for other bytes.
    """
    facts = SumFacts(
        unit_bits=unit_bits([given.weight for given in inputs]) if bits is None else bits, ingredients=()
    )
    with Checkpoint(base_dir) as base:
        return _write(facts, base, [(given, 1) for given in inputs], None, out_dir, threads)


def add(folder: Path, given: MergeInput, out_dir: Path, threads: int = 2) -> SumFacts:
    """The sum in ``folder`` and one more contribution, in a new folder."""
    with open_sum(folder) as before:
        return _write(before.facts, before.tensors, [(given, 1)], before.tensors, out_dir, threads)


def remove(folder: Path, given: MergeInput, out_dir: Path, threads: int = 2) -> SumFacts:
    """The sum in ``folder`` without one of its contributions: as if it had never been in it."""
    with open_sum(folder) as before:
        return _write(before.facts, before.tensors, [(given, -1)], before.tensors, out_dir, threads)


def _write(
    facts: SumFacts,
    like: Tensors,
    changes: Sequence[tuple[MergeInput, int]],
    before: Tensors | None,
    out_dir: Path,
    threads: int,
) -> SumFacts:
    after = _counted(facts, changes)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        list(pool.map(verify, [given for given, _ in changes]))
        rows = []
        for given, sign in changes:
            delta = stack.enter_context(open_delta(given.path, str(given.path)))
            check_delta(like, delta)
            rows.append((delta, sign * exact_factors([given.weight], None, facts.unit_bits).per_row[0]))
        folder = stack.enter_context(fresh_folder(out_dir))
        with TensorWriter(folder / SUM_FILE, like.shapes, "I64") as writer:

            def do(task: tuple[str, range]) -> None:
                name, span = task
                for start, stop in chunks(span, CHUNK):
                    writer.write_stored(name, start, _summed(rows, before, name, start, stop - start))

            list(pool.map(do, [(name, span) for name, info in like.items() for span in spans(info.shape)]))
        write_bytes_atomically(folder / FACTS_FILE, encode(after))
    return after


def _summed(
    rows: Sequence[tuple[Tensors, float]], before: Tensors | None, name: str, start: int, size: int
) -> _I64:
    total_N = np.zeros(size, np.int64) if before is None else _read(before, name, start, size)
    row_N = scratch_rows("summand", 1, size)[0]
    units_N = scratch_rows("units", 2, size).reshape(-1).view(np.float64)
    for delta, factor in rows:
        read_finite(delta, name, start, row_N)
        units_N.fill(0.0)
        if not kernels.grid_add(units_N, row_N, factor / GRID) * abs(factor) < _UNITS_MAX * GRID:
            raise _too_large(delta.label, name)
        total_N += units_N.astype(np.int64)
        if int(np.max(np.abs(total_N), initial=0)) >= _UNITS_MAX:
            raise _too_large(delta.label, name)
    return total_N.astype("<i8", copy=False)


def _too_large(label: str, name: str) -> Refused:
    return Refused(
        f"{label}: with it the sum of tensor {name!r} leaves the exact range of {_UNITS_MAX * GRID:g}; no sane "
        "deltas are so large, leave it out"
    )


def _counted(facts: SumFacts, changes: Sequence[tuple[MergeInput, int]]) -> SumFacts:
    found = {item.delta.digest: item for item in facts.ingredients}
    for given, sign in changes:
        if given.ref is None or given.weight < 0:
            raise BadInput(
                f"{given.path}: a stored sum names its contributions by digest and weighs them by tokens; give "
                "the delta's ref and a weight of zero or more"
            )
        item = Ingredient(delta=given.ref, weight=given.weight)
        if sign > 0 and item.delta.digest in found:
            raise BadInput(f"contribution {short(item.delta.digest)} is in the sum already; add each once")
        if sign < 0 and found.get(item.delta.digest) != item:
            raise BadInput(
                f"contribution {short(item.delta.digest)} with weight {item.weight} is not in the sum; take out "
                f"one of: {', '.join(f'{short(d)} ({found[d].weight})' for d in sorted(found)) or 'none'}"
            )
        if sign > 0:
            found[item.delta.digest] = item
        else:
            del found[item.delta.digest]
    return SumFacts(unit_bits=facts.unit_bits, ingredients=tuple(found[digest] for digest in sorted(found)))


def _read(tensors: Tensors, name: str, start: int, size: int) -> _I64:
    assert isinstance(tensors, TensorFile)
    raw = np.empty(size, "<i8")
    tensors.read_stored(name, start, raw.view(np.uint8))
    return raw.astype(np.int64, copy=False)
