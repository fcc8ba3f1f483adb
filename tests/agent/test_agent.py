"""An agent against a coordinator that misbehaves as real ones and real networks do; the job is a small program."""

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import time
from pathlib import Path

import pytest
from agents_at_work import in_a_process, running, until
from fake_coordinator import A1, NORTH, PATIENCE_SECONDS, delta_of_base
from sprachbund.v1 import site_pb2

from consortium.canonical import decode, digest_of_fact, replace
from consortium.errors import Refused
from consortium.identity import signing_request
from consortium.ids import AttemptId, CampaignId
from consortium.jobs import Purpose
from consortium.manifests import Contribution
from consortium.signing import CONTRIBUTION, key_of_certificate, new_key, new_ledger_key, open_envelope
from site_agent.agent import Agent
from site_agent.config import Consent
from site_agent.doctor import doctor
from site_agent.identity import SiteIdentity
from site_agent.launchers.local import LocalLauncher
from site_agent.running import run_agent
from site_agent.status import site_status

ROOT = Path(__file__).parents[2]
SUCCEEDED, FAILED, REFUSED, CANCELLED = (
    site_pb2.AttemptOutcome.Value(f"ATTEMPT_OUTCOME_{name}")
    for name in ("SUCCEEDED", "FAILED", "REFUSED", "CANCELLED")
)


@pytest.fixture
def directory(config):
    return Path(config.home) / "spool" / "demo_r1-train-north" / A1


@pytest.fixture
async def agent(config, identity, launcher, directory):
    async with running(config, identity, launcher) as task:
        yield task
    if directory.exists():
        launcher.cancel(directory)


async def test_from_assignment_to_contribution(agent, config, coordinator, identity, directory):
    assignment = coordinator.want()
    report = await coordinator.until_phase("ENDED")
    assert report.outcome == SUCCEEDED
    assert coordinator.phases[A1][-1] == "ENDED"
    assert coordinator.phases[A1] == sorted(
        coordinator.phases[A1], key=["STAGING", "QUEUED", "RUNNING", "UPLOADING", "ENDED"].index
    )
    envelope = coordinator.store.path(report.contribution).read_bytes()
    payload = open_envelope(envelope, CONTRIBUTION, key_of_certificate(identity.certificate))
    contribution = decode(payload, Contribution)
    assert contribution.attempt == A1
    assert contribution.assignment == digest_of_fact(assignment)
    assert (
        contribution.artifacts["delta"].digest == delta_of_base()
    )  # it was made from the base that was sent
    assert coordinator.has(delta_of_base())
    await until(lambda: not directory.parent.exists(), "the drop")  # settled, so dropped
    [line] = (Path(config.home) / "checkpoints.jsonl").read_text().splitlines()
    assert json.loads(line)["head"] == "aa"
    status = site_status(config)
    assert status.agent is not None
    assert status.agent.trouble == ""
    assert status.agent.is_running


async def test_progress_is_told_while_it_runs(agent, coordinator, hold):
    coordinator.want()
    report = await coordinator.until_told(lambda report: report.progress.step == 1, "progress")
    assert report.phase == site_pb2.ATTEMPT_PHASE_RUNNING
    assert (report.progress.steps, report.progress.tokens, report.progress.loss) == (2, 64, 2.5)
    assert report.native_id
    hold.unlink()
    assert (await coordinator.until_phase("ENDED")).outcome == SUCCEEDED


async def test_an_agent_killed_mid_job_finds_its_job_running(
    config, coordinator, identity, program, hold, directory
):
    """The agent is a process of its own here, and dies of SIGKILL."""
    with in_a_process(config, program) as first:
        coordinator.want()
        before = await coordinator.until_told(lambda report: report.progress.step == 1, "progress")
        first.send_signal(signal.SIGKILL)
    with in_a_process(config, program) as second:
        await coordinator.until_synced(3)
        assert coordinator.told[A1].native_id == before.native_id
        assert coordinator.told[A1].phase == site_pb2.ATTEMPT_PHASE_RUNNING
        assert len({request.incarnation for request in coordinator.requests}) == 2
        assert len((directory / "began").read_text().split()) == 1
        second.send_signal(signal.SIGTERM)  # a wish to stop is for the agent alone
        assert await asyncio.to_thread(second.wait, PATIENCE_SECONDS) == 0
    assert LocalLauncher(program).poll([directory])[directory].seen == "running"
    with in_a_process(config, program) as third:
        hold.unlink()
        assert (await coordinator.until_phase("ENDED")).outcome == SUCCEEDED
        third.send_signal(signal.SIGTERM)
        await asyncio.to_thread(third.wait, PATIENCE_SECONDS)


@pytest.mark.parametrize("seed", range(3))
async def test_an_agent_that_falls_again_and_again_delivers_once(
    config, coordinator, identity, program, directory, seed
):
    """Each agent is given up at a random await: between any two steps of staging, launching or sending.

    They live a little longer each time: on a busy machine, the time of one handshake would else be all they have.
    """
    dice = random.Random(seed)
    coordinator.want()
    began = directory / "began"
    lines, most = [], 0.15
    for _ in range(200):
        with contextlib.suppress(FileNotFoundError):  # not begun, or dropped, maybe just now
            lines = began.read_text().split() or lines
        agent = asyncio.create_task(Agent(config, identity, LocalLauncher(program, poll_seconds=0.02)).run())
        await asyncio.sleep(dice.uniform(0.0, most))
        most *= 1.03
        agent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await agent
        if A1 in coordinator.told and coordinator.told[A1].phase == site_pb2.ATTEMPT_PHASE_ENDED:
            break
    assert coordinator.told[A1].outcome == SUCCEEDED
    assert len(lines) <= 1
    assert coordinator.has(coordinator.told[A1].contribution)


async def test_a_job_goes_on_while_the_coordinator_is_away(agent, coordinator, hold, directory):
    coordinator.want()
    await coordinator.until_phase("RUNNING")
    await coordinator.down()
    hold.unlink()
    await until((directory / "result").is_dir, "the result")
    await coordinator.up()
    assert (await coordinator.until_phase("ENDED")).outcome == SUCCEEDED


async def test_a_coordinator_that_is_not_there_yet(config, coordinator, identity, launcher):
    await coordinator.down()
    coordinator.want()
    async with running(config, identity, launcher):
        await until(
            lambda: "unavailable" in getattr(site_status(config).agent, "trouble", ""), "a failed Sync"
        )
        await coordinator.up()
        assert (await coordinator.until_phase("ENDED")).outcome == SUCCEEDED


@pytest.mark.parametrize("purposes", [None, (Purpose.ROUND,), (Purpose.MERGE, Purpose.ROUND)])
async def test_a_site_says_whether_it_merges(config, coordinator, identity, launcher, purposes):
    async with running(replace(config, consent=Consent(purposes=purposes)), identity, launcher):
        await coordinator.until_synced()
    assert coordinator.requests[-1].site.merges == (purposes is not None and Purpose.MERGE in purposes)


async def test_a_site_refuses_what_it_does_not_consent_to(config, coordinator, identity, launcher, directory):
    consent = Consent(campaigns=(CampaignId("other"),))
    async with running(replace(config, consent=consent), identity, launcher):
        coordinator.want()
        report = await coordinator.until_phase("ENDED")
    assert report.outcome == REFUSED
    assert "consent.campaigns allows only other" in report.reason
    assert not directory.exists()


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"key": new_ledger_key()}, "does not fit"),
        ({"site": "south"}, "it is for site south, this is north"),
        ({"schema": 2}, "update the agent"),
    ],
)
async def test_what_is_not_the_coordinators_word_is_refused(agent, coordinator, directory, wish, words):
    coordinator.want(**wish)
    report = await coordinator.until_phase("ENDED")
    assert report.outcome == REFUSED
    assert words in report.reason
    assert not directory.exists()


async def test_an_assignment_for_another_attempt_is_refused(agent, coordinator):
    coordinator.want()
    other = AttemptId("demo_r1-train-north.a7")
    signed = coordinator.wanted.pop(A1)
    coordinator.wanted[other] = site_pb2.SignedAssignment(
        attempt=other, job=signed.job, signature=signed.signature
    )
    coordinator.stir()
    assert "but was sent as" in (await coordinator.until_phase("ENDED", other)).reason


async def test_an_attempt_no_longer_wanted_is_stopped_and_dropped(
    agent, coordinator, hold, directory, launcher
):
    coordinator.want()
    await coordinator.until_phase("RUNNING")
    coordinator.forsake()
    report = await coordinator.until_phase("ENDED")
    assert report.outcome == CANCELLED
    await until(lambda: not directory.exists(), "the drop")


async def test_a_killed_trainer_has_another_life(agent, coordinator, hold, directory, launcher):
    coordinator.want()
    first = await coordinator.until_told(lambda report: report.progress.step == 1, "progress")
    os.kill(int((directory / "began").read_text()), signal.SIGKILL)
    await coordinator.until_told(
        lambda report: report.native_id != first.native_id and report.native_id, "another life"
    )
    hold.unlink()
    assert (await coordinator.until_phase("ENDED")).outcome == SUCCEEDED


async def test_a_program_that_only_dies_is_given_up(config, coordinator, identity, tmp_path):
    launcher = LocalLauncher(("/bin/sh", "-c", "exit 3"), poll_seconds=0.05)
    async with running(replace(config, lives_max=2), identity, launcher):
        coordinator.want()
        report = await coordinator.until_phase("ENDED")
    assert report.outcome == FAILED
    assert "life 2 ended without a result (exit code 3), the last of 2 in a row" in report.reason
    assert (Path(config.home) / "logs").is_dir()


class Refusing(LocalLauncher):
    """As ``sbatch`` of a site whose account is gone."""

    def submit(self, directory, life):
        raise Refused("sbatch: Invalid account; correct the site's profile")


async def test_what_the_launcher_refuses_is_refused_by_the_site_and_no_failure_of_the_job(
    config, coordinator, identity, program
):
    async with running(config, identity, Refusing(program, poll_seconds=0.05)):
        coordinator.want()
        report = await coordinator.until_phase("ENDED")
    assert report.outcome == REFUSED
    assert report.reason == "sbatch: Invalid account; correct the site's profile"


async def test_an_assignment_that_hides_what_it_needs_fails_with_the_reason(agent, coordinator):
    coordinator.want(inputs=())
    report = await coordinator.until_phase("ENDED")
    assert report.outcome == FAILED
    assert "not among its inputs" in report.reason


async def test_a_result_that_was_changed_is_not_sent(
    config, coordinator, identity, launcher, hold, directory
):
    """The delta in the result is not the one in its manifest."""
    coordinator.want()
    async with running(config, identity, launcher):
        await coordinator.until_phase("RUNNING")
        forged = directory / "forged"
        forged.mkdir()
        (forged / "delta.safetensors").write_bytes(b"x")
        ref = {"digest": delta_of_base(), "size": 25}
        fields = {"job": "demo_r1-train-north", "attempt": A1, "campaign": "demo", "site": NORTH}
        fields |= {"assignment": "a" * 64, "artifacts": {"delta": ref}}
        (forged / "contribution.json").write_text(json.dumps(fields))
        forged.rename(directory / "result")
        report = await coordinator.until_phase("ENDED")
    hold.unlink()  # nobody else ends the job
    assert report.outcome == FAILED
    assert "has 1 bytes, 25 were announced" in report.reason


async def test_a_ledger_that_was_rewritten_is_not_obeyed(agent, coordinator, config, caplog):
    await coordinator.until_synced(2)
    coordinator.head = "bb"  # at the same sequence
    with caplog.at_level(logging.ERROR):
        coordinator.want()
        await until(lambda: "its ledger was rewritten or cut" in caplog.text, "the alarm")
    assert A1 not in coordinator.told
    assert not (Path(config.home) / "spool" / "demo_r1-train-north").exists()
    coordinator.head = "aa"
    coordinator.sequence = 2
    assert (await coordinator.until_phase("ENDED")).outcome == SUCCEEDED
    lines = (Path(config.home) / "checkpoints.jsonl").read_text().splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [1, 2]


async def test_a_certificate_is_renewed_in_time(config, coordinator, identity, launcher):
    key = new_key()
    request = signing_request(NORTH, key)
    long_ago = time.time() - 61 * 86_400.0  # 29 of its 90 days are left
    old = SiteIdentity(identity.trust, key, coordinator.authority.site(request, NORTH, long_ago))
    old.save(Path(config.home))
    assert old.is_due(time.time())
    async with running(config, old, launcher):
        await coordinator.until_synced(2)
    new = SiteIdentity.load(Path(config.home))
    assert coordinator.renewals == 1
    assert not new.is_due(time.time())
    assert new.key.public_key() != key.public_key()
    assert (Path(config.home) / "identity" / "site.pem").stat().st_mode & 0o777 == 0o600
    assert not (Path(config.home) / "identity" / "next.key").exists()


async def test_once_is_enough_if_it_is_called_again(config, coordinator, identity, program, directory):
    coordinator.want()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while coordinator.wanted:
            code = await asyncio.to_thread(run_agent, config, True, LocalLauncher(program, poll_seconds=0.05))
            assert code == 0
    assert coordinator.told[A1].outcome == SUCCEEDED
    await asyncio.to_thread(run_agent, config, True, LocalLauncher(program))
    assert not directory.exists()


async def test_once_says_that_nobody_answered(config, coordinator, identity, program):
    await coordinator.down()
    assert await asyncio.to_thread(run_agent, config, True, LocalLauncher(program)) == 5


async def test_a_broken_directory_is_no_obstacle(agent, coordinator, config, hold, directory):
    coordinator.want()
    await coordinator.until_phase("RUNNING")
    (Path(config.home) / "spool" / "demo_r1-alien").mkdir()
    (Path(config.home) / "spool" / "demo_r1-alien" / "x").mkdir()
    await until((Path(config.home) / "spool" / "broken").is_dir, "setting aside")
    hold.unlink()
    assert (await coordinator.until_phase("ENDED")).outcome == SUCCEEDED
    checks = {check.name: check for check in await asyncio.to_thread(doctor, config)}
    assert not checks["spool"].is_good
    assert checks["spool"].way_out
    assert checks["identity"].is_good
    assert "certified for 9" in checks["identity"].detail
