"""What a Flower run brings to the store stays as long as anybody may need it, and is noticed if it is gone."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from sprachbund.v1 import flower_pb2

from consortium.canonical import encode
from consortium.flower.runs import FlowerOrder, FlowerRun
from consortium.ids import CampaignId, Digest, SiteName
from consortium.store import BlobStore
from coordinator.core import commands as cm
from coordinator.core.referenced import open_since
from coordinator.core.state import FlowerRunState, State
from coordinator.services.flower import FlowerService

RUN = CampaignId("quick")


class Deciding:
    """A driver that only remembers what it was told to execute."""

    def __init__(self) -> None:
        self.executed: list[Any] = []

    def execute(self, command: Any) -> Any:
        self.executed.append(command)
        return type("Done", (), {"reason": "done"})


def order(store: BlobStore, *more: Digest) -> FlowerOrder:
    letter = store.put_bytes(b"a letter")
    return FlowerOrder(
        ordinal=1,
        site=SiteName("north"),
        message_type="train",
        group="1",
        letter=letter,
        inputs=tuple(sorted({letter.digest, *more})),
    )


@pytest.mark.parametrize(("status", "since"), [("open", 5.0), ("completed", None), ("stopped", None)])
def test_what_came_since_an_open_run_began_may_be_for_it(status: str, since: float | None) -> None:
    """Its ServerApp brings arrays first and says afterwards whom they are for; meanwhile no job names them."""
    run = FlowerRunState(spec=FlowerRun(run=RUN, app="app:app"), opened_at=5.0, status=status)
    assert open_since(State(flower_runs={RUN: run})) == since


async def test_messages_whose_inputs_are_gone_are_not_planned_and_others_become_young(tmp_path: Path) -> None:
    store, driver = BlobStore(tmp_path), Deciding()
    service = FlowerService(driver, store)  # type: ignore[arg-type]
    arrays = store.put_bytes(b"arrays of long ago").digest
    old = time.time() - 1e6
    os.utime(store.path(arrays), (old, old))
    gone = Digest("0" * 64)

    answer = await service.Push(push(order(store, arrays, gone)), None)  # type: ignore[arg-type]
    assert list(answer.missing) == [gone] and driver.executed == []
    assert store.stored_at(arrays) > old + 1e5

    answer = await service.Push(push(order(store, arrays)), None)  # type: ignore[arg-type]
    assert not answer.missing
    assert driver.executed == [cm.PushFlowerMessages(run=RUN, orders=(order(store, arrays),))]


def push(order: FlowerOrder) -> flower_pb2.PushRequest:
    return flower_pb2.PushRequest(run=RUN, orders=[encode(order)])
