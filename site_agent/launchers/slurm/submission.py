"""What did ``sbatch`` say: a job's id, a final no, or one that time may mend?

Pure. Slurm has no codes for it, only the words of slurm_errno.c and of options, and those of a site's own plugin.
"""

import re

from consortium.canonical import Fact
from site_agent.launchers.slurm.commands import Completed
from site_agent.launchers.slurm.words import never_starts

_LATER = (  # the controller, the database or the network could not be asked; nothing was done
    "unable to contact",
    "connection refused",
    "temporarily",
    "zero bytes",
    "slurmdbd",
    "problem talking to the database",
    "transport endpoint",
    "busy",
    "resource temporarily unavailable",
    "try again",
    "cannot allocate memory",
    "slurm backup controller in standby",
    "maxsubmit",  # QOSMaxSubmitJobPerUserLimit, AssocMaxSubmitJobLimit: too many at once
    "grpsubmit",
    "no route to host",
    "name or service not known",
    "partition not available",  # inactive or drained; the partition's configuration "not available now"
    "partition configuration not available",
    "reservation is invalid",  # it has not begun, or is being made anew
    "protocol authentication error",  # munge is down, or clocks are apart
    "invalid authentication credential",
    "munge",
)
#: What no time mends: the request itself, or who asks, is wrong. The words of slurm_errno.c, and of options.
_WRONG = (
    "invalid account",
    "invalid partition name",
    "not permitted to use this partition",
    "access/permission denied",
    "invalid qos",
    "requested node configuration is not available",
    "node count specification invalid",
    "invalid node count",
    "invalid node name",
    "cpu count per node can not be satisfied",
    "cpu count specification invalid",
    "memory specification can not be satisfied",
    "more processors requested than permitted",
    "requested topology configuration is not available",
    "generic resource (gres) specification",
    "trackable resource (tres) specification",
    "requested gres option unsupported",
    "requested time limit is invalid",
    "invalid time limit",
    "invalid feature",
    "invalid constraint",
    "invalid license",
    "unrecognized option",
    "invalid option",
    "requires an argument",
    "doesn't allow an argument",
    "option is ambiguous",
    "unknown option",
    "invalid --",  # --time=abc
    "is not a valid",  # --nodes=x
)
_UNSURE = ("timed out", "zero bytes", "connection reset", "unexpected message", "transport endpoint")
_ID = re.compile(r"([0-9]+)(;[A-Za-z0-9_.-]+)?")


class Submission(Fact):
    """What ``sbatch`` said; exactly one of the five is there."""

    id: str = ""
    refused: str = ""  #: final: the request itself is wrong
    later: str = ""  #: nothing was submitted, it may work later
    objects: str = ""  #: nothing was submitted, and it is not known whether time mends that
    unsure: str = ""  #: it may have been submitted


def read_submission(said: Completed) -> Submission:
    """Of ``sbatch --parsable``: ``id`` or ``id;cluster``, on a line of its own."""
    if said.rc == 0:
        for line in reversed(said.out.split("\n")):
            found = _ID.fullmatch(line.strip())
            if found:
                return Submission(id=found[1])
        return Submission(unsure=f"sbatch ended well and named no job: {said.in_one_line()}")
    words = f"{said.err}\n{said.out}".lower()
    if any(sign in words for sign in _UNSURE):
        return Submission(unsure=said.in_one_line())
    if any(sign in words for sign in _LATER) or _said_nothing(said, words):
        return Submission(later=said.in_one_line())
    if any(sign in words for sign in _WRONG) or never_starts(f"{said.err}\n{said.out}"):
        return Submission(refused=said.in_one_line())
    return Submission(objects=said.in_one_line())


def _said_nothing(said: Completed, words: str) -> bool:
    """Whether it was not sbatch that spoke: 126 and 127 are a shell's, 255 is ssh's, below zero a signal.

    sbatch leaves with 255, too, where it cannot read its own options; then it says so after its name.
    """
    own = [line for line in words.splitlines() if line.startswith("sbatch: ")]
    cannot_read = said.rc == 255 and any(sign in line for sign in _WRONG for line in own)
    return (said.rc in (126, 127, 255) and not cannot_read) or said.rc < 0 or not words.strip()
