"""One job, many ranks: on one node or two, whole or in shards, and from one number of ranks to another."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from free_ports import free_port
from processes import reaped
from trainer_samples import contribution, make_job, run, sha256, train_work
from warm_trainer import started

from consortium.jobs import Train
from consortium.tensors import TensorFile
from site_agent.config import Engine
from site_agent.core.facts import Cause, Seen
from site_agent.launchers.local import LocalLauncher, trainer_of
from site_agent.trainer.folder import Failure, Site

pytestmark = pytest.mark.slow

WORK = train_work(steps=6, batch_sequences=5, checkpoint_steps=3)


def launch(folder: Path, ranks: int, nodes: int = 1) -> list[int]:
    """Exit codes of one torchrun a virtual node; all of them on this machine."""
    place = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    with contextlib.ExitStack() as stack:
        torchruns = []
        for node in range(nodes):
            command = [sys.executable, "-m", "torch.distributed.run", *place]
            command += ["--nnodes", str(nodes), "--node-rank", str(node), "--nproc-per-node", str(ranks)]
            command += ["-m", "site_agent.trainer", str(folder)]
            with open(folder / f"node-{node}.txt", "ab") as log:
                torchruns.append(
                    stack.enter_context(reaped(subprocess.Popen(command, stdout=log, stderr=log)))
                )
        codes = [torchrun.wait() for torchrun in torchruns]
    if any(codes):
        print(*(path.read_text()[-3000:] for path in sorted(folder.glob("node-*.txt"))))
    return codes


def meet(folder: Path, ranks: int) -> int:
    """0, or the exit code of a rank that failed: ranks that find each other as torchrun has them find each other.

    Without torchrun itself, and with torch at their first line: a seventh of the processor time.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "forked"}
    world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    with contextlib.ExitStack() as stack:
        trainers = [
            stack.enter_context(started([str(folder)], RANK=rank, LOCAL_RANK=rank, **place, **world))
            for rank in map(str, range(ranks))
        ]
        codes = [trainer.wait() for trainer in trainers]
        if any(codes):
            print(*(trainer.said()[-3000:] for trainer in trainers))
    return next(filter(None, codes), 0)


def sharded(site: Site, sharding: str) -> Site:
    return msgspec.structs.replace(site, sharding=sharding)


def is_close(one: Path, other: Path) -> bool:
    with (
        TensorFile(one / "result" / "delta.safetensors") as first,
        TensorFile(other / "result" / "delta.safetensors") as second,
    ):
        assert dict(first) == dict(second)
        return all(
            first.array(name) == pytest.approx(second.array(name), rel=1e-3, abs=2e-5) for name in first
        )


@pytest.fixture(scope="module")
def alone_job(tmp_path_factory: pytest.TempPathFactory, site: Site, base: Path) -> Path:
    folder = make_job(tmp_path_factory.mktemp("alone") / "job", site, WORK, base)
    assert run(folder) == 0
    return folder


@pytest.mark.soak
@pytest.mark.parametrize(
    ("nodes", "ranks", "sharding"), [(1, 2, "fsdp"), (2, 1, "fsdp"), (2, 2, "hsdp"), (2, 1, "none")]
)
def test_many_ranks_train_what_one_does(
    tmp_path: Path, site: Site, base: Path, alone_job: Path, nodes: int, ranks: int, sharding: str
) -> None:
    folder = make_job(tmp_path / "job", sharded(site, sharding), WORK, base)
    assert launch(folder, ranks, nodes) == [0] * nodes
    assert not (folder / "checkpoint").exists()
    assert is_close(folder, alone_job)
    made = contribution(folder)
    assert made.tokens == contribution(alone_job).tokens
    assert made.software["device"].endswith(f"{nodes * ranks} rank(s)")


@pytest.mark.parametrize(
    ("before", "after"), [(("fsdp", 2), ("none", 1)), (("none", 1), ("fsdp", 3)), (("fsdp", 2), ("fsdp", 3))]
)
def test_what_some_ranks_saved_others_go_on_from(
    tmp_path: Path,
    site: Site,
    base: Path,
    alone_job: Path,
    before: tuple[str, int],
    after: tuple[str, int],
) -> None:
    folder = make_job(tmp_path / "job", sharded(site, before[0]), WORK, base)
    (folder / "STOP").touch()
    if before[1] == 1:
        assert run(folder) == 75
    else:
        assert meet(folder, before[1]) == 0  # torchrun would call anything else a failure
    assert (folder / "CONTINUE").exists()
    assert not (folder / "result").exists()
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["step-000000001"]
    (folder / "STOP").unlink()
    (folder / "site.json").write_bytes(msgspec.json.encode(sharded(site, after[0])))
    if after[1] == 1:
        assert run(folder) == 0
    else:
        assert meet(folder, after[1]) == 0
    assert not (folder / "CONTINUE").exists()
    lines = [msgspec.json.decode(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert 1 in [line["step"] for line in lines[-3:]]  # it did not begin anew
    assert is_close(folder, alone_job)


def test_ranks_that_save_and_go_on_make_the_same_bits(tmp_path: Path, site: Site, base: Path) -> None:
    folders = [make_job(tmp_path / name, sharded(site, "fsdp"), WORK, base) for name in ("one", "two")]
    assert meet(folders[0], 2) == 0
    (folders[1] / "STOP").touch()
    assert meet(folders[1], 2) == 0
    (folders[1] / "STOP").unlink()
    assert meet(folders[1], 2) == 0
    first, second = ((folder / "result" / "delta.safetensors") for folder in folders)
    assert sha256(first) == sha256(second)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("engine", "work", "mark"),
    [
        (Engine(head="in_parts", head_bytes=1 << 15), WORK, "native, loss in parts"),
        (Engine(weights="bf16"), msgspec.structs.replace(WORK, precision="bf16"), "native, bf16 weights"),
    ],
)
def test_shards_and_the_ways_of_a_step_go_together(
    tmp_path: Path, site: Site, base: Path, alone_job: Path, engine: Engine, work: Train, mark: str
) -> None:
    there = msgspec.structs.replace(sharded(site, "fsdp"), engine=engine)
    folder = make_job(tmp_path / "job", there, work, base)
    assert launch(folder, 2) == [0]
    made, alone = contribution(folder), contribution(alone_job)
    assert made.software["model"] == mark
    assert made.losses is not None and alone.losses is not None
    near = 1e-5 if work is WORK else 0.02
    assert made.losses.first == pytest.approx(alone.losses.first, rel=near)
    assert made.losses.last == pytest.approx(alone.losses.last, rel=near)
    if work is WORK:
        assert is_close(folder, alone_job)


@pytest.mark.soak
def test_the_local_launcher_starts_ranks_stops_them_and_starts_them_again(
    tmp_path: Path, site: Site, base: Path, alone_job: Path
) -> None:
    """`ranks: 2` of a site's config, as an agent has it: torchrun, gloo, a STOP file, another life."""
    folder = make_job(tmp_path / "job", site, WORK, base)
    launcher = LocalLauncher(trainer_of(2))
    (folder / "STOP").touch()
    for life in (1, 2):
        launcher.submit(folder, life)
        deadline = time.monotonic() + 240
        while (sighting := launcher.poll([folder])[folder]).seen is not Seen.GONE:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        if life == 1:
            assert sighting.cause is Cause.STOPPED, (folder / "log.txt").read_text()
            assert not (folder / "result").exists()
            (folder / "STOP").unlink()
    assert is_close(folder, alone_job), (folder / "log.txt").read_text()
    assert contribution(folder).software["device"].endswith("2 rank(s)")


@pytest.mark.soak
def test_ranks_agree_to_finish(tmp_path: Path, site: Site, base: Path) -> None:
    folder = make_job(tmp_path / "job", sharded(site, "fsdp"), WORK, base)
    (folder / "FINISH").touch()
    assert launch(folder, 2) == [0]
    made = contribution(folder)
    assert (made.steps, made.planned_steps) == (1, 6)


@pytest.mark.soak
def test_a_failure_of_all_ranks_is_told_once_and_stays(tmp_path: Path, site: Site, base: Path) -> None:
    folder = make_job(tmp_path / "job", msgspec.structs.replace(site, text=()), WORK, base)
    assert launch(folder, 2) == [1]
    failure = msgspec.json.decode((folder / "failure.json").read_bytes(), type=Failure)
    assert failure.reason == "no_data"
