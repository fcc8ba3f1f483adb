"""What a job directory says of its lives in Slurm: the launcher's notes, and what the batch script left.

life.json                       the newest life (``Life``)
submitted.<life>.json           an intent and its time, from before the first ``sbatch`` of that life, for good
objection.<life>.json           since when ``sbatch`` says no to it in words not known to be final (``Objection``)
doubt.json                      an opinion that is not firm yet (``Doubt``)
over.<life>.json                its end, believed or known (``Over``); here only, never at a site behind SSH: who
                                takes the directory back from there has to fetch its result first
hung.<life>.json                why the launcher cancelled it, and the nodes it hung on
owner.<life>                    the Slurm job whose life it is; the launcher's own word if it gave the life up
started.<life>.<restart>        made by the batch script when it begins
end.<life>.<restart>.json       made by it when it ends (``LifeEnd``)
"""

import contextlib
import re
from pathlib import Path
from typing import TypeVar

from consortium.canonical import Fact, decode
from consortium.errors import BadInput
from consortium.files import disk_errors
from site_agent.core.facts import Usage
from site_agent.launchers.base import LIFE_FILE, USAGE_FILE, Life
from site_agent.launchers.slurm.usage import LifeEnd
from site_agent.launchers.slurm.verdict import Doubt, Over
from site_agent.trainer.folder import CONTINUE

DOUBT_FILE = "doubt.json"
GIVEN_UP = "given up"  #: as the owner of a life that no Slurm job may begin any more
NOBODY_FILE = ".nobody"  #: says so, and becomes ``owner.<life>`` by a link

_T = TypeVar("_T", bound=Fact)
_STARTED = re.compile(r"started\.([0-9]+)\.([0-9]+)")
_END = re.compile(r"end\.([0-9]+)\.([0-9]+)\.json")
_SUBMITTED = re.compile(r"submitted\.([0-9]+)\.json")


class Intent(Fact):
    """``submitted.<life>.json``."""

    name: str
    submitted_at: float  #: epoch seconds, of the first try


class Objection(Fact):
    """``objection.<life>.json``."""

    since: float  #: epoch seconds
    why: str  #: the first time


class Hung(Fact):
    """``hung.<life>.json``."""

    why: str
    nodes: str = ""


class Notes(Fact):
    """One directory, read once."""

    life: Life | None
    doubt: Doubt | None = None
    over: Over | None = None  #: of the newest life
    begun: tuple[str, ...] = ()  #: the Slurm job of each start of all lives, where it is known
    owner: str = ""
    has_begun: bool = False  #: the newest restart of the newest life
    end: LifeEnd | None = None  #: of that restart
    ends: tuple[LifeEnd, ...] = ()  #: of all lives
    intents: tuple[Intent, ...] = ()  #: of all lives
    hung: Hung | None = None  #: of the newest life
    bad_nodes: tuple[str, ...] = ()  #: of all lives
    continues: bool = False
    usage: Usage | None = None


def submitted_name(life: int) -> str:
    return f"submitted.{life}.json"


def objection_name(life: int) -> str:
    return f"objection.{life}.json"


def hung_name(life: int) -> str:
    return f"hung.{life}.json"


def over_name(life: int) -> str:
    return f"over.{life}.json"


def read_notes(directory: Path) -> Notes:
    """Raises Unavailable if the file system does not answer. What cannot be decoded counts as not there."""
    with disk_errors(directory):
        names = sorted(entry.name for entry in directory.iterdir())
    life = read_fact(directory / LIFE_FILE, Life)
    number = life.number if life else 0
    marks = [
        (int(found[1]), int(found[2])) for name in names if (found := _STARTED.fullmatch(name)) is not None
    ]
    started = [restart for of, restart in marks if of == number]
    owners = {of: _word(directory / f"owner.{of}") for of, _ in marks}
    ends = [read_fact(directory / name, LifeEnd) for name in names if _END.fullmatch(name)]
    known = tuple(end for end in ends if end is not None)
    newest = max([*started, *(end.restart for end in known if end.life == number)], default=-1)
    intents = [read_fact(directory / name, Intent) for name in names if _SUBMITTED.fullmatch(name)]
    hung = [read_fact(directory / name, Hung) for name in names if name.startswith("hung.")]
    return Notes(
        life=life,
        doubt=read_fact(directory / DOUBT_FILE, Doubt),
        over=read_fact(directory / over_name(number), Over),
        begun=tuple(owners[of] for of, _ in sorted(marks) if owners[of].isdecimal()),
        owner=_word(directory / f"owner.{number}"),
        has_begun=newest >= 0,
        end=next((end for end in known if (end.life, end.restart) == (number, newest)), None),
        ends=known,
        intents=tuple(intent for intent in intents if intent is not None),
        hung=read_fact(directory / hung_name(number), Hung),
        bad_nodes=tuple(sorted({one.nodes for one in hung if one is not None and one.nodes})),
        continues=CONTINUE in names,
        usage=read_fact(directory / USAGE_FILE, Usage),
    )


def read_fact(path: Path, kind: type[_T]) -> _T | None:
    """None if there is no such file, or none that can be decoded."""
    with disk_errors(path), contextlib.suppress(FileNotFoundError, BadInput):
        return decode(path.read_bytes(), kind, str(path))
    return None


def _word(path: Path) -> str:
    with disk_errors(path), contextlib.suppress(FileNotFoundError):
        return path.read_text(errors="replace").strip()
    return ""
