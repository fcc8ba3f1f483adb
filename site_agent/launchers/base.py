"""How a job gets onto a machine: what an agent asks of a launcher, and what each must promise.

An attempt's directory is all that agent and launcher share. A *life* is one start of the trainer in it.
The promises, which one contract test suite asks of every launcher:

1. Intent first. ``submit`` writes ``life.json`` with the life's number and the name it can be found by,
   durably, before anything is started, and notes the native id after.
2. One start a life. However often, and by however many agents, a life is submitted, at most one process of
   it ever does work. A crash between start and note is healed by looking for the name, not by a second start.
3. Poll answers for all at once. ``GONE`` is said only when no process of the newest life is left, none will
   start any more, and ``usage.json`` is final: the agent reports it and drops the directory, and no later look
   changes it. Whatever cannot be known is ``UNKNOWN``, with the reason.
4. A life outlives the agent that started it, and owes it nothing: no pipe, no terminal, no secret.
5. Cancel asks nothing of the job. Cancelling what is gone, or twice, does no harm.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from consortium.canonical import Fact
from site_agent.core.facts import Sighting

LIFE_FILE = "life.json"
USAGE_FILE = "usage.json"  #: ``Usage``, canonical JSON, kept by the launcher


class Life(Fact):
    """``life.json``: the newest start of an attempt, intended or made."""

    number: int  #: from 1
    name: str  #: what the life can be found by
    host: str  #: where it was submitted
    boot: str = ""  #: of that host, where the launcher's memory ends with it
    native_id: str = ""  #: a pid and when it began, a Slurm job id; "": intended, perhaps started
    submitted_at: float = 0.0  #: epoch seconds by the submitting host's clock


class Launcher(Protocol):
    @property
    def poll_seconds(self) -> float:
        """How old an answer may be; the agent looks at least this often."""

    def submit(self, directory: Path, life: int) -> None:
        """Start life ``life`` of the attempt in ``directory``; nothing if it was started already.

        Raises Refused if the system will never start this (the reason says what to change), Unavailable if it
        might later.
        """

    def poll(self, directories: Sequence[Path]) -> dict[Path, Sighting]:
        """What is seen of the newest life in each directory. Each must have been submitted.

        Called more often than ``poll_seconds``: who asks a batch system answers from memory in between.
        """

    def cancel(self, directory: Path) -> None:
        """Take the newest life in ``directory`` out of the queue, or kill all of its processes."""
