"""One merge in a process of its own: order on stdin, version manifest on stdout, progress and errors on stderr.

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
from consortium.manifests import FileRef
from consortium.merging.merge import MergeInput, merge
from consortium.merging.recipe import Recipe

_PR_SET_PDEATHSIG = 1  # prctl(2)


class MergeOrder(Fact):
    """Everything the merge needs, and only paths it may read or make."""

    base: Digest
    base_dir: str
    inputs: tuple[tuple[str, FileRef, int], ...]  #: path, ref, weight
    momentum: str | None
    recipe: Recipe
    out_dir: str
    threads: int = 2


def main() -> int:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        return 1
    order = decode(sys.stdin.buffer.read(), MergeOrder, "merge order")
    try:
        result = merge(
            Path(order.base_dir),
            [MergeInput(Path(path), ref, weight) for path, ref, weight in order.inputs],
            Path(order.momentum) if order.momentum else None,
            order.recipe,
            Path(order.out_dir),
            threads=order.threads,
        )
    except SprachbundError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    sys.stdout.buffer.write(encode(result.manifest_onto(order.base)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
