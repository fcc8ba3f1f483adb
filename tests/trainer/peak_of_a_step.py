"""Prints the planned and the measured peak of two steps on this CPU.

``sequences at_once tokens [proximal [rows of logits [1: bf16 weights with masters]]]``

Run alone it is the measurement of docs/training.md. Measured is the most that this process had, less what it had
when all was imported.
"""

import json
import sys
from pathlib import Path

import torch
from trainer_samples import train_work

from site_agent.trainer.inner_optimizer import InnerOptimizer
from site_agent.trainer.llama import Llama
from site_agent.trainer.memory import Setup, plan_memory, sizes_of
from site_agent.trainer.model import Model
from site_agent.trainer.shape import Shape, shape_of

CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10


def main(
    sequences: int, at_once: int, tokens: int, proximal: float = 0.0, rows: float = 0, masters: float = 0
) -> None:
    torch.set_num_threads(1)
    before = status("VmRSS:")
    shape = shape_of(CONFIG)
    assert isinstance(shape, Shape)
    network = Llama(shape)
    torch.nn.utils.vector_to_parameters(
        torch.empty(sum(weight.numel() for weight in network.parameters())).normal_(0, 0.02),
        network.parameters(),
    )
    optimizer = InnerOptimizer(
        dict(network.named_parameters()), train_work(proximal=proximal), in_bf16=bool(masters)
    )
    objective = Model(
        folder=Path(),
        network=network,
        vocabulary_size=shape.vocabulary,
        weights={},
        backend="",
        rows_at_once=int(rows),
    ).objective
    for step in range(2):
        for _ in range(sequences // at_once):
            drawn = torch.randint(0, shape.vocabulary, (at_once, tokens + 1))
            objective(drawn[:, :-1], drawn[:, 1:]).backward()
            if at_once < sequences:
                optimizer.collect()
        optimizer.step(step)
    sizes = sizes_of(CONFIG, {name: tuple(weight.shape) for name, weight in network.named_parameters()})
    assert sizes is not None
    setup = Setup(
        sequences=sequences,
        sequences_at_once=at_once,
        sequence_tokens=tokens,
        is_bf16=bool(masters),
        has_base=proximal > 0,
        rows_of_logits=int(rows),
        has_masters=bool(masters),
        works_in_place=True,
    )
    plan = plan_memory(sizes, setup)
    print(json.dumps({"planned": plan.peak, "measured": status("VmHWM:") - before, "lines": plan.lines()}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *map(float, sys.argv[4:]))
