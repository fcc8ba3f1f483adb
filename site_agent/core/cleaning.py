"""What of a site's home may go, and why: bases nobody needs, abandoned downloads, old logs, what was set aside.

Nothing that is in use is among what may go: job directories, results and training checkpoints that are not delivered,
text and what was prepared of it, keys. A base may go when no attempt here names it and it is not the newest of its
campaign. Beyond ``bytes_max`` and ``inodes_max`` what may go goes before its time, what was used longest ago first.
"""

from typing import Literal

from consortium.canonical import Fact
from consortium.ids import CampaignId, Digest
from policies.ranges import Count, Positive

HOUR, DAY = 3600.0, 86_400.0
YOUNG_SECONDS = 3600.0  #: whatever is younger stays: it may be on its way to the coordinator, or into a job

Kind = Literal["blob", "partial", "log", "broken", "residuals"]


class Cleaning(Fact):
    """How long a site keeps what no job of its needs. Job directories go when the coordinator has settled them."""

    keep_hours: Positive = (
        168.0  #: a base or another input, from its last use on; also a download that was given up
    )
    log_days: Positive = 90.0  #: the log of an attempt that is over
    broken_days: Positive = 30.0  #: what was set aside in ``spool/broken``, if no result lies in it
    #: what is for a next job, residuals, moments, what Flower apps keep: once their campaign has asked for nothing
    residual_days: Positive = 180.0
    bytes_max: Count | None = None  #: of everything below ``home``; beyond, what may go goes at once
    inodes_max: Count | None = None  #: the same in files and folders
    every_hours: Positive | None = 6.0  #: between two cleanings by the agent; None: only `site clean` cleans


class Found(Fact):
    """One thing in the home that may go, if nothing speaks against it."""

    kind: Kind
    name: str  #: relative to the home
    bytes: int  #: that its going frees: none while it has another name
    inodes: int = 1
    used_at: float  #: last use, seconds since the epoch
    digest: Digest | None = None  #: of a blob or partial
    campaign: CampaignId | None = None  #: of residuals
    attempt: str = ""  #: of a log
    is_unsent: bool = False  #: of what is broken: a result or training checkpoint lies in it


class Home(Fact):
    """A home as it was found."""

    found: tuple[Found, ...]
    needed: frozenset[Digest] = frozenset()  #: inputs of every attempt in the spool
    newest: frozenset[Digest] = frozenset()  #: inputs of each campaign's newest attempt, here or over
    campaigns: frozenset[CampaignId] = frozenset()  #: of every attempt in the spool
    attempts: frozenset[str] = frozenset()  #: every attempt in the spool
    bytes: int = 0  #: of everything below it; each file once, however many names it has
    inodes: int = 0


class Going(Fact):
    kind: Kind | Literal["cache"]  #: cache: of a site that the agent drives from outside
    name: str
    bytes: int
    inodes: int
    used_at: float
    digest: Digest | None = None
    reason: str


class CleaningPlan(Fact):
    going: tuple[Going, ...]
    over: str = ""  #: by how much the home stays beyond its limits, and what to do; "": it does not


def plan(home: Home, rules: Cleaning, now: float) -> CleaningPlan:
    """What goes now: all whose time is over, then as much as the limits ask for. By last use, then by name."""
    able = sorted(
        (one for one in home.found if why_it_stays(one, home, now) is None),
        key=lambda one: (one.used_at, one.name),
    )
    going = [_going(one, why) for one in able if (why := _is_over(one, rules, now))]
    bytes_ = home.bytes - sum(one.bytes for one in going)
    inodes = home.inodes - sum(one.inodes for one in going)
    names = {one.name for one in going}
    for one in able:
        too_many = rules.inodes_max is not None and inodes > rules.inodes_max
        too_much = rules.bytes_max is not None and bytes_ > rules.bytes_max
        if one.name in names or not ((too_much and one.bytes) or (too_many and one.inodes)):
            continue
        limit = f"bytes_max {rules.bytes_max}" if too_much else f"inodes_max {rules.inodes_max}"
        going.append(_going(one, f"no job here needs it, and the home is beyond {limit}"))
        bytes_, inodes = bytes_ - one.bytes, inodes - one.inodes
    return CleaningPlan(going=tuple(going), over=_over(bytes_, inodes, rules))


def why_it_stays(one: Found, home: Home, now: float) -> str | None:
    """What speaks against its going, whatever the limits; None: nothing."""
    if one.digest is not None and one.digest in home.needed:
        return "an attempt here names it"
    if one.digest is not None and one.kind == "blob" and one.digest in home.newest:
        return "it belongs to the newest base of its campaign"
    if one.is_unsent:
        return "a result or a training checkpoint lies in it that nobody else has"
    if one.campaign is not None and one.campaign in home.campaigns:
        return "an attempt of its campaign is here"
    if one.attempt and one.attempt in home.attempts:
        return "its attempt is here"
    if now < one.used_at + YOUNG_SECONDS:
        return "it was used within the last hour"
    return None


def _is_over(one: Found, rules: Cleaning, now: float) -> str:
    """Why its time is over; "": it is not."""
    words, seconds, setting = {
        "blob": ("no job here has needed it", rules.keep_hours * HOUR, f"keep_hours {rules.keep_hours:g}"),
        "partial": ("nobody went on with it", rules.keep_hours * HOUR, f"keep_hours {rules.keep_hours:g}"),
        "log": ("its attempt is over", rules.log_days * DAY, f"log_days {rules.log_days:g}"),
        "broken": ("nobody asked for it", rules.broken_days * DAY, f"broken_days {rules.broken_days:g}"),
        "residuals": (
            "its campaign asked for nothing",
            rules.residual_days * DAY,
            f"residual_days {rules.residual_days:g}",
        ),
    }[one.kind]
    return f"{words} for longer than {setting}" if now >= one.used_at + seconds else ""


def _over(bytes_: int, inodes: int, rules: Cleaning) -> str:
    said = []
    if rules.bytes_max is not None and bytes_ > rules.bytes_max:
        said.append(f"{bytes_} bytes, bytes_max is {rules.bytes_max}")
    if rules.inodes_max is not None and inodes > rules.inodes_max:
        said.append(f"{inodes} inodes, inodes_max is {rules.inodes_max}")
    return f"the home has {' and '.join(said)}, and all that stays is needed; raise the limit" if said else ""


def _going(one: Found, reason: str) -> Going:
    return Going(
        kind=one.kind,
        name=one.name,
        bytes=one.bytes,
        inodes=one.inodes,
        used_at=one.used_at,
        digest=one.digest,
        reason=reason,
    )
