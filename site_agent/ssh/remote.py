"""What an agent outside does at its site: Slurm's commands, job directories, and what needs the site's own files."""

import functools
from pathlib import Path

from consortium.canonical import decode, encode
from consortium.errors import BadInput, Corrupt, Refused, SprachbundError, Unavailable
from consortium.manifests import DataManifest
from site_agent.config import SiteConfig
from site_agent.ssh.commands import SshCommands
from site_agent.ssh.connection import Connection
from site_agent.ssh.files import SshFiles
from site_agent.ssh.settings import Ssh
from site_agent.transfers import Died

_DESCRIBE_SECONDS = 6 * 3600.0  # terabytes, the first time; what was read is remembered there
_SALVAGE_SECONDS = 2 * 3600.0
_WORDS_MAX = 2000


class RemoteSite:
    """One site, from outside."""

    def __init__(self, settings: Ssh, home: Path) -> None:
        self.settings = settings
        self.connection = Connection(settings)
        carrier = settings.transfer_host
        self.transfer = Connection(settings, carrier) if carrier else self.connection
        self.commands = SshCommands(self.connection, settings.path)
        self.files = SshFiles(self.connection, home / "spool", settings.root, self.transfer)

    def describe(self, config: SiteConfig) -> DataManifest:
        """The manifest of the site's text, made there; only it comes back.

        Raises BadInput with the reason if the text cannot be read, Unavailable if trying again may help.
        """
        command = ["nice", "-n", "10", self.settings.python, "-P", "-m", "site_agent.describing"]
        done = self.commands.run(command, stdin=encode(config), timeout=_DESCRIBE_SECONDS)
        if done.rc == 0:
            return decode(done.out.encode(), DataManifest, "the site's manifest")
        raise _error(done.rc)(f"at {self.connection.host}: {_last(done.err)}")

    def salvage(self, directory: Path) -> None:
        """Make the partial result of a job from its newest training checkpoint, there, and fetch it.

        Raises BadInput with the trainer's words if there is none, Unavailable if the line broke, Died if it did
        not end well there.
        """
        place = self.files.place(directory)
        command = [
            "nice",
            "-n",
            "10",
            self.settings.python,
            "-P",
            "-m",
            "site_agent.trainer",
            "--finish",
            place,
        ]
        done = self.commands.run(command, timeout=_SALVAGE_SECONDS)
        if done.rc:
            kind = _error(done.rc)
            kind = Died if kind is Unavailable else kind
            raise kind(f"no partial result can be made of {place}/checkpoint: {_last(done.err)}")
        directory = directory.resolve()
        while self.files.pull([directory]):
            pass


def remote_site(config: SiteConfig) -> RemoteSite | None:
    """The site behind SSH, one for this process; None if the agent is at its site."""
    return _the(config.ssh, config.home) if config.ssh else None


class RemoteDescribing:
    """Satisfies what ``Description`` asks of ``Describing``; the process is at the site."""

    def __init__(self, config: SiteConfig, site: RemoteSite) -> None:
        self._config = config
        self._site = site

    def run(self) -> DataManifest:
        return self._site.describe(self._config)

    def stop(self) -> None:
        """What the site has begun it ends, and remembers."""


@functools.cache
def _the(settings: Ssh, home: str) -> RemoteSite:
    return RemoteSite(settings, Path(home))


def _error(rc: int) -> type[SprachbundError]:
    """The class of an error that a process of ours at the site ended with."""
    known = {kind.exit_code: kind for kind in (BadInput, Corrupt, Refused)}
    return known.get(rc, Unavailable)


def _last(err: str) -> str:
    return err.strip()[-_WORDS_MAX:] or "no reason given"
