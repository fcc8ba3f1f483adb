"""How does a life get to Slurm once, whatever is lost on the way?

The intent is on disk before ``sbatch``. What may have been submitted is looked for by its name before anything is
submitted again; what surely was not is taken back, so that it costs no life.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from consortium.canonical import encode, replace
from consortium.errors import Refused, Unavailable
from policies.site_profile import SiteProfile
from site_agent.launchers.base import LIFE_FILE, Life
from site_agent.launchers.slurm.commands import JobFiles
from site_agent.launchers.slurm.controller import Controller
from site_agent.launchers.slurm.notes import (
    Intent,
    Notes,
    Objection,
    objection_name,
    read_fact,
    submitted_name,
)
from site_agent.launchers.slurm.pace import Pace
from site_agent.launchers.slurm.request import Request, batch_script, sbatch_line, script_name
from site_agent.trainer.folder import FINISH, STOP

HOST = "slurm"  #: in ``life.json``: whichever login node submits, Slurm is one


class Submitter:
    """Of one site.

    objection_seconds  how long ``sbatch`` may say no in words that are not known to be final
    clock              epoch seconds
    """

    def __init__(
        self,
        profile: SiteProfile,
        slurm: Controller,
        files: JobFiles,
        pace: Pace,
        objection_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._profile = profile
        self._slurm = slurm
        self._files = files
        self._pace = pace
        self._objection_seconds = objection_seconds
        self._clock = clock

    def submit(self, directory: Path, request: Request, notes: Notes) -> None:
        """Start the request's life. Raises Refused, or Unavailable if it may work later."""
        self._pace.check(directory)
        tried = read_fact(directory / submitted_name(request.life), Intent)
        intent = tried or Intent(name=request.name, submitted_at=self._clock())
        note = Life(number=request.life, name=intent.name, host=HOST, submitted_at=intent.submitted_at)
        if tried is not None:  # a first sbatch may have succeeded after all
            with self._refraining():
                found = self._slurm.find(note)
            if found:
                self.note(directory, replace(note, native_id=found))
                return
        self._prepare(directory, request, intent, notes)
        self.note(directory, note)
        said = self._sbatch(directory, request, notes.life)
        self.note(directory, replace(note, native_id=said))
        self._pace.worked(directory)

    def note(self, directory: Path, life: Life) -> None:
        self._files.write(directory, LIFE_FILE, encode(life))

    def _prepare(self, directory: Path, request: Request, intent: Intent, notes: Notes) -> None:
        """Everything that the life needs, durably and where the nodes see it, before it is intended."""
        if notes.life is not None and notes.life.host == HOST:
            self._slurm.cancel(notes.life)  # were it requeued behind our back, it would wait for nothing
        for wish in (STOP, FINISH):
            if not (directory / wish).exists():
                self._files.remove(directory, wish)
        self._files.push(directory)
        script = batch_script(request, self._profile)
        self._files.write(directory, script_name(request.life), script.encode())
        self._files.write(directory, submitted_name(request.life), encode(intent))

    def _sbatch(self, directory: Path, request: Request, before: Life | None) -> str:
        """The new job's id. What was surely not submitted is taken back, what may have been stays intended."""
        with self._refraining():
            said = self._slurm.submit(sbatch_line(request, self._profile))
            if said.id:
                return said.id
            if said.unsure:
                raise Unavailable(f"sbatch: {said.unsure}; the queue will tell whether it was submitted")
        if before is None:
            self._files.remove(directory, LIFE_FILE)
        else:
            self.note(directory, before)
        if said.refused:
            raise Refused(f"sbatch: {said.refused}; correct the site's profile (`slurm:` in its config)")
        if said.objects:
            self._bear(directory, request.life, said.objects)
        with self._refraining():
            raise Unavailable(f"sbatch: {said.later}")

    @contextlib.contextmanager
    def _refraining(self) -> Iterator[None]:
        """Around what asks the controller for a submission: it failing, by its words or its silence, it is spared."""
        try:
            yield
        except Unavailable as error:
            self._pace.failed(str(error).removeprefix("sbatch: "))
            raise

    def _bear(self, directory: Path, life: int, why: str) -> NoReturn:
        """What may mend is tried again, ever more seldom, and is a refusal once it has lasted long enough."""
        now, path = self._clock(), directory / objection_name(life)
        first = read_fact(path, Objection)
        if first is None or first.since > now:
            first = Objection(since=now, why=why)
            self._files.write(directory, path.name, encode(first))
        seconds = now - first.since
        if seconds >= self._objection_seconds:
            raise Refused(
                f"sbatch: {why} (for {seconds / 3600:.0f} hours); correct the site's profile (`slurm:` in its "
                "config), or ask the site"
            )
        self._pace.refrain(directory, seconds, why)
        raise Unavailable(f"sbatch: {why}")
