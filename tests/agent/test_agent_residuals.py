"""What the agent keeps for a next job, residual and moments: staged where named, kept once delivered, never sent."""

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_coordinator import A1, FakeCoordinator
from msgspec import UNSET
from sprachbund.v1 import site_pb2

from consortium.canonical import decode, replace
from consortium.ids import AttemptId, Digest, digest_of
from consortium.manifests import Contribution
from consortium.signing import CONTRIBUTION, key_of_certificate, open_envelope
from site_agent.agent import Agent
from site_agent.config import SiteConfig
from site_agent.enrol import enrol
from site_agent.identity import SiteIdentity
from site_agent.launchers.local import LocalLauncher
from site_agent.residuals import Residuals
from site_agent.ssh.files import _to_push

A2, A3, A4 = (AttemptId(f"demo_r{number}-train-north.a1") for number in (2, 3, 4))

# What a trainer does with residuals, less the training. Waits for `go` where `hold` is, like the other one.
PROGRAM = """
import hashlib, json, os, pathlib, sys, time
def sha256(data):
    return hashlib.sha256(data).hexdigest()
place = pathlib.Path(sys.argv[1])
hold = pathlib.Path(__file__).parent
while (hold / "hold").exists():
    if (place / "STOP").exists():
        sys.exit(75)
    time.sleep(0.01)
job = json.loads((place / "job.json").read_bytes())
before = place / "residual.safetensors"
delta, left = b"delta of " + job["attempt"].encode(), b"left by " + job["attempt"].encode()
result = place / "result.tmp"
result.mkdir()
(result / "delta.safetensors").write_bytes(delta)
(result / "residual.safetensors").write_bytes(left)
moments = {}
if job["work"]["optimizer"].get("moments") == "keep":
    (result / "moments.safetensors").write_bytes(b"moments " + left)
    moments["moments"] = sha256(b"moments " + left)
    if (place / "moments.safetensors").exists():
        moments["moments_before"] = sha256((place / "moments.safetensors").read_bytes())
(result / "contribution.json").write_text(json.dumps({
    "job": job["job"], "attempt": job["attempt"], "campaign": job["campaign"], "site": job["site"],
    "assignment": sha256((place / "job.json").read_bytes()),
    "artifacts": {"delta": {"digest": sha256(delta), "size": len(delta)}},
    "residual_before": sha256(before.read_bytes()) if before.exists() else None, "residual": sha256(left),
    **moments,
}))
os.rename(result, place / "result")
"""


def left(attempt: AttemptId) -> Digest:
    return digest_of(f"left by {attempt}".encode())


def moments_left(attempt: AttemptId) -> Digest:
    return digest_of(f"moments left by {attempt}".encode())


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    path = tmp_path / "feedback" / "hold"
    path.parent.mkdir(exist_ok=True)
    return path


@pytest.fixture
async def kept(
    config: SiteConfig, coordinator: FakeCoordinator, tmp_path: Path, hold: Path
) -> AsyncIterator[Path]:
    """Where the residuals of campaign ``demo`` are; an agent is running."""
    program = hold.with_name("job.py")
    program.write_text(PROGRAM)
    identity: SiteIdentity = await asyncio.to_thread(enrol, config, coordinator.invitation())
    launcher = LocalLauncher((sys.executable, str(program)), poll_seconds=0.05)
    agent = asyncio.create_task(Agent(config, identity, launcher).run())
    yield Path(config.home) / "residuals" / "demo"
    agent.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await agent


async def delivered(
    coordinator: FakeCoordinator,
    config: SiteConfig,
    attempt: AttemptId,
    residual: Digest | None,
    **changes: Any,
) -> Contribution:
    work = replace(coordinator.assignment(attempt).work, delta_dtype="int4", residual=residual, **changes)
    coordinator.want(attempt, work=work)
    report = await coordinator.until_phase("ENDED", attempt)
    assert report.outcome == site_pb2.ATTEMPT_OUTCOME_SUCCEEDED, report.reason
    envelope = coordinator.store.path(report.contribution).read_bytes()
    certificate = SiteIdentity.load(Path(config.home)).certificate
    return decode(open_envelope(envelope, CONTRIBUTION, key_of_certificate(certificate)), Contribution)


def digests(folder: Path, suffix: str = ".safetensors") -> set[str]:
    return {path.stem for path in folder.glob(f"*{suffix}")}


async def test_a_chain_over_rounds(kept: Path, coordinator: FakeCoordinator, config: SiteConfig) -> None:
    first = await delivered(coordinator, config, A1, None)
    assert (first.residual_before, first.residual) == (None, left(A1))
    assert digests(kept) == {left(A1)}
    assert not coordinator.has(left(A1))  # it never leaves the site
    second = await delivered(coordinator, config, A2, left(A1))
    assert (second.residual_before, second.residual) == (left(A1), left(A2))
    assert digests(kept) == {left(A1), left(A2)}
    # round 2 was rejected: round 3 begins where round 2 did, and what round 2 left is forgotten
    third = await delivered(coordinator, config, A3, left(A1))
    assert third.residual_before == left(A1)
    assert digests(kept) == {left(A1), left(A3)}
    fourth = await delivered(coordinator, config, A4, left(A3))
    assert fourth.residual_before == left(A3)
    assert digests(kept) == {left(A3), left(A4)}


async def test_moments_are_kept_beside_residuals_and_as_long(
    kept: Path, coordinator: FakeCoordinator, config: SiteConfig
) -> None:
    keeps = replace(coordinator.assignment(A1).work.optimizer, moments="keep")  # type: ignore[union-attr]
    first = await delivered(coordinator, config, A1, None, optimizer=keeps)
    assert (first.moments_before, first.moments) == (UNSET, moments_left(A1))
    assert not coordinator.has(moments_left(A1))  # they never leave the site
    second = await delivered(coordinator, config, A2, left(A1), optimizer=keeps, moments=moments_left(A1))
    assert (second.moments_before, second.moments) == (moments_left(A1), moments_left(A2))
    # round 2 was rejected
    third = await delivered(coordinator, config, A3, left(A1), optimizer=keeps, moments=moments_left(A1))
    assert third.moments_before == moments_left(A1)
    assert digests(kept, ".moments") == {moments_left(A1), moments_left(A3)}
    assert digests(kept) == {left(A1), left(A3)}
    # and what is lost is begun without
    (kept / f"{moments_left(A3)}.moments").unlink()
    fourth = await delivered(coordinator, config, A4, left(A3), optimizer=keeps, moments=moments_left(A3))
    assert (fourth.moments_before, fourth.residual_before) == (UNSET, left(A3))
    assert digests(kept, ".moments") == {moments_left(A4)}


async def test_an_attempt_that_is_not_delivered_leaves_nothing(
    kept: Path, coordinator: FakeCoordinator, config: SiteConfig, hold: Path
) -> None:
    await delivered(coordinator, config, A1, None)
    hold.touch()
    coordinator.want(A2, work=replace(coordinator.assignment(A2).work, delta_dtype="int4", residual=left(A1)))
    await coordinator.until_phase("RUNNING", A2)
    coordinator.forsake(A2)
    await coordinator.until_phase("ENDED", A2)
    hold.unlink()
    assert digests(kept) == {left(A1)}
    assert (await delivered(coordinator, config, A3, left(A1))).residual_before == left(A1)


async def test_a_lost_residual_stops_nothing(
    kept: Path, coordinator: FakeCoordinator, config: SiteConfig
) -> None:
    await delivered(coordinator, config, A1, None)
    shutil.rmtree(kept)
    assert (await delivered(coordinator, config, A2, left(A1))).residual_before is None
    assert digests(kept) == {left(A2)}


def test_what_lies_in_a_job_is_not_put_there_again(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    residuals, order = Residuals(tmp_path / "residuals"), coordinator.assignment(A1)
    for name, suffix, digest in (
        ("residual", ".safetensors", left(A1)),
        ("moments", ".moments", moments_left(A1)),
    ):
        place = tmp_path / "residuals" / "demo" / f"{digest}{suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"old")
        named = replace(order, work=replace(order.work, **{name: digest}))
        residuals.lay_out(named, tmp_path / "job")
        place.unlink()
        residuals.lay_out(named, tmp_path / "job")
        assert (tmp_path / "job" / f"{name}.safetensors").read_bytes() == b"old"
        residuals.lay_out(replace(order, work=replace(order.work, **{name: left(A2)})), tmp_path / "other")
        assert not (tmp_path / "other").exists()


def test_what_is_kept_goes_to_a_site_behind_ssh(tmp_path: Path) -> None:
    """Without, every job there would begin anew, and only its manifest would say so."""
    placed = {tmp_path / name for name in ("residual.safetensors", "moments.safetensors")}
    for path in placed:
        path.write_bytes(b"kept")
    assert set(_to_push(tmp_path)) == placed
