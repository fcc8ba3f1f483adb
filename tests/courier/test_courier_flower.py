"""A Flower message goes to a site without a network and its reply comes back, all of it in bundles."""

import asyncio
import sys
from pathlib import Path

import pytest
from island import Island
from real_coordinator import Consortium

sys.path.append(str(Path(__file__).parents[1] / "flower"))

from flower_consortium import APP_FOLDER, CLIENT_APP

from consortium.canonical import replace
from consortium.channels import open_channel
from consortium.flower.compat import ArrayRecord, RecordDict
from consortium.flower.runs import FlowerRun, node_of
from consortium.ids import CampaignId, SiteName
from coordinator.flower.grid import JobGrid
from coordinator.flower.post import CoordinatorPost
from site_agent.config import Flower
from site_agent.launching import make_launcher

SETTINGS = {"local-epochs": 1, "learning-rate": 0.5, "seconds-per-epoch": 0.0}


def asked(consortium: Consortium, folder: Path) -> list[dict[str, float]]:
    """What a ServerApp's process does: two messages after each other; the metrics of the replies."""
    post = CoordinatorPost(
        lambda: open_channel(
            f"127.0.0.1:{consortium.config.port}",
            consortium.keys.authority.pem,
            consortium.person("admin", "admin"),
        ),
        folder,
    )
    try:
        run = FlowerRun(
            run=CampaignId("carried"), app=CLIENT_APP, sites=(SiteName("ohrid"),), run_config=SETTINGS
        )
        grid = JobGrid(post.open_run(run), post)
        sys.path.insert(0, str(APP_FOLDER))
        from quickstart import task

        arrays, told = ArrayRecord(task.new_model()), []
        for _ in range(2):
            content = RecordDict({"arrays": arrays})
            message = grid.create_message(content, "train", node_of(SiteName("ohrid")), "1")
            (reply,) = grid.send_and_receive([message])
            arrays = reply.content["arrays"]
            told.append(dict(reply.content["metrics"]))
        post.complete_run(run.run, "done")
        return told
    finally:
        post.close()


@pytest.mark.slow
async def test_a_flower_app_at_a_site_that_lives_by_courier_alone(
    consortium: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{APP_FOLDER}:{Path(__file__).parents[2]}")
    island = Island(consortium, tmp_path / "ohrid")
    island.take_over_identity()
    island.config = replace(island.config, flower=Flower(apps=(CLIENT_APP,)))
    island.launcher = make_launcher(island.config)  # type: ignore[assignment]
    async with consortium.running():
        island.take_in(await island.exchange(await island.export()))  # from now on its leases are long
        replies = asyncio.create_task(asyncio.to_thread(asked, consortium, tmp_path / "post"))
        async with asyncio.timeout(400):
            while not replies.done():
                await island.round_trip()
            first, second = await replies
            while list((island.home / "spool").glob("*/*")):  # until all is settled
                await island.round_trip()
    # the second message went on from the Context.state that the first one left at the site
    assert (first["seen"], second["seen"]) == (1, 2) and second["loss"] < first["loss"]
