"""How Slurm is asked: one method a question, one command each; what cannot be answered is a value or Unavailable."""

import math
from collections.abc import Callable, Sequence

from consortium.errors import Unavailable
from site_agent.launchers.base import Life
from site_agent.launchers.slurm import answer
from site_agent.launchers.slurm.answer import Account, AccountRow, Queue, QueueRow
from site_agent.launchers.slurm.commands import Commands
from site_agent.launchers.slurm.submission import Submission, read_submission
from site_agent.launchers.slurm.verdict import own_account, own_row
from site_agent.launchers.slurm.words import State, first_word, state_of

_HOUR = 3600  # seconds that sacct looks back beyond a submission: clocks differ


class Controller:
    """The user's view of one Slurm.

    clock  epoch seconds
    """

    def __init__(self, commands: Commands, clock: Callable[[], float]) -> None:
        self._commands = commands
        self._clock = clock
        self._uid = ""
        self._has_accounting = True

    def submit(self, line: Sequence[str]) -> Submission:
        """Raises Unavailable if it cannot be known whether ``sbatch`` had its effect."""
        return read_submission(self._commands.run(line))

    def queue(self) -> Queue:
        """All jobs of this user, in one question."""
        try:
            said = self._commands.run(["squeue", "-h", "--me", "-t", "all", "-o", answer.QUEUE_FORMAT])
        except Unavailable as error:
            return Queue(problem=str(error))
        return answer.read_queue(said)

    def account(self, names: Sequence[str], since: float) -> Account:
        """Every start of the jobs of these names that were in the system after ``since``, in one question.

        A site without accounting is asked once. ``now-<seconds>`` needs no time zone, and a clock that is
        wrong by less than an hour does no harm.
        """
        if not self._has_accounting:
            return Account(problem="this site keeps no accounting", is_off=True)
        if not names:
            return Account()
        back = max(0, math.ceil(self._clock() - since)) + _HOUR
        line = ["sacct", "-n", "-X", "-P", "-D", "-S", f"now-{back}", f"--name={','.join(sorted(names))}"]
        try:
            said = self._commands.run([*line, "-u", self._user(), "-o", ",".join(answer.ACCOUNT_FIELDS)])
        except Unavailable as error:
            return Account(problem=str(error))
        account = answer.read_account(said)
        self._has_accounting = not account.is_off
        return account

    def job(self, id_: str, life: Life) -> QueueRow | None:
        """What the controller still knows of a job that is out of the queue; for sites without accounting.

        Raises Unavailable, or ValueError with what was said instead.
        """
        row = answer.read_job(self._commands.run(["scontrol", "show", "job", "-o", id_])) if id_ else None
        return own_row([row], life) if row is not None else None

    def find(self, life: Life) -> str:
        """The id of a Slurm job that was submitted for this life; "" if there is none.

        A submission that was refused may have left a record that never started; it is none.
        Raises Unavailable if that cannot be known now.
        """
        queue = self.queue()
        row = own_row(queue.rows, life)
        if row is not None and (state_of(row.state) is not State.FINAL or _was_taken(row)):
            return row.id
        if queue.problem or not queue.is_whole:
            raise Unavailable(f"squeue: {queue.problem or 'its answer was not whole'}")
        account = self.account([life.name], life.submitted_at)
        if account.problem and not account.is_off:
            raise Unavailable(f"sacct: {account.problem}")
        past = own_account(account.rows, life)
        return past.id if past is not None and _was_taken(past) else ""

    def cancel(self, life: Life) -> None:
        """By name, which no other job has: ids are given twice. Raises Unavailable."""
        line = ["scancel", f"--user={self._user()}", f"--name={life.name}"]
        problem = answer.read_cancellation(self._commands.run(line))
        if problem:
            raise Unavailable(f"scancel: {problem}")

    def _user(self) -> str:
        if not self._uid:
            said = self._commands.run(["id", "-u"])
            if said.rc != 0 or not said.out.strip().isdecimal():
                raise Unavailable(f"`id -u` said {said.out.strip()[:80]!r} {said.err.strip()[:200]!r}")
            self._uid = said.out.strip()
        return self._uid


def _was_taken(row: QueueRow | AccountRow) -> bool:
    return bool(row.nodes) or first_word(row.state) != "FAILED"
