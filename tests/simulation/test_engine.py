"""The simulation itself: virtual time, sudden death, wires; and whether its referee notices."""

import asyncio
import inspect
import sys
import time
from pathlib import Path

import pytest

from consortium.canonical import replace
from coordinator.core import events as ev
from coordinator.core import fold
from coordinator.core.state import State
from simulation.drawn import drawn_plan, drawn_weather
from simulation.loop import Killed, Process, VirtualLoop
from simulation.machine import Host, Machine, inhabited
from simulation.run import simulate
from simulation.seeds import fate_of
from simulation.world import World


def in_a_world(story):
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(story())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_time_jumps_and_costs_none() -> None:
    async def story() -> list[float]:
        loop, seen = asyncio.get_running_loop(), []

        async def wait(seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append(loop.time())

        await asyncio.gather(wait(3600.0), wait(60.0), wait(60.0))
        return seen

    assert in_a_world(story) == [60.0, 60.0, 3600.0]


def test_a_killed_process_says_no_farewell() -> None:
    said = []

    async def story() -> None:
        process = Process("victim", None)

        async def work() -> None:
            try:
                await asyncio.sleep(100.0)
                said.append("alive")
            finally:
                said.append("farewell")

        process.spawn(work())
        await asyncio.sleep(1.0)
        process.on_death = lambda: said.append("found dead")
        process.kill()
        await asyncio.sleep(1000.0)
        assert said == ["found dead"]

    in_a_world(story)


def test_a_process_dies_at_a_write_and_leaves_the_old_file(tmp_path: Path) -> None:
    from consortium.files import write_bytes_atomically

    async def story() -> None:
        host = Host("somewhere", 1, 0.0)
        machine = Machine(host, 1)
        with inhabited(machine):
            write_bytes_atomically(tmp_path / "file", b"old")
            process = Process("writer", host)

            async def work() -> None:
                write_bytes_atomically(tmp_path / "file", b"new")

            process.writes_left = 1
            task = process.spawn(work())
            await asyncio.sleep(1.0)
            assert not process.alive
            with pytest.raises(Killed):
                task.result()

    in_a_world(story)
    assert (tmp_path / "file").read_bytes() == b"old"


def test_nothing_of_the_product_remembers_the_real_clock() -> None:
    """A default argument is the clock of when the module was imported: no stand-in reaches it."""
    import coordinator.daemon  # noqa: F401
    import site_agent.agent  # noqa: F401

    allowed = {"site_agent.launchers.slurm.launcher", "site_agent.ssh.connection"}
    clocks = {time.time, time.monotonic, time.perf_counter}
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] not in ("consortium", "coordinator", "site_agent"):
            continue
        for thing in vars(module).values():
            functions = [thing] if inspect.isfunction(thing) else []
            if inspect.isclass(thing):
                functions = [each for each in vars(thing).values() if inspect.isfunction(each)]
            for function in functions:
                if function.__module__ in allowed:
                    continue
                assert not clocks & {d for d in function.__defaults__ or () if callable(d)}, function


def test_two_runs_of_a_plan_are_the_same_to_the_last_byte() -> None:
    plan, weather = drawn_plan(3), drawn_weather("rough")
    first = simulate(plan, 3, weather)
    assert first == simulate(plan, 3, weather)
    assert first.violations == () and first.ended[0].status in ("completed", "failed")
    assert first.happenings[0].kind == "seed" and first.happenings[0].subject == "3"


def test_another_seed_is_another_story() -> None:
    plan, weather = drawn_plan(3), drawn_weather("rough")
    assert simulate(plan, 3, weather).head != simulate(plan, 4, weather).head


def test_the_referee_notices_a_core_without_a_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in ``apply``: an attempt that ended is given back to nobody, so that its job stays leased."""

    def forgetful(event: ev.AttemptEnded, state: State, at: float) -> None:
        pass

    registry = fold.apply.registry
    right = registry[ev.AttemptEnded]
    fold.apply.register(ev.AttemptEnded, forgetful)
    try:
        assert any(fate_of(seed, "storm").violations for seed in range(20))  # until an attempt ends
    finally:
        fold.apply.register(ev.AttemptEnded, right)


def test_time_over_is_told_as_open() -> None:
    plan = replace(drawn_plan(1), hours_max=1.0)
    found = simulate(plan, 1, replace(drawn_weather("calm"), clears_after_hours=None))
    assert found.hours == 1.0 and found.violations == ()
    assert found.ended[0].status == "open"


def test_an_error_that_no_task_answers_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop outside of a simulation would only log it."""
    began = World._begin

    def begin(self: World) -> None:
        began(self)

        def fall() -> None:
            raise LookupError("nobody waits for this")

        self.loop.call_later(60.0, fall, context=self.loop.outside)

    monkeypatch.setattr(World, "_begin", begin)
    (found,) = simulate(drawn_plan(4), 4, drawn_weather("calm")).violations
    assert found.endswith("LookupError in a callback that no task answers for: nobody waits for this")
