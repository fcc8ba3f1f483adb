"""One merge in a process of its own: order on stdin, version manifest on stdout, errors on stderr.

Apart from the coordinator, so that gigabytes never touch its memory or its event loop, and it ends with it.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

from consortium.canonical import Fact, decode, encode
from consortium.errors import SprachbundError
from consortium.ids import Digest
from consortium.jobs import Merge
from consortium.merging.job import make_version

_PR_SET_PDEATHSIG = 1  # prctl(2)


class MergeOrder(Fact):
    """Everything the merge needs, and only paths it may read or make."""

    work: Merge
    base_dir: str
    blobs: dict[Digest, str]  #: where deltas and outer state lie
    out_dir: str


def die_with_parent() -> bool:
    """Have this process killed once the one that began it is gone; False if it went before we asked."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def main() -> int:
    if not die_with_parent():
        return 1
    order = decode(sys.stdin.buffer.read(), MergeOrder, "merge order")
    try:
        made = make_version(
            order.work, Path(order.base_dir), lambda digest: Path(order.blobs[digest]), Path(order.out_dir)
        )
    except SprachbundError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    sys.stdout.buffer.write(encode(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
