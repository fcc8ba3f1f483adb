"""What do the states and reasons of Slurm's jobs mean: does it run, will it ever, and who has to do something?

Pure. The names of squeue(1) and of Slurm's sources, 22.05 and 24.11 alike; a word that is in no list is unknown.
"""

import enum
import re


class State(enum.Enum):
    """What a job state says of processes. Source: squeue(1), section JOB STATE CODES."""

    PENDING = "pending"
    ACTIVE = "active"
    FINAL = "final"
    UNKNOWN = "unknown"


_PENDING = "PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT RESV_DEL_HOLD SUSPENDED"
_ACTIVE = "RUNNING COMPLETING STAGE_OUT SIGNALING STOPPED RESIZING EXPEDITING POWER_UP_NODE"
_FINAL = (
    "COMPLETED FAILED OUT_OF_MEMORY TIMEOUT DEADLINE CANCELLED REVOKED PREEMPTED NODE_FAIL BOOT_FAIL "
    "LAUNCH_FAILED RECONFIG_FAIL"
)
_STATES = {
    word: state
    for words, state in ((_PENDING, State.PENDING), (_ACTIVE, State.ACTIVE), (_FINAL, State.FINAL))
    for word in words.split()
}

#: Reasons for which a job waits for a person who changes it or the site, never for time. The others wait.
_NEVER = re.compile(
    r"DependencyNeverSatisfied|PartitionTimeLimit|PartitionNodeLimit|BadConstraints|InvalidAccount|InvalidQOS"
    r"|AccountNotAllowed|QOSNotAllowed|ReservationDeleted|DeadLine|BadFederation|InvalidFeature"
    r"|(QOS|Assoc)Max\w*(PerJob|PerNode|WallDuration)\w*"
    r"|(QOS|Assoc)Min\w*|QOSTimeLimit|AssociationTimeLimit|AssocMaxTimeLimit|QOSMaxTimeLimit"
)

#: An administrator holds it: perhaps for a maintenance, perhaps for good.
_HELD = re.compile(r"JobHeldAdmin|job.requeued.in.held.state")
#: Slurm tried and gave up; a new job may come to another node.
_NOT_LAUNCHED = re.compile(r"launch.failed.requeued.held|JobHoldMaxRequeue")
#: What an account or QOS was granted is used; not the limit on what runs at once (RunMinutes), which frees itself.
_SPENT = re.compile(r"(Assoc|QOS)Grp(?!\w*Run)\w*(Minutes|WallLimit)")


def state_of(word: str) -> State:
    """Of the first word of a state: ``CANCELLED by 0``, and ``CANCELLED+`` where it was cut off."""
    first = first_word(word)
    if word.rstrip().endswith("+") and first not in _STATES:
        meant = {state for name, state in _STATES.items() if first and name.startswith(first)}
        return meant.pop() if len(meant) == 1 else State.UNKNOWN
    return _STATES.get(first, State.UNKNOWN)


def first_word(state: str) -> str:
    words = state.split()
    return words[0].rstrip("+") if words else ""


def never_starts(reason: str) -> bool:
    """Whether a waiting job's reason says that time alone will not start it."""
    return _NEVER.search(reason) is not None


def is_held(reason: str) -> bool:
    """Whether an administrator holds a waiting job."""
    return _HELD.search(reason) is not None


def was_not_launched(reason: str) -> bool:
    """Whether Slurm has given up to start a waiting job, which says more of a node than of the job."""
    return _NOT_LAUNCHED.search(reason) is not None


def is_spent(reason: str) -> bool:
    """Whether a waiting job's account is used up: it starts when somebody grants more, or a new period begins."""
    return _SPENT.search(reason) is not None


def is_cancelled_by(state: str) -> str:
    """The user in ``CANCELLED by 1000``; "" if none is told."""
    found = re.match(r"CANCELLED\+? by (\S+)", state)
    return found[1] if found else ""
