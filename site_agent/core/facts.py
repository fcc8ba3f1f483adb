"""What the shells of a site saw, in words the core can decide on."""

import enum
from typing import Literal

import msgspec

from consortium.canonical import Fact
from consortium.capacity import Usage as Usage
from consortium.ids import AttemptId, Digest, Language
from consortium.jobs import Assignment, Outcome, Phase


class Seen(enum.StrEnum):
    """What the launcher says of an attempt's newest life. UNKNOWN is an answer, and never means finished."""

    PENDING = "pending"  #: in the batch system's queue
    RUNNING = "running"
    GONE = "gone"  #: no process of it is left, and none will start
    UNKNOWN = "unknown"


class Cause(enum.StrEnum):
    """Why a life is gone, or never comes, where the launcher can know."""

    FINISHED = "finished"  #: it left by itself, well or not: result and failure.json tell
    STOPPED = "stopped"  #: it left with a training checkpoint, as it was asked to
    TIMED_OUT = "timed_out"  #: the walltime was over
    PREEMPTED = "preempted"
    NODE_FAILED = "node_failed"
    OUT_OF_MEMORY = "out_of_memory"
    CANCELLED = "cancelled"  #: by a person, or by this agent: what the agent asked for is in ``lives.jsonl``
    NEVER = "never"  #: it waits, and the batch system says that it will never start
    SPENT = "spent"  #: it waits, and the account that pays has been used up for long


class Sighting(Fact):
    seen: Seen
    detail: str = ""  #: for people: the exit code, the queue's reason, why nothing can be known
    cause: Cause | None = None  #: of GONE; with PENDING only NEVER and SPENT
    expected_start: float | None = None  #: of PENDING: the queue's own estimate, epoch seconds


Budget = Literal["described", "renewed", "returned", "other"]


class UsedUp(Fact):
    """What the coordinator does not take down for a while, for the site caused too many entries of its ledger."""

    #: described: what the site says of itself; renewed: certificates; returned: jobs given back
    budget: Budget
    again_at: float  #: when one more is taken, epoch seconds by this machine's clock
    reason: str  #: the coordinator's, for people


Meant = Literal["", "again", "pause", "refuse"]


class Launch(Fact):
    """A line of ``lives.jsonl``: one life, from where it began, and whether the agent itself sent it away.

    meant  what the agent sent it away for: again (it hung), pause (does not count), refuse (never starts)
    """

    life: int
    step: int = 0  #: ``AttemptFiles.checkpoint`` when it was launched
    text_bytes: int = 0  #: ``AttemptFiles.text_bytes`` then
    asked: str = ""  #: why it was asked to leave, or killed
    meant: Meant = ""


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
    finishing: bool = False  #: it was asked to deliver what it has
    quiet_seconds: float | None = None  #: since the newest life was first seen running with this progress
    progress: Progress | None = None
    checkpoint: int = 0  #: how far the newest training checkpoint is: its step; of an evaluation, subjects
    text_bytes: int = 0  #: of text that its lives have prepared and kept
    has_partial: bool = False  #: that checkpoint can be made into a partial result
    can_finish: bool = True  #: its kind of work has partial results at all
    launches: tuple[Launch, ...] = ()  #: by life; those of agents that kept no such record are missing
    usage: Usage | None = None
    ended: Ended | None = None


class Offer(Fact):
    """One attempt that the coordinator wants of this site."""

    attempt: AttemptId
    assignment: Assignment | None = None  #: None if it could not be accepted as one
    problem: str = ""  #: then why: signature, format, another site's


class Limits(Fact):
    slots: int  #: jobs at once
    gpus: int = 0  #: of one job
    public: tuple[Language, ...] = ()  #: languages of which there is text declared public
    apps: tuple[str, ...] = ()  #: Flower ClientApps that may run here
    lives_max: int  #: lives of one attempt in a row that get no further
    lives_total_max: int = 100  #: lives of one attempt
    stop_seconds: float = 30.0  #: a trainer sees STOP at its next step; after this it is killed
    save_seconds: float = 600.0  #: the same where the training checkpoint it then writes is wanted
    stall_seconds: float | None = None  #: a running life without a new progress line is given up after this


class Observation(Fact):
    """Everything one decision is made from."""

    #: None: the coordinator has not been heard since the agent started
    wanted: tuple[Offer, ...] | None = None
    answered: frozenset[AttemptId] = frozenset()  #: what the coordinator had been told of when it said so
    settled: frozenset[AttemptId] = frozenset()  #: need no more reports
    told: dict[AttemptId, Usage | None] = msgspec.field(
        default_factory=dict
    )  #: of use, when it said what is settled
    held: tuple[AttemptFiles, ...] = ()
    sightings: dict[AttemptId, Sighting] = msgspec.field(default_factory=dict)  #: missing: unknown
    problems: dict[AttemptId, str] = msgspec.field(default_factory=dict)  #: that trying again cannot help
    #: why the machine's own rules let no further life of it start: no fault of the job
    refusals: dict[AttemptId, str] = msgspec.field(default_factory=dict)
    closing: str = ""  #: a sentence: the site's allocation is over, no life may start any more
    waits: str = ""  #: a sentence: nothing is launched now; what is queued or running goes on
    pause_running: bool = False  #: with ``waits``: what is running leaves too, and waits


class Report(Fact):
    """What the coordinator is told of one attempt."""

    attempt: AttemptId
    phase: Phase
    ended: Ended | None = None
    native_id: str = ""
    progress: Progress | None = None
    usage: Usage | None = None
    detail: str = ""  #: for people: why it waits
    started: bool = False  #: a life of it has begun to run


class Act(enum.StrEnum):
    STAGE = "stage"  #: fetch and lay out what the job needs; go on with it if it is under way
    LAUNCH = "launch"  #: start life ``life`` in the same directory
    STOP = "stop"  #: ask the trainer to leave
    KILL = "kill"
    FINISH = "finish"  #: ask the trainer to deliver what it has
    SALVAGE = "salvage"  #: make a result from the newest training checkpoint, without a life
    UPLOAD = "upload"  #: send the artifacts, then the signed contribution; go on with it if it is under way
    END = "end"  #: write down how it ended
    DROP = "drop"  #: delete the directory


class Action(Fact):
    act: Act
    attempt: AttemptId
    reason: str
    life: int = 0  #: of LAUNCH
    outcome: Outcome | None = None  #: of END
    meant: Meant = ""  #: of STOP and KILL: see ``Launch``


class Plan(Fact):
    actions: tuple[Action, ...]
    reports: tuple[Report, ...]
