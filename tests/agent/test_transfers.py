"""Which failures of a transfer end an attempt, and which are tried again."""

import asyncio

import pytest

from consortium.errors import Corrupt, Refused, Unavailable
from consortium.ids import AttemptId
from site_agent import transfers
from site_agent.transfers import Died, Transfers

A1 = AttemptId("demo_r1-train-north.a1")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(transfers, "_PAUSE_SECONDS", 0.0)


async def carry(held: Transfers, error: Exception | None, times: int = 1) -> None:
    async def work() -> None:
        if error:
            raise error

    for _ in range(times):
        held.begin(A1, work)
        await held.wait()


@pytest.mark.parametrize(
    ("error", "connected", "times", "problem"),
    [
        (None, True, 1, None),
        (Unavailable("no route"), True, 9, None),
        (Corrupt("wrong bytes"), True, 1, "wrong bytes"),
        (Refused("suspended"), False, 9, None),  # the whole site is refused: it will pass, the result is kept
        (Refused("too large"), True, 2, None),
        (Refused("too large"), True, 3, "too large"),
        (Died("killed"), True, 7, None),
        (Died("killed"), True, 8, "killed; that was the last of 8 tries"),
        (ValueError("a bug"), True, 20, None),
    ],
)
async def test_what_trying_again_cannot_help_is_a_problem(error, connected, times, problem):
    held = Transfers(lambda: None, lambda: connected)
    await carry(held, error, times)
    assert held.problems.get(A1) == problem
    held.forget(A1)
    assert held.problems == {}


async def test_one_transfer_at_a_time_and_it_can_be_stopped():
    begun: list[str] = []
    held = Transfers(lambda: begun.append("woken"), lambda: True)

    async def work() -> None:
        begun.append("work")
        await asyncio.Event().wait()

    held.begin(A1, work)
    held.begin(A1, work)
    await asyncio.sleep(0)
    await held.stop(A1)
    await held.stop(A1)
    assert begun == ["work", "woken"]


async def test_an_error_of_our_own_is_logged_and_does_not_spin(monkeypatch, caplog):
    monkeypatch.setattr(transfers, "_PAUSE_SECONDS", 1000.0)
    held = Transfers(lambda: None, lambda: True)
    await carry(held, ValueError("a bug"), 5)
    [line] = caplog.records
    assert str(A1) in line.message
    assert line.exc_info is not None


async def test_a_process_that_dies_again_and_again_is_started_ever_more_rarely(monkeypatch):
    monkeypatch.setattr(transfers, "_PAUSE_SECONDS", 15.0)
    held = Transfers(lambda: None, lambda: True)
    pauses = []
    for _ in range(9):
        before = asyncio.get_running_loop().time()
        await carry(held, Died("killed"))
        pauses.append(held._not_before[A1] - before)
        held._not_before.clear()
    assert [round(pause, -1) for pause in pauses[:4]] == [20, 30, 60, 120]
    assert 3600 <= pauses[-1] < 3700


async def test_after_a_failure_there_is_a_pause(monkeypatch):
    monkeypatch.setattr(transfers, "_PAUSE_SECONDS", 1000.0)
    held = Transfers(lambda: None, lambda: True)
    count = 0

    async def work() -> None:
        nonlocal count
        count += 1
        raise Unavailable("no route")

    for _ in range(3):
        held.begin(A1, work)
        await held.wait()
    assert count == 1
