"""Flower's own strategies on our Grid, unmodified: any order of arrival, sites that fail, a process that is killed."""

import io
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_consortium import APP_FOLDER
from grids import SITES, PostHere, a_run

sys.path.insert(0, str(APP_FOLDER))

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from quickstart import task
from quickstart.client_app import app as client_app

from consortium.canonical import encode, replace
from consortium.errors import BadInput
from consortium.flower import carrying
from consortium.flower.dice import seed
from consortium.flower.letters import Letter, Record
from consortium.flower.runs import node_of
from consortium.ids import digest_of
from coordinator.flower.apps import find_app, overridden
from coordinator.flower.driving import drive
from coordinator.flower.grid import NO_REPLY, JobGrid
from coordinator.flower.post import Reply

STRATEGIES: dict[str, Callable[[], Any]] = {
    "FedAvg": flower.FedAvg,
    "half of the nodes": lambda: flower.FedAvg(fraction_train=0.5),
    "FedAdam": flower.FedAdam,
    "FedAvgM": lambda: flower.FedAvgM(server_momentum=0.9),
    "FedYogi": flower.FedYogi,
    "FedMedian": flower.FedMedian,
    "FedTrimmedAvg": flower.FedTrimmedAvg,
    "Krum": flower.Krum,
    "private": lambda: flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 0.1, 1.0, 3),
}


class Killed(Exception):
    """Stands for SIGKILL: the process and all that it knew is gone."""


def npy(array: Any) -> bytes:
    """As flwr writes an array."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def started(post: PostHere, make: Callable[[], Any], rounds: int = 3) -> str:
    """Strategy.start from its beginning on a fresh Grid; the digest of the arrays that it ends with."""
    run = a_run(run_config={"local-epochs": 1, "learning-rate": 0.5, "seconds-per-epoch": 0.0})
    seed(run.run)
    grid = JobGrid(post.open_run(run), post)
    result = make().start(grid=grid, initial_arrays=ArrayRecord(task.new_model()), num_rounds=rounds)
    return digest_of(b"".join(array.tobytes() for array in result.arrays.to_numpy_ndarrays()))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_order_of_arrival_changes_nothing_and_nor_does_a_kill(name: str, tmp_path: Path) -> None:
    make = STRATEGIES[name]
    calm = PostHere(tmp_path / "calm", client_app)
    wanted = started(calm, make)
    struck = PostHere(tmp_path / "struck", client_app, dice=random.Random(5))
    blows = iter([3, 7, 11])
    for blow in (*blows, 10**6):
        left = [blow]

        def strike(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        struck.interrupt = strike
        try:
            found = started(struck, make)
        except Killed:
            continue
    assert found == wanted
    assert struck.executions == calm.executions, "clients did the same work twice"


def test_a_site_that_fails_is_counted_and_left_out(tmp_path: Path) -> None:
    of_two = [
        PostHere(tmp_path / str(n), client_app, failing=["west"], dice=random.Random(n)) for n in (1, 2)
    ]
    found = {started(post, flower.FedAvg) for post in of_two}
    assert len(found) == 1 and of_two[0].executions == 3 * 2 * 2
    assert found != {started(PostHere(tmp_path / "all", client_app), flower.FedAvg)}


def test_a_whole_server_app_runs_and_its_run_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = PostHere(tmp_path / "post", client_app)
    app = find_app(str(APP_FOLDER), None)
    config = overridden(
        app.config, [f"out={tmp_path / 'model.npz'}", "num-server-rounds=1", 'strategy="krum"']
    )
    told: list[str] = []
    drive(app, a_run(run_config=config, app=app.client), post, told.append)
    assert post.ended == "the ServerApp has ended"
    with np.load(tmp_path / "model.npz") as arrays:
        assert [arrays[name].shape for name in arrays] == [(8, 3), (3,)]
    assert (
        told[0] == "run try: quickstart.server_app:app with quickstart.client_app:app at north, south, west"
    )


def grid_of(tmp_path: Path, **options: Any) -> tuple[JobGrid, PostHere]:
    def echo(message: Message, context: Any) -> Message:
        return Message(message.content, reply_to=message)

    post = PostHere(tmp_path, echo, **options)
    return JobGrid(post.open_run(a_run()), post), post


def message(grid: JobGrid, site: str, word: str, kind: str = "query") -> Message:
    content = RecordDict({"said": ConfigRecord({"word": word})})
    return grid.create_message(content, kind, node_of(site), "7")  # type: ignore[arg-type]


def test_replies_come_by_site_each_to_its_message(tmp_path: Path) -> None:
    grid, post = grid_of(tmp_path, dice=random.Random(3))
    assert grid.get_node_ids() == [node_of(site) for site in SITES]
    assert {node.node_id for node in grid.get_nodes()} == set(grid.get_node_ids())
    sent = [message(grid, site, f"{site} {n}") for n in (1, 2) for site in ("west", "north", "south")]
    replies = grid.send_and_receive(sent, timeout=0.001)
    said = [reply.content["said"]["word"] for reply in replies]
    assert said == ["north 1", "north 2", "south 1", "south 2", "west 1", "west 2"]
    by_id = {one.metadata.message_id: one for one in sent}
    for reply in replies:
        question = by_id[reply.metadata.reply_to_message_id]
        assert reply.metadata.src_node_id == question.metadata.dst_node_id and reply.metadata.group_id == "7"
    assert [(order.ordinal, order.copy) for order in post.pushed] == [(1, 1), (1, 2)] * 3


def test_a_reply_that_only_flwr_can_tell_is_none_is_an_error_and_ends_nobody(tmp_path: Path) -> None:
    grid, post = grid_of(tmp_path)
    told = post.replies

    def forged(*asked: Any) -> list[Reply]:
        found = told(*asked)
        letter = post.keep_bytes(encode(Letter(records=(Record(name="said", other=b"\xff of no protobuf"),))))
        return [replace(reply, letter=letter) if reply.job.endswith("-west") else reply for reply in found]

    post.replies = forged  # type: ignore[method-assign]
    north, west = grid.send_and_receive([message(grid, site, site) for site in ("west", "north")])
    assert north.has_content() and west.has_error()
    assert "its reply is none: record 'said': no records of a Flower message" in west.error.reason


@pytest.mark.parametrize(
    "data",
    [
        b"no array at all",
        b"",
        npy(np.array([{"an": "object"}], dtype=object)),
        npy(np.zeros(4, np.float32))[:-1],
    ],
)
def test_one_site_whose_arrays_no_strategy_can_read_is_a_failure_and_ends_nobody(
    data: bytes, tmp_path: Path
) -> None:
    """The ServerApp goes on without it, as without a site that gave no reply."""
    post = PostHere(tmp_path / "forged", client_app)
    told = post.replies
    array = Array(dtype="float32", shape=(4,), stype="numpy.ndarray", data=data)
    letter = carrying.pack(RecordDict({"arrays": ArrayRecord({"w": array})}), tmp_path / "parcel", post.keep)
    forged = post.keep_bytes(encode(letter))

    def replies(*asked: Any) -> list[Reply]:
        return [replace(one, letter=forged) if "-west" in one.job else one for one in told(*asked)]

    post.replies = replies  # type: ignore[method-assign]
    found = started(post, flower.FedAvg)
    assert found == started(PostHere(tmp_path / "without", client_app, failing=["west"]), flower.FedAvg)
    with pytest.raises(BadInput, match="cannot be read"):
        carrying.check_arrays(carrying.unpack(letter, post.find))


def test_what_is_pushed_can_be_pulled_once(tmp_path: Path) -> None:
    grid, _ = grid_of(tmp_path, failing=["south"])
    ids = grid.push_messages([message(grid, site, site, "train.merge") for site in SITES])
    assert ids == ["try_m1-train-north", "try_m1-train-south", "try_m1-train-west"]
    north, south, _ = grid.pull_messages(ids)
    assert north.has_content()
    assert (south.error.code, south.error.reason) == (NO_REPLY, "south is away")
    assert grid.pull_messages(ids) == []


def test_a_node_of_nobody_is_refused(tmp_path: Path) -> None:
    grid, _ = grid_of(tmp_path)
    with pytest.raises(BadInput, match="is no site of run try; ask the Grid for its nodes"):
        grid.send_and_receive([message(grid, "elsewhere", "hello")])


def test_a_folder_that_is_no_app_is_told_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    with pytest.raises(BadInput, match="needs serverapp and clientapp below"):
        find_app(str(tmp_path), None)
    with pytest.raises(BadInput, match="give --client-app, too"):
        find_app("a.module:app", None)


def test_settings_are_toml_or_else_text() -> None:
    given = overridden({"rounds": 3, "lr": 0.1}, ["rounds=5", "name=plain words", "flag=true", "lr=1e-3"])
    assert given == {"rounds": 5, "lr": 0.001, "name": "plain words", "flag": True}
    for wrong in ("rounds", "x=[1]"):
        with pytest.raises(BadInput, match="setting"):
            overridden({}, [wrong])


def test_metrics_and_arrays_reach_the_strategy_as_the_client_sent_them(tmp_path: Path) -> None:
    sent = RecordDict({"arrays": ArrayRecord([np.arange(4.0)]), "metrics": MetricRecord({"num-examples": 3})})

    def app(message: Message, context: Any) -> Message:
        return Message(sent, reply_to=message)

    post = PostHere(tmp_path, app)
    grid = JobGrid(post.open_run(a_run()), post)
    reply = grid.send_and_receive([message(grid, "west", "hello")])[0]
    assert repr(reply.content) == repr(sent)
