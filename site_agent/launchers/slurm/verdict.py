"""What became of a life: from what Slurm and the job itself say to a sighting.

Pure. ``judge`` forms an opinion of one look; ``settle`` holds it against the looks before, because a single
answer of a batch system may be stale, cut off or empty; ``close`` lets an end be told only when what the attempt
used is final, because with the telling the agent reports it and lets go of it. Until an opinion is firm the answer
is UNKNOWN, and UNKNOWN is never GONE.

    Slurm's word                                        cause
    COMPLETED, FAILED (exit code other than 75)         finished; node_failed if the batch script never began
    FAILED with 75, or with CONTINUE in the directory   stopped
    TIMEOUT, DEADLINE                                   timed_out
    PREEMPTED                                           preempted
    NODE_FAIL, BOOT_FAIL, LAUNCH_FAILED, REVOKED        node_failed
    OUT_OF_MEMORY                                       out_of_memory
    CANCELLED                                           cancelled; node_failed if the launcher did it for a hang
    PENDING for a reason that time does not mend        never; held by an administrator: after hours
    PENDING because the account is used up              spent, after hours
    PENDING because Slurm gave up to launch it          node_failed: the launcher cancels it
    nothing at all, for long                            node_failed
"""

import signal
from collections.abc import Iterable
from typing import Literal

from consortium.canonical import Fact, replace
from site_agent.core.facts import Cause, Seen, Sighting
from site_agent.launchers.base import Life
from site_agent.launchers.slurm.answer import AccountRow, QueueRow
from site_agent.launchers.slurm.request import CONTINUE_LATER
from site_agent.launchers.slurm.usage import Books, LifeEnd
from site_agent.launchers.slurm.words import (
    State,
    first_word,
    is_cancelled_by,
    is_held,
    is_spent,
    never_starts,
    state_of,
    was_not_launched,
)

_SKEW_SECONDS = 300.0  # munge refuses more between hosts
_CAUSES = {
    "TIMEOUT": Cause.TIMED_OUT,
    "DEADLINE": Cause.TIMED_OUT,
    "PREEMPTED": Cause.PREEMPTED,
    "NODE_FAIL": Cause.NODE_FAILED,
    "BOOT_FAIL": Cause.NODE_FAILED,
    "LAUNCH_FAILED": Cause.NODE_FAILED,
    "RECONFIG_FAIL": Cause.NODE_FAILED,
    "REVOKED": Cause.NODE_FAILED,
    "OUT_OF_MEMORY": Cause.OUT_OF_MEMORY,
    "CANCELLED": Cause.CANCELLED,
}
_MAY_BE_REQUEUED = {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL"}


Needs = Literal["nothing", "answers", "requeue", "intent", "lost", "held", "begin"]


class Patience(Fact):
    """How much it takes to believe in an end, in looks and seconds."""

    answers: int = 2  #: the same end, or the same hopeless reason, seen so often
    requeue_seconds: float = 150.0  #: Slurm starts preempted jobs again by itself after cred_expire (120 s)
    intent_seconds: float = 120.0  #: an intent without an id may still be on its way to the controller
    lost_seconds: float = 600.0  #: accounting may be late by minutes
    begin_seconds: float = 900.0  #: RUNNING, and the batch script has not begun: a prolog or a node hangs
    held_seconds: float = 6 * 3600.0  #: an administrator holds the job, or its account is used up
    account_seconds: float = 120.0  #: an end is believed, its account not final: then the job's records count
    objection_seconds: float = 24 * 3600.0  #: ``sbatch`` says no in words that are not known to be final


class Doubt(Fact):
    """``doubt.json``: an opinion that is not firm yet, so that a new agent does not begin to count anew."""

    life: int
    opinion: str = ""
    since: float = 0.0  #: epoch seconds, the agent's clock
    answers: int = 0


class Over(Fact):
    """``over.<life>.json``: what is believed of a life's end, and from some look on known."""

    since: float  #: epoch seconds, the agent's clock: when it was first believed
    sighting: Sighting
    account: str = ""  #: why what it used is final; "": it is not, and the end is not told yet


class Evidence(Fact):
    """All that one look found of one life."""

    life: Life
    queue: QueueRow | None = None
    queue_problem: str = ""  #: squeue could not be asked
    queue_is_whole: bool = False
    account: AccountRow | None = None  #: of its newest restart
    account_problem: str = ""
    job: QueueRow | None = None  #: of scontrol, asked where sacct knows nothing
    end: LifeEnd | None = None  #: of its newest restart that began
    owner: str = ""  #: the Slurm job that owns the life; "": none has begun
    has_begun: bool = False  #: the newest restart's script
    continues: bool = False  #: CONTINUE is there
    given_up: bool = False  #: the launcher claimed the life itself: no job can
    hung: str = ""  #: why the launcher cancelled it


class Opinion(Fact):
    """What one look suggests. ``needs``: nothing (firm), more looks, or a long time; ``begin`` is firm, and timed."""

    sighting: Sighting
    needs: Needs = "nothing"


def own_row(
    rows: Iterable[QueueRow], life: Life, owner: str = "", skew_seconds: float = _SKEW_SECONDS
) -> QueueRow | None:
    """The row of a life among a queue's: by name, with its id or, while none is known, its submit time.

    Ids are given twice, and a directory may have been made twice; clocks differ, so a known id outweighs them.

    Two agents may have submitted it both; the one that owns it counts, else the one that may still own it.
    """
    mine = [row for row in rows if _is_of(row, life, skew_seconds)]
    if owner:
        mine = [row for row in mine if row.id == owner]
    rank = {State.ACTIVE: 0, State.PENDING: 1, State.UNKNOWN: 2, State.FINAL: 3}
    mine.sort(key=lambda row: (rank[state_of(row.state)], row.id != life.native_id, row.id))
    return mine[0] if mine else None


def own_account(rows: Iterable[AccountRow], life: Life, owner: str = "") -> AccountRow | None:
    """The newest restart of a life among the rows of ``sacct -D``."""
    mine = [row for row in rows if _is_of(row, life, _SKEW_SECONDS) and row.id == (owner or row.id)]
    preferred = [row for row in mine if row.id == life.native_id]
    mine = mine if owner or not preferred else preferred
    return max(mine, key=lambda row: (row.submitted or 0.0, row.started or 0.0, row.id)) if mine else None


def _is_of(row: QueueRow | AccountRow, life: Life, skew_seconds: float) -> bool:
    is_old = row.submitted is not None and row.submitted < life.submitted_at - skew_seconds
    return row.name == life.name and (row.id == life.native_id or not is_old)


def judge(seen: Evidence) -> Opinion:
    """The opinion that one look suggests."""
    row = seen.queue
    if row is None and seen.queue_problem:
        return _unknown(f"squeue: {seen.queue_problem}")
    if row is not None and state_of(row.state) is not State.FINAL:
        return _in_queue(row, seen.has_begun)
    for final in (seen.account, seen.job, row):
        if final is not None and state_of(final.state) is State.FINAL:
            return _ended(final, seen)
    if seen.end is not None and not seen.end.requeued:
        # after TERM, Slurm may still start it again by itself: it was perhaps preempted
        firm: Literal["nothing", "requeue"] = "requeue" if seen.end.why == "term" else "nothing"
        return Opinion(sighting=_by_itself(seen.end.rc, 0, seen), needs=firm)
    if seen.given_up:
        return Opinion(sighting=_gone(Cause.NODE_FAILED, "it was never started"))
    if seen.account is not None:
        return _unknown(f"sacct says {first_word(seen.account.state)}, the queue does not know it")
    if not seen.queue_is_whole:
        return _unknown("squeue's answer was not whole")
    if not seen.life.native_id and not seen.owner:
        return Opinion(sighting=_gone(Cause.NODE_FAILED, "it was never started"), needs="intent")
    where = "neither the queue nor the accounting knows it"
    if seen.account_problem:
        where = f"the queue does not know it, and accounting cannot be asked: {seen.account_problem}"
    return Opinion(sighting=_gone(Cause.NODE_FAILED, f"it is lost: {where}"), needs="lost")


def settle(
    opinion: Opinion, life: Life, doubt: Doubt | None, now: float, patience: Patience
) -> tuple[Sighting, Doubt | None]:
    """What may be said after this look, and what to remember; None: nothing.

    now  epoch seconds by the agent's clock
    """
    words = f"{opinion.needs}: {opinion.sighting.cause}"
    if opinion.needs == "nothing":
        is_timed = doubt is not None and doubt.life == life.number and doubt.opinion.startswith("begin")
        return opinion.sighting, doubt if is_timed and opinion.sighting.seen is Seen.UNKNOWN else None
    if doubt is None or (doubt.life, doubt.opinion) != (life.number, words) or now < doubt.since:
        doubt = Doubt(life=life.number, opinion=words, since=now)
    if opinion.needs == "begin":
        return opinion.sighting, doubt
    doubt = replace(doubt, answers=min(doubt.answers + 1, patience.answers))
    waited = {
        "answers": 0.0,
        "requeue": patience.requeue_seconds,
        "intent": patience.intent_seconds,
        "lost": patience.lost_seconds,
        "held": patience.held_seconds,
    }[opinion.needs]
    if doubt.answers >= patience.answers and now - doubt.since >= waited:
        return opinion.sighting, doubt
    if opinion.sighting.seen is not Seen.GONE:  # hopeless, so far seen once: it waits
        return replace(opinion.sighting, cause=None), doubt
    return Sighting(seen=Seen.UNKNOWN, detail=f"not sure yet: {opinion.sighting.detail}"), doubt


def close(
    sighting: Sighting, over: Over | None, doubt: Doubt | None, books: Books, now: float, patience: Patience
) -> tuple[Sighting, Over | None]:
    """Whether an end that is believed may be told, and what to remember; with ``account`` it stands for good.

    over, doubt  what this and ``settle`` said to remember, of this life
    books        whether accounting has all of the attempt
    now          epoch seconds by the agent's clock
    """
    if sighting.seen is not Seen.GONE:  # what cannot be asked winds no clock back; what lives was no end
        return sighting, over if sighting.seen is Seen.UNKNOWN else None
    if over is None or now < over.since:
        over = Over(since=min(now, doubt.since) if doubt else now, sighting=sighting)
    over = replace(over, sighting=sighting)
    if books.is_final:
        return sighting, replace(over, account=books.why)
    waited = now - over.since
    if waited >= patience.account_seconds:
        return sighting, replace(
            over, account=f"{books.why}; after {waited:.0f} s the job's own records count"
        )
    words = f"it is over ({sighting.detail}), and what it used is not final: {books.why}"
    return Sighting(seen=Seen.UNKNOWN, detail=words), over


def hangs(seen: Evidence, doubt: Doubt | None, now: float, patience: Patience) -> str:
    """Why a job has to be cancelled and submitted again; "": it need not.

    doubt  what ``settle`` said to remember: since when it is seen running, by the clock that tells ``now``
    """
    row = seen.queue
    if row is not None and state_of(row.state) is State.PENDING and was_not_launched(row.reason):
        return f"Slurm gave up to launch it: {row.reason}"
    if row is None or first_word(row.state) != "RUNNING" or seen.has_begun or doubt is None:
        return ""
    minutes = (now - doubt.since) / 60
    if minutes * 60 < patience.begin_seconds:
        return ""
    why = f", {row.reason}" if row.reason else ""
    return (
        f"Slurm says RUNNING on {row.nodes or 'a node'}{why}, and nothing has begun for {minutes:.0f} minutes"
    )


def _in_queue(row: QueueRow, has_begun: bool) -> Opinion:
    match state_of(row.state):
        case State.ACTIVE:
            sighting = Sighting(seen=Seen.RUNNING, detail=f"on {row.nodes}" if row.nodes else "")
            return Opinion(sighting=sighting, needs="nothing" if has_begun else "begin")
        case State.PENDING:
            words = row.reason or first_word(row.state).lower()
            sighting = Sighting(seen=Seen.PENDING, detail=words, expected_start=row.starts)
            if never_starts(row.reason):
                return Opinion(sighting=replace(sighting, cause=Cause.NEVER), needs="answers")
            if is_held(row.reason):
                return Opinion(sighting=replace(sighting, cause=Cause.NEVER), needs="held")
            if is_spent(row.reason):
                return Opinion(sighting=replace(sighting, cause=Cause.SPENT), needs="held")
            return Opinion(sighting=sighting)
    return _unknown(f"Slurm says {row.state[:60]!r}, which is no state that this version knows")


def _ended(final: AccountRow | QueueRow, seen: Evidence) -> Opinion:
    """Slurm says that it is over; the job's own record confirms it, or a second look has to."""
    word = first_word(final.state)
    cause = next((cause for name, cause in _CAUSES.items() if name.startswith(word)), None)
    firm: Literal["nothing", "answers", "requeue"] = "answers"
    if word in _MAY_BE_REQUEUED:
        firm = "requeue"
    elif seen.end is not None and not seen.end.requeued and seen.end.id == final.id:
        firm = "nothing"
    if cause is None:
        code = final.exit_code
        if code is None and seen.end is not None:
            code = seen.end.rc
        return Opinion(sighting=_by_itself(code, final.exit_signal, seen), needs=firm)
    if cause is Cause.CANCELLED:
        if seen.hung:
            return Opinion(sighting=_gone(Cause.NODE_FAILED, seen.hung), needs=firm)
        who = is_cancelled_by(final.state)
        return Opinion(sighting=_gone(cause, f"cancelled by user {who}" if who else "cancelled"), needs=firm)
    return Opinion(sighting=_gone(cause, _WORDS[cause] + f" ({word})"), needs=firm)


_WORDS = {
    Cause.TIMED_OUT: "its time was over",
    Cause.PREEMPTED: "a job of higher priority took its place",
    Cause.NODE_FAILED: "its node failed",
    Cause.OUT_OF_MEMORY: "it used more memory than it was given; raise `memory` in the site's profile",
}


def _by_itself(code: int | None, number: int, seen: Evidence) -> Sighting:
    if code == CONTINUE_LATER or (code != 0 and seen.continues):
        return _gone(Cause.STOPPED, "it stopped with a training checkpoint")
    if (code or number) and seen.end is None and not seen.has_begun:
        return _gone(
            Cause.NODE_FAILED,
            "it ended before the batch script began: look for a quota, a full disk or the prolog",
        )
    if number:
        return _gone(Cause.FINISHED, f"killed by {_signal(number)}")
    if code is not None and code > 128:
        return _gone(Cause.FINISHED, f"killed by {_signal(code - 128)}")
    return _gone(Cause.FINISHED, f"exit code {code}" if code is not None else "it ended")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _gone(cause: Cause, detail: str) -> Sighting:
    return Sighting(seen=Seen.GONE, cause=cause, detail=detail)


def _unknown(detail: str) -> Opinion:
    return Opinion(sighting=Sighting(seen=Seen.UNKNOWN, detail=detail))
