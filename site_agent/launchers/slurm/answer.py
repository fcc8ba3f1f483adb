"""How to read what ``sbatch``, ``squeue``, ``sacct``, ``scancel`` and ``scontrol`` say; 22.05 and 24.11 alike.

Pure. What cannot be read is never guessed: a line that is none is left out and the answer no longer counts as whole,
so that nobody's absence follows from it. Verdicts on what was read are in ``verdict``.
"""

import enum
import math
import re

from consortium.canonical import Fact
from site_agent.launchers.slurm.commands import Completed

#: One line a job; the reason comes last, because it may hold anything.
QUEUE_FORMAT = "%A|%T|%V|%S|%N|%j|%r"
#: Fields that 22.05 and 24.11 both have, by the names of both.
ACCOUNT_FIELDS = (
    *("JobIDRaw", "JobName", "State", "ExitCode", "Submit", "Start", "End", "ElapsedRaw"),
    *("AllocTRES", "ConsumedEnergyRaw", "NodeList"),
)

_NO_VALUE = 0xFFFF_FFFE  # slurm.h: NO_VAL; with INFINITE above it
_LATER = (  # the controller, the database or the network could not be asked; nothing was done
    "unable to contact",
    "connection refused",
    "temporarily",
    "zero bytes",
    "slurmdbd",
    "problem talking to the database",
    "transport endpoint",
    "busy",
    "resource temporarily unavailable",
    "try again",
    "cannot allocate memory",
    "slurm backup controller in standby",
    "maxsubmit",  # QOSMaxSubmitJobPerUserLimit, AssocMaxSubmitJobLimit: too many at once
    "grpsubmit",
    "no route to host",
    "name or service not known",
    "partition not available",  # inactive or drained; the partition's configuration "not available now"
    "partition configuration not available",
    "reservation is invalid",  # it has not begun, or is being made anew
    "protocol authentication error",  # munge is down, or clocks are apart
    "invalid authentication credential",
    "munge",
)
#: What no time mends: the request itself, or who asks, is wrong. The words of slurm_errno.c, and of options.
_WRONG = (
    "invalid account",
    "invalid partition name",
    "not permitted to use this partition",
    "access/permission denied",
    "invalid qos",
    "requested node configuration is not available",
    "node count specification invalid",
    "invalid node count",
    "invalid node name",
    "cpu count per node can not be satisfied",
    "cpu count specification invalid",
    "memory specification can not be satisfied",
    "more processors requested than permitted",
    "requested topology configuration is not available",
    "generic resource (gres) specification",
    "trackable resource (tres) specification",
    "requested gres option unsupported",
    "requested time limit is invalid",
    "invalid time limit",
    "invalid feature",
    "invalid constraint",
    "invalid license",
    "unrecognized option",
    "invalid option",
    "requires an argument",
    "doesn't allow an argument",
    "option is ambiguous",
    "unknown option",
)
_UNSURE = ("timed out", "zero bytes", "connection reset", "unexpected message", "transport endpoint")
_ID = re.compile(r"([0-9]+)(;[A-Za-z0-9_.-]+)?")
_UNKNOWN_JOB = ("invalid job id specified", "invalid job id", "already completing or completed")


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


class QueueRow(Fact):
    """One job as ``squeue`` or ``scontrol show job`` tells of it. Times are epoch seconds, None if not told."""

    id: str
    state: str
    name: str
    submitted: float | None = None
    starts: float | None = None  #: began; of a waiting job the estimate
    nodes: str = ""
    reason: str = ""
    exit_code: int | None = None  #: only from scontrol
    exit_signal: int = 0


class AccountRow(Fact):
    """One start of one job as ``sacct -X -D`` tells of it; a requeued job has several."""

    id: str
    name: str
    state: str
    exit_code: int | None
    exit_signal: int
    submitted: float | None
    started: float | None
    ended: float | None
    elapsed: float  #: seconds, so far
    gpus: float  #: allocated
    joules: float | None
    nodes: str = ""


class Queue(Fact):
    """What ``squeue`` said of all jobs of this user."""

    rows: tuple[QueueRow, ...] = ()
    is_whole: bool = False  #: then who is not in it is not in the queue
    problem: str = ""  #: why nothing is known; "" if it answered


class Account(Fact):
    """What ``sacct`` said."""

    rows: tuple[AccountRow, ...] = ()
    problem: str = ""
    is_off: bool = False  #: this site keeps no accounting: asking again does not help


class Submission(Fact):
    """What ``sbatch`` said; exactly one of the five is there."""

    id: str = ""
    refused: str = ""  #: final: the request itself is wrong
    later: str = ""  #: nothing was submitted, it may work later
    objects: str = ""  #: nothing was submitted, and it is not known whether time mends that
    unsure: str = ""  #: it may have been submitted


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


def read_submission(said: Completed) -> Submission:
    """Of ``sbatch --parsable``: ``id`` or ``id;cluster``, on a line of its own."""
    if said.rc == 0:
        for line in reversed(said.out.split("\n")):
            found = _ID.fullmatch(line.strip())
            if found:
                return Submission(id=found[1])
        return Submission(unsure=f"sbatch ended well and named no job: {_words(said)}")
    words = f"{said.err}\n{said.out}".lower()
    if any(sign in words for sign in _UNSURE):
        return Submission(unsure=_words(said))
    # 126 and 127 are a shell's, 255 is ssh's, below zero a signal: sbatch itself said nothing
    if (
        any(sign in words for sign in _LATER)
        or said.rc in (126, 127, 255)
        or said.rc < 0
        or not words.strip()
    ):
        return Submission(later=_words(said))
    if any(sign in words for sign in _WRONG) or never_starts(f"{said.err}\n{said.out}"):
        return Submission(refused=_words(said))
    return Submission(objects=_words(said))


def read_queue(said: Completed) -> Queue:
    """Of ``squeue -h -o QUEUE_FORMAT``. An empty answer counts only with rc 0 and silence on stderr."""
    if said.rc != 0:
        return Queue(problem=_words(said))
    rows = []
    is_whole = not said.err.strip() and (not said.out or said.out.endswith("\n"))
    for line in said.out.split("\n"):
        if not line.strip():
            continue
        parts = line.split("|", 6)
        if len(parts) < 7 or not parts[0].isdecimal() or not parts[1]:
            is_whole = False
            continue
        id_, state, submitted, starts, nodes, name, reason = parts
        rows.append(
            QueueRow(
                id=id_,
                state=state,
                name=name,
                submitted=_time(submitted),
                starts=_time(starts),
                nodes=nodes,
                reason=_reason(reason),
            )
        )
    return Queue(rows=tuple(rows), is_whole=is_whole)


def read_account(said: Completed) -> Account:
    """Of ``sacct -n -X -P -D -o ACCOUNT_FIELDS``."""
    if said.rc != 0:
        words = f"{said.err}\n{said.out}".lower()
        is_off = "accounting storage is disabled" in words or "accounting_storage/none" in words
        return Account(problem=_words(said), is_off=is_off)
    rows = [row for line in said.out.split("\n") if (row := _account_row(line)) is not None]
    return Account(rows=tuple(dict.fromkeys(rows)), problem=said.err.strip() if not rows else "")


def read_job(said: Completed) -> QueueRow | None:
    """Of ``scontrol show job -o ID``; None if it knows no such job. A problem raises ValueError with the words."""
    words = f"{said.err}\n{said.out}".lower()
    if said.rc != 0:
        if any(sign in words for sign in _UNKNOWN_JOB):
            return None
        raise ValueError(_words(said))
    fields = dict(re.findall(r"(?:^|\s)([A-Za-z/:]+)=(\S*)", said.out))
    reason = re.search(r" Reason=(.*?) Dependency=", said.out)
    if not fields.get("JobId", "").isdecimal() or not fields.get("JobState"):
        raise ValueError(f"scontrol said something else: {_words(said)}")
    code, signal = _exit(fields.get("ExitCode", ""))
    return QueueRow(
        id=fields["JobId"],
        state=fields["JobState"],
        name=fields.get("JobName", ""),
        submitted=_time(fields.get("SubmitTime", "")),
        starts=_time(fields.get("StartTime", "")),
        nodes="" if fields.get("NodeList") in (None, "(null)") else fields["NodeList"],
        reason=_reason(reason[1]) if reason else "",
        exit_code=code,
        exit_signal=signal,
    )


def read_cancellation(said: Completed) -> str:
    """Of ``scancel``: "" if there is nothing left to cancel, else why it must be tried again."""
    words = f"{said.err}\n{said.out}".lower()
    if said.rc == 0 or any(sign in words for sign in _UNKNOWN_JOB):
        return ""
    return _words(said)


def _account_row(line: str) -> AccountRow | None:
    parts = line.split("|")
    if len(parts) != len(ACCOUNT_FIELDS) or not parts[0].isdecimal() or not parts[2]:
        return None
    id_, name, state, exit_, submitted, started, ended, elapsed, tres, joules, nodes = parts
    code, signal = _exit(exit_)
    return AccountRow(
        id=id_,
        name=name,
        state=state,
        exit_code=code,
        exit_signal=signal,
        submitted=_time(submitted),
        started=_time(started),
        ended=_time(ended),
        elapsed=_number(elapsed) or 0.0,
        gpus=gpus_in(tres),
        joules=_energy(joules),
        nodes="" if nodes == "None assigned" else nodes,
    )


def gpus_in(tres: str) -> float:
    """GPUs in ``billing=8,cpu=8,gres/gpu:a100=2,gres/gpu=2,mem=1G``: the untyped count, else the typed ones' sum."""
    found: dict[str, float] = {}
    for part in tres.split(","):
        name, _, count = part.partition("=")
        if name == "gres/gpu" or name.startswith("gres/gpu:"):
            found[name] = _number(count) or 0.0
    return found.get("gres/gpu", sum(count for _, count in sorted(found.items())))


def _time(word: str) -> float | None:
    """Epoch seconds, as SLURM_TIME_FORMAT=%s makes them; N/A, Unknown, None and (null) are no time."""
    number = _number(word)
    return number if number else None


def _number(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _energy(word: str) -> float | None:
    """Joules. Where nothing measures, Slurm says 0, or a number that stands for none."""
    number = _number(word)
    return number if number and number < _NO_VALUE else None


def _exit(word: str) -> tuple[int | None, int]:
    """``code:signal``; the code is None where it cannot be read."""
    found = re.fullmatch(r"([0-9]+):([0-9]+)", word.strip())
    return (int(found[1]), int(found[2])) if found else (None, 0)


def _reason(word: str) -> str:
    return "" if word.strip() in ("None", "(null)", "") else word.strip()[:300]


def _words(said: Completed) -> str:
    """What a command said, on one line, for people."""
    words = " ".join((said.err or said.out).split())[:500]
    return words or f"exit code {said.rc} without a word"
