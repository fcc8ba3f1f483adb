"""How much main memory this process may still take: of the machine, its control group, its limits."""

import resource
from collections.abc import Iterator
from pathlib import Path


def room(root: Path = Path("/")) -> int | None:
    """Bytes; None if nothing says it.

    The least of what the machine has available, what each control group above this process has left (version 2
    or 1; files it caches can be given up), and what ``ulimit -v`` leaves. A batch system sets one of the latter two.
    """
    found = [*_of_machine(root), *_of_groups(root), *_of_limits(root)]
    return max(0, min(found)) if found else None


def _of_machine(root: Path) -> Iterator[int]:
    said = _fields(root / "proc/meminfo")
    if "MemAvailable:" in said:
        yield said["MemAvailable:"] << 10


def _of_groups(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/self/cgroup"):
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / kinds
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        )
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            place = top.joinpath(*parts[:depth])
            most, now = (" ".join(_lines(place / name)) for name in (limit, used))
            if most.isdigit() and now.isdigit():
                cached = _fields(place / "memory.stat")
                prefix = "total_" if kinds else ""
                files = sum(cached.get(f"{prefix}{age}_file", 0) for age in ("active", "inactive"))
                yield int(most) - max(0, int(now) - files)


def _of_limits(root: Path) -> Iterator[int]:
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    taken = _fields(root / "proc/self/status").get("VmSize:", 0) << 10
    if most != resource.RLIM_INFINITY:
        yield most - taken


def _fields(path: Path) -> dict[str, int]:
    """First word of each line -> its second, where that is a number."""
    words = (line.split() for line in _lines(path))
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
