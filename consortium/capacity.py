"""What a site may spend and when, and what its jobs spent, as both sides say it."""

from typing import Literal

from consortium.canonical import Fact


class Allocation(Fact):
    """GPU-hours that a site may spend for the consortium until a date."""

    name: str  #: the project's, as the site's accounting spells it
    gpu_hours: float
    until: float | None = None  #: seconds since the epoch: the first instant after it; None: no end is known


class Window(Fact):
    """When a site may be given work: from every time that ``cron`` names, for so long."""

    cron: str  #: five fields: minute, hour, day, month, day of week
    seconds: float
    timezone: str = "UTC"  #: IANA name; hours are the site's own, summer time included


class Usage(Fact):
    """What an attempt spent so far, all its lives together."""

    gpu_seconds: float = 0.0  #: GPUs allocated times elapsed, whether used or idle
    seconds: float = 0.0  #: elapsed
    queued_seconds: float = 0.0  #: from the first submit to the first start
    joules: float | None = None
    source: Literal["sacct", "clock"] = "clock"


class Opening(Fact):
    """How a site's windows stand at one moment."""

    is_open: bool
    since: float | None = None  #: while open: when it opened, seconds since the epoch; None: always was
    until: float | None = None  #: while open: when it closes; while closed: when it opens; None: not foreseen
    trouble: str = ""  #: why the windows cannot be read here; then they count as closed


ALWAYS = Opening(is_open=True)
