"""Whatever is lost, crashes or cannot be seen: never two lives at once, and an attempt always ends."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.canonical import replace
from consortium.ids import AttemptId
from consortium.jobs import Outcome, Phase
from site_agent.config import Consent
from site_agent.core.facts import Act, Action, AttemptFiles, Ended, Limits, Observation, Offer, Seen, Sighting
from site_agent.core.reconcile import TRANSITIONS, phase_of, reconcile

ATTEMPT = AttemptId("demo_r1-train-north.a1")
LIMITS = Limits(slots=1, lives_max=3, stop_seconds=2.0)
EVENTS = (
    "look",
    "look blind",
    "look deaf",
    "die",
    "finish",
    "fail",
    "forsake",
    "want",
    "fall before start",
    "stuck",
)


@dataclass
class World:
    """One site with one attempt, where everything can go wrong."""

    wanted: bool = True
    settled: bool = False
    files: AttemptFiles | None = None
    alive: bool = False
    starts: int = 0
    falls: bool = False  #: the agent will be killed between intent and start
    problem: str = ""
    phases: list[Phase] = field(default_factory=list)

    def look(self, blind: bool = False, deaf: bool = False) -> None:
        """One step of an agent that may have been born just now: it knows only what it sees."""
        seen = Sighting(seen=Seen.RUNNING if self.alive else Seen.GONE)
        offers = (Offer(attempt=ATTEMPT, problem=""),) if self.wanted else ()
        observed = Observation(
            wanted=None if deaf else offers,
            answered=frozenset(() if deaf else {ATTEMPT}),
            settled=frozenset({ATTEMPT} if self.settled and not deaf else ()),
            held=(self.files,) if self.files else (),
            sightings={} if blind or not self.files else {ATTEMPT: seen},
            problems={ATTEMPT: self.problem} if self.problem else {},
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

    def carry_out(self, action: Action) -> None:
        files = self.files or AttemptFiles(attempt=ATTEMPT)
        match action.act:
            case Act.STAGE:
                self.files = replace(files, staged=self.files is not None)
            case Act.LAUNCH:
                assert not self.alive, "a second life was started beside the first"
                assert action.life == files.lives + 1
                assert action.life <= LIMITS.lives_max
                self.files = replace(files, lives=action.life, stopping_seconds=None)
                self.alive = not self.falls
                self.starts += self.alive
                self.falls = False
            case Act.STOP:
                self.files = replace(files, stopping_seconds=files.stopping_seconds or 0.0)
            case Act.KILL:
                self.alive = False
            case Act.UPLOAD:
                self.files = replace(files, ended=Ended(outcome=Outcome.SUCCEEDED))
            case Act.END:
                assert action.outcome is not None
                self.files = replace(files, ended=Ended(outcome=action.outcome, reason=action.reason))
            case Act.DROP:
                assert not self.alive, "the directory was taken from under a life"
                self.files = None

    def suffer(self, event: str) -> None:
        match event:
            case "look" | "look blind" | "look deaf":
                self.look(blind=event == "look blind", deaf=event == "look deaf")
            case "die":
                self.alive = False
            case "finish" if self.alive and self.files:
                self.files = replace(self.files, has_result=True)
                self.alive = False
            case "fail" if self.alive and self.files:
                self.files = replace(self.files, failure="out of memory")
            case "forsake" | "want":
                self.wanted = event == "want" and not self.settled
            case "fall before start":
                self.falls = True
            case "stuck" if self.files and not self.files.staged:
                self.problem = "an input is corrupt"


def reachable(start: Phase) -> set[Phase]:
    found = {start}
    while more := {after for (before, _), after in TRANSITIONS.items() if before in found} - found:
        found |= more
    return found


@settings(max_examples=600, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=40), st.booleans())
def test_never_two_lives_and_always_an_end(events, last_life_finishes):
    world = World()
    for event in events:
        world.suffer(event)
    for _ in range(20):  # calm weather: everything is seen, every life ends somehow
        world.suffer("look")
        world.suffer("finish" if last_life_finishes else "die")
    assert world.settled or not world.wanted
    assert world.files is None
    assert not world.alive
    assert world.starts <= LIMITS.lives_max


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_phases_move_along_the_table(events):
    world = World()
    for event in events:
        before = len(world.phases)
        world.suffer(event)
        if before and len(world.phases) > before:
            assert world.phases[-1] in reachable(world.phases[-2]), world.phases
