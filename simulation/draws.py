"""How the simulation throws its dice: waits, gaps and shares, the same on every machine."""

from random import Random


def lognormal(dice: Random, median: float, sigma: float) -> float:
    """Rounded to milliseconds, so that no mathematical library's last bit can show."""
    factor: float = 2.0 ** (1.442695 * sigma * normal(dice))
    return round(median * factor, 3)


def normal(dice: Random) -> float:
    """Nearly: the sum of twelve throws; nothing beyond 6 sigma.

    One after the other, so that every machine comes to the same number: from Python 3.12 on ``sum`` rounds otherwise.
    """
    throw, total = dice.random, 0.0
    for _ in range(12):
        total += throw()
    return total - 6.0


def gap_seconds(dice: Random, per_day: float) -> float | None:
    """Until the next event of a kind that comes so often a day; None: it never comes.

    Drawn as the quantile of an exponential by its series, since logarithms differ in their last bit.
    """
    if per_day <= 0.0:
        return None
    return round(86400.0 / per_day * _exponential(dice), 3)


def _exponential(dice: Random) -> float:
    """By comparisons alone (von Neumann 1951): exact, and no logarithm."""
    whole = 0
    while True:
        first = last = dice.random()
        runs = 0
        while True:
            following = dice.random()
            runs += 1
            if following > last:
                break
            last = following
        if runs % 2:
            return whole + first
        whole += 1
