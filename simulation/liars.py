"""What a lying or broken agent tells: words in its Syncs that are not so, and results that are not what they claim.

Its certificate is good and every message is well formed, so it gets an answer; what it says of others' attempts, of
attempts that are over, or in words that only the coordinator may use must change nothing but its own work.
"""

from collections.abc import Callable
from pathlib import Path
from random import Random as Dice

from google.protobuf.message import DecodeError
from sprachbund.v1 import site_pb2

from consortium.canonical import decode, encode, replace
from consortium.files import write_bytes_atomically
from consortium.ids import AttemptId, Digest, SiteName, attempt_of, job_of
from consortium.jobs import Evaluate, Train
from consortium.manifests import Contribution, FileRef, Scores
from consortium.store import ref_of
from coordinator.core.state import Job, State
from coordinator.core.transitions import JobState
from site_agent.trainer.folder import JobFolder, write_contribution

_SYNC = "/sprachbund.v1.SiteService/Sync"
_ENDED, _RUNNING = site_pb2.ATTEMPT_PHASE_ENDED, site_pb2.ATTEMPT_PHASE_RUNNING
_FAILED = site_pb2.ATTEMPT_OUTCOME_FAILED
_KEPT_MAX = 200  # last words that a liar remembers
_TWICE = "its own failed, said twice"
_SAYS_MAX = 40  # Syncs in which it looks for an occasion
_HUMS_MAX = 12  # Syncs in which it speaks of others' attempts, once it has begun
HUMS, FORGETS = "another's attempt goes on, again and again", "its own is not spoken of"

Line = site_pb2.AttemptReport


class Liar:
    """Sits between every agent and its wire.

    state  what the ledger tells; a liar may know as much
    kinds  of lies that are told; (): the usual ones
    """

    def __init__(self, state: Callable[[], State], kinds: tuple[str, ...] = ()) -> None:
        self._state = state
        self._kinds = kinds or tuple(_KINDS)
        self._hums: dict[str, int] = {}
        self._due: dict[str, list[tuple[str, Dice, int]]] = {}
        self._last_words: dict[AttemptId, bytes] = {}

    def lie(self, place: str, dice: Dice) -> str:
        """One lie, at the next occasion that there is for it; returns which."""
        kind = self._kinds[int(dice.random() * len(self._kinds))]
        self._due.setdefault(place, []).append((kind, dice, 0))
        return kind

    def tell(self, place: str, method: str, data: bytes) -> bytes:
        """What leaves the site in place of ``data``."""
        if method != _SYNC:
            return data
        try:
            sync = site_pb2.SyncRequest.FromString(data)
        except DecodeError:
            return data
        for line in sync.attempts:
            if line.phase == _ENDED and len(self._last_words) < _KEPT_MAX:
                self._last_words.setdefault(AttemptId(line.attempt), line.SerializeToString())
        due, self._due[place] = self._due.get(place, []), []
        for kind, dice, tries in due:
            if kind == HUMS:
                self._hums[place] = _HUMS_MAX
                continue
            if kind == FORGETS and self._forget(sync, SiteName(place)):
                continue
            false = _KINDS[kind](self, SiteName(place), dice) if kind in _KINDS else None
            if false is not None:
                rest = [line for line in sync.attempts if line.attempt != false.attempt]
                del sync.attempts[:]
                sync.attempts.extend(sorted([*rest, false], key=lambda line: line.attempt))
                if kind == _TWICE:
                    sync.attempts.append(false)
            elif tries < _SAYS_MAX:
                self._due[place].append((kind, dice, tries + 1))
        hums = self._hum(sync, SiteName(place))
        return sync.SerializeToString(deterministic=True) if due or hums else data

    def _hum(self, sync: site_pb2.SyncRequest, place: SiteName) -> bool:
        """Speak of what others hold, as if it ran here; whether it does."""
        if not self._hums.get(place):
            return False
        self._hums[place] -= 1
        told = {line.attempt for line in sync.attempts}
        for job in self._leased(place, False):
            if job.attempt not in told:
                sync.attempts.append(Line(attempt=job.attempt, phase=_RUNNING, started=True))
        sync.attempts.sort(key=lambda line: line.attempt)
        return True

    def _forget(self, sync: site_pb2.SyncRequest, place: SiteName) -> bool:
        """Say nothing of what lapsed and is paid for, until it counts as gone; then speak of it again."""
        site = self._state().sites.get(place)
        own = {job.attempt for job in self._leased(place, True)}
        kept_back = site.held.keys() - own if site is not None else set()
        kept = [line for line in sync.attempts if line.attempt not in kept_back]
        forgotten = len(kept) < len(sync.attempts)
        del sync.attempts[:]
        sync.attempts.extend(kept)
        return forgotten

    # ---- kinds: a line, or None while there is no occasion

    def _end_of_anothers(self, place: SiteName, dice: Dice) -> Line | None:
        outcome = dice.choice([2, 3, 5])  # failed, preempted, refused
        return _line(_one(self._leased(place, False), dice), phase=_ENDED, outcome=outcome, reason="so it is")

    def _result_of_anothers(self, place: SiteName, dice: Dice) -> Line | None:
        return self._delivered(_one(self._leased(place, False), dice), dice)

    def _use_of_anothers(self, place: SiteName, dice: Dice) -> Line | None:
        line = _line(_one(self._leased(place, False), dice), phase=_RUNNING, started=True)
        if line is not None:
            line.usage.gpu_seconds = line.usage.seconds = 1e6
        return line

    def _expired(self, place: SiteName, dice: Dice) -> Line | None:
        job = _one(self._leased(place, True), dice)
        return _line(job, phase=_ENDED, outcome=site_pb2.ATTEMPT_OUTCOME_EXPIRED, reason="it has lapsed")

    def _failed_twice(self, place: SiteName, dice: Dice) -> Line | None:
        return _line(_one(self._leased(place, True), dice), phase=_ENDED, outcome=_FAILED, reason="it fell")

    def _nothing_delivered(self, place: SiteName, dice: Dice) -> Line | None:
        job = _one(self._leased(place, True), dice)
        return _line(job, phase=_ENDED, outcome=site_pb2.ATTEMPT_OUTCOME_SUCCEEDED)

    def _anothers_result(self, place: SiteName, dice: Dice) -> Line | None:
        return self._delivered(_one(self._leased(place, True), dice), dice)

    def _old_words(self, place: SiteName, dice: Dice) -> Line | None:
        """Of an earlier attempt at a job that is being tried again, by whomever."""
        jobs = self._state().jobs
        stale = []
        for attempt, words in sorted(self._last_words.items()):
            job = jobs.get(job_of(attempt))
            if job is not None and job.state is JobState.LEASED and job.attempt != attempt:
                stale.append(words)
        return Line.FromString(stale[int(dice.random() * len(stale))]) if stale else None

    def _back_from_the_dead(self, place: SiteName, dice: Dice) -> Line | None:
        """It goes on with what it has said was over."""
        over = [
            job
            for job in self._state().open_jobs()
            if job.state is JobState.PLANNED and job.site == place and job.outcome != "expired"
        ]
        return _line(_one(over, dice), phase=_RUNNING, started=True)

    def _of_the_future(self, place: SiteName, dice: Dice) -> Line | None:
        job = _one(self._leased(place, None), dice)
        if job is None:
            return None
        return Line(
            attempt=attempt_of(job.id, job.attempts + 1), phase=_ENDED, outcome=_FAILED, reason="it will"
        )

    # ---- inside

    def _leased(self, place: SiteName, own: bool | None) -> list[Job]:
        jobs = [job for job in self._state().open_jobs() if job.state is JobState.LEASED]
        return [job for job in jobs if own is None or (job.site == place) is own]

    def _delivered(self, job: Job | None, dice: Dice) -> Line | None:
        said = (Line.FromString(words).contribution for words in self._last_words.values())
        known = sorted({envelope for envelope in said if envelope})
        if not known:
            return None
        envelope = known[int(dice.random() * len(known))]
        return _line(job, phase=_ENDED, outcome=site_pb2.ATTEMPT_OUTCOME_SUCCEEDED, contribution=envelope)


def _one(jobs: list[Job], dice: Dice) -> Job | None:
    return jobs[int(dice.random() * len(jobs))] if jobs else None


def _line(job: Job | None, **fields: object) -> Line | None:
    return None if job is None else Line(attempt=job.attempt, **fields)  # type: ignore[arg-type]


_KINDS: dict[str, Callable[[Liar, SiteName, Dice], Line | None]] = {
    "another's attempt has ended": Liar._end_of_anothers,
    "another's attempt has a result": Liar._result_of_anothers,
    "another's attempt costs": Liar._use_of_anothers,
    "its own has expired": Liar._expired,
    _TWICE: Liar._failed_twice,
    "a result that was never sent": Liar._nothing_delivered,
    "a result that is another's": Liar._anothers_result,
    "old words": Liar._old_words,
    "back from the dead": Liar._back_from_the_dead,
    "of an attempt to come": Liar._of_the_future,
}


def falsify(folder: JobFolder, dice: Dice) -> str:
    """Make a finished result claim what is not so; returns what. Its site signs it all the same."""
    place = folder.path / "result"
    path = place / "contribution.json"
    said = decode(path.read_bytes(), Contribution, str(path))
    work, other = folder.job.work, Digest(dice.randbytes(32).hex())
    ways: list[tuple[str, Contribution]] = [("another order", replace(said, assignment=other))]
    if isinstance(work, Train):
        few = max(1, said.steps // 2)
        ways.append(("another base", replace(said, base=other)))
        ways.append(("fewer steps were asked for", replace(said, steps=few, planned_steps=few)))
        ways.append(("more tokens", replace(said, tokens={x: 10 * n for x, n in said.tokens.items()})))
    what, false = ways[int(dice.random() * len(ways))]
    if isinstance(work, Evaluate) and dice.random() < 0.7:
        what, false = (
            "a model is not scored",
            replace(said, artifacts={"scores": _fewer(place / "scores.json")}),
        )
    write_contribution(place, false)
    return what


def _fewer(path: Path) -> FileRef:
    """Scores without the last model."""
    scores = decode(path.read_bytes(), Scores, str(path))
    kept = dict(sorted(scores.subjects.items())[:-1])
    write_bytes_atomically(path, encode(replace(scores, subjects=kept)))
    return ref_of(path)
