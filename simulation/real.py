"""Simulated sites whose jobs are done for real: the very trainer that a launcher starts, on text that is there.

What comes out is what real processes make of the same campaign and the same texts, bit for bit; only time, queues,
network and failures are simulated.
"""

import os
import subprocess
import sys
from pathlib import Path

from consortium.canonical import replace
from consortium.errors import BadInput
from consortium.ids import SiteName
from policies.campaign import Campaign
from policies.reading import load_campaign
from simulation.learning import size_of_order
from simulation.outcome import Outcome
from simulation.plan import Plan, SitePlan
from simulation.weather import PRESETS
from site_agent.config import SiteConfig, load_site_config
from site_agent.launchers.local import trainer_of
from site_agent.trainer.folder import JobFolder

_KEPT = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")


class RealTrainer:
    """Does an order when its simulated time is over: the whole of it, since nobody sees the moments in between."""

    def finish(self, folder: JobFolder, steps: int, seconds: float, spoilt: bool = False) -> None:
        if steps != size_of_order(folder.job):
            raise BadInput(f"{folder.job.attempt}: the real trainer is not simulated for a part of its steps")
        threads = str(folder.site.threads)
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            [*trainer_of(1), str(folder.path)],
            cwd=folder.path,
            env=environment,
            capture_output=True,
            text=True,
        )
        if not folder.has_result:
            said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise BadInput(f"the trainer left no result: {said[0]}")


def at_work(real: SiteConfig, simulated: SiteConfig) -> SiteConfig:
    """A site's own config, as far as its text and its consent go; the rest is of the simulated world."""
    return replace(
        simulated,
        text=real.text,
        heldout_share=real.heldout_share,
        torch_threads=real.torch_threads,
        consent=real.consent,
    )


def plan_of(campaign: Campaign, sites: dict[SiteName, SiteConfig], model_bytes: int = 10_000_000) -> Plan:
    """A plan in which these sites do this campaign, with nothing in their way."""
    return Plan(
        campaign=campaign,
        sites=tuple(
            SitePlan(
                name=name,
                organisation=name,
                slots=config.slots,
                gpus=0,
                queue_median_minutes=1.0,
                queue_sigma=0.0,
                walltime_minutes=1e6,
                merges=config.consent.merges,
            )
            for name, config in sorted(sites.items())
        ),
        training="real",
        model_bytes=model_bytes,
    )


def simulate_folder(workdir: Path, seed: int = 1) -> Outcome:
    """Simulate ``campaign.yaml`` and ``sites/*.yaml`` below ``workdir``, in calm weather, with the real trainer."""
    from simulation.run import simulate  # which imports this module

    campaign = load_campaign(workdir / "campaign.yaml").campaign
    configs = [load_site_config(path) for path in sorted((workdir / "sites").glob("*.yaml"))]
    sites = {config.site: config for config in configs}
    return simulate(plan_of(campaign, sites), seed, PRESETS["calm"], real=sites)


if __name__ == "__main__":
    found = simulate_folder(Path(sys.argv[1]))
    for version in found.versions:
        print(version.name, version.digest, version.status)
    print("\n".join(found.violations) or "every invariant held")
