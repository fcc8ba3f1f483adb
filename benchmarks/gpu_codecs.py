"""What a GPU makes of the kernels of deltas: beside a plain copy, torch as one would write it, and torch.compile.

    python benchmarks/gpu_codecs.py [--elements 268435456] [--rounds 30] [--workdir .] [--json FILE]

Three questions, for int8 and int4. How near to the copy's bandwidth is each way of coding a delta that lies on the
GPU; are its bytes those of the codecs; and, which decides whether the kernel stays, how long the whole writing of a
delta takes with it and with the codecs in C, files and digests included. All ways in turns within one process,
medians; the bytes counted are those that cannot be saved: three float32 in, one and the code out, and the scales.

Without a GPU the same runs dry: 5,000 elements, triton in its interpreter, torch.compile without a compiler.
It shows that every line of this works and measures nothing: where times would stand are dashes.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:  # before triton is imported
    os.environ["TRITON_INTERPRET"] = "1"

import triton  # noqa: E402

from consortium.codecs.formats import BLOCK  # noqa: E402
from consortium.codecs.kernels import KERNELS  # noqa: E402
from consortium.deltas import write_coded_delta  # noqa: E402
from consortium.tensor_writer import TensorWriter  # noqa: E402
from consortium.tensors import TensorFile  # noqa: E402
from site_agent.trainer.kernels import blocks, encoding, reference  # noqa: E402
from site_agent.trainer.kernels.reference import BlockCoded, Coded  # noqa: E402

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
Way = Callable[[Tensor, Tensor, Tensor, BlockCoded], Coded]
ENCODINGS: tuple[BlockCoded, ...] = ("int8", "int4")


def measured(value: float) -> float | None:
    """The value where it is one."""
    return value if HAS_GPU else None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def seconds(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turns, after two turns that count for nothing."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            taken = _on_gpu(run) if HAS_GPU else _by_clock(run)
            if turn >= 2:
                found[name].append(taken)
    return {name: statistics.median(times) for name, times in found.items()}


def _on_gpu(run: Callable[[], object]) -> float:
    event: Any = torch.cuda.Event
    begun, ended = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize()
    begun.record()
    run()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1e3


def _by_clock(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def rows(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """After, before and residual, (count,) float32, of the size that training makes them."""
    dice = torch.Generator(DEVICE).manual_seed(0)
    noise = [torch.randn(count, generator=dice, device=DEVICE) for _ in range(3)]
    return noise[0] * 0.02 + noise[1] * 1e-3, noise[0] * 0.02, noise[2] * 1e-6


def by_codecs(triple: tuple[Tensor, Tensor, Tensor], kind: BlockCoded) -> tuple[bytes, bytes, bytes]:
    after_N, before_N, residual_N = (row.cpu().numpy().copy() for row in triple)
    codes = np.empty(after_N.size if kind == "int8" else -(-after_N.size // 2), np.uint8)
    scales_B = np.empty(-(-after_N.size // BLOCK), np.float32)
    if kind == "int8":
        KERNELS.encode_int8(after_N, before_N, residual_N, codes.view(np.int8), scales_B)
    else:
        KERNELS.encode_int4(after_N, before_N, residual_N, codes, scales_B)
    return codes.tobytes(), scales_B.tobytes(), residual_N.tobytes()


def in_bytes(coded: Coded) -> tuple[bytes, bytes, bytes]:
    codes, scales_B, rest_N = (piece.cpu().numpy().tobytes() for piece in coded)
    return codes, scales_B, rest_N


def fused(after_N: Tensor, before_N: Tensor, residual_N: Tensor, kind: BlockCoded) -> Coded:
    count = after_N.numel()
    codes = torch.empty(code_bytes(kind, count), dtype=torch.uint8, device=DEVICE)
    scales_B = torch.empty(count // BLOCK, dtype=torch.float32, device=DEVICE)
    blocks.encode(after_N, before_N, residual_N, kind, codes, scales_B)
    return Coded(codes, scales_B, residual_N)


def code_bytes(kind: BlockCoded, count: int) -> int:
    return count if kind == "int8" else count // 2


def coding(kind: BlockCoded, count: int, rounds: int) -> list[dict[str, Any]]:
    """Each way of coding ``count`` elements, whole blocks, that lie on the device."""
    ways: dict[str, Way] = {
        "eager": reference.encode,
        "torch.compile": torch.compile(
            reference.encode, fullgraph=True, backend="inductor" if HAS_GPU else "eager"
        ),
        "triton": fused,
    }
    triple = rows(count)
    after_N, before_N, residual_N = (row[: 1 << 22] for row in triple)
    expected = by_codecs((after_N, before_N, residual_N), kind)
    equal = {
        name: in_bytes(way(after_N, before_N, residual_N.clone(), kind)) == expected
        for name, way in ways.items()
    }
    other = torch.empty_like(triple[0])
    runs = {name: functools.partial(way, *triple, kind) for name, way in ways.items()}
    taken = seconds({"copy": lambda: other.copy_(triple[0]), **runs}, rounds)
    ceiling = 8 * count / taken["copy"]
    moved = 16 * count + code_bytes(kind, count) + 4 * count // BLOCK
    return [
        {
            "encoding": kind, "way": name, "elements": count, "seconds": measured(taken[name]),
            "gigabytes_per_second": measured(moved / taken[name] / 1e9),
            "of_copy": measured(moved / taken[name] / ceiling),
            "codecs_bytes": equal[name],
        }
        for name in ways
    ]  # fmt: skip


def writing(kind: BlockCoded, count: int, rounds: int, place: Path) -> list[dict[str, Any]]:
    """The whole delta of a bf16 base of ``count`` elements, from weights on the device to files and digests."""
    width = 1 << 12 if HAS_GPU else 100
    tensors = {f"layer{number}": (count // 4 // width, width) for number in range(4)}
    after, before, _ = rows(count)
    weights, base_path = {}, place / "base.safetensors"
    with TensorWriter(base_path, tensors, "BF16") as writer:
        for number, (name, shape) in enumerate(tensors.items()):
            size = shape[0] * shape[1]
            span = slice(number * size, (number + 1) * size)
            writer.write(name, 0, before[span].cpu().numpy())
            weights[name] = after[span].view(shape)

    class Arrays(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            return weights[name].cpu().numpy()

        def __iter__(self) -> Any:
            return iter(weights)

    encoder = encoding.GpuEncoder(weights, kind, DEVICE)
    found: dict[str, Any] = {}
    times: dict[str, list[float]] = {"codecs": [], "triton": []}
    with TensorFile(base_path) as base:
        for turn in range(rounds + 1):
            for name, way in (("codecs", None), ("triton", encoder)):
                begun = time.perf_counter()
                found[name] = write_coded_delta(
                    base, Arrays(), place / "delta", kind, None, place / "left", encoder=way
                )
                if turn:  # the first one touches memory
                    times[name].append(time.perf_counter() - begun)
    return [
        {
            "encoding": kind, "way": name, "elements": count,
            "seconds": measured(statistics.median(times[name])),
            "codecs_bytes": found[name] == found["codecs"],
        }
        for name in times
    ]  # fmt: skip


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for what, table_rows in found.items():
        heads = list(table_rows[0])
        lines += ["", f"**{what}**", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for row in table_rows:
            cells = [
                f"{cell:.4g}" if isinstance(cell, float) else "-" if cell is None else str(cell)
                for cell in row.values()
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--elements", type=int, default=1 << 28 if HAS_GPU else 5120, help="a multiple of 65536"
    )
    parser.add_argument("--rounds", type=int, default=30 if HAS_GPU else 1)
    parser.add_argument("--workdir", type=Path, help="where delta and base are written; 14 bytes an element")
    parser.add_argument("--json", type=Path, help="write everything here, too")
    given = parser.parse_args()
    where = torch.cuda.get_device_name() if HAS_GPU else "CPU, triton's interpreter"
    versions = f"{where}, torch {torch.__version__}, triton {triton.__version__}, {time.strftime('%Y-%m-%d')}"
    dry = "" if HAS_GPU else "DRY RUN ON A CPU: NOTHING BELOW IS A MEASUREMENT\n\n"
    found: dict[str, list[dict[str, Any]]] = {"coding on the device": [], "writing a delta": []}
    with tempfile.TemporaryDirectory(dir=given.workdir) as place:
        for kind in ENCODINGS:
            say(f"{kind}: coding {given.elements} elements, {given.rounds} rounds")
            found["coding on the device"] += coding(kind, given.elements, given.rounds)
            say(f"{kind}: writing them")
            found["writing a delta"] += writing(kind, given.elements, max(1, given.rounds // 10), Path(place))
    print(f"{dry}{versions}\n{table(found)}")
    if given.json:
        everything = {"is_measurement": HAS_GPU, "versions": versions, **found}
        given.json.write_text(json.dumps(everything, indent=1) + "\n")
    if not all(row["codecs_bytes"] for row in found["writing a delta"]):
        sys.exit("the GPU's deltas are not those of the codecs")


if __name__ == "__main__":
    main()
