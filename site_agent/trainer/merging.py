"""How a site merges a round's contributions: the same function as the coordinator's, so the same bytes."""

from collections.abc import Callable

from consortium.canonical import encode, replace
from consortium.files import write_bytes_atomically
from consortium.jobs import Merge
from consortium.merging.job import make_version
from consortium.store import ref_of
from consortium.versions import VERSION, model_file
from site_agent.trainer.folder import JobFolder, ProgressLog, Stopped, write_contribution

_STEPS = 100  # progress is told in per cent


def merge_round(folder: JobFolder, work: Merge, wish: Callable[[], bool]) -> None:
    """Do the merge job in ``folder``; its result is there when this returns.

    Asked to stop it leaves nothing behind and raises Stopped: a merge takes minutes and begins anew.
    """
    log = ProgressLog(folder.path, _STEPS)
    log.report(0, 0, None, now=True)

    def progress(done: int, total: int) -> None:
        if wish():
            raise Stopped
        log.report(_STEPS * done // max(1, total), 0, None)

    with folder.result() as result:
        version = make_version(
            work, folder.base, folder.input, result / "model", threads=folder.site.threads, progress=progress
        )
        path = result / "version.json"
        write_bytes_atomically(path, encode(version))
        files = {model_file(name): ref for name, ref in {**version.files, **version.outer_state}.items()}
        contribution = folder.contribution({VERSION: ref_of(path), **files})
        write_contribution(result, replace(contribution, base=work.base))
    log.report(_STEPS, 0, None, now=True)
