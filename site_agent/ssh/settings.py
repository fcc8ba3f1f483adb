"""How an agent outside reaches its site: the ``ssh`` section of the site's config."""

from collections.abc import Callable
from typing import Annotated

from msgspec import Meta

from consortium.canonical import Fact, replace

Host = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._:-]*$", description="a name, an address, or a Host of config_file"
    ),
]
SitePath = Annotated[str, Meta(pattern=r"^/[^\n:]*$", description="an absolute path at the site")]
User = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._@-]*$")]
Jump = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_\[][A-Za-z0-9._@:,\[\]-]*$", description="[user@]host[:port]")
]
Port = Annotated[int, Meta(ge=1, le=65535)]


class Ssh(Fact):
    """The way to a site that lets nothing dial out."""

    host: Host  #: a login node
    root: SitePath  #: folder for job directories, inputs and prepared text; every compute node has to see it
    user: User | None = None
    port: Port | None = None
    identity_file: str | None = None  #: the private key
    known_hosts: str | None = None  #: if given, the only file of host keys that counts
    config_file: str | None = None  #: None: the user's own, ~/.ssh/config
    jump: Jump | None = None  #: ssh's ProxyJump
    transfer_host: Host | None = None  #: carries the big files; has to give a shell and to see ``root``
    python: str = "python3"  #: the interpreter at the site that has this package, of about this version
    path: tuple[SitePath, ...] = ()  #: of Slurm's commands, where only a login shell finds them


def beside(settings: Ssh, absolute: Callable[[str], str]) -> Ssh:
    """The settings with this side's files as absolute paths."""
    files = {
        name: absolute(path)
        for name in ("identity_file", "known_hosts", "config_file")
        if (path := getattr(settings, name)) is not None
    }
    return replace(settings, **files)
