"""One of several coordinators leads; when it is killed or stopped another goes on, and nothing else changes."""

import asyncio
import contextlib
import signal
import time
from pathlib import Path

import pytest
from postgres_server import Server
from real_coordinator import Consortium, campaign, campaign_in, job_state
from replicas import PATIENCE_SECONDS, Replicas
from scripted_sites import ScriptedSite, at_work, introduce

from consortium.errors import Unavailable
from coordinator.ledgers import open_ledger
from coordinator.reading import view_of
from coordinator.verification import verify

pytestmark = [pytest.mark.slow]


@pytest.fixture
def replicas(enrolled: Consortium, tmp_path: Path, postgres: Server, storage: str) -> Replicas:
    copy = enrolled.copy_to(tmp_path / "consortium")
    bucket = f"s3://blobs/{tmp_path.name}"
    return Replicas(copy.folder, 3, postgres.new_ledger(), bucket, storage)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
async def test_another_goes_on_with_the_round_and_makes_the_same_model(
    blow: signal.Signals, replicas: Replicas, completed: Consortium, base: Path
) -> None:
    wanted = campaign_in(view_of(completed.home), "demo")
    async with replicas.standing() as first:
        async with replicas.admin() as admin:
            await introduce(replicas)
            await admin.submit(campaign(base))
        async with at_work(ScriptedSite(replicas, "sofia")):  # it lives through all that follows
            async with (
                replicas.admin() as admin
            ):  # in the middle of a round: one contribution is in, two are not
                await admin.until(
                    lambda view: job_state(view, "demo_r1-train-sofia") == "done",
                    "sofia's contribution admitted",
                )
            standing_by = [await replicas.says(place) for place in range(3) if place != first]
            assert standing_by == ["NOT_SERVING"] * 2
            replicas.signal(first, blow)
            struck = time.monotonic()
            second = await replicas.leader(other_than=first)
            print(f"{blow.name}: {time.monotonic() - struck:.1f} s until another led")
            if blow is signal.SIGSTOP:
                replicas.signal(first, signal.SIGCONT)
            async with at_work(ScriptedSite(replicas, "ohrid"), ScriptedSite(replicas, "plovdiv")):
                async with replicas.admin() as admin:
                    made = await admin.until_ended("demo")
        assert [(v.name, v.digest) for v in made.versions] == [(v.name, v.digest) for v in wanted.versions]
        if blow is signal.SIGSTOP:  # it woke up, found itself replaced, and stands by
            assert await _eventually(replicas, first, "NOT_SERVING")
            assert "the lead is lost" in replicas.log(first).read_text()
        else:
            replicas.start(first)
            assert await _eventually(replicas, first, "NOT_SERVING")
    report = verify(replicas.folder / f"coordinator-{second}.yaml")
    assert report.problems == ()
    assert set(report.versions) == {"demo/v1", "demo/v2"}  # v0 was given


async def test_a_token_is_taken_by_whoever_leads(replicas: Replicas) -> None:
    async with replicas.standing() as first:
        async with replicas.admin() as admin:
            token = await admin.invite("varna")
        replicas.signal(first, signal.SIGKILL)
        await replicas.leader(other_than=first)
        site = ScriptedSite(replicas, "varna")
        site.folder.mkdir(parents=True, exist_ok=True)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not site.folder.joinpath("site.pem").exists():  # one address after the other
                with contextlib.suppress(Unavailable):
                    await site.enrol(token)
        async with replicas.admin() as admin:
            assert any(one.site == "varna" for one in (await _view(admin)).sites)


async def test_the_database_restarts_and_the_coordinators_go_on(replicas: Replicas, postgres: Server) -> None:
    async with replicas.standing():
        async with replicas.admin() as admin:
            await admin.invite("varna")
        postgres.kill()
        while "SERVING" in [await replicas.health(place) for place in range(3)]:
            await asyncio.sleep(0.1)  # until whoever led has noticed
        postgres.start()
        await replicas.leader()
        async with replicas.admin() as admin:
            await admin.invite("burgas")
    with open_ledger(replicas.config.ledger or "", read_only=True) as ledger:
        kinds = [entry.event["kind"] for entry in ledger.read(replicas.moved.sequence + 1)]
    assert kinds.count("TokenIssued") == 2


async def _view(admin) -> object:  # type: ignore[no-untyped-def]
    return await admin.until(lambda view: True, "a view")


async def _eventually(replicas: Replicas, place: int, word: str) -> bool:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await replicas.health(place) != word:
            await asyncio.sleep(0.1)
    return True
