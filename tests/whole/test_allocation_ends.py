"""An allocation that ends in the midst of a job: the real agent and trainer, the real coordinator, the whole way."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from real_coordinator import PATIENCE_SECONDS, Consortium, campaign
from scripted_sites import ScriptedSite, at_work

from consortium.canonical import replace
from consortium.ids import JobId, Language
from consortium.invitation import Invitation
from consortium.jobs import Optimizer
from coordinator.core.state import State
from coordinator.driver import replay
from coordinator.ledger import Ledger
from policies.campaign import Admission
from site_agent.agent import Agent
from site_agent.config import SiteConfig, Text
from site_agent.enrol import enrol
from site_agent.identity import SiteIdentity
from site_agent.launchers.local import TRAINER, LocalLauncher
from site_agent.limits import Granted
from site_agent.record import checkpoint_of

VARNA = "varna"
JOB = JobId(f"demo_r1-train-{VARNA}")
BG = Language("bg")
STEPS = 1_000_000  # nobody waits for the last one
TOKENS_A_STEP = 2 * 16
OVER = Granted(name="eurohpc-1", gpu_hours=100.0, until="2020-01-01")

# The real trainer, but the wish that it delivers kills it, as a walltime would that ends in that moment.
FALLING = """
import os, signal, sys
from site_agent.trainer import __main__ as program
def fall(wishes):
    if wishes._look()[program.FINISH]:
        os.kill(os.getpid(), signal.SIGKILL)
    return False
program._Wishes.finish = fall
sys.exit(program.main(sys.argv[1:]))
"""


@contextlib.asynccontextmanager
async def running(config: SiteConfig, command: tuple[str, ...]) -> AsyncIterator[None]:
    identity = SiteIdentity.load(Path(config.home))
    agent = asyncio.create_task(Agent(config, identity, LocalLauncher(command, poll_seconds=0.05)).run())
    try:
        yield
    finally:
        agent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await agent


async def enrolled(consortium: Consortium, token: str) -> SiteConfig:
    text = consortium.folder / "bg.txt"
    text.write_text("\n\n".join(f"Изречение {n}: вода, хляб и сол за {n * 7 % 97} души." for n in range(400)))
    config = SiteConfig(
        site=VARNA,
        coordinator=f"127.0.0.1:{consortium.config.port}",
        enrolment=f"127.0.0.1:{consortium.config.enrolment_port}",
        home=str(consortium.folder / VARNA),
        sync_seconds=0.2,
        text=(Text(language=BG, path=str(text), access="private", licence="CC0-1.0"),),
    )
    invitation = Invitation(
        consortium=consortium.config.consortium,
        site=VARNA,
        coordinator=config.coordinator,
        enrolment=config.enrolment,
        authority=consortium.keys.authority.pem.decode(),
        token=token,
    )
    await asyncio.to_thread(enrol, config, invitation)
    return config


def weights_of(state: State) -> dict[str, int]:
    """With what weight each site's delta went into the candidate of round 1."""
    [candidate] = (one for one in state.campaigns["demo"].versions.values() if one.round == 1)
    weights = {one.delta.digest: one.weight for one in candidate.manifest.ingredients}
    found = {}
    for job in state.jobs.values():
        delta = job.contribution.artifacts.get("delta") if job.contribution else None
        if job.contribution is not None and delta is not None and delta.digest in weights:
            found[job.contribution.site] = weights[delta.digest]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "share_min"), [("finish", 0.0), ("finish", 0.5), ("salvage", 0.0)], ids=lambda value: str(value)
)
async def test_what_was_trained_arrives_with_its_true_tokens_and_the_coordinator_judges_if_it_is_enough(
    consortium: Consortium, base: Path, tmp_path: Path, way: str, share_min: float
) -> None:
    command = TRAINER
    if way == "salvage":
        (tmp_path / "falling.py").write_text(FALLING)
        command = (sys.executable, str(tmp_path / "falling.py"))
    plan = campaign(base, rounds=1, admission=Admission(tokens_share_min=share_min))
    train = replace(
        plan.train,
        steps=STEPS,
        checkpoint_steps=5,
        replay_share=0.0,
        epochs_max=1e9,
        optimizer=Optimizer(learning_rate=1e-7),  # however far it comes, the delta's norm is no question
    )
    async with consortium.running(), consortium.admin() as admin:
        config = await enrolled(consortium, await admin.invite(VARNA))
        home = Path(config.home)
        async with at_work(ScriptedSite(consortium, "ohrid"), ScriptedSite(consortium, "plovdiv")):
            async with running(config, command), asyncio.timeout(PATIENCE_SECONDS):
                await admin.submit(replace(plan, train=train))
                directory = home / "spool" / JOB / f"{JOB}.a1"
                while checkpoint_of(directory)[0] < 10:
                    await asyncio.sleep(0.05)
            async with running(replace(config, allocation=OVER), command):  # its operator knows better now
                ended = await admin.until_ended("demo")
        why = "\n".join(await admin.why("demo/r1"))
    with Ledger(consortium.home / "ledger.sqlite", read_only=True) as ledger:
        state = replay(ledger)
    done = state.jobs[JOB].contribution
    assert done is not None
    assert (done.planned_steps, done.site) == (STEPS, VARNA)
    assert 10 <= done.steps < STEPS
    assert done.tokens == {BG: done.steps * TOKENS_A_STEP}
    assert ended.status == "completed"
    weights = weights_of(state)
    if share_min == 0.0:
        assert set(weights) == {"ohrid", "plovdiv", VARNA}
        assert weights[VARNA] == done.steps * TOKENS_A_STEP
    else:
        assert set(weights) == {"ohrid", "plovdiv"}
        assert "2 of 3 contributions are in and no other can come" in why
