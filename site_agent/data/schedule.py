"""Which process does what next: segments of the unit it has open, else a new unit, else it helps with a large one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from consortium.canonical import Fact
from site_agent.data.segments import Head


class Task(Fact):
    """A segment to make; without a unit: a language's segments to merge."""

    plan: int
    unit: int | None = None
    number: int = 0


@dataclass
class _UnitState:
    is_shared: bool  # large enough for several processes
    taken: set[int] = field(default_factory=set)  # segments done or being made
    doing: int = 0
    is_closed: bool = False  # nothing more to take: its end was seen, or it cannot be read
    is_broken: bool = False
    readers: int = 0

    def next_number(self) -> int:
        return next(number for number in range(len(self.taken) + 1) if number not in self.taken)


class Schedule:
    """The state of the work on some plans; each method is called by one thread at a time.

    shared  for each plan's units, whether several processes may read one
    merge   whether segments are merged once they are all there
    """

    def __init__(self, shared: Sequence[Sequence[bool]], merge: bool = True) -> None:
        self._plans = [[_UnitState(one) for one in units] for units in shared]
        self._merges: dict[int, str] = dict.fromkeys(range(len(shared)) if merge else (), "waiting")
        self._open: dict[int, tuple[int, int]] = {}

    def resume(self, plan: int, unit: int, heads: dict[int, Head]) -> None:
        """Some segments are there already."""
        state = self._plans[plan][unit]
        state.taken = set(heads)
        ends = [number for number, head in heads.items() if head.is_last]
        state.is_closed = bool(ends) and state.taken.issuperset(range(ends[0]))

    def next(self, worker: int) -> Task | None:
        """What this worker does now; None if there is nothing, now or any more."""
        for plan, stage in self._merges.items():
            if stage == "waiting" and self._is_read(plan):
                self._merges[plan] = "doing"
                return Task(plan=plan)
        choice = self._choice(worker)
        if choice is None:
            return None
        plan, unit = choice
        state = self._plans[plan][unit]
        if self._open.get(worker) != choice:
            self._leave(worker)
            self._open[worker] = choice
            state.readers += 1
        number = state.next_number()
        state.taken.add(number)
        state.doing += 1
        return Task(plan=plan, unit=unit, number=number)

    def done(self, task: Task, head: Head | None, is_broken: bool = False) -> None:
        """A task is over. head: of the segment; None if the unit ends before it."""
        if task.unit is None:
            self._merges[task.plan] = "broken" if is_broken else "done"
            return
        state = self._plans[task.plan][task.unit]
        state.doing -= 1
        state.is_broken = state.is_broken or is_broken
        if is_broken or head is None or head.is_last:
            state.is_closed = True

    @property
    def is_over(self) -> bool:
        """Whether nobody is busy and nothing is left that could be done."""
        busy = any(state.doing for plan in self._plans for state in plan)
        merging = any(
            stage == "doing" or (stage == "waiting" and not self._is_hopeless(plan))
            for plan, stage in self._merges.items()
        )
        return not (busy or merging or any(not state.is_closed for plan in self._plans for state in plan))

    def _choice(self, worker: int) -> tuple[int, int] | None:
        mine = self._open.get(worker)
        if mine is not None and self._has_more(*mine):
            return mine
        units = [
            (plan, unit)
            for plan, states in enumerate(self._plans)
            for unit, state in enumerate(states)
            if self._has_more(plan, unit)
        ]
        fresh = [place for place in units if not self._plans[place[0]][place[1]].readers]
        if fresh:
            return fresh[0]
        large = [place for place in units if self._plans[place[0]][place[1]].is_shared]
        return min(large, key=lambda place: self._plans[place[0]][place[1]].readers, default=None)

    def _has_more(self, plan: int, unit: int) -> bool:
        return not self._plans[plan][unit].is_closed

    def _leave(self, worker: int) -> None:
        if worker in self._open:
            plan, unit = self._open.pop(worker)
            self._plans[plan][unit].readers -= 1

    def _is_read(self, plan: int) -> bool:
        return all(state.is_closed and not state.doing and not state.is_broken for state in self._plans[plan])

    def _is_hopeless(self, plan: int) -> bool:
        return any(state.is_broken for state in self._plans[plan])
