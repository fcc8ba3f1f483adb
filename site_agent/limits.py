"""What the site's file says may be spent and when, and the same in the words that both sides share."""

from typing import Annotated

from msgspec import Meta

from consortium.canonical import Fact
from consortium.capacity import Allocation, Window
from policies.ranges import Positive
from policies.windows import check, end_of_day

Date = Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", description="a day, such as 2027-03-31")]


class Granted(Fact):
    """The site's allocation, as its own accounting has it."""

    name: str = "allocation"  #: the project's; another name begins another account of what was used
    gpu_hours: Positive
    until: Date | None = None  #: the last day on which it may be used, in the site's time zone

    def told(self, timezone: str) -> Allocation:
        """Raises BadInput for a day that the calendar does not have."""
        until = None if self.until is None else end_of_day(self.until, timezone)
        return Allocation(name=self.name, gpu_hours=self.gpu_hours, until=until)


class OpenHours(Fact):
    """A window in which the site may be given work."""

    cron: str  #: when it opens: minute, hour, day, month, day of week (by name)
    hours: Positive  #: that pass until it closes

    def told(self, timezone: str) -> Window:
        """Raises BadInput for a window that never opens or cannot be read."""
        return check(Window(cron=self.cron, seconds=self.hours * 3600.0, timezone=timezone))
