"""The coordinator as a process: whose thread time passes on, and what is left of its work when it stops."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from real_coordinator import PATIENCE_SECONDS, SITES, Consortium, campaign
from scripted_sites import ScriptedSite, at_work
from slow_maker import PROGRAM, SlowOrder, Work

from consortium.canonical import replace
from consortium.errors import BadInput, Unavailable
from coordinator import worker
from coordinator.core.commands import Command, Tick
from coordinator.core.machine import Decision
from coordinator.driver import Driver
from coordinator.ledger import Ledger
from coordinator.making import Interest, made
from coordinator.workshop import Workshop


async def test_time_passes_on_the_thread_that_owns_the_state(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks: list[int] = []
    enough = asyncio.Event()
    execute = Driver.execute

    def noting(driver: Driver, command: Command) -> Decision:
        if isinstance(command, Tick):
            ticks.append(threading.get_ident())
        if len(ticks) == 3:  # the first is that of the start
            enough.set()
        return execute(driver, command)

    monkeypatch.setattr(Driver, "execute", noting)
    async with consortium.running():
        await enough.wait()
    assert set(ticks) == {threading.get_ident()}


async def test_a_stop_ends_the_work_in_hand_and_the_next_start_does_it_again(
    consortium: Consortium, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge may take an hour; a coordinator that is asked to stop does not."""
    ended: list[str] = []
    order = SlowOrder(work=Work(text="for ever"), yard=str(tmp_path))
    monkeypatch.chdir(Path(__file__).parents[2])

    def endless(_: object, __: object, workshop: Workshop, interest: Callable[[], Interest]) -> None:
        try:
            with made(PROGRAM, order, workshop.making, interest):
                raise AssertionError("nobody said go")
        except Unavailable as error:
            ended.append(str(error))
            raise

    with monkeypatch.context() as patched:
        patched.setattr(worker, "do", endless)
        async with consortium.running(), consortium.admin() as admin:
            await admin.submit(campaign(base, rounds=1))
            while not (tmp_path / "begun").exists():
                await asyncio.sleep(0.01)
    assert ended == [f"{PROGRAM}: whoever waited for what it makes {Interest.NONE.value}"]
    assert not list((consortium.home / "work" / "making").iterdir())
    assert not [t for t in threading.enumerate() if t.name.startswith("worker")]
    async with consortium.running(), consortium.admin() as admin:
        async with at_work(*(ScriptedSite(consortium, name) for name in SITES)):
            assert (await admin.until_ended("demo")).status == "completed"


async def test_a_coordinator_whose_worker_dies_does_not_go_on_without_it(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dying(_: worker.Worker) -> None:
        raise MemoryError("no room for the plan")

    monkeypatch.setattr(worker.Worker, "run", dying)
    with pytest.raises(MemoryError):
        async with consortium.running():
            await asyncio.wait_for(asyncio.shield(consortium.server), PATIENCE_SECONDS)


async def test_a_stop_that_comes_together_with_news_is_heard(consortium: Consortium) -> None:
    with Ledger(consortium.home / "ledger.sqlite") as ledger:
        driver = Driver(ledger, consortium.keys.ledger)
        waiting = asyncio.create_task(driver.news(600.0))
        await asyncio.sleep(0)
        driver.announce()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_a_ledger_that_was_lost_is_not_begun_anew(consortium: Consortium) -> None:
    """Who deletes its -wal file after a crash, or forgets to copy it, has a ledger in which nothing stands."""
    (consortium.home / "ledger.sqlite").unlink()
    with pytest.raises(BadInput, match=r"nothing stands, but .* has keys"):
        async with consortium.running():
            pass
    with Ledger(consortium.home / "ledger.sqlite", read_only=True) as ledger:
        assert ledger.head.seq == 0


async def test_the_ledger_of_another_consortium_is_not_gone_on_with(consortium: Consortium) -> None:
    consortium.config = replace(consortium.config, consortium="iberian")
    with pytest.raises(BadInput, match="is the ledger of consortium 'balkan', the config says 'iberian'"):
        async with consortium.running():
            pass
