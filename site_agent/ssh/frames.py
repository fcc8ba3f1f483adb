"""What the scripts that look at job directories answer: a line ``kind offset size name``, then ``size`` bytes.

J  a job directory begins; its name is y or n: whether it is there (or, of HELD, the directory itself)
A  bytes of a growing file, from ``offset`` on          W  a whole small file
P  a file of which only the name matters; no bytes      R  a file of the result; its size, and no bytes
Z  the end
"""

from collections.abc import Iterator

from consortium.canonical import Fact
from consortium.errors import Unavailable

_KINDS = b"JAWPRZ"
_WITH_BYTES = "AW"


class Frame(Fact):
    kind: str
    name: str
    offset: int = 0
    size: int = 0
    data: bytes = b""


def frames(answer: bytes) -> Iterator[Frame]:
    """The frames of a whole answer. Raises Unavailable if a file changed under the script, so that it is garbled."""
    at = 0
    while True:
        line, newline, _ = answer[at : at + 4200].partition(b"\n")
        words = line.split(b" ", 3)
        if not newline or len(words) != 4 or words[0] not in {bytes([kind]) for kind in _KINDS}:
            raise Unavailable("a job directory changed while it was read; it is read again")
        kind, name = words[0].decode(), words[3].decode(errors="surrogateescape")
        try:
            offset, size = int(words[1]), int(words[2])
        except ValueError:
            raise Unavailable("a job directory changed while it was read; it is read again") from None
        at += len(line) + 1
        if kind == "Z":
            return
        data = answer[at : at + size] if kind in _WITH_BYTES else b""
        at += len(data)
        yield Frame(kind=kind, name=name, offset=offset, size=size, data=data)
