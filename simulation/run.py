"""How a plan, a seed and a weather become an outcome."""

import gc
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from consortium.errors import BadInput
from consortium.ids import SiteName
from simulation.outcome import Cost, Ending, Happening, Made, Outcome
from simulation.plan import Plan
from simulation.weather import Weather
from simulation.world import Progress, World
from site_agent.config import SiteConfig

__all__ = ["Cost", "Ending", "Happening", "Made", "Outcome", "forget", "simulate"]

_MEMORY = Path("/dev/shm")  # a file system in memory: nothing of a simulation has to outlive it


def simulate(
    plan: Plan,
    seed: int,
    weather: Weather,
    *,
    folder: Path | None = None,
    rebuild: bool = True,
    progress: Progress | None = None,
    real: Mapping[SiteName, SiteConfig] | None = None,
) -> Outcome:
    """Simulate ``plan`` in ``weather``; the same three give the same outcome, anywhere.

    folder    where ledger, store and spools are left, for who wants to look; None: they are removed
    rebuild   whether every version is made again at the end, from ledger and store
    real      configs of sites whose text is there: their jobs are done by the real trainer (``simulation.real``)
    progress  called now and then with (hours simulated, hours at most); what it raises ends the simulation
    Not to be called within a running event loop, nor from two threads at once.
    """
    if folder is not None:
        return _run(plan, seed, weather, folder, rebuild, progress, real)
    place = _MEMORY if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="sprachbund-simulation-", dir=place) as made:
        return _run(plan, seed, weather, Path(made), rebuild, progress, real)


def _run(
    plan: Plan,
    seed: int,
    weather: Weather,
    folder: Path,
    rebuild: bool,
    progress: Progress | None,
    real: Mapping[SiteName, SiteConfig] | None,
) -> Outcome:
    if plan.training == "real" and not real:
        raise BadInput("training: real needs the configs of sites whose text is there; see simulation.real")
    gc.freeze()  # what was there before is none of its business
    gc.disable()  # a world is one large cycle, thrown away at once at its end
    try:
        return World(plan, seed, weather, folder, real).run(rebuild, progress)
    finally:
        forget()
        gc.enable()
        gc.unfreeze()


def forget() -> None:
    """Throw the world away. What its dead programs would have said last, they say now; nobody listens."""
    before, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
    finally:
        sys.unraisablehook = before
