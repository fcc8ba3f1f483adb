"""Runs the kernels in triton's interpreter, which decides at triton's first import: so, in a process of its own.

    TRITON_INTERPRET=1 python tests/kernels/interpreted.py CASES.npz ANSWERS.npz
    TRITON_INTERPRET=1 python tests/kernels/interpreted.py --files FOLDER

The first codes each case on what the interpreter calls a GPU. The second writes deltas of the model in FOLDER/base
as a trainer on a GPU would, and says whether they have the bytes of the codecs.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from consortium.codecs.formats import BLOCK
from consortium.deltas import write_coded_delta
from consortium.tensors import Checkpoint, TensorFile
from site_agent.trainer.kernels.encoding import GpuEncoder, difference
from site_agent.trainer.kernels.reference import BlockCoded

CPU = torch.device("cpu")


def code(cases: Path, answers: Path) -> None:
    """``<case>.<encoding>.after|before|residual`` -> ``....codes|scales|residual``, nothing if refused."""
    found: dict[str, np.ndarray] = {}
    with np.load(cases) as given:
        for key in sorted({name.rpartition(".")[0] for name in given}):
            rows = {part: given[f"{key}.{part}"] for part in ("after", "before", "residual")}
            size = rows["after"].size
            weight = torch.from_numpy(rows["after"])
            if "unaligned" in key:
                weight = torch.cat((torch.zeros(1), weight))[1:]
            encoder = GpuEncoder({"w": weight}, "int4" if key.endswith("int4") else "int8", CPU, 1 << 15)
            encoder.before_N[:size], encoder.residual_N[:size] = rows["before"], rows["residual"]
            for poisoned in (encoder._codes, encoder._codes_out):
                poisoned.fill_(0xAA)
            for poisoned in (encoder._scales, encoder._after, encoder._before, encoder._residual):
                poisoned.fill_(-7.0)
            coded = encoder.encode("w", 0, size, None)
            blocks = -(-size // BLOCK)
            assert (encoder._scales[blocks:] == -7).all(), f"{key}: scales beyond the last block"
            assert (encoder._residual[blocks * BLOCK :] == -7).all(), f"{key}: residual beyond the last block"
            assert (encoder._codes[blocks * BLOCK :] == 0xAA).all(), f"{key}: codes beyond the last block"
            if coded is not None:
                found |= {f"{key}.codes": coded.codes.copy(), f"{key}.scales": coded.scales_B}
                found |= {f"{key}.residual": coded.residual_N}
    np.savez(answers, **found)  # type: ignore[arg-type]


def write(folder: Path) -> None:
    encodings: tuple[BlockCoded, ...] = ("int8", "int4")
    for kind in encodings:
        print(kind, "sample", difference(kind, CPU))
        with (
            Checkpoint(folder / "base") as base,
            Checkpoint(folder / "trained") as trained,
            TensorFile(folder / "residual.safetensors") as residual,
        ):
            weights = {name: torch.from_numpy(trained.array(name)) for name in trained}
            arrays = {name: weight.numpy() for name, weight in weights.items()}
            rows = base["embed"].shape[0]
            still = {"embed": np.arange(rows) % 3 == 1}
            for before in (None, residual):
                here, there = (
                    write_coded_delta(
                        base, arrays, folder / f"{kind}.delta", kind, before, folder / f"{kind}.left",
                        still=still, encoder=encoder,
                    )
                    for encoder in (None, GpuEncoder(weights, kind, CPU, 8192))
                )  # fmt: skip
                print(kind, "files", "same" if here == there else f"{here} {there}")


if __name__ == "__main__":
    if sys.argv[1] == "--files":
        write(Path(sys.argv[2]))
    else:
        code(Path(sys.argv[1]), Path(sys.argv[2]))
