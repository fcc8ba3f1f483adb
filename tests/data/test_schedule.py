"""Who does what next, whatever the order in which the work comes back."""

from hypothesis import given
from hypothesis import strategies as st

from site_agent.data.schedule import Schedule, Task
from site_agent.data.segments import Findings, Head


def head(is_last: bool) -> Head:
    return Head(documents=1, tokens=1, dtype="<u2", is_last=is_last, read_bytes=1, findings=Findings())


def test_a_worker_stays_with_its_unit_and_helps_only_with_large_ones() -> None:
    schedule = Schedule([[False, True]])
    assert schedule.next(0) == Task(plan=0, unit=0)
    assert schedule.next(1) == Task(plan=0, unit=1)
    assert schedule.next(2) == Task(plan=0, unit=1, number=1)
    schedule.done(Task(plan=0, unit=0), head(is_last=False))
    assert schedule.next(0) == Task(plan=0, unit=0, number=1)
    schedule.done(Task(plan=0, unit=0, number=1), head(is_last=True))
    assert schedule.next(0) == Task(plan=0, unit=1, number=2)
    schedule.done(Task(plan=0, unit=1, number=2), None)  # the unit had ended before
    assert schedule.next(0) is None and not schedule.is_over
    schedule.done(Task(plan=0, unit=1, number=1), head(is_last=True))
    assert schedule.next(0) is None
    schedule.done(Task(plan=0, unit=1), head(is_last=False))
    assert schedule.next(2) == Task(plan=0)
    assert schedule.next(0) is None and not schedule.is_over
    schedule.done(Task(plan=0), None)
    assert schedule.is_over


@given(st.data())
def test_every_segment_is_made_once_and_every_language_merged_after_its_last(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3))
    places = [(p, u) for p, units in enumerate(lengths) for u in range(len(units))]
    broken = data.draw(st.none() | st.sampled_from(places))
    there = {
        (p, u, n): head(n == lengths[p][u] - 1)
        for p, u in places
        for n in range(lengths[p][u])
        if data.draw(st.booleans(), label="there before")
    }
    schedule = Schedule([[data.draw(st.booleans()) for _ in units] for units in lengths])
    for p, u in places:
        schedule.resume(p, u, {n: found for (q, v, n), found in there.items() if (q, v) == (p, u)})
    made = set(there)
    merged: set[int] = set()
    busy: dict[int, Task] = {}
    while not schedule.is_over:
        asking = [worker for worker in range(3) if worker not in busy]
        worker = data.draw(st.sampled_from([*busy, *asking]))
        if worker not in busy:
            task = schedule.next(worker)
            if task is not None:
                busy[worker] = task
            continue
        task = busy.pop(worker)
        if task.unit is None:
            wanted = {(task.plan, u, n) for u, length in enumerate(lengths[task.plan]) for n in range(length)}
            assert wanted <= made and task.plan not in merged
            merged.add(task.plan)
            schedule.done(task, None)
            continue
        place = (task.plan, task.unit, task.number)
        assert place not in made
        if (task.plan, task.unit) == broken:
            schedule.done(task, None, is_broken=True)
        elif task.number < lengths[task.plan][task.unit]:
            made.add(place)
            schedule.done(task, head(task.number == lengths[task.plan][task.unit] - 1))
        else:
            schedule.done(task, None)
    assert not busy
    all_there = broken is None or all((*broken, n) in there for n in range(lengths[broken[0]][broken[1]]))
    assert merged == set(range(len(lengths))) - (set() if all_there or broken is None else {broken[0]})
