"""What the device can do at best: copying, matrix products of the model's shapes, attention; one JSON line.

    python -P benchmarks/training_ceilings.py '{"folder": "...", "rows": 16384, "sequence_tokens": 2048}'

What a step is measured against: no model is faster than its matrix products, and no pass over weights than a copy.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from consortium.canonical import Fact, decode
from site_agent.trainer.model import read_config
from site_agent.trainer.ranks import joined

_REPEATS = 5
_COPY_BYTES_GPU, _COPY_BYTES_CPU = 4 << 30, 64 << 20


class Spec(Fact):
    folder: str
    rows: int  #: tokens of a step
    sequence_tokens: int
    threads: int = 1


def seconds(run: Callable[[], object], is_gpu: bool) -> float:
    """The best of a few; the first is not counted."""
    found = []
    for _ in range(_REPEATS + 1):
        if is_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        if is_gpu:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def copying(size: int, device: torch.device) -> float:
    """Seconds for so many bytes."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return seconds(lambda: target.copy_(source), device.type == "cuda")


def products(spec: Spec, device: torch.device) -> dict[str, float]:
    """Operations a second of Y = X W, by (rows, in, out), in the precision that the model computes in."""
    config, is_gpu = read_config(Path(spec.folder)), device.type == "cuda"
    width, inner, heads = (
        int(config[key]) for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    keys = width // heads * int(config["num_key_value_heads"])
    kind = torch.bfloat16 if is_gpu else torch.float32
    shapes = [
        (width, width),
        (width, keys),
        (width, inner),
        (inner, width),
        (width, int(config["vocab_size"])),
    ]
    found = {}
    for inputs, outputs in shapes:
        rows = min(spec.rows, (1 << 31) // outputs)  # logits of all rows at once would not fit
        x, weight = (torch.randn(size, inputs, device=device, dtype=kind) for size in (rows, outputs))
        took = seconds(lambda x=x, weight=weight: functional.linear(x, weight), is_gpu)  # type: ignore[misc]
        found[f"{rows} x {inputs} x {outputs}"] = 2.0 * rows * inputs * outputs / took
    return found


def attention(spec: Spec, device: torch.device) -> float:
    """Operations a second of causal attention, forward and backward, counted whole."""
    config, is_gpu = read_config(Path(spec.folder)), device.type == "cuda"
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    sequences = max(1, spec.rows // spec.sequence_tokens)
    kind = torch.bfloat16 if is_gpu else torch.float32
    shape = (sequences, heads, spec.sequence_tokens, width // heads)
    q, k, v = (torch.randn(shape, device=device, dtype=kind, requires_grad=True) for _ in range(3))

    def run() -> None:
        functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    return 12.0 * sequences * width * spec.sequence_tokens**2 / seconds(run, is_gpu)


def main(arguments: list[str]) -> int:
    spec = decode(arguments[0].encode(), Spec, "the argument")
    with joined("auto", spec.threads) as ranks:
        is_gpu = ranks.device.type == "cuda"
        size = _COPY_BYTES_GPU if is_gpu else _COPY_BYTES_CPU
        took = copying(size, ranks.device)
        found = {
            "device": torch.cuda.get_device_name() if is_gpu else "cpu",
            "copy_bytes_per_second": 2.0 * size / took,  # read and written
            "products": products(spec, ranks.device),
            "attention": attention(spec, ranks.device),
        }
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
