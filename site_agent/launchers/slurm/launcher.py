"""Slurm as a launcher: the shell around ``request`` (what to run) and ``answer`` and ``verdict`` (what became of it).

Nothing is remembered that must survive: the intent is on disk before ``sbatch``, and so is every opinion that is
not firm yet, and every end that is. In memory is only when Slurm was asked last and what it said, so that the
controller gets one ``squeue`` for all jobs every ``poll_seconds``, and one ``sacct`` when one of them is missing
there or its usage is due.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from consortium.canonical import decode, encode, replace
from consortium.errors import BadInput, Unavailable
from consortium.files import disk_errors, write_bytes_atomically
from consortium.jobs import Assignment
from policies.site_profile import SiteProfile
from site_agent.core.facts import Seen, Sighting
from site_agent.launchers.base import LIFE_FILE, Life
from site_agent.launchers.slurm.accounts import Accounts
from site_agent.launchers.slurm.answer import Account, Queue, QueueRow
from site_agent.launchers.slurm.commands import Commands, JobFiles
from site_agent.launchers.slurm.controller import Controller
from site_agent.launchers.slurm.notes import (
    DOUBT_FILE,
    GIVEN_UP,
    NOBODY_FILE,
    Hung,
    Notes,
    hung_name,
    over_name,
    read_notes,
)
from site_agent.launchers.slurm.pace import Pace
from site_agent.launchers.slurm.request import Request, uses_one_process
from site_agent.launchers.slurm.submitting import HOST, Submitter
from site_agent.launchers.slurm.verdict import (
    Doubt,
    Evidence,
    Over,
    Patience,
    close,
    hangs,
    judge,
    own_account,
    own_row,
    settle,
)
from site_agent.trainer.folder import FINISH, STOP

_log = logging.getLogger(__name__)


class SlurmLauncher:
    """Satisfies ``site_agent.launchers.base.Launcher``.

    command      the trainer; the job directory becomes its last argument
    threads      for OpenMP, and so for torch: the bits of a CPU job depend on it
    python_path  where ``command`` finds the package, if it is not installed
    binds        what a container must see besides the job directory
    """

    def __init__(
        self,
        profile: SiteProfile,
        commands: Commands,
        files: JobFiles,
        command: Sequence[str],
        *,
        threads: int = 1,
        python_path: str = "",
        binds: Sequence[str] = (),
        patience: Patience | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.poll_seconds = profile.poll_seconds
        self._profile = profile
        self._commands = commands
        self._files = files
        self._command = tuple(command)
        self._threads = threads
        self._python_path = python_path
        self._binds = tuple(binds)
        self._patience = patience or Patience()
        self._clock = clock
        self._slurm = Controller(commands, clock)
        self._pace = Pace(profile.poll_seconds)
        self._submitter = Submitter(
            profile, self._slurm, files, self._pace, self._patience.objection_seconds, clock
        )
        self._accounts = Accounts(self._slurm, files, profile.gpus_per_node * profile.nodes)
        self._memory: dict[Path, tuple[int, Sighting]] = {}
        self._carried: set[tuple[Path, int, str]] = set()

    def request(
        self, directory: Path, life: int, is_single: bool | None = None, exclude: tuple[str, ...] = ()
    ) -> Request:
        """What ``submit`` would submit, for people to read first.

        is_single  None: as the directory's ``job.json`` says
        """
        return Request(
            place=self._files.place(directory),
            life=life,
            command=self._command,
            is_single=_is_single(directory) if is_single is None else is_single,
            threads=self._threads,
            python_path=self._python_path,
            binds=self._binds,
            exclude=exclude,
        )

    def submit(self, directory: Path, life: int) -> None:
        directory = directory.resolve()
        notes = read_notes(directory)
        if notes.life is not None and notes.life.number >= life:
            return
        request = self.request(directory, life, exclude=notes.bad_nodes)
        self._submitter.submit(directory, request, notes)
        self._remember(directory, life, Sighting(seen=Seen.PENDING, detail="submitted"))

    def poll(self, directories: Sequence[Path]) -> dict[Path, Sighting]:
        paths = {path: path.resolve() for path in directories}
        notes = {path: read_notes(path) for path in dict.fromkeys(paths.values())}
        self._forget_others(notes)
        for path, note in notes.items():
            if (end := _end_of(note)) is not None and note.life is not None:
                self._remember(path, note.life.number, end)
        open_ = [path for path, note in notes.items() if _end_of(note) is None]
        if open_ and (self._pace.is_due or any(not self._knows(path, notes[path]) for path in open_)):
            self._look(open_, notes)
        return {path: self._memory[paths[path]][1] for path in directories}

    def cancel(self, directory: Path) -> None:
        directory = directory.resolve()
        notes = read_notes(directory)
        if notes.life is None or notes.life.host != HOST:
            return
        self._slurm.cancel(notes.life)
        if not notes.life.native_id and not notes.owner:
            self._give_up(directory, notes.life)
        self._pace.hurry()  # whoever cancels wants to see it gone

    # ---- looking

    def _look(self, paths: Sequence[Path], notes: dict[Path, Notes]) -> None:
        """Ask Slurm once about all that is not over."""
        coming: Mapping[Path, str] = {}
        try:
            self._carry_wishes(paths, notes)
            coming = self._files.pull(paths)
        except Unavailable as error:
            queue = Queue(problem=str(error))
        else:
            notes |= {path: read_notes(path) for path in paths}
            queue = self._slurm.queue()
        self._pace.looked(well=not queue.problem)
        mine = {path: note for path in paths if _is_ours(note := notes[path])}
        rows = {
            path: own_row(queue.rows, note.life, _owner(note)) for path, note in mine.items() if note.life
        }
        due = {p: n for p, n in mine.items() if not queue.problem and self._accounts.is_due(p, n, rows[p])}
        account = self._accounts.ask(due)
        for path in paths:
            note = notes[path]
            if path not in mine or note.life is None:
                self._remember(path, 0, _stranger(note))
                continue
            if path in coming:  # it has ended well, and to say that it is gone would start it again
                self._remember(path, note.life.number, Sighting(seen=Seen.UNKNOWN, detail=coming[path]))
                continue
            evidence = self._evidence(path, note, rows[path], queue, account)
            try:
                self._conclude(path, note, evidence, account)
                if path in due and self._memory[path][1].seen is Seen.RUNNING:
                    self._accounts.note_running(path, note, evidence, account)
            except Unavailable as error:  # one directory's trouble is not the others'
                self._remember(path, note.life.number, Sighting(seen=Seen.UNKNOWN, detail=str(error)))

    def _evidence(
        self, path: Path, note: Notes, row: QueueRow | None, queue: Queue, account: Account
    ) -> Evidence:
        assert note.life is not None
        owner = _owner(note)
        past = own_account(account.rows, note.life, owner)
        problem, job = account.problem, None
        if row is None and past is None and problem and not queue.problem:
            try:
                job = self._slurm.job(owner or note.life.native_id, note.life)
            except (Unavailable, ValueError) as error:
                problem = f"{problem}; scontrol: {error}"
        return Evidence(
            life=note.life,
            queue=row,
            queue_problem=queue.problem,
            queue_is_whole=queue.is_whole,
            account=past,
            account_problem=problem,
            job=job,
            end=note.end,
            owner=owner,
            has_begun=note.has_begun,
            continues=note.continues,
            given_up=note.owner == GIVEN_UP,
            hung=note.hung.why if note.hung else "",
        )

    def _conclude(self, path: Path, note: Notes, evidence: Evidence, account: Account) -> None:
        life = evidence.life
        now = self._clock()
        opinion = judge(evidence)
        sighting, doubt = settle(opinion, life, note.doubt, now, self._patience)
        if doubt != note.doubt:
            self._note_doubt(path, doubt)
        if opinion.needs == "intent" and sighting.seen is Seen.GONE and not self._give_up(path, life):
            sighting = Sighting(seen=Seen.UNKNOWN, detail="a job of it has begun after all")
        if evidence.queue is not None and not life.native_id:
            self._submitter.note(path, replace(life, native_id=evidence.queue.id))
        why = hangs(evidence, doubt, now, self._patience)
        if why and not note.hung:
            _log.warning("%s: %s; it is cancelled and may start elsewhere", life.name, why)
            nodes = evidence.queue.nodes if evidence.queue else ""
            self._files.write(path, hung_name(life.number), encode(Hung(why=why, nodes=nodes)))
        if why:  # again, if the first one did not get through
            self._slurm.cancel(life)
        books = self._accounts.books(note, evidence, account)
        sighting, over = close(sighting, note.over, doubt, books, now, self._patience)
        if over is not None and over.account:
            self._accounts.note_final(path, note, evidence, account, books)
        if over != note.over:
            _note_over(path, life, over)
        self._remember(path, life.number, sighting)

    def _note_doubt(self, path: Path, doubt: Doubt | None) -> None:
        if doubt is None:
            self._files.remove(path, DOUBT_FILE)
        else:
            self._files.write(path, DOUBT_FILE, encode(doubt))

    def _give_up(self, directory: Path, life: Life) -> bool:
        """Whether no Slurm job has begun this life; then none ever will, however late it comes."""
        self._files.write(directory, NOBODY_FILE, f"{GIVEN_UP}\n".encode())
        place = self._files.place(directory)
        said = self._commands.run(["ln", f"{place}/{NOBODY_FILE}", f"{place}/owner.{life.number}"])
        if said.rc == 0:
            self._files.pull([directory])
            self._slurm.cancel(life)
        return said.rc == 0

    def _carry_wishes(self, paths: Iterable[Path], notes: dict[Path, Notes]) -> None:
        """The agent's wishes are files in its own job directory; the nodes may see another."""
        for path in paths:
            life = notes[path].life
            for wish in (STOP, FINISH):
                key = (path, life.number if life else 0, wish)
                if key in self._carried or not _is_empty(path / wish):
                    continue
                self._files.write(path, wish, b"")
                self._carried.add(key)

    # ---- memory

    def _remember(self, path: Path, life: int, sighting: Sighting) -> None:
        self._memory[path] = (life, sighting)

    def _knows(self, path: Path, note: Notes) -> bool:
        return path in self._memory and self._memory[path][0] == (
            note.life.number if _is_ours(note) and note.life else 0
        )

    def _forget_others(self, held: Iterable[Path]) -> None:
        """Attempts that were dropped meanwhile."""
        for path in self._memory.keys() - set(held):
            del self._memory[path]
            self._accounts.forget(path)
            self._pace.forget(path)
            self._carried = {key for key in self._carried if key[0] != path}


def _end_of(note: Notes) -> Sighting | None:
    """What is gone stays gone, also for the next agent, and is not asked for again."""
    return note.over.sighting if _is_ours(note) and note.over is not None and note.over.account else None


def _note_over(path: Path, life: Life, over: Over | None) -> None:
    name = path / over_name(life.number)
    with disk_errors(name):
        if over is None:
            name.unlink(missing_ok=True)
        else:
            write_bytes_atomically(name, encode(over))


def _is_ours(note: Notes) -> bool:
    return note.life is not None and note.life.host == HOST


def _owner(note: Notes) -> str:
    return note.owner if note.owner.isdecimal() else ""


def _stranger(note: Notes) -> Sighting:
    if note.life is None:
        return Sighting(seen=Seen.UNKNOWN, detail=f"the job directory has no readable {LIFE_FILE}")
    return Sighting(seen=Seen.UNKNOWN, detail=f"it was started on {note.life.host}, not by Slurm")


def _is_single(directory: Path) -> bool:
    try:
        return uses_one_process(decode((directory / "job.json").read_bytes(), Assignment, "job.json"))
    except (
        FileNotFoundError,
        BadInput,
    ):  # whoever staged it knows; a program without an order is run as it is
        return False


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return False
