"""What a process that makes a version is told, what it leaves behind, and until when it goes on.

It outlives the coordinator that began it, so it speaks by files in its folder (``making.py`` has the list), and asks
a file again and again whether it is still wanted: an id of a process may be another's by then.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from consortium.canonical import Fact, decode, digest_of_fact, encode
from consortium.errors import BadInput, Refused, SprachbundError
from consortium.files import write_bytes_atomically
from consortium.ids import Digest
from consortium.jobs import Merge
from consortium.manifests import VersionManifest

ORDER, WANTED, SAID, MODEL, RESULT = "order.json", "wanted", "said", "model", "result.json"
#: that a process goes on though no coordinator says that it is wanted: long enough to start one by hand
ALONE_SECONDS = 600.0
_LOOK_SECONDS = 0.25


class Order(Protocol):
    """What to make, whatever the machine; the other fields say where its parts lie on this one."""

    @property
    def work(self) -> Fact: ...


class Base(Fact):
    """What a base is made from, and nothing else: the same facts give the same bytes."""

    config: dict[str, Any]
    seed: int
    tokenizer: Digest
    shard_bytes: int


class BaseOrder(Fact):
    work: Base
    tokenizer_json: str  #: where it lies


class MergeOrder(Fact):
    """Everything the merge needs, and only paths it may read."""

    work: Merge
    base_dir: str
    blobs: dict[Digest, str]  #: where deltas and outer state lie


class Result(Fact):
    work: Digest  #: of what was asked for
    manifest: VersionManifest | None = None
    refusal: str = ""  #: why there will never be one


AnyOrder = TypeVar("AnyOrder", bound=Order)


def carry_out(kind: type[AnyOrder], make: Callable[[AnyOrder, Path], VersionManifest]) -> int:
    """Make what the order in the folder ``argv[1]`` asks for; the process's exit status.

    make  fills the folder it is given, which is not there yet, and syncs it
    """
    place = Path(sys.argv[1])
    threading.Thread(target=_end_when_unwanted, args=(place / WANTED,), daemon=True).start()
    try:
        order = decode((place / ORDER).read_bytes(), kind, "order")
        work = digest_of_fact(order.work)
        try:
            result = Result(work=work, manifest=make(order, place / MODEL))
        except (BadInput, Refused) as refusal:
            result = Result(work=work, refusal=str(refusal))
        write_bytes_atomically(place / RESULT, encode(result))
    except SprachbundError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _end_when_unwanted(wanted: Path) -> None:
    """End this process once ``wanted`` was taken away, or not touched for long by a clock that nobody sets."""
    seen, since = -1, time.monotonic()
    while True:
        try:
            touched = wanted.stat().st_mtime_ns
        except FileNotFoundError:
            os._exit(1)
        except OSError:  # a disk that does not answer says nothing
            touched = seen
        if touched != seen:
            seen, since = touched, time.monotonic()
        elif time.monotonic() - since > ALONE_SECONDS:
            os._exit(1)
        time.sleep(_LOOK_SECONDS)
