"""Slurm as a launcher: the shell around ``request`` (what to run) and ``answer`` and ``verdict`` (what became of it).

Nothing is remembered that must survive: the intent is on disk before ``sbatch``, and every opinion that is not
firm yet. In memory is only when Slurm was asked last and what it said, so that the controller gets one ``squeue``
for all jobs every ``poll_seconds``, and one ``sacct`` when one of them is missing there or its usage is due.
"""

import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from consortium.canonical import decode, encode, replace
from consortium.errors import BadInput, Refused, Unavailable
from consortium.jobs import Assignment
from policies.site_profile import SiteProfile
from site_agent.core.facts import Seen, Sighting, Usage
from site_agent.launchers.base import LIFE_FILE, USAGE_FILE, Life
from site_agent.launchers.slurm.answer import Account, Queue, QueueRow, State, state_of
from site_agent.launchers.slurm.commands import Commands, JobFiles
from site_agent.launchers.slurm.controller import Controller
from site_agent.launchers.slurm.notes import (
    DOUBT_FILE,
    GIVEN_UP,
    NOBODY_FILE,
    Hung,
    Intent,
    Notes,
    Objection,
    hung_name,
    objection_name,
    read_fact,
    read_notes,
    submitted_name,
)
from site_agent.launchers.slurm.request import (
    Request,
    batch_script,
    sbatch_line,
    script_name,
    uses_one_process,
)
from site_agent.launchers.slurm.verdict import (
    Evidence,
    Patience,
    hangs,
    judge,
    own_account,
    own_row,
    settle,
    usage_by_clock,
    usage_of,
)
from site_agent.trainer.folder import FINISH, STOP

HOST = "slurm"  #: in ``life.json``: whichever login node submits, Slurm is one

_log = logging.getLogger(__name__)

_ALL = Path()  # every directory
_BACK_OFF_MAX = 600.0  # seconds between questions to a controller that does not answer
_JITTER = 0.2  # of poll_seconds: agents of many sites, and cron, must not ask in step
_HOUR = 3600.0


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
        self._asked_at = -math.inf  # monotonic
        self._pause = 0.0
        self._failures = 0
        #: sbatch did not work a moment ago, for one directory or for all: until when (monotonic), and why
        self._refrain: dict[Path, tuple[float, str]] = {}
        self._memory: dict[Path, tuple[int, Sighting]] = {}
        self._told: dict[Path, tuple[int, float]] = {}  # life and start of which usage is written
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
        for until, why in (self._refrain.get(one, (-math.inf, "")) for one in (_ALL, directory)):
            if time.monotonic() < until:
                raise Unavailable(f"sbatch is not tried again yet: {why}")
        request = self.request(directory, life, exclude=notes.bad_nodes)
        tried = read_fact(directory / submitted_name(life), Intent)
        intent = tried or Intent(name=request.name, submitted_at=self._clock())
        note = Life(number=life, name=intent.name, host=HOST, submitted_at=intent.submitted_at)
        if tried is not None:  # a first sbatch may have succeeded after all
            with self._refraining():
                found = self._slurm.find(note)
            if found:
                self._write_life(directory, replace(note, native_id=found))
                return
        self._prepare(directory, request, intent, notes)
        self._write_life(directory, note)
        said = self._sbatch(directory, request, notes.life)
        self._write_life(directory, replace(note, native_id=said))
        self._refrain.pop(_ALL, None)
        self._refrain.pop(directory, None)
        self._remember(directory, life, Sighting(seen=Seen.PENDING, detail="submitted"))

    def poll(self, directories: Sequence[Path]) -> dict[Path, Sighting]:
        paths = {path: path.resolve() for path in directories}
        notes = {path: read_notes(path) for path in dict.fromkeys(paths.values())}
        self._forget_others(notes)
        open_ = [path for path in notes if not self._is_over(path, notes[path])]
        is_due = time.monotonic() - self._asked_at >= self._pause
        if open_ and (is_due or any(not self._knows(path, notes[path]) for path in open_)):
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
        self._pause = min(self._pause, 1.0)  # whoever cancels wants to see it gone

    # ---- submitting

    def _prepare(self, directory: Path, request: Request, intent: Intent, notes: Notes) -> None:
        """Everything that the life needs, durably and where the nodes see it, before it is intended."""
        if notes.life is not None and notes.life.host == HOST:
            self._slurm.cancel(notes.life)  # were it requeued behind our back, it would wait for nothing
        for wish in (STOP, FINISH):
            if not (directory / wish).exists():
                self._files.remove(directory, wish)
        self._files.push(directory)
        script = batch_script(request, self._profile)
        self._files.write(directory, script_name(request.life), script.encode())
        self._files.write(directory, submitted_name(request.life), encode(intent))

    def _sbatch(self, directory: Path, request: Request, before: Life | None) -> str:
        """The new job's id. What was surely not submitted is taken back, what may have been stays intended."""
        with self._refraining():
            said = self._slurm.submit(sbatch_line(request, self._profile))
            if said.id:
                return said.id
            if said.unsure:
                raise Unavailable(f"sbatch: {said.unsure}; the queue will tell whether it was submitted")
        if before is None:
            self._files.remove(directory, LIFE_FILE)
        else:
            self._write_life(directory, before)
        if said.refused:
            raise Refused(f"sbatch: {said.refused}; correct the site's profile (`slurm:` in its config)")
        if said.objects:
            self._bear(directory, request.life, said.objects)
        with self._refraining():
            raise Unavailable(f"sbatch: {said.later}")

    @contextlib.contextmanager
    def _refraining(self) -> Iterator[None]:
        """Around what asks the controller for a submission: it failing, by its words or its silence, it is spared."""
        try:
            yield
        except Unavailable as error:
            self._failures += 1
            self._refrain[_ALL] = (time.monotonic() + self._back_off(), str(error).removeprefix("sbatch: "))
            raise

    def _bear(self, directory: Path, life: int, why: str) -> NoReturn:
        """What may mend is tried again, ever more seldom, and is a refusal once it has lasted long enough."""
        now, path = self._clock(), directory / objection_name(life)
        first = read_fact(path, Objection)
        if first is None or first.since > now:
            first = Objection(since=now, why=why)
            self._files.write(directory, path.name, encode(first))
        seconds = now - first.since
        if seconds >= self._patience.objection_seconds:
            raise Refused(
                f"sbatch: {why} (for {seconds / 3600:.0f} hours); correct the site's profile (`slurm:` in its "
                "config), or ask the site"
            )
        pause = min(max(seconds, self.poll_seconds), _BACK_OFF_MAX)
        self._refrain[directory] = (time.monotonic() + pause, why)
        raise Unavailable(f"sbatch: {why}")

    def _write_life(self, directory: Path, life: Life) -> None:
        self._files.write(directory, LIFE_FILE, encode(life))

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
        self._asked_at = time.monotonic()
        self._failures = self._failures + 1 if queue.problem else 0
        self._pause = self._back_off()
        mine = {path: note for path in paths if _is_ours(note := notes[path])}
        rows = {
            path: own_row(queue.rows, note.life, _owner(note)) for path, note in mine.items() if note.life
        }
        asked = {} if queue.problem else {p: n for p, n in mine.items() if self._is_asked(p, n, rows[p])}
        account = self._account_of(asked)
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
                self._conclude(path, note, evidence)
                if path in asked:
                    self._account_for(path, note, evidence, account)
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

    def _conclude(self, path: Path, note: Notes, evidence: Evidence) -> None:
        life = evidence.life
        now = self._clock()
        opinion = judge(evidence)
        sighting, doubt = settle(opinion, life, note.doubt, now, self._patience)
        if doubt != note.doubt:
            self._note_doubt(path, doubt)
        if opinion.needs == "intent" and sighting.seen is Seen.GONE and not self._give_up(path, life):
            sighting = Sighting(seen=Seen.UNKNOWN, detail="a job of it has begun after all")
        if evidence.queue is not None and not life.native_id:
            self._write_life(path, replace(life, native_id=evidence.queue.id))
        why = hangs(evidence, doubt, now, self._patience)
        if why and not note.hung:
            _log.warning("%s: %s; it is cancelled and may start elsewhere", life.name, why)
            nodes = evidence.queue.nodes if evidence.queue else ""
            self._files.write(path, hung_name(life.number), encode(Hung(why=why, nodes=nodes)))
        if why:  # again, if the first one did not get through
            self._slurm.cancel(life)
        self._remember(path, life.number, sighting)

    def _note_doubt(self, path: Path, doubt: object) -> None:
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

    # ---- what was used

    def _is_asked(self, path: Path, note: Notes, row: QueueRow | None) -> bool:
        """Whether accounting is to be asked: the queue has no living job of it, or one that has just begun."""
        if row is None or state_of(row.state) is not State.ACTIVE:
            return row is None or state_of(row.state) is State.FINAL
        assert note.life is not None
        return row.starts is not None and self._told.get(path) != (note.life.number, row.starts)

    def _account_for(self, path: Path, note: Notes, evidence: Evidence, account: Account) -> None:
        """Write down what the attempt used so far. A wrong number is worse than an old one."""
        gpus = self._profile.gpus_per_node * self._profile.nodes
        names = {intent.name for intent in note.intents}
        first = min((intent.submitted_at for intent in note.intents), default=0.0)
        usage = usage_of(
            (row for row in account.rows if row.name in names and (row.submitted or first) >= first - _HOUR),
            gpus,
        )
        row = evidence.queue or evidence.job
        began = row.starts if row is not None and state_of(row.state) is not State.PENDING else None
        if usage is None:
            queued = max(0.0, began - first) if began and evidence.life.number == 1 else 0.0
            usage = usage_by_clock(note.ends, gpus, note.usage or Usage(), queued)
        if usage != note.usage:
            self._files.write(path, USAGE_FILE, encode(usage))
        if began is not None:
            self._told[path] = (evidence.life.number, began)

    def _account_of(self, notes: dict[Path, Notes]) -> Account:
        """All lives of these attempts, in one question."""
        known = {intent.name: intent.submitted_at for note in notes.values() for intent in note.intents}
        known |= {note.life.name: note.life.submitted_at for note in notes.values() if note.life}
        return self._slurm.account(sorted(known), min(known.values(), default=0.0))

    # ---- memory

    def _remember(self, path: Path, life: int, sighting: Sighting) -> None:
        self._memory[path] = (life, sighting)

    def _knows(self, path: Path, note: Notes) -> bool:
        return path in self._memory and self._memory[path][0] == (
            note.life.number if _is_ours(note) and note.life else 0
        )

    def _is_over(self, path: Path, note: Notes) -> bool:
        """What is gone stays gone, and is not asked for again."""
        return self._knows(path, note) and self._memory[path][1].seen is Seen.GONE

    def _forget_others(self, held: Iterable[Path]) -> None:
        """Attempts that were dropped meanwhile."""
        for path in self._memory.keys() - set(held):
            del self._memory[path]
            self._told.pop(path, None)
            self._refrain.pop(path, None)
            self._carried = {key for key in self._carried if key[0] != path}

    def _back_off(self) -> float:
        """Seconds until the next question: never in step with others, ever longer while nobody answers."""
        base = min(self.poll_seconds * 2.0 ** min(self._failures, 20), max(_BACK_OFF_MAX, self.poll_seconds))
        return base * random.uniform(1 - _JITTER, 1 + _JITTER)


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
