"""The errors of Sprachbund, drawn as a tree. Each says whose fault it is and whether trying again can help.

    SprachbundError
    ├── BadInput        a person or another party gave us something wrong; trying again will not help
    │   └── Corrupt     bytes are not what their digest, signature or format says
    ├── Refused         well formed, but a rule says no; the reason names the rule and the way out
    │   ├── Superseded  a newer agent of the same site has taken over; this one has to leave
    │   └── TooOften    done as often as a budget allows; it says in how many seconds once more is allowed
    ├── Unavailable     the world is not ready (network, disk, another process); try again later
    │   └── DiskFull    no room left; free some, then try again
    └── Broken          our own promise does not hold (ledger chain, replay); stop and call someone

``ValueError`` and ``assert`` keep their usual meaning for programmers. What a network may do
(lose, repeat, delay) is normal and has no exception here.
"""


class SprachbundError(Exception):
    """Base of all; ``str()`` of it is a whole sentence for a person: the value, the rule, the way out."""

    exit_code = 1


class BadInput(SprachbundError):
    exit_code = 2


class Corrupt(BadInput):
    exit_code = 3


class Refused(SprachbundError):
    exit_code = 4


class Superseded(Refused):
    exit_code = 8


class TooOften(Refused):
    def __init__(self, sentence: str, again_seconds: float = 0.0) -> None:
        """again_seconds: after which it may be done once more; 0: nobody said."""
        super().__init__(sentence)
        self.again_seconds = again_seconds


class Unavailable(SprachbundError):
    exit_code = 5


class DiskFull(Unavailable):
    exit_code = 6


class Broken(SprachbundError):
    exit_code = 7
