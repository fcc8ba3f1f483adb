"""Which of the ways to compute a step a job takes, and why: decided once, from what is asked for and what there is.

The site's ``engine:`` asks; what cannot be had is refused by name if it was asked for, and left out if it was not. The
sentences go to stderr, so that a log says what ran. What has never run on a GPU is in docs/training.md.
"""

from typing import Literal, NamedTuple

from consortium.jobs import Muon, Train
from site_agent.config import Engine
from site_agent.trainer.folder import FailureReason, JobFailed
from site_agent.trainer.head import HeadPlan, plan_head
from site_agent.trainer.model import Backend

# compiling costs a minute or two; of 0.2 s a step it saves a fifth, so about as many pay for it
_COMPILE_STEPS = 500
_HEAD_BYTES_CPU, _HEAD_BYTES_GPU = 256 << 20, 4 << 30


class Given(NamedTuple):
    """What an engine is chosen for."""

    is_gpu: bool
    is_native: bool  #: whether our own module computes the model
    computes_in_bf16: bool
    ranks: int
    is_sharded: bool
    rows: int  #: tokens in one forward pass
    vocabulary: int


class Ways(NamedTuple):
    """How a job's steps are computed.

    backend       to be loaded; see ``model.load_model``
    rows_at_once  of the loss; 0: all logits at once
    masters       the model's weights are bf16, and the optimizer has them in float32
    said          a sentence each
    """

    backend: Backend | Literal["auto"]
    rows_at_once: int
    compiles: bool
    masters: bool
    shards_in_bf16: bool
    autocasts: bool
    float8: bool
    said: tuple[str, ...]

    @property
    def mark(self) -> str:
        """What of it changes bits, for the manifest and for checkpoints; empty: none of it."""
        parts = (
            ("loss in parts", self.rows_at_once > 0),
            ("compiled", self.compiles),
            ("bf16 weights", self.masters or self.shards_in_bf16),
            ("float8", self.float8),
        )
        return ", ".join(word for word, is_so in parts if is_so)


def ways_of(engine: Engine, work: Train, given: Given) -> Ways:
    """The ways for a job. Raises JobFailed for what was asked for and cannot be."""
    head = _head(engine, given)
    compiles, compiled_because = _compiles(engine, work, given)
    in_bf16 = engine.weights == "bf16"
    if in_bf16 and not given.computes_in_bf16:
        raise _cannot(
            "weights: bf16", "the job computes in float32; leave it out, or ask for `precision: bf16`"
        )
    if in_bf16 and given.ranks > 1 and not given.is_sharded:
        raise _cannot("weights: bf16", "ranks would add up their gradients in bf16; set `sharding: fsdp`")
    if work.lora is not None:
        _check_adapters(work, engine, given)
    if engine.float8 and not (given.is_gpu and given.is_native):
        raise _cannot("float8: true", "it is for the native model on a GPU; leave it out")
    said = (
        f"loss {'with all logits at once' if head.head == 'whole' else 'in parts'}: {head.reason}",
        f"blocks {'compiled' if compiles else 'not compiled'}: {compiled_because}",
    )
    return Ways(
        backend=engine.backend,
        rows_at_once=0 if head.head == "whole" else head.rows_at_once,
        compiles=compiles,
        masters=in_bf16 and not given.is_sharded,
        shards_in_bf16=in_bf16 and given.is_sharded,
        autocasts=given.computes_in_bf16 and not in_bf16,
        float8=engine.float8,
        said=said,
    )


def _head(engine: Engine, given: Given) -> HeadPlan:
    if not given.is_native:
        if engine.head == "in_parts":
            raise _cannot("head: in_parts", "transformers computes the loss of this model; leave it out")
        return HeadPlan("whole", given.rows, "transformers, or Liger in its place, computes it")
    usual = _HEAD_BYTES_GPU if given.is_gpu else _HEAD_BYTES_CPU
    return plan_head(
        engine.head,
        rows=given.rows,
        vocabulary=given.vocabulary,
        workspace_bytes=engine.head_bytes or usual,
        is_bf16=given.computes_in_bf16,
    )


def _compiles(engine: Engine, work: Train, given: Given) -> tuple[bool, str]:
    """Whether, and why."""
    looped = work.packing == "documents" and not (given.is_gpu and given.computes_in_bf16)
    if engine.compile == "on":
        if not given.is_native:
            raise _cannot(
                "compile: on", "only the native model's blocks are known to be one graph; leave it out"
            )
        if work.lora is not None:
            raise _cannot("compile: on", "weights with adapters are made anew in each pass; leave it out")
        if looped:
            raise _cannot("compile: on", "documents are looped over here, and every batch would compile anew")
        return True, "the site asks for it"
    if engine.compile == "off":
        return False, "the site asks for it"
    if not given.is_native:
        return False, "only the native model's blocks are known to be one graph"
    if work.lora is not None:
        return False, "weights with adapters are made anew in each pass"
    if not given.is_gpu:
        return False, "on a CPU it pays after hundreds of steps, if at all"
    if looped:
        return False, "documents are looped over here"
    if work.steps < _COMPILE_STEPS:
        return False, f"{work.steps} steps do not pay for it, {_COMPILE_STEPS} would"
    return True, f"{work.steps} steps pay for it"


def _check_adapters(work: Train, engine: Engine, given: Given) -> None:
    if work.groups or work.proximal:
        raise JobFailed(
            FailureReason.BAD_INPUT,
            "lora: adapters are all that learns: groups and proximal are of a model's own weights; drop them",
        )
    if isinstance(work.optimizer.muon, Muon):
        raise JobFailed(
            FailureReason.BAD_INPUT,
            "optimizer.muon: orthogonal steps are of whole matrices, adapters are halves of them; drop muon, or lora",
        )
    if work.optimizer.moments == "keep":
        raise JobFailed(
            FailureReason.BAD_INPUT,
            "optimizer.moments: keep: every job draws its adapters anew, moments are of the old; drop keep, or lora",
        )
    if given.is_sharded:
        raise JobFailed(
            FailureReason.BAD_INPUT,
            "lora: a model with adapters cannot be shared in shards; set `sharding: none`",
        )
    if engine.weights == "bf16":
        raise _cannot("weights: bf16", "adapters are added to weights in float32; leave it out")


def _cannot(asked: str, why: str) -> JobFailed:
    return JobFailed(FailureReason.BAD_INPUT, f"engine.{asked}: {why}")
