"""What the shells of a site saw, in words the core can decide on."""

import enum

import msgspec

from consortium.canonical import Fact
from consortium.ids import AttemptId, Digest
from consortium.jobs import Assignment, Outcome, Phase


class Seen(enum.StrEnum):
    """What the launcher says of an attempt's newest life. UNKNOWN is an answer, and never means finished."""

    PENDING = "pending"  #: in the batch system's queue
    RUNNING = "running"
    GONE = "gone"  #: no process of it is left, and none will start
    UNKNOWN = "unknown"


class Sighting(Fact):
    seen: Seen
    detail: str = ""  #: for people: the exit code, the queue's reason, why nothing can be known


class Progress(Fact):
    """The newest line of ``progress.jsonl``."""

    step: int = 0
    steps: int = 0
    tokens: int = 0
    loss: float | None = None  #: nats per token
    tokens_per_second: float = 0.0
    joules: float | None = None


class Ended(Fact):
    """How an attempt ended at this site."""

    outcome: Outcome
    reason: str = ""
    contribution: Digest | None = None  #: of the signed envelope, uploaded before this is written


class AttemptFiles(Fact):
    """One directory of the spool, as it was found."""

    attempt: AttemptId
    staged: bool = False  #: everything the trainer needs is in place
    lives: int = 0  #: starts so far, intended ones included
    native_id: str = ""  #: the launcher's name for the newest life
    has_result: bool = False
    failure: str = ""  #: the trainer's own word that it cannot go on
    stopping_seconds: float | None = None  #: since it was asked to stop
    progress: Progress | None = None
    ended: Ended | None = None


class Offer(Fact):
    """One attempt that the coordinator wants of this site."""

    attempt: AttemptId
    assignment: Assignment | None = None  #: None if it could not be accepted as one
    problem: str = ""  #: then why: signature, format, another site's


class Limits(Fact):
    slots: int  #: jobs at once
    lives_max: int  #: starts of one attempt
    stop_seconds: float = 30.0  #: a trainer sees STOP at its next step; after this it is killed


class Observation(Fact):
    """Everything one decision is made from."""

    wanted: tuple[Offer, ...] | None = (
        None  #: None: the coordinator has not been heard since the agent started
    )
    answered: frozenset[AttemptId] = frozenset()  #: what the coordinator had been told of when it said so
    settled: frozenset[AttemptId] = frozenset()  #: need no more reports
    held: tuple[AttemptFiles, ...] = ()
    sightings: dict[AttemptId, Sighting] = msgspec.field(default_factory=dict)  #: missing: unknown
    problems: dict[AttemptId, str] = msgspec.field(default_factory=dict)  #: that trying again cannot help


class Report(Fact):
    """What the coordinator is told of one attempt."""

    attempt: AttemptId
    phase: Phase
    ended: Ended | None = None
    native_id: str = ""
    progress: Progress | None = None


class Act(enum.StrEnum):
    STAGE = "stage"  #: fetch and lay out what the job needs; go on with it if it is under way
    LAUNCH = "launch"  #: start life ``life`` in the same directory
    STOP = "stop"  #: ask the trainer to leave
    KILL = "kill"
    UPLOAD = "upload"  #: send the artifacts, then the signed contribution; go on with it if it is under way
    END = "end"  #: write down how it ended
    DROP = "drop"  #: delete the directory


class Action(Fact):
    act: Act
    attempt: AttemptId
    reason: str
    life: int = 0  #: of LAUNCH
    outcome: Outcome | None = None  #: of END


class Plan(Fact):
    actions: tuple[Action, ...]
    reports: tuple[Report, ...]
