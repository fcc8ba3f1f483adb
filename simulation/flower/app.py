"""Our campaign as a Flower app, and how Flower's own simulation engine runs it.

SPRACHBUND_CAMPAIGN=folder python -m simulation.flower.app
"""

import os
import sys
import traceback

from consortium.flower import compat  # before flwr: telemetry off
from consortium.ids import Digest
from coordinator.config import load_coordinator_config
from policies.reading import load_campaign
from simulation.flower.client import make_client_app
from simulation.flower.engine import ray_at_work
from simulation.flower.office import Office, refuse_unfinished
from simulation.flower.places import Places, told
from simulation.flower.strategy import CampaignStrategy, reference

_NOTHING = Digest("0" * 64)  #: before the first version
_WAVES_BESIDE_ROUNDS = 4  # tokenizer, seed round, rivals, comparison


def make_server_app(places: Places) -> compat.ServerApp:
    """The ServerApp of the campaign at ``places``: its coordinator's home is made there, anew.

    The campaign's model has to be made from a config, its tokenizer trained: nobody uploads files here.
    """
    app = compat.ServerApp()

    @app.main()
    def main(grid: compat.Grid, context: compat.Context) -> None:
        campaign = load_campaign(places.campaign).campaign
        with Office(load_coordinator_config(places.coordinator)) as office:
            strategy = CampaignStrategy(office, campaign.campaign)
            strategy.gather(grid)
            office.submit(campaign)
            waves = 2 * campaign.rounds + _WAVES_BESIDE_ROUNDS
            strategy.start(grid=grid, initial_arrays=reference(_NOTHING), num_rounds=waves)
            refuse_unfinished(office.campaign(campaign.campaign))

    return app


def simulate(places: Places, cpus: int = 2) -> None:
    """Run the campaign on Flower's own engine (Ray), as many jobs at a time as there are ``cpus``.

    Raises Unavailable if Ray does not start; what the ServerApp raises goes on.
    """
    from flwr.simulation import run_simulation

    with ray_at_work(cpus):
        run_simulation(
            server_app=make_server_app(places),
            client_app=make_client_app(places),
            num_supernodes=len(places.site_files()),
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )


def main() -> None:
    """Ends at once whatever happens: if Flower's engine falls, its ServerApp's thread waits for replies for ever."""
    try:
        simulate(told())
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
