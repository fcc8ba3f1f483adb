"""How fast one way of training one model is: a process of its own, told what to do in one JSON argument.

    python -P benchmarks/training_variant.py '{"way": "native", "folder": "...", "steps": 20, ...}'

Prints one JSON line. Every way gets the same random tokens and the same weights, so that the losses of the first step
can be compared. What a way needs and this machine has not is said under ``missing``; what failed under ``failed``.
"""

import contextlib
import json
import math
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":  # before torch is imported
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from consortium.allocator import MOST, keep_freed_memory
from consortium.canonical import Fact, decode
from consortium.errors import BadInput
from consortium.ids import Digest
from consortium.jobs import Optimizer, Train
from consortium.tensors import Checkpoint
from site_agent.config import Engine
from site_agent.trainer.attention import documents_of
from site_agent.trainer.feeding import Fed, Part
from site_agent.trainer.folder import JobFailed
from site_agent.trainer.memory import Sizes, sizes_of
from site_agent.trainer.model import read_config
from site_agent.trainer.packing import bounds_of
from site_agent.trainer.ranks import Ranks, joined
from site_agent.trainer.stepping import choose, documents_in_one_call, make_stepper
from site_agent.trainer.watching import operations_per_token, peak_of

_RATE, _CLIP = 3e-4, 1.0
_LOOK_STEPS = 5
_DECAY, _BETAS, _EPSILON = 0.1, (0.9, 0.95), 1e-8


class Spec(Fact):
    """What a process is to do.

    way       ours: our trainer's step, as ``engine`` has it; plain: a loop over transformers' model as one would write
              it; compiled: the same with torch.compile; liger: the same with Liger's kernels; torchtitan: the same over
              torchtitan's model, its blocks and its loss compiled as torchtitan does it
    mean_document  tokens of packed documents, the mean; 0: a sequence is one stretch of text
    keeps_memory   on a CPU: malloc keeps what is freed, as in our trainer's jobs
    """

    way: Literal["ours", "plain", "compiled", "liger", "torchtitan"]
    folder: str
    engine: Engine = Engine()
    batch_sequences: int
    sequence_tokens: int
    mean_document: int = 0
    keeps_memory: bool = False
    steps: int
    warmup: int
    threads: int = 1
    is_deterministic: bool = False


class Missing(Exception):
    """Something that a way needs is not here."""


def ids_of(spec: Spec, vocabulary: int, step: int) -> Tensor:
    """(sequences, tokens + 1) random tokens, the same for all ways."""
    draw = np.random.default_rng([17, step])
    return torch.from_numpy(draw.integers(0, vocabulary, (spec.batch_sequences, spec.sequence_tokens + 1)))


def documents_in(spec: Spec, step: int) -> list[list[int]]:
    """The lengths of each sequence's documents: exponential, cut where the sequence ends."""
    draw = np.random.default_rng([19, step])
    rows = []
    for _ in range(spec.batch_sequences):
        left, lengths = spec.sequence_tokens, []
        while left:
            lengths.append(min(left, 8 + int(draw.exponential(spec.mean_document))))
            left -= lengths[-1]
        rows.append(lengths)
    return rows


def ours(spec: Spec, ranks: Ranks, vocabulary: int) -> tuple[Callable[[int], Tensor], str]:
    """Does a step of our trainer; its mean loss, on the device. And which program that is."""
    work = Train(
        base=Digest("0" * 64),
        languages=(),
        public_languages=(),
        replay_share=0.0,
        packing="documents" if spec.mean_document else "stream",
        steps=spec.steps,
        batch_sequences=spec.batch_sequences,
        sequence_tokens=spec.sequence_tokens,
        optimizer=Optimizer(
            learning_rate=_RATE, decay="constant", weight_decay=_DECAY, beta1=_BETAS[0], beta2=_BETAS[1]
        ),
        seed=1,
    )
    folder = Path(spec.folder)
    ways = choose(folder, work, ranks, spec.engine, rows_at_once=spec.batch_sequences)
    stepper = make_stepper(folder, work, ranks, ways)
    in_one_call = documents_in_one_call(work, ranks, stepper.shared.model)
    targets = spec.batch_sequences * spec.sequence_tokens
    most = spec.batch_sequences * (spec.sequence_tokens // 8 + 1)

    def step(number: int) -> Tensor:
        rows = ids_of(spec, vocabulary, number).to(ranks.device, non_blocking=True)
        documents = None
        if spec.mean_document:
            bounds = bounds_of(documents_in(spec, number), spec.sequence_tokens)
            documents = documents_of(
                bounds, spec.batch_sequences, spec.sequence_tokens, most, ranks.device, in_one_call
            )
        fed = Fed([Part(rows[:, :-1], rows[:, 1:], documents)], targets)
        return stepper.step(number, fed)[0] / targets

    return step, stepper.shared.model.backend


def loop(spec: Spec, ranks: Ranks, vocabulary: int) -> tuple[Callable[[int], Tensor], str]:
    """The same of a plain loop over others' models: float32 weights, autocast on a GPU, torch's fused AdamW."""
    network, loss_of, backend = (of_torchtitan if spec.way == "torchtitan" else of_transformers)(spec, ranks)
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    vectors = [weight for weight in network.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": _DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=_RATE, betas=_BETAS, eps=_EPSILON, fused=True)
    autocast = torch.autocast(ranks.device.type, torch.bfloat16, enabled=ranks.device.type == "cuda")

    def step(number: int) -> Tensor:
        rows = ids_of(spec, vocabulary, number).to(ranks.device, non_blocking=True)
        places = None
        if spec.mean_document:
            lengths = [length for row in documents_in(spec, number) for length in row]
            flat = torch.cat([torch.arange(length) for length in lengths])
            places = flat.view(spec.batch_sequences, -1).to(ranks.device)
        with autocast:
            loss = loss_of(rows[:, :-1], rows[:, 1:].contiguous(), places)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found: Tensor = loss.detach()
        return found

    return step, backend


def of_transformers(spec: Spec, ranks: Ranks) -> tuple[nn.Module, Callable[..., Tensor], str]:
    """Transformers' model, its mean loss of (ids, targets, places of packed documents), and its version."""
    if spec.way == "liger" and (ranks.device.type != "cuda" or not find_spec("liger_kernel")):
        raise Missing("liger-kernel, or a GPU for it")
    import transformers

    loader: Any = transformers.AutoModelForCausalLM
    if spec.way == "liger":
        from liger_kernel.transformers import AutoLigerKernelForCausalLM as loader
    network = loader.from_pretrained(spec.folder, dtype=torch.float32, local_files_only=True)
    network.to(ranks.device).train()
    called = torch.compile(network) if spec.way == "compiled" else network

    def loss_of(ids: Tensor, targets: Tensor, places: Tensor | None) -> Tensor:
        more = {} if places is None else {"position_ids": places}
        loss: Tensor = called(
            input_ids=ids, labels=targets, shift_labels=targets, use_cache=False, **more
        ).loss
        return loss

    return network, loss_of, f"transformers {transformers.__version__}"


def of_torchtitan(spec: Spec, ranks: Ranks) -> tuple[nn.Module, Callable[..., Tensor], str]:
    """The same of torchtitan's Llama 3, with the weights of the folder."""
    if not find_spec("torchtitan"):
        raise Missing("torchtitan")
    if spec.mean_document:
        raise Missing("a mask of documents in torchtitan's own attention")
    from torchtitan.models.llama3.model.args import RoPEScalingArgs, TransformerModelArgs
    from torchtitan.models.llama3.model.model import Transformer
    from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter

    config = read_config(Path(spec.folder))
    sizes = TransformerModelArgs(
        dim=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config["num_key_value_heads"],
        vocab_size=config["vocab_size"],
        multiple_of=config["intermediate_size"],  # two thirds of four times the width, rounded up to this
        norm_eps=config["rms_norm_eps"],
        rope_theta=config["rope_parameters"]["rope_theta"],
        rope_scaling_args=RoPEScalingArgs(scaling_factor=1.0),
        max_seq_len=spec.sequence_tokens,
    )
    network = Transformer(sizes)
    with Checkpoint(Path(spec.folder)) as checkpoint:
        weights = {name: torch.from_numpy(checkpoint.array(name)) for name in checkpoint}
    if config["tie_word_embeddings"]:
        network.output.weight = network.tok_embeddings.weight
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    network.load_state_dict(Llama3StateDictAdapter(sizes, None).from_hf(weights))
    network.to(ranks.device).train()
    for name, block in list(network.layers.named_children()):
        network.layers.register_module(name, torch.compile(block, fullgraph=True))

    @torch.compile
    def cost(logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return (
        network,
        lambda ids, targets, places: cost(network(ids), targets),
        f"torchtitan {version('torchtitan')}",
    )


@contextlib.contextmanager
def bare(spec: Spec) -> Iterator[Ranks]:
    """A process with nothing of what our trainer sets in its own."""
    torch.set_num_threads(spec.threads)
    if spec.keeps_memory:
        keep_freed_memory(MOST)
    yield Ranks(rank=0, world=1, device=torch.device("cuda:0" if torch.cuda.is_available() else "cpu"))


def measure(spec: Spec) -> dict[str, object]:
    """Raises Missing, and whatever the way fails with."""
    with joined("auto", spec.threads) if spec.way == "ours" else bare(spec) as ranks:
        if spec.is_deterministic:
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        config = read_config(Path(spec.folder))
        with Checkpoint(Path(spec.folder)) as checkpoint:
            sizes = sizes_of(config, checkpoint.shapes)
        began = time.monotonic()
        step, backend = (ours if spec.way == "ours" else loop)(spec, ranks, int(config["vocab_size"]))
        loaded = time.monotonic()
        first = float(step(0))
        for number in range(1, spec.warmup):
            step(number)
        _settle(ranks)
        warm = time.monotonic()
        if ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        cpu = time.process_time()
        losses: list[Tensor] = []
        clocks, counts = [time.perf_counter()], [0]
        for number in range(spec.warmup, spec.steps):
            losses.append(step(number))
            # a GPU is not waited for in every step, as no training would
            if ranks.device.type == "cpu" or len(losses) % _LOOK_STEPS == 0 or number + 1 == spec.steps:
                _settle(ranks)
                clocks.append(time.perf_counter())
                counts.append(len(losses))
        cpu = time.process_time() - cpu
        last = float(losses[-1])
        times = np.diff(clocks) / np.diff(counts)
        tokens = spec.batch_sequences * spec.sequence_tokens
        speed = tokens * len(losses) / (clocks[-1] - clocks[0])
        return {
            "backend": backend,
            "device": torch.cuda.get_device_name() if ranks.device.type == "cuda" else "cpu",
            "first_loss": first,
            "last_loss": last,
            "tokens_per_second": speed,
            "cpu_seconds_per_step": cpu / len(losses),
            "step_p50": float(np.quantile(times, 0.5)),
            "step_p90": float(np.quantile(times, 0.9)),
            "peak_bytes": _peak(ranks),
            "load_seconds": loaded - began,
            "warmup_seconds": warm - loaded,
            **_shares(sizes, spec, speed, ranks),
        }


def _settle(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize()


def _peak(ranks: Ranks) -> int:
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _shares(sizes: Sizes | None, spec: Spec, speed: float, ranks: Ranks) -> dict[str, float | None]:
    """MFU by torchtitan's convention and with causal attention halved, and operations a second by the former."""
    if sizes is None:
        return {"mfu": None, "mfu_causal": None, "operations_per_second": None}
    whole, causal = (
        operations_per_token(sizes, spec.sequence_tokens, is_causal=is_causal) for is_causal in (False, True)
    )
    peak = peak_of(torch.cuda.get_device_name()) if ranks.device.type == "cuda" else None
    return {
        "mfu": None if peak is None else speed * whole / peak,
        "mfu_causal": None if peak is None else speed * causal / peak,
        "operations_per_second": speed * whole,
    }


def main(arguments: list[str]) -> int:
    spec = decode(arguments[0].encode(), Spec, "the argument")
    found: dict[str, object]
    try:
        found = measure(spec)
        if not math.isfinite(float(str(found["last_loss"]))):
            found = {"failed": f"the loss became {found['last_loss']}"}
    except Missing as error:
        found = {"missing": str(error)}
    except (BadInput, JobFailed) as error:
        found = {"failed": str(error)}
    except Exception as error:  # a baseline's own, whatever it is: the others are still to be measured
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
