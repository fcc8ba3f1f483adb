"""The site's own account: what is counted, when its allocation is over, and that nothing is forgotten."""

from pathlib import Path

import pytest

from consortium.canonical import replace
from consortium.capacity import Allocation, Usage
from consortium.errors import Broken
from consortium.ids import AttemptId, SiteName
from site_agent.config import SiteConfig
from site_agent.core.closing import closing
from site_agent.core.facts import AttemptFiles
from site_agent.limits import Granted, OpenHours
from site_agent.spending import Spending, Spent, count

HOUR = 3600.0
GRANT = Allocation(name="p-17", gpu_hours=10.0, until=1000.0)


def held(name: str, gpu_hours: float) -> AttemptFiles:
    usage = Usage(gpu_seconds=gpu_hours * HOUR, seconds=1.0)
    return AttemptFiles(attempt=AttemptId(f"demo_{name}.a1"), usage=usage)


@pytest.mark.parametrize(
    ("allocation", "hours", "now", "says"),
    [
        (None, 1e9, 1e9, ""),
        (GRANT, 9.99, 999.0, ""),
        (GRANT, 10.0, 0.0, "allocation p-17 is used up: 10 of 10 GPU-hours"),
        (GRANT, 0.0, 1000.0, "allocation p-17 has ended"),
        (replace(GRANT, until=None), 0.0, 1e12, ""),
    ],
)
def test_closing(allocation: Allocation | None, hours: float, now: float, says: str) -> None:
    assert closing(allocation, hours * HOUR, now) == says


def test_growth_is_counted_once_and_stays_when_the_attempt_is_dropped() -> None:
    spent = count(Spent(), [held("a", 1.0), held("b", 2.0)], "x")
    assert spent.gpu_seconds == {"x": 3 * HOUR}
    assert count(spent, [held("a", 1.0), held("b", 2.0)], "x") == spent
    spent = count(spent, [held("a", 1.5)], "y")  # another allocation from now on; b is gone
    assert spent.gpu_seconds == {"x": 3 * HOUR, "y": 0.5 * HOUR}
    assert set(spent.attempts) == {"demo_a.a1"}
    assert count(spent, [held("a", 1.2)], "y").gpu_seconds == spent.gpu_seconds  # never taken back


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    return SiteConfig(
        site=SiteName("north"),
        coordinator="c.example.eu:1",
        enrolment="c.example.eu:2",
        home=str(tmp_path),
        allocation=Granted(name="p-17", gpu_hours=2.0, until="1970-01-02"),
        timezone="Europe/Helsinki",
        windows=(OpenHours(cron="0 20 * * *", hours=10.0),),
    )


def test_the_account_outlives_the_agent(config: SiteConfig) -> None:
    assert Spending(config, lambda: 0.0).look([held("a", 1.5)]).closing == ""
    again = Spending(config, lambda: 0.0)
    assert again.gpu_hours == 1.5
    assert again.look([held("b", 0.5)]).closing == "allocation p-17 is used up: 2 of 2 GPU-hours"


def test_the_last_day_is_the_sites_own(config: SiteConfig) -> None:
    """1970-01-02 ends at midnight in Helsinki, two hours before it does in Greenwich."""
    assert Spending(config, lambda: 46 * HOUR - 1).look([]).closing == ""
    assert Spending(config, lambda: 46 * HOUR).look([]).closing == "allocation p-17 has ended"


def test_outside_its_windows_a_site_waits_and_may_pause(config: SiteConfig) -> None:
    noon, night = 10 * HOUR, 20 * HOUR  # of Greenwich: 12:00 and 22:00 there
    assert Spending(config, lambda: night).look([]).waits == ""
    shut = Spending(config, lambda: noon).look([])
    assert shut.waits == "it is outside the site's windows" and not shut.pause_running
    pauses = replace(config, outside_windows="pause")
    assert Spending(pauses, lambda: noon).look([]).pause_running
    assert not Spending(pauses, lambda: night).look([]).pause_running


def test_an_account_that_cannot_be_read_is_not_taken_for_nothing(config: SiteConfig) -> None:
    (Path(config.home) / "spent.json").write_text("{")
    with pytest.raises(Broken, match="says what this site has spent"):
        Spending(config)
