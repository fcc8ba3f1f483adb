"""How to read what ``squeue``, ``sacct``, ``scontrol`` and ``scancel`` say of jobs; 22.05 and 24.11 alike.

Pure. What cannot be read is never guessed: a line that is none is left out and the answer no longer counts as whole,
so that nobody's absence follows from it. What its words mean is in ``words``, verdicts on it are in ``verdict``.
"""

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
_UNKNOWN_JOB = ("invalid job id specified", "invalid job id", "already completing or completed")


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


def read_queue(said: Completed) -> Queue:
    """Of ``squeue -h -o QUEUE_FORMAT``. An empty answer counts only with rc 0 and silence on stderr."""
    if said.rc != 0:
        return Queue(problem=said.in_one_line())
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
        return Account(problem=said.in_one_line(), is_off=is_off)
    rows = [row for line in said.out.split("\n") if (row := _account_row(line)) is not None]
    return Account(rows=tuple(dict.fromkeys(rows)), problem=said.err.strip() if not rows else "")


def read_job(said: Completed) -> QueueRow | None:
    """Of ``scontrol show job -o ID``; None if it knows no such job. A problem raises ValueError with the words."""
    words = f"{said.err}\n{said.out}".lower()
    if said.rc != 0:
        if any(sign in words for sign in _UNKNOWN_JOB):
            return None
        raise ValueError(said.in_one_line())
    fields = dict(re.findall(r"(?:^|\s)([A-Za-z/:]+)=(\S*)", said.out))
    reason = re.search(r" Reason=(.*?) Dependency=", said.out)
    if not fields.get("JobId", "").isdecimal() or not fields.get("JobState"):
        raise ValueError(f"scontrol said something else: {said.in_one_line()}")
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
    return said.in_one_line()


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
