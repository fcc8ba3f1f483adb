"""What ``site doctor`` asks of a site behind SSH."""

import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import NamedTuple

from consortium.errors import Refused, Unavailable
from site_agent.config import SiteConfig
from site_agent.ssh.remote import RemoteSite, remote_site
from site_agent.ssh.trouble import Kind

_FREE_BYTES_MIN = (
    20 << 30
)  # a base, its optimizer's training checkpoints and a delta; a job's, not the site's
_CLOCK_SECONDS_MAX = 60.0  # a Slurm of munge refuses more than 300 anyway
_TOOLS = ("cat", "chmod", "cp", "dd", "df", "find", "head", "ln", "mkdir", "mv", "nice", "rm", "sha256sum")
_MORE_TOOLS = ("sync", "tail", "tar", "wc")

_ROOT = """
mkdir -p "$1" && cd "$1" && echo probe >.probe.$$ && sync .probe.$$ && mv .probe.$$ .probe &&
ln .probe .probe.link && rm -f .probe .probe.link && df -Pk . | tail -n 1
"""
_HAS = 'for tool; do command -v "$tool" >/dev/null || echo "$tool"; done'
_READABLE = 'for path; do [ -r "$path" ] || echo "$path"; done'
_PYTHON = """
from importlib.metadata import version
from importlib.util import find_spec
import site_agent.trainer.folder
print(version("sprachbund"), *sorted(n for n in ("torch", "transformers", "tokenizers") if not find_spec(n)))
"""


class SshCheck(NamedTuple):
    """One question: what ``look`` returns is good news, what it raises is not."""

    name: str
    look: Callable[[], str]
    way_out: str


def ssh_checks(config: SiteConfig) -> Iterator[SshCheck]:
    """The checks, in the order to ask them in; each later one needs the first."""
    site = remote_site(config)
    if site is None:
        return
    yield SshCheck("ssh", lambda: _login(site), "the message says it")
    yield SshCheck(
        "ssh root", lambda: _root(site), "have `root` on a file system of yours that every node sees"
    )
    yield SshCheck("ssh tools", lambda: _tools(site), "ask the site, or name another login node in `host`")
    yield SshCheck(
        "ssh python", lambda: _python(site), "install this package's version there, and name its `python`"
    )
    yield SshCheck("ssh clock", lambda: _clock(site), "have this machine's clock set (NTP), or tell the site")
    yield SshCheck(
        "ssh text", lambda: _text(site, config), "correct the `path`; with `ssh` it is one of the site's"
    )
    yield SshCheck("ssh slurm", lambda: _slurm(site), "add the folder of Slurm's commands to `path` in `ssh`")


def _login(site: RemoteSite) -> str:
    """Tries at once, whatever failed before; a person asks."""
    try:
        site.connection.open(patient=False)
    except Unavailable as error:
        trouble = site.connection.trouble()
        if trouble is not None and trouble.kind in (Kind.HOST_KEY, Kind.LOGIN):
            raise Refused(str(error)) from error
        raise
    began = time.monotonic()
    user = _said(site, "id -un")
    hosts = f"{site.connection.host} answers as {user} in {time.monotonic() - began:.2f} s"
    if site.settings.transfer_host is not None:
        _said(site, ":", transfer=True)
        hosts += f", and so does {site.settings.transfer_host}"
    return hosts


def _root(site: RemoteSite) -> str:
    free = int(_said(site, _ROOT, site.settings.root).split()[3]) * 1024
    if free < _FREE_BYTES_MIN:
        raise Unavailable(f"{free / 1e9:.1f} GB are free, jobs may need {_FREE_BYTES_MIN / 1e9:.1f}")
    return f"{site.settings.root} can be written and linked in, {free / 1e9:.0f} GB are free"


def _tools(site: RemoteSite) -> str:
    missing = _said(site, _HAS, *_TOOLS, *_MORE_TOOLS).split()
    if missing:
        raise Unavailable(f"not there: {', '.join(missing)}")
    return "all that moves files is there"


def _slurm(site: RemoteSite) -> str:
    try:
        done = site.commands.run(["sbatch", "--version"])
    except Unavailable as error:
        found = _said(site, 'bash -lc "command -v sbatch" 2>/dev/null || :').rsplit("\n", 1)[-1]
        if found.startswith("/"):
            raise Unavailable(f"a login shell finds {found}, a plain one does not") from error
        raise
    if done.rc:
        raise Unavailable(f"sbatch: {done.err.strip()}")
    return done.out.strip()


def _python(site: RemoteSite) -> str:
    done = site.commands.run([site.settings.python, "-P", "-c", _PYTHON])
    if done.rc:
        raise Unavailable(f"{site.settings.python}: {done.err.strip().splitlines()[-1:]}")
    there, *missing = done.out.split()
    if missing:
        raise Unavailable(f"{site.settings.python}: not installed: {', '.join(missing)}")
    if _minor(there) != _minor(version("sprachbund")):
        raise Unavailable(f"{there} is installed there, {version('sprachbund')} here")
    return f"sprachbund {there}, torch, transformers and tokenizers are installed there"


def _clock(site: RemoteSite) -> str:
    before = time.time()
    there = float(_said(site, "date +%s"))
    ahead = there + 0.5 - (before + time.time()) / 2
    if abs(ahead) > _CLOCK_SECONDS_MAX:
        raise Unavailable(f"the site's clock is {ahead:+.0f} s ahead of this one")
    return f"the site's clock is {ahead:+.0f} s ahead of this one"


def _text(site: RemoteSite, config: SiteConfig) -> str:
    missing = _said(site, _READABLE, *(text.path for text in config.text)).splitlines()
    if missing:
        raise Unavailable(f"cannot be read there: {', '.join(missing)}")
    return f"{len(config.text)} paths can be read there"


def _said(site: RemoteSite, script: str, *arguments: str, transfer: bool = False) -> str:
    answer = (site.transfer if transfer else site.connection).run(script, arguments)
    if answer.rc:
        raise Unavailable(answer.err.decode(errors="replace").strip() or f"exit code {answer.rc}")
    return answer.out.decode(errors="replace").strip()


def _minor(release: str) -> list[str]:
    return release.split(".")[:2]
