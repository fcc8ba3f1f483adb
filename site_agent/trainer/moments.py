"""Which moments a job's optimizer begins with, and how it leaves its own to the site's next job.

``moments.safetensors`` in a job directory are those that the order names, in ``result/`` those left: every tensor whole
and in float32, whatever number of ranks shared it, with the optimizer's rule and the steps that it has seen. They are
made of private text's gradients: they stay at the site, and only their digests leave it. What cannot be gone on with is
said on stderr and in the manifest, and the job begins with zeros. Imports no torch where nothing trains.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import UNSET

from consortium.canonical import encode
from consortium.errors import SprachbundError
from consortium.ids import Digest
from consortium.jobs import Muon, Optimizer, Train
from consortium.store import ref_of
from consortium.tensor_writer import TensorWriter
from consortium.tensors import F32Array, TensorFile
from site_agent.trainer.folder import JobFolder
from site_agent.trainer.saves import WEIGHT, Account

if TYPE_CHECKING:
    from torch import Tensor

    from site_agent.trainer.ranks import Ranks

_RULE, _STEPS = "rule", "steps"  # of the file's metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """An optimizer's moments at the end of a job."""

    shapes: Mapping[str, tuple[int, ...]]
    array: Callable[[str], F32Array]  #: one of them, whole, when it is asked for


def are_kept(work: Train) -> bool:
    """Whether the job is to leave its moments for the next one."""
    return work.optimizer.moments == "keep"


def begun(folder: JobFolder, work: Train, tensors: "Mapping[str, Tensor]", ranks: "Ranks") -> Account:
    """The account of a job that begins; ``tensors`` are filled with the moments that the order names. By all ranks.

    tensors  the optimizer's moments by name, zeros; sharded ones get the rows that this rank has
    They stay zeros if the order names none, or those are not here, damaged or of another optimizer or model.
    """
    from site_agent.trainer.sharing import fill

    if work.moments is UNSET or not are_kept(work):
        return Account()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if not ranks.agree(ranks.is_first and are_here(folder, work, shapes)):
        return Account()
    with TensorFile(folder.moments) as file:
        for name, tensor in tensors.items():
            fill(tensor, file, name)
        return account_of(work, file)


def are_here(folder: JobFolder, work: Train, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the moments that the order names are here, whole and of these shapes; why not, stands on stderr."""
    fault = _fault(folder.moments, work, shapes)
    if fault:
        print(
            f"{folder.moments}: {fault}; the optimizer begins anew, and the manifest says so", file=sys.stderr
        )
    return not fault


def account_of(work: Train, file: TensorFile) -> Account:
    """Of a job that begins with the moments in ``file``, before its first step."""
    before = None if work.moments is UNSET else work.moments
    return Account(moments_before=before, steps_before=int(file.metadata[_STEPS]))


def left_in(file: TensorFile) -> Left:
    """The moments in a training checkpoint."""
    shapes = {name: shape for name, shape in file.shapes.items() if not name.startswith(WEIGHT)}
    return Left(shapes=shapes, array=file.array)


def write_moments(path: Path, work: Train, account: Account, left: Left) -> Digest:
    """Write what a job leaves; the bytes depend on nothing else. Returns their digest."""
    seen = {_RULE: _rule(work.optimizer), _STEPS: str(account.steps_before + account.step)}
    with TensorWriter(path, left.shapes, "F32", seen) as writer:
        for name in sorted(left.shapes):
            writer.write(name, 0, left.array(name).reshape(-1))
    return ref_of(path).digest


def _fault(path: Path, work: Train, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why the job cannot go on with what lies at ``path``, be it that the disk cannot read it; "": it can."""
    try:
        found = ref_of(path).digest if path.is_file() else None
        if found is None or found != work.moments:
            return f"the order names moments {work.moments}, here is {found or 'none'}"
        with TensorFile(path) as file:
            rule, steps = file.metadata.get(_RULE), file.metadata.get(_STEPS, "")
            if rule != _rule(work.optimizer):
                return f"the moments are of the optimizer {rule}, the order's is {_rule(work.optimizer)}"
            here = file.shapes
            strange = sorted(name for name in here.keys() | shapes if here.get(name) != shapes.get(name))
            if strange or not steps.isdecimal():
                return f"the moments are not of this model and its groups: {(strange or [_STEPS])[0]} is otherwise"
            for name in file:
                if not all(np.isfinite(piece).all() for _, piece in file.pieces(name)):
                    return f"{name} is not finite"
    except SprachbundError as error:
        return str(error)
    return ""


def _rule(optimizer: Optimizer) -> str:
    """What moments depend on besides gradients: with other factors they mean something else."""
    momentum = optimizer.muon.momentum if isinstance(optimizer.muon, Muon) else None
    return encode({"beta1": optimizer.beta1, "beta2": optimizer.beta2, "muon": momentum}).decode()
