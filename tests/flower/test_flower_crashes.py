"""An unmodified Flower app on real processes: nothing that is killed changes its model or repeats its clients' work.

One of the three sites launches through Slurm, of which only the commands are made up: its jobs are batch scripts.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flower_consortium import APP_FOLDER, PATIENCE_SECONDS, FlowerConsortium
from grids import SITES, PostHere, a_run

sys.path.insert(0, str(APP_FOLDER))
sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from fake_slurm import FakeSlurm
from quickstart.client_app import app as client_app

from console.client import find_person
from console.demo import SLURM
from consortium.channels import open_channel
from consortium.errors import Unavailable
from consortium.flower.runs import FlowerOrder
from consortium.ids import CampaignId, JobId
from consortium.jobs import FlowerMessage
from consortium.store import BlobStore
from coordinator.cleaning import clean
from coordinator.core.transitions import JobState
from coordinator.flower.apps import find_app, overridden
from coordinator.flower.driving import drive
from coordinator.flower.post import CoordinatorPost
from coordinator.stores import places_of
from coordinator.verification import verify

pytestmark = [pytest.mark.slow, pytest.mark.demo, pytest.mark.timeout(900)]
SETTINGS = {"num_server_rounds": 2, "strategy": '"fedadam"'}
JOBS = 2 * 2 * 3  #: rounds, train and evaluate, sites


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeSlurm]:
    slurm = FakeSlurm(tmp_path_factory.mktemp("slurm") / "root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", slurm.environment["PATH"])
        patch.setenv("HOME", str(slurm.root))  # of all processes; see the last test
        yield slurm
        slurm.close()


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory, slurm: FakeSlurm) -> Iterator[FlowerConsortium]:
    through_slurm = {"west": {**SLURM, "poll_seconds": 1}}
    with FlowerConsortium(
        tmp_path_factory.mktemp("flowers") / "consortium", slurm=through_slurm
    ) as consortium:
        yield consortium


@pytest.fixture(scope="module")
def calm(flowers: FlowerConsortium) -> str:
    return flowers.run("calm", **SETTINGS)


def comes_to(flowers: FlowerConsortium, run: str, number: int) -> bool:
    """Wait for message ``number``, or one after it, to be under way at a site; False: nobody looked before the end."""
    beginnings = tuple(f"{run}_m{later}-" for later in range(number, JOBS + 1))
    late = time.monotonic() + PATIENCE_SECONDS
    while True:
        state = flowers.state()
        if any(job.state is JobState.LEASED and job.id.startswith(beginnings) for job in state.jobs.values()):
            return True
        if (known := state.flower_runs.get(CampaignId(run))) is not None and known.status != "open":
            return False
        assert time.monotonic() < late, "it never came so far"
        time.sleep(0.1)


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


def test_slurm_jobs_processes_and_a_grid_without_any_make_the_same_model(
    flowers: FlowerConsortium, calm: str, slurm: FakeSlurm, tmp_path: Path
) -> None:
    launched = [job["id"] for job in slurm.jobs if "/calm_m" in job["chdir"]]
    assert len(launched) == JOBS / len(SITES)
    # the run is over as soon as the reply is there: the job's process still leaves then, or is cancelled meanwhile
    assert {slurm.until_over(id_)["state"] for id_ in launched} <= {"COMPLETED", "CANCELLED by 0"}
    app = find_app(str(APP_FOLDER), None)
    said = [f"{key.replace('_', '-')}={value}" for key, value in SETTINGS.items()]
    config = overridden(app.config, [*said, f"out={tmp_path / 'here.npz'}"])
    drive(app, a_run("calm", run_config=config), PostHere(tmp_path / "post", client_app))
    assert flowers.digest_in(tmp_path / "here.npz") == calm


def test_the_same_run_again_asks_nobody(flowers: FlowerConsortium, calm: str) -> None:
    def asked() -> dict[JobId, int]:  # what an attempt used may be told after its run has ended
        return {name: job.attempts for name, job in flowers.state().jobs.items()}

    before = asked()
    assert flowers.run("calm", **SETTINGS) == calm
    assert asked() == before


def was_struck(flowers: FlowerConsortium, run: str) -> bool:
    """Run to the end while coordinator, ServerApp and agent are killed; False: it ended before somebody was hit."""
    process = flowers.start(run, **SETTINGS)
    is_under_way = comes_to(flowers, run, 1)
    _kill(flowers.here.processes["coordinator"].pid)
    flowers.here.processes["coordinator"].wait()
    flowers.here.start_coordinator()
    is_under_way &= comes_to(flowers, run, 2)
    _kill(process.pid)
    process.wait()
    is_under_way &= not flowers.model(run).exists()
    process = flowers.start(run, **SETTINGS)
    is_under_way &= comes_to(flowers, run, 3)
    _kill(flowers.here.processes["agent-south"].pid)
    flowers.here.processes["agent-south"].wait()
    flowers.here.start_agent("south")
    assert process.wait(PATIENCE_SECONDS) == 0, flowers.log(run)
    return is_under_way


def test_killing_coordinator_server_app_and_agent_changes_nothing(
    flowers: FlowerConsortium, calm: str
) -> None:
    """Nor does it that garbage is collected all the while, with no grace."""
    store = BlobStore(flowers.here.home / "store")
    nobodys = store.put_bytes(b"of an upload that nobody ever named").digest
    os.utime(store.path(nobodys), (0, 0))
    with cleaned_all_the_while(flowers):
        run = next(
            name for name in ("struck", "struck-again", "struck-once-more") if was_struck(flowers, name)
        )
    assert flowers.digest(run) == calm
    assert not store.has(nobodys)
    jobs = flowers.jobs(run)
    assert len(jobs) == JOBS
    assert {name: job.attempts for name, job in jobs.items()} == dict.fromkeys(jobs, 1), "repeated work"


def test_arrays_that_are_gone_when_they_are_named_are_brought_once_more(
    flowers: FlowerConsortium, tmp_path: Path
) -> None:
    person = find_person(flowers.here.admin)
    post = CoordinatorPost(
        lambda: open_channel(person.connection.coordinator, person.authority, person.credentials), tmp_path
    )
    try:
        run = post.open_run(a_run("gone", sites=SITES[:1]))
        letter = post.keep_bytes(b"a letter that no ClientApp will ever read")
        store = BlobStore(flowers.here.home / "store")
        assert store.remove(letter.digest)
        order = FlowerOrder(
            ordinal=1,
            site=SITES[0],
            message_type="query",
            group="1",
            letter=letter,
            inputs=(letter.digest,),
        )
        post.push(run.run, [order])
        assert store.has(letter.digest)
        post.complete_run(run.run, "of no use")
    finally:
        post.close()
    assert len(flowers.jobs("gone")) == 1


@pytest.mark.soak
def test_a_killed_trainer_costs_one_life(flowers: FlowerConsortium, calm: str) -> None:
    """And an app that is killed in mid-message leaves nothing half done: same state, same model."""
    slow = {**SETTINGS, "seconds_per_epoch": 1.0}
    process = flowers.start("wounded", **slow)
    assert comes_to(flowers, "wounded", 3)
    late = time.monotonic() + PATIENCE_SECONDS
    while not (victims := [pid for name, pid in flowers.here.trainers() if name.startswith("wounded_m3-")]):
        assert time.monotonic() < late
        time.sleep(0.05)
    _kill(victims[0])
    assert process.wait(PATIENCE_SECONDS) == 0
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


@contextlib.contextmanager
def cleaned_all_the_while(flowers: FlowerConsortium) -> Iterator[None]:
    """``sprachbund gc --grace-hours 0`` in a loop, beside whatever happens."""
    over, errors = threading.Event(), []
    places = places_of(flowers.here.workdir / "coordinator.yaml")

    def work() -> None:
        while not over.wait(0.2):
            try:
                clean(places, time.time(), 0.0)
            except Unavailable:  # a ledger that a coordinator is just recovering: then nothing was deleted
                continue
            except Exception as error:
                errors.append(error)

    cleaner = threading.Thread(target=work)
    cleaner.start()
    try:
        yield
    finally:
        over.set()
        cleaner.join()
    assert errors == []


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_nothing_was_written_to_the_users_home(slurm: FakeSlurm, calm: str) -> None:
    assert not (slurm.root / ".flwr").exists() and not (slurm.root / ".config").exists()
