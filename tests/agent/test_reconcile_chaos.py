"""Whatever is lost, crashes or cannot be seen: never two lives at once, and an attempt always ends."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.canonical import replace
from consortium.ids import AttemptId
from consortium.jobs import Outcome, Phase
from site_agent.config import Consent
from site_agent.core.facts import (
    Act,
    Action,
    AttemptFiles,
    Cause,
    Ended,
    Launch,
    Limits,
    Observation,
    Offer,
    Seen,
    Sighting,
)
from site_agent.core.lives import fruitless_lives
from site_agent.core.reconcile import TRANSITIONS, phase_of, reconcile

ATTEMPT = AttemptId("demo_r1-train-north.a1")
LIMITS = Limits(
    slots=1, lives_max=3, lives_total_max=12, stop_seconds=2.0, save_seconds=3.0, stall_seconds=4.0
)
CAUSES = tuple(cause for cause in Cause if cause is not Cause.NEVER)
EVENTS = (
    *(f"die {cause}" for cause in CAUSES),
    "queue",
    "never",
    "begin",
    "save",
    "hang",
    "close",
    "wait",
    "pause",
    "open",
    "look",
    "look blind",
    "look deaf",
    "die",
    "finish",
    "fail",
    "forsake",
    "want",
    "fall before start",
    "sbatch refuses",
    "stuck",
)


@dataclass
class World:
    """One site with one attempt, where everything can go wrong."""

    wanted: bool = True
    settled: bool = False
    files: AttemptFiles | None = None
    alive: bool = False
    queued: bool = False  #: the living one waits in a queue
    queues: bool = False  #: what is launched waits in a queue first
    never: bool = False
    hangs: bool = False
    cause: Cause | None = None  #: of the newest life's end
    killed: bool = False  #: by the agent
    closing: str = ""
    waits: str = ""
    pause_running: bool = False
    starts: int = 0
    falls: bool = False  #: the agent will be killed between intent and start
    problem: str = ""
    refuses: bool = False  #: whatever is launched
    refusal: str = ""
    can_finish: bool = True
    phases: list[Phase] = field(default_factory=list)

    def look(self, blind: bool = False, deaf: bool = False) -> None:
        """One step of an agent that may have been born just now: it knows only what it sees."""
        seen = Sighting(seen=Seen.GONE, cause=self.cause)
        if self.alive:
            seen = Sighting(seen=Seen.PENDING if self.queued else Seen.RUNNING)
        if self.alive and self.queued and self.never:
            seen = Sighting(seen=Seen.PENDING, cause=Cause.NEVER, detail="PartitionTimeLimit")
        offers = (Offer(attempt=ATTEMPT, problem=""),) if self.wanted else ()
        observed = Observation(
            wanted=None if deaf else offers,
            answered=frozenset(() if deaf else {ATTEMPT}),
            settled=frozenset({ATTEMPT} if self.settled and not deaf else ()),
            held=(self.files,) if self.files else (),
            sightings={} if blind or not self.files else {ATTEMPT: seen},
            problems={ATTEMPT: self.problem} if self.problem else {},
            refusals={ATTEMPT: self.refusal} if self.refusal else {},
            closing=self.closing,
            waits=self.waits,
            pause_running=self.pause_running,
        )
        if self.files:
            self.phases.append(phase_of(self.files, Sighting(seen=Seen.UNKNOWN) if blind else seen))
        made = reconcile(observed, LIMITS, Consent())
        for action in made.actions:
            self.carry_out(action)
        for report in made.reports:  # the coordinator hears it, and settles what has ended
            if report.ended and not deaf:
                self.wanted, self.settled = False, True
        if self.files and self.files.stopping_seconds is not None:
            self.files = replace(self.files, stopping_seconds=self.files.stopping_seconds + 1.0)
        if self.files and self.alive and not self.queued and self.hangs:
            self.files = replace(self.files, quiet_seconds=(self.files.quiet_seconds or 0.0) + 1.0)

    def carry_out(self, action: Action) -> None:
        files = self.files or AttemptFiles(attempt=ATTEMPT)
        match action.act:
            case Act.STAGE:
                self.files = replace(files, staged=self.files is not None, can_finish=self.can_finish)
            case Act.LAUNCH if self.refuses:
                self.refusal = "the account is not there"
            case Act.LAUNCH:
                assert not self.alive, "a second life was started beside the first"
                assert action.life == files.lives + 1
                assert fruitless_lives(files) < LIMITS.lives_max
                assert action.life <= LIMITS.lives_total_max
                assert not self.closing and not self.waits
                assert self.cause not in (Cause.OUT_OF_MEMORY, Cause.CANCELLED) or self.killed
                launch = Launch(life=action.life, step=files.checkpoint)
                self.files = replace(
                    files,
                    lives=action.life,
                    stopping_seconds=None,
                    finishing=False,
                    quiet_seconds=None,
                    launches=(*files.launches, launch),
                )
                self.alive = not self.falls
                self.queued = self.queues
                self.hangs = self.killed = False
                self.cause = None
                self.starts += self.alive
                self.falls = False
            case Act.STOP:
                self.note(files, action)
                self.files = replace(
                    self.files,
                    stopping_seconds=0.0 if files.stopping_seconds is None else files.stopping_seconds,
                )
            case Act.FINISH:
                assert files.can_finish
                self.files = replace(files, finishing=True)
            case Act.SALVAGE:
                is_refused = self.refusal or any(one.meant == "refuse" for one in files.launches)
                assert (self.closing or is_refused) and not self.alive and files.has_partial
                self.files = replace(files, has_result=True)
            case Act.KILL:
                self.note(files, action)
                if self.alive:
                    self.alive, self.cause, self.killed = False, Cause.CANCELLED, True
            case Act.UPLOAD:
                self.files = replace(files, ended=Ended(outcome=Outcome.SUCCEEDED))
            case Act.END:
                assert action.outcome is not None
                self.files = replace(files, ended=Ended(outcome=action.outcome, reason=action.reason))
            case Act.DROP:
                assert not self.alive, "the directory was taken from under a life"
                self.files = None

    def note(self, files: AttemptFiles, action: Action) -> None:
        *before, newest = files.launches or (Launch(life=0),)
        if newest.life == files.lives:
            newest = replace(newest, asked=action.reason, meant=action.meant)
        self.files = replace(files, launches=(*before, newest))

    def die(self, cause: Cause | None) -> None:
        if self.alive:
            self.alive, self.cause = False, cause

    def suffer(self, event: str) -> None:
        is_running = self.alive and not self.queued and not self.hangs
        match event:
            case "look" | "look blind" | "look deaf":
                self.look(blind=event == "look blind", deaf=event == "look deaf")
            case "die":
                self.die(None)
            case "finish" if is_running and self.files:
                self.files = replace(self.files, has_result=True)
                self.die(Cause.FINISHED)
            case "save" if is_running and self.files and self.can_finish:
                self.files = replace(self.files, checkpoint=self.files.checkpoint + 1, has_partial=True)
            case "queue" | "begin":
                self.queues = event == "queue"
                self.queued = self.queued and self.queues
            case "never":
                self.never = True
            case "hang":
                self.hangs = self.alive and not self.queued
            case "close":
                self.closing = "the allocation is over"
            case "wait" | "pause":
                self.waits, self.pause_running = "not now", event == "pause"
            case "open":
                self.waits, self.pause_running = "", False
            case "fail" if is_running and self.files:
                self.files = replace(self.files, failure="out of memory")
            case "forsake" | "want":
                self.wanted = event == "want" and not self.settled
            case "fall before start":
                self.falls = True
            case "sbatch refuses":
                self.refuses = True
            case "stuck" if self.files and not self.files.staged:
                self.problem = "an input is corrupt"
            case _ if event.startswith("die "):
                self.die(Cause(event.removeprefix("die ")))


def reachable(start: Phase) -> set[Phase]:
    found = {start}
    while more := {after for (before, _), after in TRANSITIONS.items() if before in found} - found:
        found |= more
    return found


@pytest.mark.parametrize("ending", ["finish", "die", "die timed_out", "hang"])
@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=40), st.booleans())
def test_never_two_lives_and_always_an_end(ending, events, can_finish):
    world = World(can_finish=can_finish)
    for event in events:
        world.suffer(event)
    for event in ("open", "begin"):
        world.suffer(event)
    for _ in range(60):  # calm weather: everything is seen, every life ends in the same way
        world.suffer("look")
        world.suffer(ending)
    assert world.settled or not world.wanted
    assert world.files is None
    assert not world.alive
    assert world.starts <= LIMITS.lives_total_max


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(("look", "save", "die timed_out", "die preempted")), max_size=60))
def test_progress_buys_lives(events):
    """However often the world ends it, what gets further is not given up before the cap on all lives."""
    world = World()
    for event in events:
        world.suffer(event)
        if event.startswith("die"):
            world.suffer("look")
            world.suffer("save")
    ended = world.files.ended if world.files else None
    assert ended is None or world.starts == LIMITS.lives_total_max


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_phases_move_along_the_table(events):
    world = World()
    for event in events:
        before = len(world.phases)
        world.suffer(event)
        if before and len(world.phases) > before:
            assert world.phases[-1] in reachable(world.phases[-2]), world.phases
