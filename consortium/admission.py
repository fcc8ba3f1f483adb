"""Whether a delta may be merged: whole, of the base's shape, finite, and of a believable size.

The file is a stranger's: nothing in it is used before it was checked, and whatever is wrong with it is a
reason, never a crash. Who sent it, for which job, and whether the signature verifies is the coordinator's
to know.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from consortium.canonical import Fact, replace
from consortium.codecs.formats import DTYPES, TOPK_CHUNK, kept_of_chunk
from consortium.codecs.names import DENSITY, EncodingName, is_coded
from consortium.codecs.reading import CodedDelta, encoding_of, open_delta
from consortium.deltas import check_delta, require_finite
from consortium.errors import BadInput
from consortium.ids import short
from consortium.manifests import FileRef
from consortium.store import ref_of
from consortium.tensors import F32Array, Tensors

_WORST = 3  #: tensors named in an inspection
#: Of a delta's element, also where no norm is limited: trained weights are a hundredth of it, and a merge sums
#: exactly only up to 2^17 (``merging.exact``): one wild number would have it refuse all contributions of the round.
ELEMENT_MAX = 1024.0
_HEADER_BYTES_FIXED, _HEADER_BYTES_PER_TENSOR = (
    1 << 16,
    1 << 12,
)  # a name is at most 512 characters, written up to 4 times


class TensorNorm(Fact):
    """L2 norms of one tensor."""

    name: str
    norm: float
    base_norm: float


class Inspection(Fact):
    """What was found in a delta. Norms are zero if it was refused before they were known."""

    ok: bool
    reason: str  #: a sentence for ``why``: if refused, the tensor, the value, the rule and the way out
    norm: float = 0.0  #: L2 norm of the whole delta
    base_norm: float = 0.0
    worst: tuple[TensorNorm, ...] = ()  #: largest relative to their base first


def base_norms(base: Tensors) -> dict[str, float]:
    """L2 norm of every tensor: read the base once, inspect many deltas. Raises BadInput for NaN."""
    return {name: _norm(base, name) for name in base}


def inspect(
    base: Tensors,
    delta_path: Path,
    ref: FileRef,
    *,
    norm_max: float,
    tensor_norm_max: float,
    bytes_max: int,
    encoding: EncodingName | None = None,
    density: float = DENSITY,
    norms: Mapping[str, float] | None = None,
    row_norm_max: float | None = None,
    usual: float | None = None,
    growth_max: float | None = None,
) -> Inspection:
    """Check a delta against its base, its manifest's ``ref`` and the campaign's limits.

    norm_max         of the delta's L2 norm relative to the base's
    tensor_norm_max  the same for each tensor whose base is not zero
    bytes_max        of the file
    encoding         that the job asked for; None: any
    density          share of the elements that top-k was to keep
    norms            ``base_norms(base)`` if known
    row_norm_max     of a row of a matrix relative to the mean row of the base's; None: rows are not looked at
    usual            relative norm of the deltas of earlier rounds; None: not known
    growth_max       of this delta's relative norm over the usual one; None: not looked at
    Raises Unavailable if the disk fails; a bad delta is an answer, not an error.
    """
    label = f"delta {short(ref.digest)}"
    try:
        _check_bytes(delta_path, ref, bytes_max, label)
        header_max = _HEADER_BYTES_FIXED + _HEADER_BYTES_PER_TENSOR * len(base)
        with open_delta(delta_path, label, header_max) as delta:
            check_delta(base, delta)
            _check_encoding(delta, encoding, density)
            found = _norms(delta, base_norms(base) if norms is None else norms)
            if row_norm_max is not None:
                _check_rows(delta, found, row_norm_max)
    except BadInput as error:
        return Inspection(ok=False, reason=str(error))
    judged = _judge(found, norm_max, tensor_norm_max, label)
    if judged.ok and usual and growth_max and judged.norm > growth_max * usual * judged.base_norm:
        reason = (
            f"{label}: its norm is {judged.norm / judged.base_norm:.4g} of the base's, more than {growth_max:g} times "
            f"the {usual:.4g} that is usual in this campaign; train as long and at the rate that the job says"
        )
        return replace(judged, ok=False, reason=reason)
    return judged


def _check_bytes(path: Path, ref: FileRef, bytes_max: int, label: str) -> None:
    if ref.size > bytes_max:
        raise BadInput(
            f"{label}: {ref.size} bytes exceed the {bytes_max} that the campaign admits; send bf16 or int8"
        )
    got = ref_of(path)
    if got != ref:
        raise BadInput(
            f"{label}: the file has {got.size} bytes with sha256 {got.digest}, its manifest says "
            f"{ref.size} bytes with {ref.digest}; upload it again"
        )


def _check_encoding(delta: Tensors, encoding: EncodingName | None, density: float) -> None:
    if encoding is None:
        return
    found, kept = encoding_of(delta)
    if isinstance(delta, CodedDelta) or is_coded(encoding):
        if found != encoding:
            what = found or "neither bf16 nor fp32"
            raise BadInput(f"{delta.label}: is {what}, the job asked for {encoding}; store it so")
    for name, info in delta.items() if encoding in DTYPES else ():
        if info.dtype != DTYPES[encoding]:
            raise BadInput(
                f"{delta.label}: tensor {name!r} is {info.dtype}, the job asked for {encoding}; store it so"
            )
    if encoding == "topk" and kept != kept_of_chunk(density):
        raise BadInput(
            f"{delta.label}: keeps {kept} of {TOPK_CHUNK} elements, the job asked for {kept_of_chunk(density)}; "
            "keep as many"
        )


def _norms(delta: Tensors, norms: Mapping[str, float]) -> list[TensorNorm]:
    """Of every tensor, sorted by how far it moved: largest relative norm first, then by name."""
    found = [TensorNorm(name=name, norm=_norm(delta, name), base_norm=norms[name]) for name in delta]
    for item in found:
        if item.norm > ELEMENT_MAX:  # else no element is that large
            _check_elements(delta, item.name)
    return sorted(found, key=lambda item: (-_relative(item), item.name))


def _judge(found: list[TensorNorm], norm_max: float, tensor_norm_max: float, label: str) -> Inspection:
    norm = math.hypot(*(item.norm for item in found))
    base_norm = math.hypot(*(item.base_norm for item in found))
    way_out = "train fewer steps or with a lower learning rate, or have the campaign raise its limit"
    ok, reason = True, f"{label}: its norm {norm:.4g} is {norm / (base_norm or 1.0):.4g} of the base's"
    if norm > norm_max * base_norm:
        ok, reason = (
            False,
            f"{label}: its norm {norm:.4g} exceeds {norm_max:g} of the base's {base_norm:.4g}; {way_out}",
        )
    elif found and _relative(found[0]) > tensor_norm_max:
        worst = found[0]
        ok, reason = (
            False,
            f"{label}: tensor {worst.name!r} has norm {worst.norm:.4g}, which exceeds {tensor_norm_max:g} of "
            f"the base's {worst.base_norm:.4g}; {way_out}",
        )
    return Inspection(ok=ok, reason=reason, norm=norm, base_norm=base_norm, worst=tuple(found[:_WORST]))


def _relative(item: TensorNorm) -> float:
    """Norm relative to the base's; 0 where the base is zero and every change is infinitely large."""
    return item.norm / item.base_norm if item.base_norm else 0.0


def _norm(tensors: Tensors, name: str) -> float:
    squares = []
    for start, piece in tensors.pieces(name):
        require_finite(piece, tensors.label, name, start)
        squares.append(_square_sum(piece))
    return math.sqrt(math.fsum(squares))


def _check_elements(delta: Tensors, name: str) -> None:
    for start, piece in delta.pieces(name):
        sizes = np.abs(piece)
        if sizes.max() > ELEMENT_MAX:
            at = int(sizes.argmax())
            raise BadInput(
                f"{delta.label}: element {start + at} of {name!r} is {piece[at]:g}, larger than {ELEMENT_MAX:g}, which "
                "no weight moves by; train with a lower learning rate"
            )


def _square_sum(values: F32Array) -> float:
    wide = values.astype(np.float64)
    return float(np.sum(np.square(wide, out=wide)))


def _check_rows(delta: Tensors, found: list[TensorNorm], row_norm_max: float) -> None:
    """That no row of a matrix moved far by itself: how a few tokens are made to mean something else.

    The norm of a whole matrix hides that: a vocabulary has 10^5 rows. Rows are measured by the base's root mean square.
    """
    for item in sorted(found, key=lambda item: item.name):
        shape = delta[item.name].shape
        if len(shape) != 2 or not item.base_norm:
            continue
        usual = item.base_norm / math.sqrt(shape[0])
        row, largest = _largest_row(delta, item.name, shape[1])
        if largest > row_norm_max * usual:
            raise BadInput(
                f"{delta.label}: row {row} of {item.name!r} has norm {largest:.4g}, which exceeds {row_norm_max:g} of "
                f"the base's mean row {usual:.4g}; leave rows alone that the text does not use, or train more gently"
            )


def _largest_row(tensors: Tensors, name: str, columns: int) -> tuple[int, float]:
    """The row with the largest L2 norm, and that norm; pieces of a tensor end anywhere."""
    best, begun = (0, 0.0), 0.0
    for start, piece in tensors.pieces(name):
        wide = np.square(piece.astype(np.float64))
        cuts = np.unique(np.concatenate(([0], np.arange(-start % columns, len(wide), columns))))
        sums = np.add.reduceat(wide, cuts)
        if start % columns:
            sums[0] += begun
        at = int(np.argmax(sums))
        if sums[at] > best[1]:
            best = ((start + int(cuts[at])) // columns, float(sums[at]))
        begun = float(sums[-1])
    return best[0], math.sqrt(best[1])
