"""What did an attempt use over all of its lives, and is that the last word?

Pure. Accounting (``sacct``) counts before the jobs' own records do, because it knows of starts that were killed;
but it may be late, or not there. Its account is final when every row has an end and every start that is known has
a row. Where it does not become so, the records of the batch scripts stand in for the starts that it lacks.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from consortium.canonical import Fact
from site_agent.core.facts import Usage
from site_agent.launchers.slurm.answer import Account, AccountRow
from site_agent.launchers.slurm.words import State, first_word, state_of


class LifeEnd(Fact):
    """``end.<life>.<restart>.json``, by the batch script."""

    began: float  #: epoch seconds
    ended: float
    id: str  #: of the Slurm job
    life: int
    rc: int
    requeued: bool = False  #: it asks to be started again
    restart: int
    why: Literal["exit", "limit", "term"]


class Books(Fact):
    """Whether accounting has told all that it ever will of an attempt, and why so."""

    is_final: bool
    why: str


def books_of(account: Account, rows: Sequence[AccountRow], begun: Iterable[str]) -> Books:
    """Whether the rows of an attempt's jobs are final.

    rows   of all its lives, of ``account``
    begun  the Slurm job of each start that is known otherwise, a job as often as it began. One that never began
           need have no row: by times, ``sacct`` finds no job that was never eligible (seen on 22.05)
    """
    if account.is_off:
        return Books(is_final=True, why="this site keeps no accounting: the job's own records count")
    if account.problem:
        return Books(is_final=False, why=f"accounting cannot be asked: {account.problem}")
    for row in rows:
        if not _has_ended(row):
            return Books(is_final=False, why=f"sacct says {first_word(row.state)} of {row.id}")
    started = Counter(row.id for row in _started(rows))
    for id_, count in sorted(Counter(begun).items()):
        if started[id_] < count:
            return Books(is_final=False, why=f"sacct knows {started[id_]} of {count} starts of {id_}")
    return Books(is_final=True, why="accounting has all of it")


def usage_of(rows: Iterable[AccountRow], gpus: int) -> Usage | None:
    """What all lives used so far, by accounting; None if none has started.

    gpus  of one job, where accounting does not count them
    """
    started = _started(rows)
    if not started:
        return None
    joules = [row.joules for row in started if row.elapsed > 0]
    return Usage(
        gpu_seconds=math.fsum((row.gpus or gpus) * row.elapsed for row in started),
        seconds=math.fsum(row.elapsed for row in started),
        queued_seconds=_queued(started),
        joules=math.fsum(joule for joule in joules if joule is not None)
        if joules and None not in joules
        else None,
        source="sacct",
    )


def usage_by_records(
    rows: Iterable[AccountRow], ends: Iterable[LifeEnd], gpus: int, before: Usage, queued_seconds: float
) -> Usage:
    """The same where accounting is not final or not there: its rows that have ended, and records for the others.

    A start that was killed left no record, and is not counted until accounting has it.

    ends            of all lives
    before          what was written down of the attempt: it does not become less
    queued_seconds  until the first start, if accounting does not tell
    """
    closed = [row for row in rows if _has_ended(row)]
    counted = usage_of(closed, gpus) or Usage(queued_seconds=queued_seconds)
    has_rows = Counter(row.id for row in _started(closed))
    lacking = sorted(
        (end for end in ends if end.restart >= has_rows[end.id]), key=lambda end: (end.life, end.restart)
    )
    seconds = math.fsum(max(0.0, end.ended - end.began) for end in lacking)
    gpu_seconds = counted.gpu_seconds + gpus * seconds
    seconds += counted.seconds
    source: Literal["sacct", "clock"] = "clock" if lacking or not has_rows else "sacct"
    return Usage(
        gpu_seconds=max(gpu_seconds, before.gpu_seconds),
        seconds=max(seconds, before.seconds),
        queued_seconds=before.queued_seconds or counted.queued_seconds,
        joules=before.joules if lacking else counted.joules,
        source=before.source if before.gpu_seconds > gpu_seconds else source,
    )


def _has_ended(row: AccountRow) -> bool:
    """Whether the row is final: also one that a requeue has followed, which Slurm calls REQUEUED."""
    return row.ended is not None and state_of(row.state) in (State.FINAL, State.PENDING)


def _started(rows: Iterable[AccountRow]) -> list[AccountRow]:
    """Each start once, oldest first."""
    found = {(row.id, row.started): row for row in rows if row.started is not None}
    return sorted(found.values(), key=lambda row: (row.started or 0.0, row.id))


def _queued(started: Sequence[AccountRow]) -> float:
    first = started[0]
    if first.submitted is None or first.started is None:
        return 0.0
    return max(0.0, first.started - first.submitted)
