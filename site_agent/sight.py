"""What one look finds: attempts in the spool, what the launcher says of them, the operator's wish, what is spent."""

import logging
from pathlib import Path

from consortium.canonical import Fact
from consortium.errors import BadInput, Unavailable
from consortium.ids import AttemptId
from site_agent.core.facts import AttemptFiles, Sighting
from site_agent.launchers.base import Launcher
from site_agent.mode import Mode, read_mode
from site_agent.spending import Spending, Standing
from site_agent.spool import Spool
from site_agent.ssh.remote import RemoteSite

_log = logging.getLogger(__name__)


class Seen(Fact):
    """Everything that one look at the site finds."""

    held: tuple[AttemptFiles, ...] = ()
    sightings: dict[AttemptId, Sighting] = {}
    mode: Mode = Mode()
    standing: Standing = Standing()


class Sight:
    """The agent's eyes. ``site``: where Slurm is behind SSH."""

    def __init__(
        self, home: Path, spool: Spool, launcher: Launcher, spending: Spending, site: RemoteSite | None
    ) -> None:
        self._home, self._spool, self._launcher, self._spending = home, spool, launcher, spending
        self._site = site
        self._has_taken_back = False

    def look(self) -> Seen:
        """Raises Unavailable if the spool cannot be read now."""
        self._take_back()
        places = self._spool.places()
        begun = {self._spool.directory(attempt): attempt for attempt in self._spool.begun(places)}
        # before the look: a result that comes meanwhile counts, or a life that is gone would seem to have left none
        polled = self._launcher.poll(list(begun)) if begun else {}
        held, complaints = self._spool.look(places)
        for complaint in complaints:
            _log.error("%s", complaint)
        known = {files.attempt for files in held}
        sightings = {
            begun[directory]: sighting for directory, sighting in polled.items() if begun[directory] in known
        }
        try:
            mode = read_mode(self._home)
        except BadInput as error:  # what the operator wants cannot be known: nothing new, then
            mode = Mode(mode="drain", reason=str(error))
        held = tuple(
            self._spool.watch(files, sightings[files.attempt].seen) if files.attempt in sightings else files
            for files in held
        )
        return Seen(held=held, sightings=sightings, mode=mode, standing=self._spending.look(held))

    def _take_back(self) -> None:
        """Once: what an agent before this one, elsewhere, left at a site behind SSH.

        Raises Unavailable if the site does not answer and nothing is held here: then nothing is known.
        """
        if self._site is None or self._has_taken_back:
            return
        try:
            for directory in self._site.files.take_back():
                _log.info("%s lies at the site and is taken back", directory.name)
            self._has_taken_back = True
        except Unavailable:
            if not any(self._spool.root.glob("*/*/job.json")):
                raise
