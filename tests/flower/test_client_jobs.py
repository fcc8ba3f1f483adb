"""A Flower ClientApp in a job directory, as a launcher starts it; and what the coordinator makes of replies."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_consortium import APP_FOLDER, CLIENT_APP
from processes import reaped

from consortium.canonical import decode, encode, replace
from consortium.errors import BadInput
from consortium.flower.carrying import pack, unpack
from consortium.flower.compat import (
    ArrayRecord,
    ConfigRecord,
    RecordDict,
    records_from_bytes,
    records_to_bytes,
)
from consortium.flower.letters import ARRAYS, LETTER, Letter, Record, inputs_of
from consortium.flower.runs import node_of
from consortium.ids import AttemptId, CampaignId, Digest, JobId, SiteName, digest_of
from consortium.jobs import Assignment, FlowerMessage, Purpose
from consortium.manifests import Contribution, FileRef
from consortium.store import BlobStore
from coordinator.inspection import _reply
from site_agent.config import Flower
from site_agent.ssh.files import _to_push
from site_agent.trainer.folder import CONTINUE_LATER, STATE, Failure, Site

CONFIG = {"local-epochs": 1, "learning-rate": 0.5, "seconds-per-epoch": 0.0}
MODULES = """
from flwr.app import Message, RecordDict, MetricRecord
from flwr.clientapp import ClientApp
import random, numpy as np
app = ClientApp()
@app.train("dice")
def dice(message, context):
    import torch
    drawn = [random.random(), float(np.random.rand()), float(torch.rand(1))]
    return Message(RecordDict({"drawn": MetricRecord({"drawn": drawn})}), reply_to=message)
@app.query()
def fail(message, context):
    raise ValueError("no data at " + str(context.node_config["place"]))
@app.evaluate()
def nothing(message, context):
    return None
"""


def job_folder(
    folder: Path,
    *,
    app: str = CLIENT_APP,
    apps: tuple[str, ...] = (CLIENT_APP,),
    config: Any = CONFIG,
    **changes: Any,
) -> Path:
    folder.mkdir()
    store = BlobStore(folder.parent / "store")
    content = RecordDict({"arrays": ArrayRecord([np.zeros((8, 3), np.float32), np.zeros(3, np.float32)])})
    letter = pack(content, folder / "parcel", store.put_file)
    ref = store.put_bytes(encode(letter))
    plain = FlowerMessage(
        app=app,
        run_config=config,
        message_type="train",
        group="1",
        node=node_of(SiteName("north")),
        letter=ref,
    )
    order = Assignment(
        job=JobId("quick_m1-train-north"),
        attempt=AttemptId("quick_m1-train-north.a1"),
        campaign=CampaignId("quick"),
        round=1,
        site=SiteName("north"),
        purpose=Purpose.FLOWER,
        work=replace(plain, **changes),
        inputs=inputs_of(ref, letter),
        tokenizer=None,
    )
    for digest in order.inputs:
        store.copy_to(digest, folder / "inputs" / digest)
    (folder / "job.json").write_bytes(encode(order))
    site = Site(
        text=(), heldout_share=0.1, cache="", flower=Flower(apps=apps, node_config={"place": "the lake"})
    )
    (folder / "site.json").write_bytes(encode(site))
    (folder.parent / "modules").mkdir(exist_ok=True)
    (folder.parent / "modules" / "odd.py").write_text(MODULES)
    return folder


def started(folder: Path) -> "AbstractContextManager[subprocess.Popen[bytes]]":
    paths = [str(APP_FOLDER), str(folder.parent / "modules")]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "site_agent.trainer", str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return reaped(process)


def codes(*folders: Path) -> list[int]:
    """Exit codes of jobs that run at the same time."""
    with contextlib.ExitStack() as stack:
        return [one.wait() for one in [stack.enter_context(started(folder)) for folder in folders]]


def reply_of(folder: Path) -> tuple[Contribution, RecordDict]:
    result = folder / "result"
    contribution = decode((result / "contribution.json").read_bytes(), Contribution)
    letter = decode((result / "letter.json").read_bytes(), Letter)
    return contribution, unpack(letter, lambda ref: result / ARRAYS / ref.digest)


def test_it_leaves_a_reply_and_its_state_and_does_the_same_again(tmp_path: Path) -> None:
    folders = [job_folder(tmp_path / name) for name in ("once", "again")]
    assert codes(*folders) == [0, 0]
    contribution, records = reply_of(folders[0])
    assert contribution == reply_of(folders[1])[0]
    assert [array.shape for array in records["arrays"].values()] == [(8, 3), (3,)]
    assert records["metrics"]["seen"] == 1
    state = (folders[0] / "result" / "state.bin").read_bytes()
    assert contribution.residual == digest_of(state)
    assert records_from_bytes(state, "state")["seen"] == ConfigRecord({"messages": 1})


@pytest.mark.parametrize("is_here", [True, False])
def test_the_state_that_the_order_names_is_used_if_it_is_here(is_here: bool, tmp_path: Path) -> None:
    state = records_to_bytes(RecordDict({"seen": ConfigRecord({"messages": 41})}))
    folder = job_folder(tmp_path / "job", state=digest_of(state))
    (folder / "state.bin").write_bytes(state if is_here else state + b"\0")
    assert codes(folder) == [0]
    contribution, records = reply_of(folder)
    assert records["metrics"]["seen"] == (42 if is_here else 1)
    assert contribution.residual_before == (digest_of(state) if is_here else None)


def test_all_that_is_staged_goes_to_a_site_behind_ssh(tmp_path: Path) -> None:
    """``Context.state`` with it: without, the app would begin anew with each message, and nobody would notice."""
    folder = job_folder(tmp_path / "job")
    (folder / STATE).write_bytes(b"kept")
    assert set(_to_push(folder)) == {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"apps": ()}, "the site does not run the Flower app quickstart.client_app:app"),
        ({"app": "odd:absent", "apps": ("odd:absent",)}, "cannot be loaded"),
        ({"app": "odd:MODULES", "apps": ("odd:MODULES",)}, "cannot be loaded"),
        ({"app": "os:getcwd", "apps": ("os:getcwd",)}, "no Flower ClientApp"),
        ({"app": "odd:app", "apps": ("odd:app",), "message_type": "query"}, "no data at the lake"),
        ({"app": "odd:app", "apps": ("odd:app",), "message_type": "evaluate"}, "gave no reply with content"),
        ({"message_type": "train.other"}, "No train function registered with name 'other'"),
    ],
)
def test_what_cannot_be_is_told_in_the_failure(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = job_folder(tmp_path / "job", **changes)
    assert codes(folder) != [0]
    assert sentence in decode((folder / "failure.json").read_bytes(), Failure).sentence
    assert not (folder / "result").exists()


def test_random_numbers_are_the_jobs_own(tmp_path: Path) -> None:
    odd = {"app": "odd:app", "apps": ("odd:app",), "message_type": "train.dice"}
    folders = [job_folder(tmp_path / name, **odd) for name in ("once", "again")]
    assert codes(*folders) == [0, 0]
    drawn = [reply_of(folder)[1]["drawn"]["drawn"] for folder in folders]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 3


def test_asked_to_leave_it_goes_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "job", config={**CONFIG, "seconds-per-epoch": 600.0})
    with started(folder) as process:
        while not (folder / "progress.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == CONTINUE_LATER
    assert not (folder / "result").exists() and not (folder / "failure.json").exists()


# --- what the coordinator looks at ----------------------------------------------------------------------


def a_reply(tmp_path: Path) -> tuple[Contribution, BlobStore, Letter]:
    store = BlobStore(tmp_path)
    letter = pack(RecordDict({"a": ArrayRecord([np.ones(3)])}), tmp_path / "parcel", store.put_file)
    parcels = {f"{ARRAYS}{ref.digest}": ref for ref in letter.parcels}
    contribution = Contribution(
        job=JobId("quick_m1-train-north"),
        attempt=AttemptId("quick_m1-train-north.a1"),
        campaign=CampaignId("quick"),
        site=SiteName("north"),
        assignment=Digest("0" * 64),
        artifacts={LETTER: store.put_bytes(encode(letter)), **parcels},
    )
    return contribution, store, letter


def test_a_reply_is_what_its_letter_names_and_nothing_else(tmp_path: Path) -> None:
    contribution, store, letter = a_reply(tmp_path)
    assert _reply(contribution, store, 1 << 20) == "a reply of 1 record(s) by north"
    parcel = f"{ARRAYS}{letter.parcels[0].digest}"
    stranger = FileRef(digest=Digest("1" * 64), size=3)
    for artifacts, why in (
        ({parcel: contribution.artifacts[parcel]}, "a reply has a 'letter'"),
        ({LETTER: contribution.artifacts[LETTER]}, "the letter names"),
        ({**contribution.artifacts, "arrays/more": stranger}, "the letter names"),
        ({**contribution.artifacts, parcel: stranger}, "the letter names"),
        ({LETTER: store.put_bytes(b"{}")}, "letter of north: "),
        ({LETTER: store.put_bytes(b"\xff" * 50)}, "letter of north: "),
    ):
        with pytest.raises(BadInput, match=why):
            _reply(replace(contribution, artifacts=artifacts), store, 1 << 20)


def test_a_reply_whose_arrays_cannot_be_read_never_reaches_the_server_app(tmp_path: Path) -> None:
    """It would end there, and end again each time it is started."""
    contribution, store, _ = a_reply(tmp_path)
    no_parcel = store.put_bytes(b"\x10" + b"no arrays of anybody")
    letter = store.put_bytes(encode(Letter(records=(Record(name="a", arrays=no_parcel),))))
    artifacts = {LETTER: letter, f"{ARRAYS}{no_parcel.digest}": no_parcel}
    with pytest.raises(BadInput, match="no parcel of arrays"):
        _reply(replace(contribution, artifacts=artifacts), store, 1 << 20)


def test_a_reply_is_as_large_as_the_run_takes_however_often_it_names_its_arrays(tmp_path: Path) -> None:
    contribution, store, letter = a_reply(tmp_path)
    size = sum(ref.size for ref in contribution.artifacts.values())
    assert _reply(contribution, store, size)
    with pytest.raises(BadInput, match=f"a reply of {size} bytes, this run takes {size - 1} at most"):
        _reply(contribution, store, size - 1)
    (record,) = letter.records
    bomb = Letter(records=tuple(replace(record, name=f"{number}") for number in range(1000)))
    artifacts = {**contribution.artifacts, LETTER: store.put_bytes(encode(bomb))}
    with pytest.raises(BadInput, match="or fewer times the same"):
        _reply(replace(contribution, artifacts=artifacts), store, 100_000)
