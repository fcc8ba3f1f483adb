"""How fast deltas are encoded and decoded, beside the torch expression one would write, and a copy of memory.

    python benchmarks/codecs.py [--elements 16777216] [--rounds 9] [--markdown]

All on one thread, on float32 arrays in memory, in turns within one process; medians of CPU seconds. The codecs work
in the pieces in which the trainer feeds them, so their time includes Python's share. Outputs are written to
memory that was touched before, on both sides.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from consortium.codecs import portable
from consortium.codecs.formats import BLOCK, TOPK_CHUNK, kept_before
from consortium.codecs.kernels import Codecs, choose
from consortium.tensors import CHUNK, F32Array

KEPT = 64


class Arrays:
    """Weights after and before, and room for everything that a codec writes."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        self.before = rng.standard_normal(count, np.float32)
        self.after = self.before + rng.standard_normal(count, np.float32) * np.float32(0.01)
        self.residual = np.zeros(count, np.float32)
        self.out = np.zeros(count, np.float32)
        self.codes = np.zeros(count, np.int8)
        self.packed = np.zeros(-(-count // 2), np.uint8)
        self.scales = np.zeros(-(-count // BLOCK), np.float32)
        self.offsets = np.zeros(kept_before(count, KEPT), np.uint16)
        self.topk_codes = np.zeros(self.offsets.size, np.int8)
        self.topk_scales = np.zeros(-(-count // TOPK_CHUNK), np.float32)


def encode(arrays: Arrays, codecs: Codecs, kind: str) -> None:
    for start in range(0, arrays.after.size, CHUNK):
        stop = min(start + CHUNK, arrays.after.size)
        rows = arrays.after[start:stop], arrays.before[start:stop], arrays.residual[start:stop]
        scales = arrays.scales[start // BLOCK : -(-stop // BLOCK)]
        if kind == "int8":
            codecs.encode_int8(*rows, arrays.codes[start:stop], scales)
        elif kind == "int4":
            codecs.encode_int4(*rows, arrays.packed[start // 2 : -(-stop // 2)], scales)
        else:
            kept = slice(kept_before(start, KEPT), kept_before(stop, KEPT))
            scales = arrays.topk_scales[start // TOPK_CHUNK : -(-stop // TOPK_CHUNK)]
            codecs.encode_topk(*rows, KEPT, arrays.topk_codes[kept], arrays.offsets[kept], scales)


def decode(arrays: Arrays, codecs: Codecs, kind: str) -> None:
    for start in range(0, arrays.out.size, CHUNK):
        stop = min(start + CHUNK, arrays.out.size)
        out, scales = arrays.out[start:stop], arrays.scales[start // BLOCK : -(-stop // BLOCK)]
        if kind == "int8":
            ok = codecs.decode_int8(arrays.codes[start:stop], scales, 0, out)
        elif kind == "int4":
            ok = codecs.decode_int4(arrays.packed[start // 2 : -(-stop // 2)], scales, 0, out)
        else:
            kept = slice(kept_before(start, KEPT), kept_before(stop, KEPT))
            codes, offsets = arrays.topk_codes[kept], arrays.offsets[kept]
            scales = arrays.topk_scales[start // TOPK_CHUNK : -(-stop // TOPK_CHUNK)]
            ok = codecs.decode_topk(codes, offsets, scales, KEPT, stop - start, 0, out)
        assert ok


class Naive:
    """The same in torch, as one would write it down."""

    def __init__(self, arrays: Arrays) -> None:
        self.after, self.before = torch.from_numpy(arrays.after), torch.from_numpy(arrays.before)
        self.residual = torch.zeros_like(self.after)

    def int8(self) -> None:
        self._blocks(127, lambda codes: codes.to(torch.int8))

    def int4(self) -> None:
        def packed(codes: torch.Tensor) -> torch.Tensor:
            halves = codes.to(torch.int8).view(-1, 2).to(torch.uint8) & 15
            return halves[:, 0] | (halves[:, 1] << 4)

        self._blocks(7, packed)

    def _blocks(self, peak: int, stored: Callable[[torch.Tensor], torch.Tensor]) -> None:
        total = self.after - self.before + self.residual
        blocks = total.view(-1, BLOCK)
        scales = blocks.abs().amax(dim=1, keepdim=True) / peak
        codes = torch.clamp(torch.round(blocks / scales), -peak, peak)
        self.stored = stored(codes), scales
        self.residual = total - (codes * scales).view(-1)

    def topk(self) -> None:
        total = self.after - self.before + self.residual
        chunks = total.view(-1, TOPK_CHUNK)
        offsets = chunks.abs().topk(KEPT, dim=1).indices
        kept = chunks.gather(1, offsets)
        scales = kept.abs().amax(dim=1, keepdim=True) / 127
        codes = torch.clamp(torch.round(kept / scales), -127, 127)
        self.stored = codes.to(torch.int8), offsets.to(torch.int16)
        self.residual = (chunks - torch.zeros_like(chunks).scatter_(1, offsets, codes * scales)).view(-1)


def seconds(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, in turns."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            if turn:  # the first one touches memory
                found[name].append(time.process_time() - begun)
    return {name: statistics.median(times) for name, times in found.items()}


def relative_error(arrays: Arrays, codecs: Codecs, kind: str, rounds: int) -> tuple[float, float]:
    """Relative L2 error of the first delta, and of the sum of ``rounds`` with feedback."""
    wanted = (arrays.after - arrays.before).astype(np.float64)
    size, total, first = float(np.linalg.norm(wanted)), np.zeros_like(wanted), 0.0
    arrays.residual.fill(0)
    for turn in range(rounds):
        encode(arrays, codecs, kind)
        decode(arrays, codecs, kind)
        total += arrays.out
        first = float(np.linalg.norm(total - wanted)) / size if turn == 0 else first
    return first, float(np.linalg.norm(total - rounds * wanted)) / (rounds * size)


def copy(source: F32Array, target: F32Array) -> None:
    for start in range(0, source.size, CHUNK):
        np.copyto(target[start : start + CHUNK], source[start : start + CHUNK])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 24, help="a multiple of 4096")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--markdown", action="store_true", help="print the table for docs/codec-results.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    arrays, native = Arrays(given.elements), choose("native")
    naive, gigabytes = Naive(arrays), 2e-9 * given.elements  # of bf16 weights
    rows = []
    for kind in ("int8", "int4", "topk"):
        encoding = seconds(
            {
                "torch": getattr(naive, kind),
                "numpy": lambda kind=kind: encode(arrays, portable, kind),  # type: ignore[misc]
                "c": lambda kind=kind: encode(arrays, native, kind),  # type: ignore[misc]
            },
            given.rounds,
        )
        decoding = seconds(
            {
                "copy": lambda: copy(arrays.before, arrays.out),
                "numpy": lambda kind=kind: decode(arrays, portable, kind),  # type: ignore[misc]
                "c": lambda kind=kind: decode(arrays, native, kind),  # type: ignore[misc]
            },
            given.rounds,
        )
        errors = relative_error(arrays, native, kind, 16)
        rows.append((kind, encoding, decoding, errors))
    rule = "|" if given.markdown else " "
    print(
        f"{platform.machine()}, numpy {np.__version__}, torch {torch.__version__}, {given.elements} elements\n"
    )
    heads = (
        "encoding", "torch s", "NumPy s", "C s", "C GB/s", "NumPy x", "C x",
        "copy s", "decode NumPy s", "decode C s", "C / copy speed", "error", "after 16 rounds",
    )  # fmt: skip
    print(rule.join(("", *(f" {head} " for head in heads), "")))
    if given.markdown:
        print("|" + "---|" * len(heads))
    for kind, encoding, decoding, errors in rows:
        cells = (
            f"{kind}",
            *(f"{encoding[name]:.3f}" for name in ("torch", "numpy", "c")),
            f"{gigabytes / encoding['c']:.2f}",
            *(f"{encoding['torch'] / encoding[name]:.1f}" for name in ("numpy", "c")),
            *(f"{decoding[name]:.3f}" for name in ("copy", "numpy", "c")),
            f"{decoding['copy'] / decoding['c']:.2f}",
            *(f"{error:.4f}" for error in errors),
        )
        print(
            rule.join(("", *(f" {cell:>{len(head)}} " for cell, head in zip(cells, heads, strict=True)), ""))
        )


if __name__ == "__main__":
    main()
