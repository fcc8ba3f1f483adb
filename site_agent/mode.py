"""What the operator wants of the agent at the moment: work, finish and take nothing new, or hold everything.

``home/mode.json`` is written by ``site drain``, ``pause`` and ``resume`` and read by the agent at each look, so
it outlives the agent, and whoever runs as the site's user may write it.
"""

from pathlib import Path
from typing import Literal

from consortium.canonical import Fact, decode, encode
from consortium.errors import BadInput
from consortium.files import disk_errors, read_small, write_bytes_atomically

ModeName = Literal["work", "drain", "pause"]

_FILE = "mode.json"


class Mode(Fact):
    mode: ModeName = "work"
    reason: str = ""  #: the operator's words
    since: float = 0.0  #: seconds since the epoch

    @property
    def is_draining(self) -> bool:
        """Whether the coordinator is to send nothing new. A paused site could not begin it."""
        return self.mode != "work"

    @property
    def waits(self) -> str:
        """Why nothing may start now; "" if it may."""
        if self.mode != "pause":
            return ""
        return "the site's operator paused it" + (f": {self.reason}" if self.reason else "")


def read_mode(home: Path) -> Mode:
    """Raises BadInput for a file that cannot be read as one: then nobody knows what the operator wants."""
    path = f"{home}/{_FILE}"
    try:
        return decode(read_small(path), Mode, path)
    except FileNotFoundError:
        return Mode()
    except BadInput as error:
        raise BadInput(f"{error}; say it again with `sprachbund site drain`, `pause` or `resume`") from error


def write_mode(home: Path, mode: Mode) -> None:
    with disk_errors(home):
        write_bytes_atomically(home / _FILE, encode(mode))
