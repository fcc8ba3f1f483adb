"""A version that takes until somebody says ``go``: what ``coordinator.making`` begins in its tests.

Run as a program it is one life of a coordinator: ``python slow_maker.py ORDER.json FOLDER`` prints the digest.
"""

import os
import signal
import sys
import time
from pathlib import Path

from consortium.canonical import Fact, decode
from consortium.errors import BadInput
from consortium.folders import fresh_folder
from consortium.manifests import VersionManifest
from consortium.versions import manifest_of
from coordinator import making_process
from coordinator.making import made

PROGRAM = "tests.slow_maker"  # from the root of the repository


class Work(Fact):
    text: str
    refused: str = ""


class SlowOrder(Fact):
    work: Work
    yard: str  #: a line in ``begun`` of each process that began; they wait for ``go``
    alone_seconds: float = 600.0
    falls: bool = False  #: by SIGKILL, with half a model on the disk


def make(order: SlowOrder, folder: Path) -> VersionManifest:
    making_process.ALONE_SECONDS = order.alone_seconds
    yard = Path(order.yard)
    with fresh_folder(folder) as model:
        (model / "model.bin").write_text(order.work.text)
        with open(yard / "begun", "a") as begun:
            begun.write(f"{os.getpid()}\n")
        while not (yard / "go").exists():
            time.sleep(0.01)
        if order.falls:
            os.kill(os.getpid(), signal.SIGKILL)
        if order.work.refused:
            raise BadInput(order.work.refused)
        (model / "config.json").write_text("{}")
    return manifest_of(folder)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        sys.exit(making_process.carry_out(SlowOrder, make))
    asked = decode(Path(sys.argv[1]).read_bytes(), SlowOrder)
    with made(PROGRAM, asked, Path(sys.argv[2])) as version:
        print(version.manifest.digest)
