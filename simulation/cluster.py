"""A site's batch system: jobs wait, run, are preempted, lose their nodes, reach their walltime, deliver.

It outlives the agent, as Slurm does; ``simulation.launcher`` is what one agent asks it through. A running job writes
its folder as the trainer does: progress, checkpoints, result.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consortium.errors import BadInput, SprachbundError, Unavailable
from consortium.files import write_bytes_atomically
from consortium.jobs import Train
from simulation.conduct import Conduct
from simulation.draws import gap_seconds, lognormal
from simulation.learning import Trainer, size_of_order
from simulation.liars import falsify
from simulation.life import Life, LifeState, seconds_of_step
from simulation.loop import VirtualLoop
from simulation.machine import Host
from simulation.outcome import Happening
from simulation.plan import SitePlan
from simulation.streams import stream
from simulation.weather import Weather, fault_named
from site_agent.core.facts import Cause, Seen, Sighting
from site_agent.trainer.folder import CONTINUE, FINISH, STOP, Failure, FailureReason, JobFolder, write_failure

_SEEN_SECONDS = 15.0  # until an agent's next look finds what has happened; it asks a batch system so often
_HEEDED_SECONDS = 20.0  # until a job reads a wish and has saved


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
        self._jobs: dict[Path, Life] = {}
        self._count = 0

    # ---- what a launcher asks

    def submit(self, directory: Path, life: int) -> str:
        """Queue it; once a life. Returns its native id."""
        known = self._jobs.get(directory)
        if known is not None and known.number >= life:
            return known.native_id
        if known is not None and known.state is not LifeState.GONE:
            self.blame(f"invariant 3: {directory.name} was to live a second time while it lived")
            raise Unavailable(f"{directory.name}: an earlier life is still there")
        self._count += 1
        job = self._jobs[directory] = Life(directory, life, self.loop.time(), known)
        self.conduct.lives(directory.name, life)
        dice = stream(self.seed, "queue", self.plan.name, directory.name, life)
        waits = lognormal(dice, self.plan.queue_median_minutes * 60.0, self.plan.queue_sigma)
        self._next(job, waits, self._begin, job)
        return job.native_id

    def sight(self, directory: Path) -> Sighting:
        job = self._jobs.get(directory)
        if job is None:
            return Sighting(seen=Seen.GONE, detail="it was never started")
        self._heed(job)
        if job.state is LifeState.RUNNING:
            job.progress(self._step(job), self.plan.tokens_per_second)
            job.account(self.loop.time(), self.plan)
            return Sighting(seen=Seen.RUNNING)
        if job.state is LifeState.PENDING:
            return Sighting(seen=Seen.PENDING, detail="Priority")
        return Sighting(seen=Seen.GONE, detail=job.detail, cause=job.cause)

    def refuses(self, directory: Path) -> bool:
        """Whether the batch system will not take this attempt, ever."""
        dice = stream(self.seed, "refusal", self.plan.name, directory.name)
        unwelcome = bool(self.weather.refusals) and dice.random() < self.weather.refusals
        return unwelcome and self.falls("refusal", directory.name, 1)

    def cancel(self, directory: Path) -> None:
        job = self._jobs.get(directory)
        if job is not None and job.state is not LifeState.GONE:
            self.conduct.wished(directory.name, "cancel")
            self._end(job, Cause.CANCELLED, "CANCELLED")

    # ---- what happens by itself

    def outage(self, is_out: bool) -> None:
        """Everything that runs or waits is gone; nothing starts while it lasts."""
        self.is_out = is_out
        if is_out:
            for job in list(self._jobs.values()):
                if job.state is not LifeState.GONE:
                    self._end(job, Cause.NODE_FAILED, "NODE_FAIL: maintenance")

    def salvage(self, directory: Path) -> None:
        """In place of ``site_agent.carry.salvage``: the partial result of a job that no life may go on with."""
        job = self._jobs.get(directory)
        if job is None or job.order is None or job.state is not LifeState.GONE or not job.step_before:
            raise BadInput(
                f"no partial result can be made of {directory.name}: it has no training checkpoint"
            )
        if not job.order.has_result:
            self.pupil.finish(job.order, job.step_before, job.used_before.seconds)

    # ---- inside

    def _next(self, job: Life, seconds: float, what: Callable[..., None], *given: Any) -> None:
        if job.doom is not None:
            job.doom.cancel()
        job.doom = self.loop.call_later(max(0.0, seconds), what, *given, context=self.loop.outside)

    def _begin(self, job: Life) -> None:
        if self.is_out:
            self._next(job, 3600.0, self._begin, job)
            return
        if not job.directory.is_dir():  # the agent has dropped it meanwhile
            self._end(job, Cause.FINISHED, "its folder is gone")
            return
        self._span(job, "queued", job.submitted_at)
        job.state, job.began_at = LifeState.RUNNING, self.loop.time()
        (job.directory / CONTINUE).unlink(missing_ok=True)
        try:
            job.order = JobFolder(job.directory)
        except SprachbundError as error:
            self._fail(job, FailureReason.BAD_INPUT, str(error))
            return
        self._plan_end(job)
        self._stir()

    def _plan_end(self, job: Life) -> None:
        """Of all that may end it, what comes first."""
        assert job.order is not None
        plan, weather = self.plan, self.weather
        dice = stream(self.seed, "life", plan.name, job.directory.name, job.number)
        rest = size_of_order(job.order.job) - job.step_before
        ways: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = [
            (rest * self._step_seconds(job), self._finish, (job,)),
            (plan.walltime_minutes * 60.0, self._lose, (job, Cause.TIMED_OUT, "TIMEOUT")),
        ]
        for per_day, cause, detail in (
            (plan.preempt_per_day, Cause.PREEMPTED, "PREEMPTED"),
            (plan.node_loss_per_day, Cause.NODE_FAILED, "NODE_FAIL"),
        ):
            gap = gap_seconds(dice, per_day * weather.site_faults)
            if gap is not None and self.falls(detail.lower(), job.directory.name, job.number, gap):
                ways.append((gap, self._lose, (job, cause, detail)))
        share = weather.loss / 2.0 + weather.failures
        unlucky = share > 0.0 and dice.random() < share
        if unlucky and self.falls("trainer error", job.directory.name, job.number):
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

    def _step(self, job: Life) -> int:
        """How far a running job is."""
        return job.step(self.loop.time(), self._step_seconds(job))

    def _step_seconds(self, job: Life) -> float:
        assert job.order is not None
        return seconds_of_step(job.order.job.work, self.plan, self._model_bytes)

    def _finish(self, job: Life) -> None:
        assert job.order is not None
        self._deliver(job, size_of_order(job.order.job))

    def _deliver(self, job: Life, steps: int) -> None:
        """The result of so many steps; a short one where it was asked to finish."""
        assert job.order is not None
        dice = stream(self.seed, "result", self.plan.name, job.directory.name, job.number)
        unlucky = bool(self.weather.loss) and dice.random() < self.weather.loss / 4.0
        spoilt = unlucky and self.falls("spoilt", job.directory.name, job.number)
        job.progress(steps, self.plan.tokens_per_second)
        try:
            if not job.order.has_result:
                seconds = job.usage(self.loop.time(), self.plan).seconds
                self.pupil.finish(job.order, steps, seconds, spoilt)
                if dice.random() < self.weather.falsehoods and self.falls(
                    "false", job.directory.name, job.number
                ):
                    self._moment(job, "false result", falsify(job.order, dice))
        except SprachbundError as error:
            self._fail(job, FailureReason.BAD_INPUT, str(error))
            return
        self._end(job, Cause.FINISHED, "COMPLETED")

    def _lose(self, job: Life, cause: Cause, detail: str) -> None:
        """Gone with what was done since the newest training checkpoint; a walltime is foreseen, and saved before."""
        assert job.order is not None
        work, step = job.order.job.work, self._step(job)
        if isinstance(work, Train):
            every = work.checkpoint_steps
            job.save(step if cause is Cause.TIMED_OUT else step // every * every)
        if cause is not Cause.TIMED_OUT:
            kind = "preempted" if cause is Cause.PREEMPTED else "node lost"
            self._moment(job, kind)
        self._end(job, cause, detail)

    def _fail(self, job: Life, reason: FailureReason, sentence: str) -> None:
        write_failure(job.directory, Failure(reason=reason, sentence=sentence))
        self.conduct.failed(job.directory.name)
        self._moment(job, "job failed", sentence)
        self._end(job, Cause.FINISHED, "exit code 1")

    def _heed(self, job: Life) -> None:
        """What its folder wishes of a running job."""
        if job.state is not LifeState.RUNNING or job.order is None:
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

    def _stop(self, job: Life) -> None:
        if not job.directory.is_dir():
            self._end(job, Cause.FINISHED, "its folder is gone")
            return
        assert job.order is not None
        if isinstance(job.order.job.work, Train):
            job.save(self._step(job))
        write_bytes_atomically(job.directory / CONTINUE, b"")
        self._end(job, Cause.STOPPED, "it stopped with a training checkpoint")

    def _end(self, job: Life, cause: Cause, detail: str) -> None:
        if job.state is LifeState.GONE:
            return
        if job.doom is not None:
            job.doom.cancel()
        if job.state is LifeState.RUNNING:
            self._span(job, "running", job.began_at, detail)
            used = job.usage(self.loop.time(), self.plan)
            self.gpu_hours += (used.gpu_seconds - job.used_before.gpu_seconds) / 3600.0
            self.joules += (used.joules or 0.0) - (job.used_before.joules or 0.0)
        elif job.state is LifeState.PENDING:
            self._span(job, "queued", job.submitted_at, detail)
        job.account(self.loop.time(), self.plan)
        job.used_before = job.usage(self.loop.time(), self.plan)
        job.state, job.cause, job.detail = LifeState.GONE, cause, detail
        self.conduct.is_gone(job.directory.name, cause, job.used_before)
        self._stir()

    def _spent(self) -> float:
        """GPU-seconds of all lives."""
        return math.fsum(job.usage(self.loop.time(), self.plan).gpu_seconds for job in self._jobs.values())

    def _stir(self) -> None:
        """The agent's next look finds it."""
        self.loop.call_later(
            self._dice.random() * _SEEN_SECONDS, self._stirred_now, context=self.loop.outside
        )

    def _stirred_now(self) -> None:
        self.stirred()

    def _span(self, job: Life, kind: str, began: float, detail: str = "") -> None:
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

    def _moment(self, job: Life, kind: str, detail: str = "") -> None:
        self._happened(
            Happening(
                at=self.host.true_time,
                place=self.plan.name,
                kind=kind,
                subject=job.directory.name,
                detail=detail,
            )
        )
