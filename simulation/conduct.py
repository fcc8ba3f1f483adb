"""What may a site's agent do by itself, and what does it owe? The referee's own words, beside ``site_agent/core``.

The facts come from around the agent, none from within: what its batch system was asked for and what it did, the Syncs
as they leave it (before a liar changes them), the answers as they come back, the site's clock, plan and folders. What
is owed is owed within so many seconds in which it could be done: the agent ran, its disk took bytes, its batch system
answered.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sprachbund.v1 import site_pb2

from consortium.capacity import Usage
from consortium.ids import AttemptId, job_of
from policies.windows import Openings
from simulation.loop import Process, current
from simulation.machine import Host
from simulation.plan import SitePlan
from site_agent.core.facts import Cause
from site_agent.spool import BROKEN
from site_agent.trainer.folder import FINISH, STOP

_BEGUN_SECONDS = 5.0  # what is heard, or falls due, while it is at something else
_CLOCK_SECONDS = 60.0  # a window that has closed so long ago is closed, whatever is rounded
_LEAVES_SECONDS = 120.0  # a job hears a wish and saves, an agent looks again
_LOOKS = 3.0  # Syncs in which an agent looks at a job at least once, by its launcher's own word
_LOST = (Cause.TIMED_OUT, Cause.PREEMPTED, Cause.NODE_FAILED)  # ends of a life that another one follows
_ENDED, _QUEUED = site_pb2.ATTEMPT_PHASE_ENDED, site_pb2.ATTEMPT_PHASE_QUEUED
_CANCELLED, _REFUSED = site_pb2.ATTEMPT_OUTCOME_CANCELLED, site_pb2.ATTEMPT_OUTCOME_REFUSED


class _Agent:
    """One process of the site's agent, and what it has been told."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.wanted: frozenset[str] = frozenset()
        self.unwanted: dict[str, float] = {}  #: since when it knows that nobody wants them
        self.over: set[str] = set()  #: what it was told is settled
        self.settled: dict[str, float] = {}  #: since when nothing is left but to forget them
        self.refused: set[str] = set()  #: what the machine will never take, as it was told


class _Attempt:
    """What is known of an attempt at its site."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.life = 0  #: the newest
        self.is_alive = False  #: it waits in the queue, or runs
        self.since = 0.0  #: when it became so
        self.cause: Cause | None = None  #: why it is gone
        self.failed_at: float | None = None  #: when its trainer said that it cannot go on
        self.is_asked = False  #: to leave, or to deliver what it has
        self.is_offered = self.is_disowned = self.is_settled = self.is_refused = False
        self.used = Usage()  #: in all its lives, as the batch system has it
        self.told = [(0.0, 0.0)]  #: GPU-seconds and seconds, in Syncs that were answered

    @property
    def has_told_all(self) -> bool:
        """Whether an answered Sync had the last of what it used."""
        last = self.used.gpu_seconds, self.used.seconds
        return any(abs(told[0] - last[0]) + abs(told[1] - last[1]) < 1e-6 for told in self.told)


class Conduct:
    """Of all agents of one site, one after the other and side by side.

    time   seconds that nobody's clock bends
    spent  GPU-seconds of all lives at the site, by its batch system
    """

    def __init__(
        self,
        plan: SitePlan,
        home: Path,
        sync_seconds: float,
        host: Host,
        time: Callable[[], float],
        blame: Callable[[str], None],
    ) -> None:
        self._plan, self._spool, self._host = plan, home / "spool", host
        self._time, self._blame = time, blame
        self.spent: Callable[[], float] = lambda: 0.0
        self._bound = _LOOKS * sync_seconds + _LEAVES_SECONDS
        self._agents: dict[Process, _Agent] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._over: set[str] = set()  #: settled, and gone from the spool
        self._uses: dict[str, float] = {}  #: GPU-seconds, by the agents' own words
        self._hindered = 0.0  #: when the batch system last did not answer
        self._freed = 0.0  #: when a life last ended
        self._openings, self._windows, self._granted = Openings(), plan.open_hours, plan.granted
        self._shut_at = float("-inf")  #: when its windows were last seen closed
        self._spent_since: float | None = None  #: that its allocation is over, as its agent has to know
        self._was_spent = False  #: at any time, as its agent may know

    # ---- what happens around it

    def starts(self, process: Process) -> None:
        self._agents[process] = _Agent(self._time())

    def is_silent(self) -> None:
        """The batch system does not answer."""
        self._hindered = self._time()

    def asks(self, name: str, life: int) -> None:
        """It wants the batch system to begin a life."""
        agent, now, known = self._asking(), self._time(), self._of(name)
        if agent is None:
            return
        self._look(now)
        if name in agent.refused:
            self._wrong(name, "is asked for again, though the machine has refused it")
        if known.failed_at is not None:
            self._wrong(name, "is begun again, though its trainer said that it cannot go on")
        if name in self._over or name in agent.over:
            self._wrong(name, "is begun again, and was settled")
        if not known.is_offered:
            self._wrong(name, "is begun, and nobody asked for it")
        if known.life >= life and not known.is_alive:
            self._wrong(name, f"begins life {life}, and life {known.life} of it is over")
        if now > agent.unwanted.get(name, now) + _BEGUN_SECONDS:
            self._wrong(name, "is begun, and nobody wants it any more")
        if self._shut_at == now and not self._is_open(self._host.clock() - _CLOCK_SECONDS):
            self._wrong(name, "is begun outside of the site's windows")
        if self._spent_since is not None and now > self._spent_since + _BEGUN_SECONDS:
            self._wrong(name, "is begun, and the site's allocation is over")
        others = sum(one.is_alive and one is not known and _is_there(one) for one in self._attempts.values())
        if others >= self._plan.slots and sum(process.alive for process in self._agents) == 1:
            self._wrong(name, f"is begun beside {others} others, and there are {self._plan.slots} slots")

    def refused(self, name: str) -> None:
        """The machine will never take it, and has said so."""
        self._of(name).is_refused = True
        if (agent := self._asking()) is not None:
            agent.refused.add(name)

    def lives(self, name: str, life: int) -> None:
        """A life of it waits in the queue."""
        known = self._of(name)
        known.life, known.is_alive, known.since, known.cause = life, True, self._time(), None
        known.is_asked = False

    def wished(self, name: str, what: str) -> None:
        """A life of it is asked to leave (STOP), killed (cancel), or asked to deliver what it has (FINISH)."""
        known = self._of(name)
        known.is_asked = True
        may = self._may_be_spent() or (what != FINISH and known.is_disowned)
        if not may:
            self._wrong(name, f"is told to {what}, and nobody has said that it is not wanted")

    def failed(self, name: str) -> None:
        """Its trainer has said that it cannot go on."""
        self._of(name).failed_at = self._time()

    def is_gone(self, name: str, cause: Cause, used: Usage) -> None:
        """Its newest life is over."""
        known = self._of(name)
        known.is_alive, known.since, known.cause, known.used = False, self._time(), cause, used
        self._freed = known.since

    # ---- what is said

    def speaks(self, process: Process, request: site_pb2.SyncRequest) -> None:
        """An agent asks; what is overdue by now is judged."""
        agent = self._agents.get(process)
        if agent is None:  # a stranger
            return
        now, said = self._time(), {line.attempt: line for line in request.attempts}
        for name, line in said.items():
            if line.HasField("usage"):
                self._uses[name] = max(self._uses.get(name, 0.0), line.usage.gpu_seconds)
            if line.phase == _ENDED:
                self._may_end(name, line.outcome)
        self._look(now)
        able = max(agent.began, self._hindered, self._host.refused_at)
        for name, known in list(self._attempts.items()):
            if name in said:
                self._owed(agent, name, known, said[name], now, now - self._bound, able)
            elif not _is_there(known):
                self._is_dropped(name, known)

    def hears(self, process: Process, request: site_pb2.SyncRequest, answer: Any) -> None:
        """An answer has reached it."""
        agent = self._agents.get(process)
        if agent is None or not process.alive:
            return
        now, settled = self._time(), frozenset(answer.settled)
        agent.wanted = frozenset(one.attempt for one in answer.wanted)
        for name in agent.wanted:  # also what was settled: an attempt that lapsed may be resumed
            known = self._of(name)
            known.is_offered, known.is_settled = True, False
            agent.settled.pop(name, None)
            agent.over.discard(name)
            self._over.discard(name)
        for line in request.attempts:
            name, known = line.attempt, self._of(line.attempt)
            if line.HasField("usage"):
                known.told.append((line.usage.gpu_seconds, line.usage.seconds))
            if name in agent.wanted:
                agent.unwanted.pop(name, None)
                continue
            known.is_disowned = True
            if self._host.disk_is_full:  # what it cannot write down it may not have heard
                continue
            agent.unwanted.setdefault(name, now)
            if name in settled:
                known.is_settled = True
                agent.over.add(name)
                if not known.is_alive and known.has_told_all:  # else it is to leave, or to tell that, first
                    agent.settled.setdefault(name, now)

    # ---- rules

    def _may_end(self, name: str, outcome: int) -> None:
        known = self._of(name)
        if outcome == _CANCELLED and not known.is_disowned:
            self._wrong(name, "is cancelled, and nobody has said that it is not wanted")
        # what is not wanted it may have killed: whoever comes after it finds it cancelled, and knows no more
        may_refuse = known.is_refused or known.is_disowned or self._may_be_spent()
        if outcome == _REFUSED and not may_refuse:
            self._wrong(name, "is refused, and neither the machine nor the allocation forbids it")

    def _owed(
        self,
        agent: _Agent,
        name: str,
        known: _Attempt,
        line: site_pb2.AttemptReport,
        now: float,
        long_ago: float,
        able: float,
    ) -> None:
        """``long_ago``: what was due then is overdue, if it could be done since (``able``)."""
        if able > long_ago:
            return
        if known.is_alive:
            if agent.unwanted.get(name, now) < long_ago:
                self._wrong(name, f"goes on for {now - agent.unwanted[name]:.0f} s, and nobody wants it")
            since = max(known.since, self._spent_since if self._spent_since is not None else now)
            if since < long_ago and not (known.is_asked or _has_wish(known)):
                self._wrong(name, f"goes on for {now - since:.0f} s, and the site's allocation is over")
            return
        if known.failed_at is not None and known.failed_at < long_ago and line.phase != _ENDED:
            self._wrong(name, f"has failed {now - known.failed_at:.0f} s ago, and nobody is told")
        if max(agent.settled.get(name, now), known.since) < long_ago:
            self._wrong(name, f"is spoken of {now - agent.settled[name]:.0f} s after it was settled")
        waits = known.cause in _LOST and line.phase == _QUEUED and name in agent.wanted
        since = max(known.since, self._freed, self._shut_at)
        if waits and since < long_ago and self._spent_since is None and self._alive() < self._plan.slots:
            self._wrong(name, f"waits for its next life for {now - since:.0f} s, and nothing is in the way")

    def _is_dropped(self, name: str, known: _Attempt) -> None:
        """Neither in its Sync nor in its spool any more."""
        if known.is_alive:
            self._wrong(name, "is dropped while it lives")
        elif not known.has_told_all:
            self._wrong(name, f"is dropped, and nobody was told that it used {known.used.seconds:.0f} s")
        if known.is_settled:
            self._over.add(name)
        del self._attempts[name]
        for agent in self._agents.values():
            agent.settled.pop(name, None)
            agent.unwanted.pop(name, None)

    # ---- inside

    def _of(self, name: str) -> _Attempt:
        known = self._attempts.get(name)
        if known is None:
            known = self._attempts[name] = _Attempt(self._spool / job_of(AttemptId(name)) / name)
        return known

    def _asking(self) -> _Agent | None:
        """The agent that is at it now."""
        process = current()
        return self._agents.get(process) if process is not None else None

    def _alive(self) -> int:
        return sum(one.is_alive for one in self._attempts.values())

    def _look(self, now: float) -> None:
        """At the site's windows and its allocation, by the site's clock."""
        if self._windows and not self._is_open(self._host.clock()):
            self._shut_at = now
        if self._granted is None:
            return
        until, granted = self._granted.until, self._granted.gpu_hours * 3600.0
        has_ended = until is not None and self._host.clock() >= until
        if has_ended or math.fsum(self._uses.values()) >= granted * (1 + 1e-9):
            self._spent_since = now if self._spent_since is None else self._spent_since
            self._was_spent = True
        else:
            self._spent_since = None

    def _is_open(self, clock: float) -> bool:
        return self._openings(self._windows, clock).is_open

    def _may_be_spent(self) -> bool:
        """Whether its agent may believe that the allocation is over: it may know more than it has said."""
        if self._granted is not None and not self._was_spent:
            until, granted = self._granted.until, self._granted.gpu_hours * 3600.0
            has_ended = until is not None and self._host.clock() >= until - _CLOCK_SECONDS
            self._was_spent = has_ended or self.spent() >= granted * (1 - 1e-9)
        return self._was_spent

    def _wrong(self, name: str, what: str) -> None:
        if not list(self._spool.glob(f"{BROKEN}/{name}.*")):  # else its agent cannot know what it was
            self._blame(f"conduct: {name} {what}, at {self._plan.name}")


def _is_there(known: _Attempt) -> bool:
    return os.path.isdir(known.folder)


def _has_wish(known: _Attempt) -> bool:
    return any(os.path.exists(known.folder / wish) for wish in (STOP, FINISH))
