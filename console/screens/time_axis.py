"""Which moments a time axis names, so that ten hours are as readable as a thousand."""

from typing import NamedTuple

#: Between two labels, in hours: parts of an hour, of a day, and days.
_STEPS = (
    *(1 / 12, 1 / 6, 0.25, 0.5, 1, 2, 3, 6, 12, 24, 48, 120, 240, 480, 1200, 2400, 4800, 12_000, 24_000),
    *(48_000, 120_000, 240_000, 480_000),
)
_ROOM = 64.0  # pixels from one label to the next, at least
_DAYS_FROM = 96.0  # hours from which on days are easier to read


class Tick(NamedTuple):
    hour: float
    label: str


def ticks(hours: float, width: float) -> list[Tick]:
    """From 0 to ``hours``, for an axis of ``width`` pixels."""
    if hours <= 0:
        return [Tick(0.0, "0 h")]
    step = next((step for step in _STEPS if step * width / hours >= _ROOM), _STEPS[-1])
    return [Tick(n * step, label(n * step, step, hours)) for n in range(int(hours / step + 1e-9) + 1)]


def label(hour: float, step: float, hours: float) -> str:
    if step < 0.25 or (step < 1 and hours <= 2):
        return f"{hour * 60:.0f} min"
    if hours > _DAYS_FROM and step % 12 == 0:
        return f"{hour / 24:g} d"
    return f"{hour:g} h"
