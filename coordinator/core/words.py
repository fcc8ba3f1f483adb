"""How lengths of time and amounts are said to people."""

_UNITS = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))


def spoken(seconds: float) -> str:
    """A length of time as people say it, to two units: ``3 h 20 min``."""
    whole = round(seconds)
    for unit, size, smaller, part in _UNITS:
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def gpu_hours(gpu_seconds: float) -> str:
    return f"{gpu_seconds / 3600.0:.4g} GPU-hours"
