"""How fast time passes in a simulation: ``python benchmarks/simulated_hours.py`` prints hours per minute of one core.

Calm weather, twenty sites, and an agent that is heard of three times a lease; ``--lease`` in place of the plan's.
"""

import argparse
import time

from consortium.canonical import replace
from simulation.reading import load_plan
from simulation.run import simulate
from simulation.weather import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", nargs="?", default="examples/simulation/centres.yaml")
    parser.add_argument("--hours", type=float, default=1000.0, help="to simulate, at most")
    parser.add_argument("--lease", type=float, default=7200.0, help="seconds")
    asked = parser.parse_args()
    plan = load_plan(asked.plan).plan
    campaign = replace(plan.campaign, lease_seconds=asked.lease)
    began = time.process_time()
    found = simulate(
        replace(plan, campaign=campaign, hours_max=asked.hours), 1, PRESETS["calm"], rebuild=False
    )
    seconds = time.process_time() - began
    print(
        f"{len(plan.sites)} sites, {found.hours:.0f} h in {seconds:.1f} s of one core: "
        f"{found.hours * 60 / seconds:.0f} h a minute; {found.events} events, {found.steps} steps"
    )


if __name__ == "__main__":
    main()
