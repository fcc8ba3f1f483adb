"""What a site sends back: trained minus base, as a safetensors file that is the same for the same training.

Two signs are in use and only ``pseudo_gradient`` turns one into the other: a *delta* is trained - base,
which is stored, sent and merged; the *pseudo-gradient* is base - trained, which the outer optimizer
descends.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from consortium.codecs.formats import DTYPES
from consortium.codecs.names import DENSITY, CodedName
from consortium.codecs.reading import open_delta
from consortium.codecs.writing import CodedWriter
from consortium.errors import BadInput
from consortium.folders import fresh_folder
from consortium.manifests import FileRef
from consortium.store import ref_of
from consortium.tensor_writer import CheckpointWriter, TensorWriter, copy_companions
from consortium.tensors import CHUNK, Checkpoint, F32Array, Tensors

_Float = TypeVar("_Float", bound=np.floating[Any])
_SPECIALIST_SHARD_BYTES = 4 << 30

#: Tensor -> which of its rows (of the first dimension) are said not to have moved, whatever training did to them.
StillRows = Mapping[str, npt.NDArray[np.bool_]]


class Coded(NamedTuple):
    """A piece of a delta in blocks, as ``codecs/formats.py`` has it; the arrays may be overwritten by the next."""

    codes: npt.NDArray[np.uint8]
    scales_B: F32Array
    residual_N: F32Array


class Encoder(Protocol):
    """Codes pieces of the trained tensors where they lie, such as on a GPU, to the codecs' bytes.

    before_N, residual_N  into whose first elements the caller puts a piece of the base and of the residual; as
                          long as the longest piece, a multiple of 4096
    """

    before_N: F32Array
    residual_N: F32Array

    def encode(
        self, name: str, start: int, size: int, unmoved_N: npt.NDArray[np.bool_] | None
    ) -> Coded | None:
        """Elements ``start ..`` of a tensor; those of ``unmoved_N`` (size,) count as the base's.

        None, with ``before_N`` and ``residual_N`` as they were: the codecs have to do this piece.
        """


def pseudo_gradient(delta: npt.NDArray[_Float]) -> npt.NDArray[_Float]:
    """The gradient that the outer optimizer sees: base minus trained."""
    return -delta


def write_delta(
    base: Tensors,
    trained: Mapping[str, npt.NDArray[Any]],
    path: Path,
    dtype: Literal["bf16", "fp32"] = "bf16",
    still: StillRows | None = None,
) -> FileRef:
    """Write trained - base, computed in float32, then stored as ``dtype``; returns digest and size.

    trained  exactly the base's tensors, any float dtype; where weights are tied, under the base's name only
    still    rows that are exactly zero in the delta
    Raises BadInput for a missing, extra or misshapen tensor and for one that is not finite.
    """
    weights = _Trained(base, trained)
    with TensorWriter(path, base.shapes, DTYPES[dtype]) as writer:
        for name in base:
            for start, piece in base.pieces(name):
                np.subtract(weights.piece(name, start, piece.size), piece, out=piece)
                if (unmoved := _unmoved(still, base, name, start, piece.size)) is not None:
                    piece[unmoved] = 0.0
                writer.write(name, start, piece)
    return ref_of(path)


def write_coded_delta(
    base: Tensors,
    trained: Mapping[str, npt.NDArray[Any]],
    path: Path,
    encoding: CodedName,
    residual: Tensors | None,
    residual_path: Path,
    density: float = DENSITY,
    still: StillRows | None = None,
    encoder: Encoder | None = None,
) -> tuple[FileRef, FileRef]:
    """Write what can be said of (trained - base) + residual, and beside it, in float32, what could not.

    residual       what the delta before left unsaid, the base's shapes; None: nothing
    residual_path  where the new residual goes
    density        share of the elements that top-k keeps
    still          rows that are exactly zero in the delta. Their residual stays as it was: what was learned of
                   them before is still to be said, and what training did to them now never will be
    encoder        codes what is stored in blocks where the weights lie; None: the codecs do all of it, here
    Returns digests and sizes of delta and residual. Raises as ``write_delta``.
    """
    weights = _Trained(base, trained)
    if residual is not None:
        check_delta(base, residual)
    here = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    with (
        CodedWriter(path, base.shapes, encoding, density) as writer,
        TensorWriter(residual_path, base.shapes, "F32") as keeper,
    ):
        for name, info in base.items():
            there = encoder if encoder is not None and writer.is_in_blocks(name) else None
            before_N, left_N = (there.before_N, there.residual_N) if there else here
            for start in range(0, info.num_elements, before_N.size):
                size = min(before_N.size, info.num_elements - start)
                before, left = before_N[:size], left_N[:size]
                base.read(name, start, before)
                if residual is None:
                    left.fill(0.0)
                else:
                    residual.read(name, start, left)
                unmoved = _unmoved(still, base, name, start, size)
                owed = None
                if unmoved is not None:
                    owed, left[unmoved] = left[unmoved], 0.0
                coded = there.encode(name, start, size, unmoved) if there else None
                if coded is not None:
                    writer.write_blocks(name, start, coded.codes, coded.scales_B)
                    left = coded.residual_N
                else:
                    after = weights.piece(name, start, size)
                    if unmoved is not None:
                        after = np.where(unmoved, before, after)
                    writer.write(name, start, np.ascontiguousarray(after), before, left)
                if unmoved is not None:
                    left[unmoved] = owed
                keeper.write(name, start, left)
    return ref_of(path), ref_of(residual_path)


class _Trained:
    """The trained tensors, each asked for once, when its turn has come. Raises BadInput as ``write_delta``."""

    def __init__(self, base: Tensors, trained: Mapping[str, npt.NDArray[Any]]) -> None:
        self._base, self._trained, self._label = base, trained, "the trained model"
        self._name, self._flat = "", np.empty(0)
        _same_names(base, trained, self._label)
        for name, info in base.items():
            if not info.num_elements:  # it never has its turn
                self.piece(name, 0, 0)

    def piece(self, name: str, start: int, size: int) -> F32Array:
        """Elements ``start ..``, all of them finite."""
        if name != self._name:
            array = self._trained[name]
            _same_shape(self._base, name, tuple(array.shape), self._label)
            self._name, self._flat = name, array.reshape(-1)
        after: F32Array = self._flat[start : start + size].astype(np.float32, copy=False)
        require_finite(after, self._label, name, start)
        return after


def _unmoved(
    still: StillRows | None, base: Tensors, name: str, start: int, size: int
) -> npt.NDArray[np.bool_] | None:
    """(size,) which elements ``start ..`` of a tensor lie in rows that are still; None: not one of its rows is."""
    if still is None or name not in still:
        return None
    width = math.prod(base.shapes[name][1:])
    first, last = start // width, -(-(start + size) // width)
    return np.repeat(still[name][first:last], width)[start - first * width :][:size]


def check_delta(base: Tensors, delta: Tensors) -> None:
    """Raise BadInput naming the tensor unless ``delta`` has the names and shapes of ``base``."""
    _same_names(base, delta, delta.label)
    for name, info in delta.items():
        _same_shape(base, name, info.shape, delta.label)


def trained_tensors(base: Tensors, delta: Tensors) -> Iterator[tuple[str, F32Array]]:
    """``(name, base + delta)`` for every tensor, float32, in its shape; one tensor in memory at a time."""
    check_delta(base, delta)
    for name in base:
        yield name, base.array(name) + delta.array(name)


def apply_delta(base_dir: Path, delta_path: Path, out_dir: Path) -> None:
    """Make ``out_dir`` the specialist: base + delta in float32, with the base's config and tokenizer.

    Raises Corrupt, BadInput (misfit, or ``out_dir`` exists), DiskFull, Unavailable; then nothing is left.
    """
    with Checkpoint(base_dir) as base, open_delta(delta_path) as delta, fresh_folder(out_dir) as folder:
        check_delta(base, delta)
        with CheckpointWriter(folder, base.shapes, "F32", _SPECIALIST_SHARD_BYTES) as writer:
            for name in base:
                for (start, before), (_, change) in zip(base.pieces(name), delta.pieces(name), strict=True):
                    writer.write(name, start, before + change)
        copy_companions(base_dir, folder, "F32")


def require_finite(values: npt.NDArray[_Float], label: str, name: str, start: int) -> None:
    """Raise BadInput naming the first NaN or infinity; ``values`` begin at ``start`` in tensor ``name``."""
    finite = np.isfinite(values)
    if not finite.all():
        at = int(np.argmin(finite))
        raise BadInput(
            f"{label}: tensor {name!r} is {values[at]} at element {start + at}; every element must be "
            "finite, train again with a lower learning rate or tighter clipping"
        )


def _same_names(base: Tensors, names: Collection[str], label: str) -> None:
    for name in sorted(base.keys() ^ set(names)):
        fault = "is missing, the base has it" if name in base else "is not in the base"
        raise BadInput(f"{label}: tensor {name!r} {fault}; train from this base and change no layer")


def _same_shape(base: Tensors, name: str, shape: tuple[int, ...], label: str) -> None:
    if shape != base[name].shape:
        raise BadInput(
            f"{label}: tensor {name!r} has shape {list(shape)}, the base {list(base[name].shape)}; "
            "train from this base and change no layer"
        )
