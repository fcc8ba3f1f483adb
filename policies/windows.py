"""Whether a site may be given work now, by its windows, and when that changes next.

Times of day are the site's own, summer time included; lengths are hours that pass. APScheduler's CronTrigger reads
the cron expressions; only the days of the week are refused as numbers, because cron counts them from Sunday and the
trigger from Monday.
"""

import datetime
from collections.abc import Iterator, Sequence
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.triggers.cron import CronTrigger

from consortium.capacity import ALWAYS, Opening, Window
from consortium.errors import BadInput

#: How far ahead is looked: windows that follow each other without a gap for so long are as good as always open.
HORIZON_SECONDS = 30 * 86400.0
LENGTH_MAX_SECONDS = 7 * 86400.0
_KNOWN_MAX = 1000
#: Until here a day that never comes is sought.
_NEVER_AFTER = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
_CYCLE_SECONDS = 40 * 366 * 86400.0  # in which every day of the year falls on every day of the week
_SKIPPED_SECONDS = 3 * 3600.0  # more than any zone skips at once, but for a whole day (Samoa, 2011)
_FIELDS = ("minute", "hour", "day", "month", "day of week")


def time_zone(name: str) -> ZoneInfo:
    """The IANA time zone ``name``. Raises BadInput."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadInput(
            f"time zone {name!r} is not known here; use an IANA name such as Europe/Sofia (package tzdata has them)"
        ) from None


def end_of_day(day: str, timezone: str) -> float:
    """The first instant after ``day`` there, seconds since the epoch."""
    try:
        following = datetime.date.fromisoformat(day) + datetime.timedelta(days=1)
    except (ValueError, OverflowError):
        raise BadInput(f"{day!r} is no day; write year-month-day, such as 2027-03-31") from None
    return datetime.datetime.combine(following, datetime.time(), time_zone(timezone)).timestamp()


@lru_cache(maxsize=256)
def trigger(cron: str, timezone: str) -> CronTrigger:
    """When a window opens. Raises BadInput with the rule for what cron would not understand."""
    fields = cron.split()
    if len(fields) != len(_FIELDS):
        raise BadInput(f"cron {cron!r} has {len(fields)} fields; give five: {', '.join(_FIELDS)}")
    if not fields[0].isdecimal():  # so a week has 168 openings at most, and looking at them costs little
        raise BadInput(
            f"cron {cron!r}: the minute is one number, such as 0; a window opens once an hour at most"
        )
    if any(character.isdigit() for character in fields[4].partition("#")[0]):
        raise BadInput(
            f"cron {cron!r}: days of the week by name, such as mon-fri or sat,sun; numbers begin on Sunday in cron "
            "and on Monday elsewhere"
        )
    try:
        made: CronTrigger = CronTrigger.from_crontab(cron, timezone=time_zone(timezone))
    except (ValueError, TypeError) as error:
        raise BadInput(f"cron {cron!r}: {error}") from None
    made.end_date = _NEVER_AFTER
    return made


def check(window: Window) -> Window:
    """The window itself, if it can be read and ever opens. Raises BadInput."""
    if not 0 < window.seconds <= LENGTH_MAX_SECONDS:
        raise BadInput(f"a window of {window.seconds / 3600:g} h; more than 0 and at most 168, a week")
    if _fires_from(window, _NEVER_AFTER.timestamp() - _CYCLE_SECONDS) is None:
        raise BadInput(f"cron {window.cron!r} names no day that ever comes")
    return window


def opening(windows: Sequence[Window], now: float) -> Opening:
    """How these windows, taken together, stand at ``now`` (seconds since the epoch). None at all: always open.

    Raises BadInput for a window that cannot be read.
    """
    if not windows:
        return ALWAYS
    spans = sorted(span for window in windows for span in _spans(window, now))
    since: float | None = None
    until = now
    for begin, end in spans:
        if begin > until or (since is None and begin > now):
            break
        since = begin if since is None else since
        until = max(until, end)
    if since is None:
        return Opening(is_open=False, until=min((begin for begin, _ in spans), default=None))
    return Opening(is_open=True, since=since, until=until if until < now + HORIZON_SECONDS else None)


class Openings:
    """``opening``, remembered until it changes: a coordinator asks at every Sync, of every site."""

    def __init__(self) -> None:
        self._known: dict[tuple[Window, ...], tuple[float, float, Opening]] = {}

    def __call__(self, windows: tuple[Window, ...], now: float) -> Opening:
        begin, end, found = self._known.get(windows, (0.0, 0.0, ALWAYS))
        if not begin <= now < end:
            found = opening(windows, now)
            end = found.until if found.until is not None else now + HORIZON_SECONDS / 2.0
            if len(self._known) >= _KNOWN_MAX:  # sites changed theirs often
                self._known.clear()
            self._known[windows] = (now, end, found)
        return found


def _spans(window: Window, now: float) -> Iterator[tuple[float, float]]:
    """Begin and end of its openings that are not over at ``now``, up to the first after a gap or the horizon."""
    covered = now
    for at in _fires(window, now - window.seconds):
        yield at, at + window.seconds
        if at > covered or covered >= now + HORIZON_SECONDS:
            return
        covered = max(covered, at + window.seconds)


def _fires(window: Window, after: float) -> Iterator[float]:
    """When it opens, after ``after``.

    The trigger finds an opening in an hour that summer time skips only if it is asked before that hour: so it is
    asked from some hours earlier.
    """
    at = _fires_from(window, after - _SKIPPED_SECONDS)
    while at is not None:
        if at > after:
            yield at
        at = _fires_from(window, at + 1.0)


def _fires_from(window: Window, at: float) -> float | None:
    """The first time the trigger names at or after ``at``; None: never again."""
    zone = time_zone(window.timezone)
    start = datetime.datetime.fromtimestamp(at, zone)
    fires: datetime.datetime | None = trigger(window.cron, window.timezone).get_next_fire_time(None, start)
    return None if fires is None else fires.timestamp()
