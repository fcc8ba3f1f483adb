"""Slurm's commands run at the site, over the connection."""

from collections.abc import Sequence

from consortium.errors import BadInput, Unavailable
from site_agent.launchers.slurm.commands import COMMAND_SECONDS, ENVIRONMENT, Completed
from site_agent.ssh.connection import Connection

_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # what a POSIX shell says of a command; nothing of Slurm says it

#: $1: folders to search first, joined by colons, or nothing; then NAME=value ...; then --, then the command.
_RUN = """
[ -z "$1" ] || { PATH=$1:$PATH; export PATH; }
shift
while [ "$1" != -- ]; do export "$1"; shift; done
shift
exec "$@"
"""


class SshCommands:
    """Satisfies ``site_agent.launchers.slurm.commands.Commands``.

    path  folders at the site where Slurm's commands are, if a shell without login does not find them
    """

    def __init__(self, connection: Connection, path: Sequence[str] = ()) -> None:
        self._connection = connection
        self._path = ":".join(path)

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = COMMAND_SECONDS) -> Completed:
        """Run one command, without a shell that reads its arguments.

        Raises Unavailable if it could not be run, took longer than ``timeout`` seconds, or the connection broke
        before all it said was here; it may have had its effect all the same.
        """
        if not argv or not argv[0]:
            raise BadInput("a command without a name cannot be run")
        settings = [f"{name}={value}" for name, value in sorted(ENVIRONMENT.items())]
        answer = self._connection.run(_RUN, [self._path, *settings, "--", *argv], stdin, timeout)
        err = answer.err.decode(errors="replace")
        if answer.rc in (_NOT_EXECUTABLE, _NOT_FOUND):
            raise Unavailable(
                f"{self._connection.host}: {argv[0]} cannot be run ({err.strip()}); if a login shell there finds it, "
                f"add its folder to `path` in the config's `ssh` section"
            )
        return Completed(rc=answer.rc, out=answer.out.decode(errors="replace"), err=err)
