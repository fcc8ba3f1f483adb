"""An unmodified Flower app on real processes: nothing that is killed changes its model or repeats its clients' work."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flower_consortium import FlowerConsortium

from consortium.jobs import FlowerMessage
from coordinator.core.state import State
from coordinator.core.transitions import JobState
from coordinator.verification import verify

pytestmark = [pytest.mark.slow, pytest.mark.demo, pytest.mark.timeout(300)]
SETTINGS = {"num_server_rounds": 2, "strategy": '"fedadam"'}
JOBS = 2 * 2 * 3  #: rounds, train and evaluate, sites


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowerConsortium]:
    with FlowerConsortium(tmp_path_factory.mktemp("flowers") / "consortium") as consortium:
        yield consortium


@pytest.fixture(scope="module")
def calm(flowers: FlowerConsortium) -> str:
    return flowers.run("calm", **SETTINGS)


def until(flowers: FlowerConsortium, so: Callable[[State], bool], seconds: float = 90.0) -> None:
    late = time.monotonic() + seconds
    while not so(flowers.state()):
        assert time.monotonic() < late, "it never came so far"
        time.sleep(0.1)


def leased(state: State, beginning: str) -> bool:
    return any(
        job.state is JobState.LEASED and name.startswith(beginning) for name, job in state.jobs.items()
    )


def test_every_message_was_one_job_and_the_arrays_for_all_sites_one_blob(
    flowers: FlowerConsortium, calm: str
) -> None:
    jobs = flowers.jobs("calm")
    assert len(jobs) == JOBS and {job.attempts for job in jobs.values()} == {1}
    assert len({job.inputs for name, job in jobs.items() if "_m1-" in name}) == 1
    for site in ("north", "south", "west"):
        works = [jobs[f"calm_m{n}-{kind}-{site}"] for n, kind in enumerate(("train", "evaluate") * 2, 1)]
        orders = [job.work for job in works]
        assert all(isinstance(order, FlowerMessage) for order in orders)
        # each message goes on from the Context.state that the one before it left at the site
        left = [None, *(job.contribution.residual for job in works)]
        assert [order.state for order in orders] == left[:-1] and len(set(left)) == len(left)
    metrics = json.loads(flowers.model("calm").with_suffix(".json").read_text())
    assert [found["seen"] for found in metrics["train"].values()] == [
        1.0,
        3.0,
    ]  # the mod's count in that state


def test_the_same_run_again_asks_nobody(flowers: FlowerConsortium, calm: str) -> None:
    before = flowers.state().snapshot()
    assert flowers.run("calm", **SETTINGS) == calm
    assert flowers.state().snapshot() == before


def test_killing_coordinator_and_server_app_changes_nothing(flowers: FlowerConsortium, calm: str) -> None:
    process = flowers.start("struck", **SETTINGS)
    until(flowers, lambda state: leased(state, "struck_m1-"))
    _kill(flowers.here.processes["coordinator"].pid)
    flowers.here.processes["coordinator"].wait()
    flowers.here.start_coordinator()
    until(flowers, lambda state: leased(state, "struck_m2-"))
    _kill(process.pid)
    process.wait()
    assert not flowers.model("struck").exists()
    assert flowers.run("struck", **SETTINGS) == calm
    jobs = flowers.jobs("struck")
    assert len(jobs) == JOBS
    assert {name: job.attempts for name, job in jobs.items()} == dict.fromkeys(jobs, 1), "repeated work"


@pytest.mark.soak
def test_a_killed_trainer_costs_one_life(flowers: FlowerConsortium, calm: str) -> None:
    """And an app that is killed in mid-message leaves nothing half done: same state, same model."""
    slow = {**SETTINGS, "seconds_per_epoch": 1.0}
    process = flowers.start("wounded", **slow)
    until(flowers, lambda state: leased(state, "wounded_m3-"))
    late = time.monotonic() + 60
    while not (victims := [pid for name, pid in flowers.here.trainers() if name.startswith("wounded_m3-")]):
        assert time.monotonic() < late
        time.sleep(0.05)
    _kill(victims[0])
    assert process.wait(timeout=120) == 0
    assert flowers.digest("wounded") == calm


def test_an_auditor_can_check_every_reply(flowers: FlowerConsortium, calm: str) -> None:
    found = verify(flowers.here.home)
    assert found.problems == () and found.checked["contribution"] >= JOBS


def test_what_the_site_does_not_name_is_refused(flowers: FlowerConsortium) -> None:
    """By the site, before anything is launched; the Strategy counts failures, and the story says why."""
    done = flowers.here.command(
        *("flower", "run", "quickstart.server_app:app", "--client-app", "os:abort", "--run", "other"),
        *("--set=num-server-rounds=1", '--set=strategy="fedavg"', f"--set=out={flowers.model('other')}"),
    )
    assert done["app"] == "os:abort"
    jobs = flowers.jobs("other").values()
    assert {job.state for job in jobs} == {JobState.FAILED}
    assert all("does not run the Flower app os:abort" in job.reason for job in jobs)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_nothing_was_written_to_the_users_home(flowers: FlowerConsortium, calm: str) -> None:
    assert not (Path.home() / ".flwr").exists()
