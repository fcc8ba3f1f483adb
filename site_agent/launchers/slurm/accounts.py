"""When is accounting asked, what for, and what of its answer is written down as used?"""

from collections.abc import Mapping
from pathlib import Path

from consortium.canonical import encode
from site_agent.core.facts import Usage
from site_agent.launchers.base import USAGE_FILE
from site_agent.launchers.slurm.answer import Account, AccountRow, QueueRow
from site_agent.launchers.slurm.commands import JobFiles
from site_agent.launchers.slurm.controller import Controller
from site_agent.launchers.slurm.notes import Notes
from site_agent.launchers.slurm.usage import Books, books_of, usage_by_records, usage_of
from site_agent.launchers.slurm.verdict import Evidence
from site_agent.launchers.slurm.words import State, state_of

_HOUR = 3600.0


class Accounts:
    """Of one launcher.

    gpus  of one job, where accounting does not count them
    """

    def __init__(self, slurm: Controller, files: JobFiles, gpus: int) -> None:
        self._slurm = slurm
        self._files = files
        self._gpus = gpus
        self._told: dict[Path, tuple[int, float]] = {}  # life and start of which usage is written

    def is_due(self, path: Path, note: Notes, row: QueueRow | None) -> bool:
        """Whether accounting is to be asked: the queue has no living job of it, or one that has just begun."""
        if row is None or state_of(row.state) is not State.ACTIVE:
            return row is None or state_of(row.state) is State.FINAL
        assert note.life is not None
        return row.starts is not None and self._told.get(path) != (note.life.number, row.starts)

    def ask(self, notes: Mapping[Path, Notes]) -> Account:
        """All lives of these attempts, in one question."""
        known = {intent.name: intent.submitted_at for note in notes.values() for intent in note.intents}
        known |= {note.life.name: note.life.submitted_at for note in notes.values() if note.life}
        return self._slurm.account(sorted(known), min(known.values(), default=0.0))

    def books(self, note: Notes, evidence: Evidence, account: Account) -> Books:
        """Whether the account of an attempt, whose newest life is over, is final."""
        told = (row.id for row in (evidence.queue, evidence.job) if row is not None and row.nodes)
        begun = (*note.begun, *(id_ for id_ in set(told) if id_ not in note.begun))
        return books_of(account, _rows_of(note, account), begun)

    def note_running(self, path: Path, note: Notes, evidence: Evidence, account: Account) -> None:
        """What was used so far, by a life that has just begun. A wrong number is worse than an old one."""
        row = evidence.queue
        if row is None or row.starts is None:
            return
        usage = usage_of(_rows_of(note, account), self._gpus)
        self._write(path, note, usage or self._by_records(note, evidence, account))
        self._told[path] = (evidence.life.number, row.starts)

    def note_final(self, path: Path, note: Notes, evidence: Evidence, account: Account, books: Books) -> None:
        """What was used in all, when the end is told: from then on nothing changes it."""
        usage = usage_of(_rows_of(note, account), self._gpus) if books.is_final else None
        self._write(path, note, usage or self._by_records(note, evidence, account))

    def forget(self, path: Path) -> None:
        self._told.pop(path, None)

    def _by_records(self, note: Notes, evidence: Evidence, account: Account) -> Usage:
        row = evidence.queue or evidence.job
        began = row.starts if row is not None and state_of(row.state) is not State.PENDING else None
        queued = max(0.0, began - _first(note)) if began and evidence.life.number == 1 else 0.0
        return usage_by_records(_rows_of(note, account), note.ends, self._gpus, note.usage or Usage(), queued)

    def _write(self, path: Path, note: Notes, usage: Usage) -> None:
        if usage != note.usage:
            self._files.write(path, USAGE_FILE, encode(usage))


def _rows_of(note: Notes, account: Account) -> list[AccountRow]:
    names, first = {intent.name for intent in note.intents}, _first(note)
    return [row for row in account.rows if row.name in names and (row.submitted or first) >= first - _HOUR]


def _first(note: Notes) -> float:
    return min((intent.submitted_at for intent in note.intents), default=0.0)
