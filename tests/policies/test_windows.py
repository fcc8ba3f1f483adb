"""Windows by the site's own clock: nights, weekends, the two days a year that have another length, and nonsense."""

import datetime
import time
from zoneinfo import ZoneInfo

import pytest

from consortium.capacity import ALWAYS, Window
from consortium.errors import BadInput
from policies.windows import Openings, check, end_of_day, opening

BERLIN = "Europe/Berlin"
HOUR = 3600.0
NIGHTS = Window(cron="0 20 * * *", seconds=10 * HOUR, timezone=BERLIN)


def at(text: str, fold: int = 0) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(BERLIN), fold=fold).timestamp()


def stands(windows: list[Window], when: float) -> tuple[bool, str | None]:
    """Whether they are open, and when that changes, on Berlin's clocks."""
    found = opening(windows, when)
    until = found.until and datetime.datetime.fromtimestamp(found.until, ZoneInfo(BERLIN))
    return found.is_open, f"{until:%m-%d %H:%M}" if until else None


def test_a_site_without_windows_is_always_open() -> None:
    assert opening([], 0.0) == ALWAYS


@pytest.mark.parametrize(
    ("when", "is_open", "until"),
    [
        ("2026-01-10 19:59", False, "01-10 20:00"),
        ("2026-01-10 20:00", True, "01-11 06:00"),
        ("2026-01-11 05:59", True, "01-11 06:00"),
        ("2026-01-11 06:00", False, "01-11 20:00"),
        (
            "2026-03-28 23:00",
            True,
            "03-29 07:00",
        ),  # ten hours that pass: the night of 2026-03-29 has one less
        ("2026-10-24 23:00", True, "10-25 05:00"),  # and that of 2026-10-25 one more
        ("2026-07-10 12:00", False, "07-10 20:00"),  # 20:00 by summer time
    ],
)
def test_nights(when: str, is_open: bool, until: str) -> None:
    assert stands([NIGHTS], at(when)) == (is_open, until)


def test_it_knows_since_when_it_is_open() -> None:
    found = opening([NIGHTS], at("2026-01-11 02:00"))
    assert found.since == at("2026-01-10 20:00")


def test_a_time_that_a_day_lacks_comes_an_hour_later() -> None:
    """02:30 does not exist on 2026-03-29; the trigger takes the same instant by the other offset, 03:30."""
    window = Window(cron="30 2 * * *", seconds=HOUR, timezone=BERLIN)
    assert stands([window], at("2026-03-29 01:00")) == (False, "03-29 03:30")
    assert stands([window], at("2026-03-29 04:00")) == (True, "03-29 04:30")


def test_a_time_that_a_day_has_twice_opens_twice() -> None:
    window = Window(cron="30 2 * * *", seconds=0.25 * HOUR, timezone=BERLIN)
    assert stands([window], at("2026-10-25 02:40")) == (True, "10-25 02:45")
    assert stands([window], at("2026-10-25 02:50")) == (False, "10-25 02:30")
    assert stands([window], at("2026-10-25 02:40", fold=1)) == (True, "10-25 02:45")


def test_windows_that_meet_are_one() -> None:
    weekend = Window(cron="0 6 * * sat", seconds=48 * HOUR, timezone=BERLIN)
    assert stands([NIGHTS, weekend], at("2026-01-09 21:00")) == (
        True,
        "01-12 06:00",
    )  # Friday night to Monday
    assert opening([NIGHTS, weekend], at("2026-01-11 21:00")).since == at("2026-01-10 06:00")


def test_windows_without_a_gap_never_close() -> None:
    always = Window(cron="0 * * * *", seconds=HOUR, timezone=BERLIN)
    assert stands([always], at("2026-01-10 12:34")) == (True, None)


def test_what_is_remembered_is_what_would_be_found() -> None:
    look, now = Openings(), at("2026-10-20 00:00")
    for _ in range(2000):
        now += 977.0
        assert look((NIGHTS,), now) == opening([NIGHTS], now)


@pytest.mark.parametrize(
    ("window", "says"),
    [
        (Window(cron="0 20 * * 1", seconds=HOUR), "days of the week by name"),
        (Window(cron="* 20 * * *", seconds=HOUR), "the minute is one number"),
        (Window(cron="0 25 * * *", seconds=HOUR), "higher than the maximum"),
        (Window(cron="0 20 * *", seconds=HOUR), "4 fields"),
        (Window(cron="0 0 31 feb *", seconds=HOUR), "no day that ever comes"),
        (Window(cron="0 20 * * *", seconds=200 * HOUR), "at most 168"),
        (Window(cron="0 20 * * *", seconds=0.0), "more than 0"),
        (Window(cron="0 20 * * *", seconds=HOUR, timezone="Mars/Olympus"), "IANA"),
        (Window(cron="0 20 * * *", seconds=HOUR, timezone="../../etc/passwd"), "IANA"),
    ],
)
def test_what_no_window_is(window: Window, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        check(window)


def test_a_day_that_never_comes_is_not_sought_for_ever() -> None:
    """A site says its windows at each Sync: eight thousand years took a third of a second of the coordinator."""
    seconds = []
    for minute in range(5):
        began = time.process_time()
        with pytest.raises(BadInput, match="no day that ever comes"):
            check(Window(cron=f"{minute} 0 31 feb *", seconds=HOUR))
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.05


@pytest.mark.parametrize("day", ["mon", "tue", "wed", "thu", "fri", "sat", "sun"])
def test_a_day_that_comes_once_in_28_years_does_come(day: str) -> None:
    check(Window(cron=f"0 0 29 feb {day}", seconds=HOUR))


def test_the_last_day_of_an_allocation_is_a_whole_one_there() -> None:
    assert end_of_day("2026-03-28", BERLIN) == at("2026-03-29 00:00")
    assert end_of_day("2026-03-29", BERLIN) - end_of_day("2026-03-28", BERLIN) == 23 * HOUR
    with pytest.raises(BadInput, match="is no day"):
        end_of_day("2026-02-30", BERLIN)
