"""Whether a process is still the one that is meant: its number may have been given to another since."""

from pathlib import Path


def began(pid: int) -> str:
    """When a process began, in clock ticks since boot; "" if there is none or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything; source: proc(5)
    return "" if fields[0] in "ZX" else fields[19]
