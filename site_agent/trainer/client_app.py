"""How a Flower ClientApp answers one message, in a job directory: any app, unmodified, its mods included.

The app runs in this process and must be installed where it runs; nothing is fetched. Its ``Context.state`` comes from
the reply before this one and goes, with the reply, to the agent, who keeps it at the site. Random numbers of Python,
NumPy and torch are seeded by the job's name, so that an attempt that had to be made again gives the same reply as far
as the app is deterministic otherwise.
"""

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consortium.canonical import encode, replace
from consortium.errors import BadInput
from consortium.files import write_bytes_atomically
from consortium.flower.dice import seed
from consortium.flower.letters import ARRAYS, LETTER, LETTER_BYTES_MAX, read_letter
from consortium.flower.runs import run_number
from consortium.ids import digest_of
from consortium.jobs import FlowerMessage
from consortium.manifests import FileRef
from consortium.store import ref_of
from site_agent.trainer.folder import (
    CONTINUE_LATER,
    STATE,
    JobFolder,
    ProgressLog,
    Stopped,
    write_contribution,
)

if TYPE_CHECKING:
    from consortium.flower.compat import RecordDict

_BEAT_SECONDS = 2.0
_LINE_SECONDS = 60.0  # the agent takes an hour without a line for a hang; of an app nothing else is known


def answer(folder: JobFolder, work: FlowerMessage, wish: Callable[[], bool]) -> None:
    """Have the app answer the message in ``folder``; the result is there when this returns.

    wish  whether the job is asked to leave: this process then ends at once, and the message is begun anew
    Raises BadInput for an app that the site does not run, that is not installed, or that is no ClientApp; what the
    app raises goes on.
    """
    if work.app not in folder.site.flower.apps:
        raise BadInput(f"{folder.path}: the site does not run the Flower app {work.app}")
    if wish():
        raise Stopped
    seed(folder.job.job)
    with _watched(folder, wish):
        from consortium.flower import carrying, compat

        node, run = work.node, run_number(folder.job.campaign)
        compat.be(run, node)
        app = load(work.app)
        letter = read_letter(_limited(folder.input(work.letter.digest)), f"letter {work.letter.digest}")
        message = compat.instruction(
            carrying.unpack(letter, lambda ref: folder.input(ref.digest)),
            run=run,
            node=node,
            message_id=folder.job.job,
            message_type=work.message_type,
            group=work.group,
        )
        before = folder.path / STATE
        held = before.is_file() and work.state == digest_of(before.read_bytes())
        if work.state is not None and not held:
            print(f"{before}: the app's Context.state is not here; it begins without", file=sys.stderr)
        context = compat.Context(
            run_id=run,
            node_id=node,
            node_config=dict(folder.site.flower.node_config),
            state=compat.records_from_bytes(before.read_bytes(), STATE) if held else compat.RecordDict(),
            run_config=dict(work.run_config),
        )
        reply = app(message, context)
        if not isinstance(reply, compat.Message) or not reply.has_content():
            raise BadInput(
                f"the Flower app {work.app} gave no reply with content, but {type(reply).__name__}"
            )
        _deliver(folder, work if held else replace(work, state=None), reply.content, context.state)


def _deliver(folder: JobFolder, work: FlowerMessage, content: "RecordDict", state: "RecordDict") -> None:
    from consortium.flower import carrying, compat

    with folder.result() as result:
        arrays = result / ARRAYS
        arrays.mkdir()

        def keep(parcel: Path) -> FileRef:
            ref = ref_of(parcel)
            os.replace(parcel, arrays / ref.digest)
            return ref

        letter = carrying.pack(content, result / "parcel", keep)
        path = result / "letter.json"
        write_bytes_atomically(path, encode(letter))
        parcels = {f"{ARRAYS}{ref.digest}": ref for ref in letter.parcels}
        contribution = folder.contribution({LETTER: ref_of(path), **parcels})
        kept = compat.records_to_bytes(state) if state else None
        if kept is not None:
            write_bytes_atomically(result / STATE, kept)
        contribution = replace(
            contribution,
            residual_before=work.state,
            residual=digest_of(kept) if kept is not None else None,
            software={"flwr": compat.installed_release() or ""},
        )
        write_contribution(result, contribution)


def load(reference: str) -> Any:
    """The ClientApp that ``module:attribute`` names. Raises BadInput if it is not installed, or is none."""
    from consortium.flower.compat import ClientApp

    module, _, names = reference.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise BadInput(
            f"the Flower app {reference} cannot be loaded ({error}); install it where the jobs run"
        ) from error
    if not isinstance(found, ClientApp):
        raise BadInput(f"{reference} is a {type(found).__name__}, no Flower ClientApp")
    return found


@contextlib.contextmanager
def _watched(folder: JobFolder, wish: Callable[[], bool]) -> Iterator[None]:
    """Say that the app lives, and end the process when it is asked to leave: an app cannot be asked."""
    over = threading.Event()
    log = ProgressLog(folder.path, 1)
    log.report(0, 0, None, now=True)

    def watch() -> None:
        quiet = 0.0
        while not over.wait(_BEAT_SECONDS):
            if wish():
                os._exit(CONTINUE_LATER)  # nothing of the result is there before it is renamed into place
            quiet += _BEAT_SECONDS
            if quiet >= _LINE_SECONDS:
                quiet = 0.0
                log.report(0, 0, None, now=True)

    watcher = threading.Thread(target=watch, name="wishes", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    log.report(1, 0, None, now=True)


def _limited(path: Path) -> bytes:
    if path.stat().st_size > LETTER_BYTES_MAX:
        raise BadInput(f"{path}: {path.stat().st_size} bytes; a letter has at most {LETTER_BYTES_MAX}")
    return path.read_bytes()
