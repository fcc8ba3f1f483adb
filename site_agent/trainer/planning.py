"""Whether a job's model and batch fit into this machine: asked before anything is loaded."""

import math
import sys

import torch

from consortium.canonical import replace
from consortium.jobs import Muon, Train
from consortium.tensors import Checkpoint
from site_agent.trainer import muon
from site_agent.trainer.adapters import adapted
from site_agent.trainer.engine import Ways
from site_agent.trainer.folder import FailureReason, JobFailed, JobFolder
from site_agent.trainer.groups import factors_of
from site_agent.trainer.memory import (
    MemoryPlan,
    Setup,
    Sizes,
    moments_bytes,
    plan_memory,
    sizes_of,
    what_fits,
)
from site_agent.trainer.model import program_of, read_config
from site_agent.trainer.moments import are_kept
from site_agent.trainer.ranks import Ranks, computes_in_bf16
from site_agent.trainer.room import room
from site_agent.trainer.shape import Shape
from site_agent.trainer.sharing import Sharding


def planned(
    folder: JobFolder, work: Train, ranks: Ranks, sharding: Sharding, ways: Ways
) -> tuple[Sizes | None, MemoryPlan | None]:
    """How large the model is and what memory its training takes; said on stderr. Nothing of a model we cannot read.

    Raises JobFailed if this machine has less.
    """
    with Checkpoint(folder.base) as base:
        frozen = [name for name, factor in factors_of(base, work.groups).items() if not factor]
        config = read_config(folder.base)
        program, sizes = program_of(config, ranks.device, ways.backend), sizes_of(config, base.shapes, frozen)
        if sizes is not None and work.lora is not None:
            shapes = [base.shapes[name] for name in adapted(base.shapes, work.lora)]
            learning = work.lora.rank * sum(map(sum, shapes))
            sizes = replace(sizes, learning=learning, adapted=sum(map(math.prod, shapes)))
        elif sizes is not None and isinstance(work.optimizer.muon, Muon):
            matrices = [
                math.prod(shape)
                for name, shape in base.shapes.items()
                if name not in frozen and muon.is_stepped(name, len(shape))
            ]
            sizes = replace(sizes, of_muon=sum(matrices), largest_of_muon=max(matrices, default=0))
    if sizes is None:
        return None, None
    sequences, is_cpu = -(-work.batch_sequences // ranks.world), ranks.device.type != "cuda"
    setup = Setup(
        sequences=sequences,
        sequences_at_once=min(sequences, folder.site.device_sequences or sequences),
        sequence_tokens=work.sequence_tokens,
        is_bf16=computes_in_bf16(work, ranks),
        rows_of_logits=ways.rows_at_once,
        has_masters=ways.masters,
        works_in_place=is_cpu and isinstance(program, Shape) and not ways.compiles,
        has_base=work.proximal > 0,
        ranks=ranks.world,
        shards={"none": 1, "fsdp": ranks.world, "hsdp": ranks.world // ranks.nodes}[sharding],
        is_cpu=is_cpu,
    )
    plan = plan_memory(sizes, setup)
    if ranks.is_first:
        print(plan.lines(), file=sys.stderr)
        if are_kept(work):
            size = moments_bytes(sizes) / (1 << 20)
            print(
                f"moments that stay at this site for the next round, MiB on disk: {size:,.1f}",
                file=sys.stderr,
            )
    here = ranks.world // ranks.nodes if is_cpu else 1  # ranks that share the memory
    found = room() if is_cpu else torch.cuda.mem_get_info(ranks.device)[0]
    if found is not None and plan.peak * here > found:
        fits = what_fits(sizes, setup, found // here)
        way_out = (
            f"set `device_sequences: {fits}` at this site, which fits"
            if fits
            else "not even one sequence at a time fits: share the model among more ranks (`shard: true`), or shorten "
            "sequences"
        )
        raise JobFailed(
            FailureReason.OUT_OF_MEMORY,
            f"{setup.sequences_at_once} sequences of {work.sequence_tokens} tokens at once take "
            f"{plan.peak * here >> 20} MiB here, {found >> 20} MiB are left; {way_out}",
        )
    return sizes, plan
