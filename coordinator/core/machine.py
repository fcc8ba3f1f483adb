"""A command in, its events out: decide, then plan until nothing follows."""

from collections.abc import Callable
from dataclasses import dataclass, field

from consortium.errors import Broken
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.accounting import gone
from coordinator.core.decide import decide
from coordinator.core.fold import apply
from coordinator.core.moment import Moment
from coordinator.core.place import next_lease
from coordinator.core.plan import follow
from coordinator.core.state import State

_PASSES_MAX = 10_000  # a plan that never settles is our mistake; better a loud stop than a hung service


@dataclass(frozen=True, slots=True)
class Decision:
    events: tuple[ev.AnyEvent, ...]
    reason: str  #: one sentence for whoever asked
    state: State = field(compare=False, repr=False)  #: in which they have happened


def handle(
    state: State, command: cm.Command, moment: Moment, draft: Callable[[State], State] | None = None
) -> Decision:
    """Decide a command and everything that follows. Changes ``state``; raises Refused without changing it.

    draft  makes the copy that is changed in its place, once something happens; None: ``state`` itself is changed
    The caller makes the events durable before it tells anybody. If it cannot, it must forget the state that was
    changed; if that is its only one, it replays the ledger.
    """
    happened: list[ev.AnyEvent] = []

    def record(events: list[ev.AnyEvent]) -> None:
        nonlocal state
        if events and not happened and draft is not None:
            state = draft(state)
        for event in events:
            apply(event, state, moment.now)
        happened.extend(events)

    record(decide(command, state, moment))
    # From a Sync that says nothing new nothing follows but what time alone brings, and time is the Tick's: to look
    # through every open job and site at each of a thousand agents' Syncs costs more than all else of a Sync.
    if happened or not isinstance(command, cm.SyncSite):
        for _ in range(_PASSES_MAX):
            if not (following := follow(state, moment)):
                break
            record(following)
        else:
            raise Broken("the plan does not settle: the same events follow for ever")
    if isinstance(command, cm.SyncSite):
        record(list(gone(state, command)))
        while (lease := next_lease(state, command.site, moment)) is not None:
            record([lease])
    return Decision(tuple(happened), _reason(happened), state)


def _reason(happened: list[ev.AnyEvent]) -> str:
    for event in happened:
        reason = getattr(event, "reason", None)
        if reason:
            return str(reason)
    return "recorded" if happened else "nothing to do: it is so already"
