"""How one optimizer step is computed, from a batch on the device to new weights, without a wait for the device.

``Stepper`` is what a job's loop drives, and what a benchmark may drive over batches of its own.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from consortium.canonical import replace
from consortium.ids import Language
from consortium.jobs import Train
from site_agent.config import Engine
from site_agent.trainer import saves
from site_agent.trainer.adapters import Adapters
from site_agent.trainer.attention import can_do_in_one_call
from site_agent.trainer.engine import Given, Ways, ways_of
from site_agent.trainer.feeding import Fed
from site_agent.trainer.folder import FailureReason, JobFailed
from site_agent.trainer.inner_optimizer import InnerOptimizer, freeze
from site_agent.trainer.llama import Llama
from site_agent.trainer.mixture import random_bits
from site_agent.trainer.model import Model, load_model, program_of, read_config
from site_agent.trainer.ranks import Ranks, computes_in_bf16
from site_agent.trainer.shape import Shape
from site_agent.trainer.sharing import Sharding, Shared, share
from site_agent.trainer.watching import Watch


class Stepper:
    """A model as its ranks share it, its optimizer, and the ways in which a step is computed."""

    def __init__(
        self, shared: Shared, work: Train, ranks: Ranks, ways: Ways, adapters: Adapters | None = None
    ) -> None:
        self.shared, self.ways = shared, ways
        self._work, self._ranks, self._adapters = work, ranks, adapters
        learning = adapters.learning if adapters else shared.model.weights
        self.optimizer = InnerOptimizer(learning, work, shared.total_norm, in_bf16=ways.masters)
        self._autocast = torch.autocast(ranks.device.type, torch.bfloat16, enabled=ways.autocasts)
        shared.model.network.train()

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's, float32, where they lie, by their names in the base: what is delivered."""
        weights = self.shared.model.weights
        return self._adapters.dense(weights) if self._adapters else self.optimizer.exact(weights)

    @property
    def saved(self) -> dict[str, Tensor]:
        """What a training checkpoint holds: what is gone on from, and the weights for who delivers from it."""
        if self._adapters is None:
            return self.optimizer.state
        return self.optimizer.state | {saves.WEIGHT + name: weight for name, weight in self.weights.items()}

    @property
    def saved_names(self) -> dict[str, str]:
        """A weight's name in the base -> its name among the saved; tied ones share one."""
        weights = self.shared.model.weights
        if self._adapters is not None:
            return {name: name for name in weights}
        return {name: self.optimizer.names[id(weight)] for name, weight in weights.items()}

    def step(
        self, number: int, fed: Fed, watch: Watch | None = None, languages: Sequence[Language] | None = None
    ) -> Tensor:
        """Do step ``number`` of the job, from 0, over ``fed``.

        languages  of each sequence: ``watch`` is to note what they cost
        Returns on the device: this rank's nats, whether the weights were updated, the gradient's norm (3,).
        """
        nats = self.backward(number, fed, watch, languages)
        is_finite = self.optimizer.step(number)
        return torch.stack((nats, is_finite.float(), self.optimizer.norm))

    def backward(
        self, number: int, fed: Fed, watch: Watch | None = None, languages: Sequence[Language] | None = None
    ) -> Tensor:
        """Leave in the weights the gradient of the whole batch's mean loss; return this rank's nats."""
        ranks = self._ranks
        torch.manual_seed(int(random_bits(1, self._work.seed, "dropout", number, ranks.rank)[0] >> 1))
        nats = torch.zeros((), device=ranks.device)
        begin = 0
        for part in fed.parts:
            watched: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if watch is not None and languages is not None:
                watched = watch.languages(part.targets_BS, languages[begin : begin + len(part.ids_BS)])
                begin += len(part.ids_BS)
            with self.shared.part_of_batch(is_last=part is fed.parts[-1]):
                with self._autocast, watched:
                    loss = self.shared.objective(*part)
                # world: the mean over ranks that follows makes a sum of it again
                (loss * (ranks.world / fed.targets)).backward()
            if len(fed.parts) > 1:
                self.optimizer.collect()
            nats += loss.detach()
        return nats


def choose(
    folder: Path, work: Train, ranks: Ranks, engine: Engine, *, rows_at_once: int, sharding: Sharding = "none"
) -> Ways:
    """How the steps of ``work`` from the model in ``folder`` are computed here; the reasons stand on stderr.

    rows_at_once  sequences that go through the model at once
    Raises BadInput, JobFailed for what ``engine`` asks for and cannot be.
    """
    config, backend = read_config(folder), engine.backend
    if backend == "auto" and ranks.device.type == "cuda" and work.packing == "documents":
        backend = "native"  # transformers would make a mask of the square of the sequence
    ways = ways_of(
        replace(engine, backend=backend),
        work,
        Given(
            is_gpu=ranks.device.type == "cuda",
            is_native=isinstance(program_of(config, ranks.device, backend), Shape),
            computes_in_bf16=computes_in_bf16(work, ranks),
            ranks=ranks.world,
            is_sharded=sharding != "none",
            rows=rows_at_once * work.sequence_tokens,
            vocabulary=int(config.get("vocab_size") or 1),
        ),
    )
    if ranks.is_first:
        print(*(f"engine: {sentence}" for sentence in ways.said), sep="\n", file=sys.stderr)
    return ways


def make_stepper(
    folder: Path, work: Train, ranks: Ranks, ways: Ways, *, sharding: Sharding = "none"
) -> Stepper:
    """The model in ``folder`` ready to be trained as ``work`` says, in the ways that were chosen.

    Raises BadInput, and JobFailed for a model that lets packed documents see each other.
    """
    # a model that is shared in shards may be larger than one GPU: it comes there block by block
    place = ranks.device if sharding == "none" else torch.device("cpu")
    model = load_model(folder, ranks.device, place, ways.backend)
    if work.packing == "documents" and not model.is_native:
        _check_documents(model, place)
    adapters = Adapters(model, work, work.lora) if work.lora else None
    if adapters is None:
        freeze(model.weights, work)
    shared = share(_prepared(model, ways), ranks, sharding, ways.shards_in_bf16)
    return Stepper(shared, work, ranks, ways, adapters)


@torch.no_grad()
def _check_documents(model: Model, place: torch.device) -> None:
    """Ask transformers' model whether a document sees the one before it: not every architecture keeps them apart."""
    ids_2S = torch.tensor([[1, 2, 3, 4], [5, 6, 3, 4]], device=place) % model.vocabulary_size
    model.network.eval()
    try:
        logits = model.network(
            input_ids=ids_2S, position_ids=torch.tensor([[0, 1, 0, 1]] * 2, device=place), use_cache=False
        ).logits
        is_apart = torch.allclose(logits[0, 2:], logits[1, 2:], rtol=1e-3, atol=1e-4)
    except TypeError:  # it has no positions to be told
        is_apart = False
    if not is_apart:
        raise JobFailed(
            FailureReason.BAD_INPUT,
            f"packing: documents: {model.backend} lets documents of this architecture see each other; leave packing "
            "out, or train a model that our own module computes",
        )


def documents_in_one_call(work: Train, ranks: Ranks, model: Model) -> bool:
    """Whether one call computes the attention of all documents of a batch."""
    kind = torch.bfloat16 if computes_in_bf16(work, ranks) else torch.float32
    return model.is_native and can_do_in_one_call(ranks.device, kind)


def _prepared(model: Model, ways: Ways) -> Model:
    if isinstance(model.network, Llama) and (ways.float8 or ways.compiles):
        # imports the compiler, which takes a second or more
        from site_agent.trainer.compiling import compile_blocks, use_float8

        if ways.float8:
            use_float8(model.network)
        if ways.compiles:
            compile_blocks(model.network)
    said = f"{model.backend}, {ways.mark}" if ways.mark else model.backend
    return dataclasses.replace(model, rows_at_once=ways.rows_at_once, backend=said)
