"""What goes into a merge: model folders and delta files, opened, verified, in an order that is their own.

An input is one of two things: a *model* (a folder in Hugging Face layout) or a *delta* (one safetensors
file, trained minus base). The order in which they are given must not matter, so each has a key made of its
content, and inputs are worked on in the order of their keys.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consortium.codecs.reading import open_delta
from consortium.errors import BadInput, Corrupt
from consortium.ids import short
from consortium.manifests import FileRef
from consortium.merging import kernels
from consortium.merging.recipe import Settings
from consortium.store import ref_of
from consortium.tensor_writer import TensorWriter
from consortium.tensors import Checkpoint, F32Array, TensorFile, Tensors

_SAMPLE = 512  #: elements of a tensor that its fingerprint reads, at its begin, middle and end
ROW_COUNTS = "token_counts"  #: the one tensor of a file of token counts


@dataclass(frozen=True, slots=True)
class MergeInput:
    """A model or a delta to merge.

    path        a delta file, or a model folder in Hugging Face layout
    ref         what a delta file must be; None: take it as it is
    weight      tokens, say; counts if the recipe weighs by tokens
    settings    this input's own parameters (weight, density, ...)
    cohort      whom it is compared with by guards and robust methods: its languages, joined
    row_counts  safetensors file with one tensor ``token_counts``: how often each token of the vocabulary was
                trained on; needed where the recipe weighs embedding rows
    row_counts_ref  what that file must be; None: take it as it is
    """

    path: Path
    ref: FileRef | None = None
    weight: int = 1
    settings: Settings = field(default_factory=dict)
    cohort: str = ""
    row_counts: Path | None = None
    row_counts_ref: FileRef | None = None


@dataclass(frozen=True, slots=True)
class Operand:
    """An opened input."""

    given: MergeInput
    key: str  #: sha256 of a delta file that has a ref, else a fingerprint; the order of inputs, and of draws
    tensors: Tensors
    is_delta: bool
    row_counts: F32Array | None  #: (vocabulary,)


def verify(given: MergeInput) -> None:
    """Raise Corrupt unless the files are what their refs say."""
    for what, path, ref in (
        ("delta", given.path, given.ref),
        ("token counts", given.row_counts, given.row_counts_ref),
    ):
        if path is None or ref is None:
            continue
        got = ref_of(path)
        if got != ref:
            raise Corrupt(
                f"{what} {ref.digest}: the file has {got.size} bytes with sha256 {got.digest}, not {ref.size}; "
                "fetch it again"
            )


def open_operands(inputs: Sequence[MergeInput], stack: ExitStack) -> list[Operand]:
    """The inputs, opened (``stack`` closes them) and sorted by key; what they hold is compared by ``plan``."""
    opened = [_open(given, stack) for given in inputs]
    return sorted(
        opened, key=lambda operand: (operand.key, operand.given.weight, repr(operand.given.settings))
    )


def fingerprint(tensors: Tensors) -> str:
    """A name made of content, cheap: sha256 over names, shapes and the first, middle and last of each tensor.

    Enough to order inputs and to give each its own random draws; it proves nothing, digests do. Two models
    that differ only elsewhere share it, so nothing may depend on which of two equals comes first.
    """
    hasher = hashlib.sha256()
    for name, info in tensors.items():
        hasher.update(f"{name}\0{list(info.shape)}\0".encode())
        last = max(info.num_elements - _SAMPLE, 0)
        for start in (0, last // 2, last):
            piece = np.empty(min(_SAMPLE, info.num_elements), np.float32)
            tensors.read(name, start, piece)
            hasher.update(piece.astype("<f4", copy=False).tobytes())
    return hasher.hexdigest()


def read_finite(source: Tensors, name: str, start: int, out: F32Array) -> None:
    """Read elements into ``out``. Raises BadInput naming the first that is NaN or infinite."""
    source.read(name, start, out)
    at = kernels.first_non_finite(out)
    if at >= 0:
        raise BadInput(
            f"{source.label}: tensor {name!r} is {out[at]} at element {start + at}; every element must be "
            "finite, train again with a lower learning rate or tighter clipping"
        )


def _open(given: MergeInput, stack: ExitStack) -> Operand:
    if given.weight < 0:
        raise BadInput(
            f"{given.path}: has weight {given.weight}; weights count tokens and are never negative"
        )
    is_delta = not given.path.is_dir()
    if is_delta:
        label = f"delta {short(given.ref.digest)}" if given.ref else str(given.path)
        tensors: Tensors = stack.enter_context(open_delta(given.path, label))
    else:
        tensors = stack.enter_context(Checkpoint(given.path))
    key = given.ref.digest if given.ref else fingerprint(tensors)
    return Operand(
        given, key, tensors, is_delta, read_row_counts(given.row_counts) if given.row_counts else None
    )


def write_row_counts(path: Path, counts_V: npt.NDArray[np.int64]) -> FileRef:
    """Write how often each token was seen, for ``MergeInput.row_counts``; float32, which says enough."""
    with TensorWriter(path, {ROW_COUNTS: counts_V.shape}, "F32") as writer:
        writer.write(ROW_COUNTS, 0, counts_V)
    return ref_of(path)


def read_row_counts(path: Path) -> F32Array:
    """(vocabulary,) counts. Raises BadInput for anything else, Corrupt for a file that is none."""
    with TensorFile(path) as file:
        if set(file) != {ROW_COUNTS} or len(file[ROW_COUNTS].shape) != 1:
            raise BadInput(
                f"{path}: holds {sorted(file)[:3]}; it must hold one list of numbers, {ROW_COUNTS!r}"
            )
        counts = file.array(ROW_COUNTS)
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise BadInput(f"{path}: {ROW_COUNTS} has an element that is no count; counts are 0 or more")
    return counts
