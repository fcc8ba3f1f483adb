"""After the coordinator was killed and started again: how long until every agent has been heard and knows?

    python tests/chaos/reconcile.py --agents 20 --times 3

Real agent processes without work over mutual TLS on one machine. The clock runs from the start of the new coordinator's
process, its imports and the replay of its ledger included, until its view says that each agent has been heard.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from arena import COORDINATOR, Arena

from console.client import Coordinator, ask
from console.local import LocalSite
from consortium.errors import Unavailable
from consortium.ids import Language

PATIENCE_SECONDS = 300.0


def until_heard(arena: Arena, number: int) -> float:
    """Seconds from now until so many agents have been heard by this coordinator. Raises TimeoutError."""
    began = time.monotonic()
    while time.monotonic() < began + PATIENCE_SECONDS:
        try:
            view = ask(arena.admin, Coordinator.view)
        except Unavailable:
            time.sleep(0.1)
            continue
        if sum(site.seen_seconds_ago is not None for site in view.sites) == number:
            return time.monotonic() - began
        time.sleep(0.2)
    raise TimeoutError(f"{number} agents were not heard in {PATIENCE_SECONDS:.0f} s")


def after_a_kill(arena: Arena, down_seconds: float) -> float:
    """Kill the coordinator, leave it dead for so long, start it; seconds until all agents were heard."""
    with arena.kept_down(COORDINATOR):
        time.sleep(down_seconds)
    return until_heard(arena, len(arena.sites))


@contextmanager
def idle(workdir: Path, agents: int) -> Iterator[Arena]:
    """A consortium of so many agents with nothing to do, all of them heard."""
    sites = [LocalSite(f"site-{n:02}", "Institute", "FI", (Language("fi"),)) for n in range(agents)]
    arena = Arena(workdir, hostile=False, sites=sites)
    try:
        arena.lay_out()
        until_heard(arena, agents)
        yield arena
    finally:
        arena.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--down", type=float, default=10.0, help="seconds that the coordinator stays dead")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="sprachbund-reconcile-"))
    try:
        with idle(root / "consortium", options.agents) as arena:
            for _ in range(options.times):
                seconds = after_a_kill(arena, options.down)
                load = round(os.getloadavg()[0], 1)
                print(
                    json.dumps({"agents": options.agents, "seconds": round(seconds, 1), "load": load}),
                    flush=True,
                )
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
