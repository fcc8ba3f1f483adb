"""One life of one attempt at a simulated site: how far it is, what it has used, what it leaves in its folder."""

import enum
import os
from pathlib import Path
from typing import Any

from consortium.canonical import encode, replace
from consortium.files import make_folder, write_bytes_atomically
from consortium.jobs import Evaluate, Merge, Tokenizer, Train, Work
from simulation.learning import size_of_order
from simulation.plan import SitePlan
from site_agent.core.facts import Cause, Progress, Usage
from site_agent.launchers.base import USAGE_FILE
from site_agent.trainer.folder import JobFolder

_TOKENIZER_SECONDS, _EVALUATION_SECONDS, _MERGE_SECONDS = 900.0, 600.0, 300.0
_MERGED_BYTES_PER_SECOND = 2e8


class LifeState(enum.Enum):
    PENDING = "queued"
    RUNNING = "running"
    GONE = "gone"


class Life:
    """It begins in the queue at ``at``, a time of the simulation, and goes on from what ``before`` left."""

    def __init__(self, directory: Path, number: int, at: float, before: "Life | None") -> None:
        self.directory, self.number = directory, number
        self.state = LifeState.PENDING
        self.submitted_at, self.began_at = at, 0.0
        self.cause: Cause | None = None
        self.detail = ""
        self.step_before: int = before.step_before if before else 0  #: that is saved
        #: by the lives before; once this one is gone, by all
        self.used_before: Usage = before.used_before if before else Usage()
        self.order: JobFolder | None = None
        self.doom: Any = None  #: the timer of what happens to it next
        self.asked = ""

    @property
    def native_id(self) -> str:
        return f"{self.directory.name}#{self.number}"

    def step(self, now: float, step_seconds: float) -> int:
        """How far it is, while it runs."""
        assert self.order is not None
        done = (now - self.began_at) / max(1e-9, step_seconds) + 1e-6
        return min(size_of_order(self.order.job), self.step_before + int(done))

    def save(self, step: int) -> None:
        """A training checkpoint, if it is further than the newest."""
        if step > self.step_before:
            self.step_before = step
            place = self.directory / "checkpoint" / f"step-{step:09d}"
            make_folder(place)
            write_bytes_atomically(place / "state.json", b"{}")

    def usage(self, now: float, plan: SitePlan) -> Usage:
        """Of all lives together, as sacct would say."""
        before = self.used_before
        if self.state is LifeState.GONE:
            return before
        ran = round(now - self.began_at, 3) if self.state is LifeState.RUNNING else 0.0
        waited = before.queued_seconds
        if self.number == 1:
            since = self.began_at if self.state is LifeState.RUNNING else now
            waited = round(since - self.submitted_at, 3)
        return replace(
            before,
            seconds=before.seconds + ran,
            gpu_seconds=before.gpu_seconds + plan.gpus * ran,
            joules=(before.joules or 0.0) + plan.gpus * ran * plan.watts_per_gpu,
            queued_seconds=waited,
            source="sacct",
        )

    def account(self, now: float, plan: SitePlan) -> None:
        """What it uses, written down as batch scripts do."""
        if self.state is LifeState.RUNNING and os.path.isdir(self.directory):
            write_bytes_atomically(self.directory / USAGE_FILE, encode(self.usage(now, plan)))

    def progress(self, step: int, tokens_per_second: float) -> None:
        """A line of what it has done."""
        if self.order is None or not os.path.isdir(self.directory):
            return
        work, steps = self.order.job.work, size_of_order(self.order.job)
        tokens = step * work.batch_sequences * work.sequence_tokens if isinstance(work, Train) else 0
        line = Progress(step=step, steps=steps, tokens=tokens, tokens_per_second=tokens_per_second)
        with open(f"{self.directory}/progress.jsonl", "ab", buffering=0) as file:
            file.write(encode(line) + b"\n")


def seconds_of_step(work: Work, plan: SitePlan, model_bytes: int) -> float:
    """What one step takes at the site; work other than training has one alone."""
    match work:
        case Train():
            return work.batch_sequences * work.sequence_tokens / plan.tokens_per_second
        case Evaluate():
            return _EVALUATION_SECONDS * len(work.subjects)
        case Tokenizer():
            return _TOKENIZER_SECONDS
        case Merge():
            return _MERGE_SECONDS + model_bytes * (len(work.parts) + 2) / _MERGED_BYTES_PER_SECOND
    raise AssertionError(f"nobody simulates {type(work).__name__}")
