"""A site's batch system: jobs wait, run, are preempted, lose their nodes, reach their walltime, deliver.

It outlives the agent, as Slurm does; ``simulation.launcher`` is what one agent asks it through. A running job writes
its folder as the trainer does: progress, checkpoints, result.
"""

import enum
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consortium.canonical import encode, replace
from consortium.errors import BadInput, SprachbundError, Unavailable
from consortium.files import make_folder, write_bytes_atomically
from consortium.jobs import Evaluate, Merge, Tokenizer, Train, Work
from simulation.conduct import Conduct
from simulation.draws import gap_seconds, lognormal
from simulation.learning import Trainer, size_of_order
from simulation.liars import falsify
from simulation.loop import VirtualLoop
from simulation.machine import Host
from simulation.outcome import Happening
from simulation.plan import SitePlan
from simulation.streams import stream
from simulation.weather import Weather, fault_named
from site_agent.core.facts import Cause, Progress, Seen, Sighting, Usage
from site_agent.launchers.base import USAGE_FILE
from site_agent.trainer.folder import CONTINUE, FINISH, STOP, Failure, FailureReason, JobFolder, write_failure

_SEEN_SECONDS = 15.0  # until an agent's next look finds what has happened; it asks a batch system so often
_HEEDED_SECONDS = 20.0  # until a job reads a wish and has saved
_TOKENIZER_SECONDS, _EVALUATION_SECONDS, _MERGE_SECONDS = 900.0, 600.0, 300.0
_MERGED_BYTES_PER_SECOND = 2e8
_WATTS = 1.0  # per GPU-second, times the plan's watts


class _State(enum.Enum):
    PENDING = "queued"
    RUNNING = "running"
    GONE = "gone"


class _Job:
    """One life of one attempt, and what its directory has from the lives before."""

    def __init__(self, directory: Path, life: int, at: float) -> None:
        self.directory, self.life = directory, life
        self.state = _State.PENDING
        self.submitted_at, self.began_at, self.ended_at = at, 0.0, 0.0
        self.cause: Cause | None = None
        self.detail = ""
        self.step_before = 0
        self.used_before = Usage()
        self.order: JobFolder | None = None
        self.doom: Any = None  # the timer of what happens to it next
        self.asked = ""


class Cluster:
    """One site's machines. ``happened`` is told of spans and moments, ``stirred`` that an agent would see news."""

    def __init__(
        self,
        plan: SitePlan,
        weather: Weather,
        seed: int,
        host: Host,
        loop: VirtualLoop,
        pupil: Trainer,
        model_bytes: int,
        happened: Callable[[Happening], None],
        conduct: Conduct,
    ) -> None:
        self.conduct = conduct
        conduct.spent = self._spent
        self.plan, self.weather, self.host, self.loop, self.pupil = plan, weather, host, loop, pupil
        self.stirred: Callable[[], None] = lambda: None
        self.blame: Callable[[str], None] = lambda sentence: None
        self.gpu_hours = 0.0
        self.joules = 0.0
        self.is_out = False  #: for maintenance
        self.fallen: list[str] = []  #: faults of the weather, by name
        self.silences = 0  #: of the batch system, that the dice said so far
        self._model_bytes = model_bytes
        self._happened = happened
        self.seed = seed
        self._dice = stream(seed, "cluster", plan.name)
        self._jobs: dict[Path, _Job] = {}
        self._count = 0

    # ---- what a launcher asks

    def submit(self, directory: Path, life: int) -> str:
        """Queue it; once a life. Returns its native id."""
        known = self._jobs.get(directory)
        if known is not None and known.life >= life:
            return self._native_id(known)
        if known is not None and known.state is not _State.GONE:
            self.blame(f"invariant 3: {directory.name} was to live a second time while it lived")
            raise Unavailable(f"{directory.name}: an earlier life is still there")
        self._count += 1
        job = _Job(directory, life, self.loop.time())
        if known is not None:
            job.step_before, job.used_before = known.step_before, known.used_before
        self._jobs[directory] = job
        self.conduct.lives(directory.name, life)
        dice = stream(self.seed, "queue", self.plan.name, directory.name, life)
        waits = lognormal(dice, self.plan.queue_median_minutes * 60.0, self.plan.queue_sigma)
        self._next(job, waits, self._begin, job)
        return self._native_id(job)

    def sight(self, directory: Path) -> Sighting:
        job = self._jobs.get(directory)
        if job is None:
            return Sighting(seen=Seen.GONE, detail="it was never started")
        self._heed(job)
        if job.state is _State.RUNNING:
            self._progress(job)
            self._account(job)
            return Sighting(seen=Seen.RUNNING)
        if job.state is _State.PENDING:
            return Sighting(seen=Seen.PENDING, detail="Priority")
        return Sighting(seen=Seen.GONE, detail=job.detail, cause=job.cause)

    def refuses(self, directory: Path) -> bool:
        """Whether the batch system will not take this attempt, ever."""
        dice = stream(self.seed, "refusal", self.plan.name, directory.name)
        unwelcome = bool(self.weather.refusals) and dice.random() < self.weather.refusals
        return unwelcome and self.falls("refusal", directory.name, 1)

    def cancel(self, directory: Path) -> None:
        job = self._jobs.get(directory)
        if job is not None and job.state is not _State.GONE:
            self.conduct.wished(directory.name, "cancel")
            self._end(job, Cause.CANCELLED, "CANCELLED")

    # ---- what happens by itself

    def outage(self, is_out: bool) -> None:
        """Everything that runs or waits is gone; nothing starts while it lasts."""
        self.is_out = is_out
        if is_out:
            for job in list(self._jobs.values()):
                if job.state is not _State.GONE:
                    self._end(job, Cause.NODE_FAILED, "NODE_FAIL: maintenance")

    def salvage(self, directory: Path) -> None:
        """In place of ``site_agent.carry.salvage``: the partial result of a job that no life may go on with."""
        job = self._jobs.get(directory)
        if job is None or job.order is None or job.state is not _State.GONE or not job.step_before:
            raise BadInput(
                f"no partial result can be made of {directory.name}: it has no training checkpoint"
            )
        if not job.order.has_result:
            self.pupil.finish(job.order, job.step_before, job.used_before.seconds)

    # ---- inside

    def _native_id(self, job: _Job) -> str:
        return f"{job.directory.name}#{job.life}"

    def _next(self, job: _Job, seconds: float, what: Callable[..., None], *given: Any) -> None:
        if job.doom is not None:
            job.doom.cancel()
        job.doom = self.loop.call_later(max(0.0, seconds), what, *given, context=self.loop.outside)

    def _begin(self, job: _Job) -> None:
        if self.is_out:
            self._next(job, 3600.0, self._begin, job)
            return
        if not job.directory.is_dir():  # the agent has dropped it meanwhile
            self._end(job, Cause.FINISHED, "its folder is gone")
            return
        self._span(job, "queued", job.submitted_at)
        job.state, job.began_at = _State.RUNNING, self.loop.time()
        (job.directory / CONTINUE).unlink(missing_ok=True)
        try:
            job.order = JobFolder(job.directory)
        except SprachbundError as error:
            self._fail(job, FailureReason.BAD_INPUT, str(error))
            return
        self._plan_end(job)
        self._stir()

    def _plan_end(self, job: _Job) -> None:
        """Of all that may end it, what comes first."""
        assert job.order is not None
        plan, weather = self.plan, self.weather
        dice = stream(self.seed, "life", plan.name, job.directory.name, job.life)
        rest = size_of_order(job.order.job) - job.step_before
        ways: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = [
            (rest * self._seconds_of_step(job.order.job.work), self._finish, (job,)),
            (plan.walltime_minutes * 60.0, self._lose, (job, Cause.TIMED_OUT, "TIMEOUT")),
        ]
        for per_day, cause, detail in (
            (plan.preempt_per_day, Cause.PREEMPTED, "PREEMPTED"),
            (plan.node_loss_per_day, Cause.NODE_FAILED, "NODE_FAIL"),
        ):
            gap = gap_seconds(dice, per_day * weather.site_faults)
            if gap is not None and self.falls(detail.lower(), job.directory.name, job.life, gap):
                ways.append((gap, self._lose, (job, cause, detail)))
        share = weather.loss / 2.0 + weather.failures
        unlucky = share > 0.0 and dice.random() < share
        if unlucky and self.falls("trainer error", job.directory.name, job.life):
            after = dice.random() * ways[0][0]
            ways.append(
                (after, self._fail, (job, FailureReason.INTERNAL, "a simulated error of the trainer"))
            )
        seconds, what, given = min(ways, key=lambda way: way[0])
        self._next(job, seconds, what, *given)

    def falls(self, kind: str, about: str, number: int, seconds: float = 0.0) -> bool:
        """Whether a fault that the dice say is let fall, so many seconds from now."""
        name = fault_named(kind, about, number)
        if not self.weather.lets_fall(name, (self.loop.time() + seconds) / 3600.0):
            return False
        self.fallen.append(name)
        return True

    def _seconds_of_step(self, work: Work) -> float:
        match work:
            case Train():
                return work.batch_sequences * work.sequence_tokens / self.plan.tokens_per_second
            case Evaluate():
                return _EVALUATION_SECONDS * len(work.subjects)
            case Tokenizer():
                return _TOKENIZER_SECONDS
            case Merge():
                return _MERGE_SECONDS + self._model_bytes * (len(work.parts) + 2) / _MERGED_BYTES_PER_SECOND
        raise AssertionError(f"nobody simulates {type(work).__name__}")

    def _step(self, job: _Job) -> int:
        """How far a running job is."""
        assert job.order is not None
        work = job.order.job.work
        done = (self.loop.time() - job.began_at) / max(1e-9, self._seconds_of_step(work)) + 1e-6
        return min(size_of_order(job.order.job), job.step_before + int(done))

    def _finish(self, job: _Job) -> None:
        assert job.order is not None
        self._deliver(job, size_of_order(job.order.job))

    def _deliver(self, job: _Job, steps: int) -> None:
        """The result of so many steps; a short one where it was asked to finish."""
        assert job.order is not None
        dice = stream(self.seed, "result", self.plan.name, job.directory.name, job.life)
        unlucky = bool(self.weather.loss) and dice.random() < self.weather.loss / 4.0
        spoilt = unlucky and self.falls("spoilt", job.directory.name, job.life)
        self._progress(job, steps)
        try:
            if not job.order.has_result:
                seconds = self._usage(job).seconds
                self.pupil.finish(job.order, steps, seconds, spoilt)
                if dice.random() < self.weather.falsehoods and self.falls(
                    "false", job.directory.name, job.life
                ):
                    self._moment(job, "false result", falsify(job.order, dice))
        except SprachbundError as error:
            self._fail(job, FailureReason.BAD_INPUT, str(error))
            return
        self._end(job, Cause.FINISHED, "COMPLETED")

    def _lose(self, job: _Job, cause: Cause, detail: str) -> None:
        """Gone with what was done since the newest training checkpoint; a walltime is foreseen, and saved before."""
        assert job.order is not None
        work, step = job.order.job.work, self._step(job)
        if isinstance(work, Train):
            every = work.checkpoint_steps
            self._save(job, step if cause is Cause.TIMED_OUT else step // every * every)
        if cause is not Cause.TIMED_OUT:
            kind = "preempted" if cause is Cause.PREEMPTED else "node lost"
            self._moment(job, kind)
        self._end(job, cause, detail)

    def _save(self, job: _Job, step: int) -> None:
        if step > job.step_before:
            job.step_before = step
            place = job.directory / "checkpoint" / f"step-{step:09d}"
            make_folder(place)
            write_bytes_atomically(place / "state.json", b"{}")

    def _fail(self, job: _Job, reason: FailureReason, sentence: str) -> None:
        write_failure(job.directory, Failure(reason=reason, sentence=sentence))
        self.conduct.failed(job.directory.name)
        self._moment(job, "job failed", sentence)
        self._end(job, Cause.FINISHED, "exit code 1")

    def _heed(self, job: _Job) -> None:
        """What its folder wishes of a running job."""
        if job.state is not _State.RUNNING or job.order is None:
            return
        if not os.path.isdir(job.directory):
            self._next(job, 0.0, self._end, job, Cause.FINISHED, "its folder is gone")
        elif job.asked != STOP and os.path.exists(f"{job.directory}/{STOP}"):
            job.asked = STOP
            self.conduct.wished(job.directory.name, STOP)
            self._next(job, _HEEDED_SECONDS, self._stop, job)
        elif (
            isinstance(job.order.job.work, Train)
            and not job.asked
            and os.path.exists(f"{job.directory}/{FINISH}")
        ):
            job.asked = FINISH
            self.conduct.wished(job.directory.name, FINISH)
            if self._step(job) > 0:
                self._next(job, _HEEDED_SECONDS, lambda: self._deliver(job, self._step(job)))

    def _stop(self, job: _Job) -> None:
        if not job.directory.is_dir():
            self._end(job, Cause.FINISHED, "its folder is gone")
            return
        assert job.order is not None
        if isinstance(job.order.job.work, Train):
            self._save(job, self._step(job))
        write_bytes_atomically(job.directory / CONTINUE, b"")
        self._end(job, Cause.STOPPED, "it stopped with a training checkpoint")

    def _end(self, job: _Job, cause: Cause, detail: str) -> None:
        if job.state is _State.GONE:
            return
        if job.doom is not None:
            job.doom.cancel()
        if job.state is _State.RUNNING:
            self._span(job, "running", job.began_at, detail)
            used = self._usage(job)
            self.gpu_hours += (used.gpu_seconds - job.used_before.gpu_seconds) / 3600.0
            self.joules += (used.joules or 0.0) - (job.used_before.joules or 0.0)
        elif job.state is _State.PENDING:
            self._span(job, "queued", job.submitted_at, detail)
        self._account(job)
        job.used_before = self._usage(job)
        job.state, job.cause, job.detail, job.ended_at = _State.GONE, cause, detail, self.loop.time()
        self.conduct.is_gone(job.directory.name, cause, job.used_before)
        self._stir()

    def _usage(self, job: _Job) -> Usage:
        """All lives together, as sacct would say."""
        before = job.used_before
        if job.state is _State.GONE:
            return before
        now = self.loop.time()
        ran = round(now - job.began_at, 3) if job.state is _State.RUNNING else 0.0
        gpus = self.plan.gpus
        waited = before.queued_seconds
        if job.life == 1:
            waited = round((job.began_at if job.state is _State.RUNNING else now) - job.submitted_at, 3)
        return replace(
            before,
            seconds=before.seconds + ran,
            gpu_seconds=before.gpu_seconds + gpus * ran,
            joules=(before.joules or 0.0) + gpus * ran * self.plan.watts_per_gpu * _WATTS,
            queued_seconds=waited,
            source="sacct",
        )

    def _spent(self) -> float:
        """GPU-seconds of all lives."""
        return math.fsum(self._usage(job).gpu_seconds for job in self._jobs.values())

    def _account(self, job: _Job) -> None:
        if job.state is _State.RUNNING and os.path.isdir(job.directory):
            write_bytes_atomically(job.directory / USAGE_FILE, encode(self._usage(job)))

    def _progress(self, job: _Job, step: int | None = None) -> None:
        """A line of what it has done; asked for, since nobody reads the others."""
        if job.order is None or not os.path.isdir(job.directory):
            return
        work = job.order.job.work
        steps = size_of_order(job.order.job)
        done = self._step(job) if step is None else step
        tokens = done * work.batch_sequences * work.sequence_tokens if isinstance(work, Train) else 0
        line = Progress(step=done, steps=steps, tokens=tokens, tokens_per_second=self.plan.tokens_per_second)
        with open(f"{job.directory}/progress.jsonl", "ab", buffering=0) as file:
            file.write(encode(line) + b"\n")

    def _stir(self) -> None:
        """The agent's next look finds it."""
        self.loop.call_later(
            self._dice.random() * _SEEN_SECONDS, self._stirred_now, context=self.loop.outside
        )

    def _stirred_now(self) -> None:
        self.stirred()

    def _span(self, job: _Job, kind: str, began: float, detail: str = "") -> None:
        zero = self.host.true_time - self.loop.time()
        self._happened(
            Happening(
                at=zero + began,
                place=self.plan.name,
                kind=kind,
                subject=job.directory.name,
                detail=detail,
                until=self.host.true_time,
            )
        )

    def _moment(self, job: _Job, kind: str, detail: str = "") -> None:
        self._happened(
            Happening(
                at=self.host.true_time,
                place=self.plan.name,
                kind=kind,
                subject=job.directory.name,
                detail=detail,
            )
        )
