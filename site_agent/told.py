"""What an agent tells whoever watches it: numbers, and no name of a campaign or a data set."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from consortium.canonical import Fact
from site_agent.conversation import Conversation
from site_agent.core.facts import Plan
from site_agent.mode import Mode

if TYPE_CHECKING:
    from site_agent.health import Health


class Told(Fact):
    """Made anew for each question."""

    site: str
    release: str
    mode: str
    phases: dict[str, int] = {}  #: attempts by phase
    slots: int
    synced_at: float | None = None  #: seconds since the epoch
    is_connected: bool = False
    sent_bytes: int = 0  #: since the agent started
    received_bytes: int = 0
    free_bytes: int | None = None  #: below ``home``
    used_gpu_seconds: float = 0.0  #: of the present allocation
    granted_gpu_seconds: float | None = None
    tokens_per_second: float = 0.0  #: of all trainers that run
    launched: int = 0  #: lives since the agent started


def make_health(port: int | None, told: Callable[[], Told]) -> "Health | None":
    """The HTTP server on ``port``, if one is wanted; what it needs is loaded only then."""
    if port is None:
        return None
    from site_agent.health import Health

    return Health(port, told)


def free_bytes(home: Path) -> int | None:
    """On the file system of ``home``, for this user; None if it cannot be asked."""
    try:
        return shutil.disk_usage(home).free
    except OSError:
        return None


def in_words(plan: Plan | None, talk: Conversation, mode: Mode) -> str:
    """For a service manager; changes only when something does."""
    if plan is None:
        return "the spool cannot be read"
    phases = Counter(report.phase.value for report in plan.reports)
    jobs = ", ".join(f"{number} {phase}" for phase, number in sorted(phases.items())) or "no job"
    heard = talk.trouble or ("in touch" if talk.news else "not heard yet")
    return f"{jobs}; coordinator: {heard}" + (f"; mode {mode.mode}" if mode.mode != "work" else "")
