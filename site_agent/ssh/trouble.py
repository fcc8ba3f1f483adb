"""Why a login at a site failed, how long to leave it alone, and what a person can do about it."""

import enum
import re

from consortium.canonical import Fact
from site_agent.ssh.settings import Ssh

_FIRST_SECONDS = {"network": 15.0, "login": 600.0, "host_key": 900.0, "setup": 60.0}
_LONGEST_SECONDS = 3600.0


class Kind(enum.StrEnum):
    NETWORK = "network"  #: no way there now, or nobody answers
    LOGIN = "login"  #: the site does not take this key; some sites ban an address after five such failures
    HOST_KEY = "host_key"  #: the host is not, or not surely, the one that is known
    SETUP = "setup"  #: ssh cannot even try: a file or an option of this side


class Trouble(Fact):
    """A login that failed."""

    kind: Kind
    sentence: str
    at: float  #: seconds since the epoch
    failures: int = 1  #: in a row


_SIGNS = (  # the words of OpenSSH 7.4 to 10, the strongest first
    (Kind.HOST_KEY, r"HOST IDENTIFICATION HAS CHANGED|Host key verification failed|host key is known"),
    (Kind.LOGIN, r"Permission denied|Too many authentication failures|No more authentication methods"),
    (
        Kind.SETUP,
        r"Bad configuration option|Bad owner or permissions|Can't open user config|no such identity",
    ),
    (Kind.SETUP, r"terminating, \d+ bad configuration|UNPROTECTED PRIVATE KEY|missing argument|Bad port"),
)


def trouble_of(host: str, rc: int, said: str, now: float, failures_before: int) -> Trouble:
    """What ssh's own words mean. ``rc`` -1: it was given up after its time."""
    kind = next((kind for kind, pattern in _SIGNS if re.search(pattern, said)), Kind.NETWORK)
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("@")]
    if kind is Kind.HOST_KEY:
        changed = "HAS CHANGED" in said
        words = "its host key is not the one that is known" if changed else "its host key is not known here"
    elif rc == -1:
        words = "the login took too long"
    else:
        words = lines[-1] if lines else f"ssh ended with {rc}"
    return Trouble(
        kind=kind, sentence=f"{host} cannot be reached: {words}", at=now, failures=failures_before + 1
    )


def wait_seconds(trouble: Trouble) -> float:
    """How long to leave the site alone: doubled with each failure, an hour at most."""
    first = _FIRST_SECONDS[trouble.kind]
    return min(_LONGEST_SECONDS, first * 2.0 ** min(trouble.failures - 1, 10))


def way_out(trouble: Trouble, settings: Ssh, by_hand: str) -> str:
    """What a person can do."""
    known = settings.known_hosts or "~/.ssh/known_hosts"
    match trouble.kind:
        case Kind.HOST_KEY:
            return (
                f"nothing was sent. Compare the host's key (`ssh-keyscan {settings.host}`) with the fingerprint that "
                f"the site publishes or tells you by telephone; only if they agree, put its line into {known} in "
                f"place of the old one. If they do not, somebody stands between: call the site"
            )
        case Kind.LOGIN:
            return (
                f"see that the site has this user's public key, and that `user` and `identity_file` are right. If the "
                f"site asks for a second factor, log in by hand, and the agent goes on over that: {by_hand}"
            )
        case Kind.SETUP:
            return "correct the `ssh` section of the site's config, or the file it names"
        case Kind.NETWORK:
            return "see the network, `host`, `port` and `jump`; it is tried again"
