"""What has each site itself said: nothing may be entered as its word, nor any lease be kept by it, that it did not say.

Sync by Sync, as its bytes reach the coordinator; what is said in another site's name counts for nobody.
"""

from collections import deque

from sprachbund.v1 import site_pb2

from consortium.ids import AttemptId, SiteName
from consortium.jobs import Outcome
from coordinator.core import events as ev
from coordinator.core.state import State

_SYNCS_KEPT = 64  # of one site: longer than any of them waits for its answer
_OUTCOMES = {
    site_pb2.ATTEMPT_OUTCOME_SUCCEEDED: Outcome.SUCCEEDED,
    site_pb2.ATTEMPT_OUTCOME_FAILED: Outcome.FAILED,
    site_pb2.ATTEMPT_OUTCOME_PREEMPTED: Outcome.PREEMPTED,
    site_pb2.ATTEMPT_OUTCOME_EXPIRED: Outcome.EXPIRED,
    site_pb2.ATTEMPT_OUTCOME_REFUSED: Outcome.REFUSED,
    site_pb2.ATTEMPT_OUTCOME_CORRUPT: Outcome.CORRUPT,
    site_pb2.ATTEMPT_OUTCOME_CANCELLED: Outcome.CANCELLED,
}
_Told = tuple[SiteName, AttemptId]


class Said:
    """last     when its own site last spoke of an attempt
    asked    when a site last said anything
    drains   whether it last said that it takes nothing new
    """

    def __init__(self) -> None:
        self.last: dict[AttemptId, float] = {}
        self.asked: dict[SiteName, float] = {}
        self.drains: dict[SiteName, bool] = {}
        self._ends: dict[_Told, set[tuple[Outcome, str]]] = {}
        self._use: dict[_Told, set[tuple[float, float]]] = {}
        self._started: set[_Told] = set()
        self._missing: dict[SiteName, deque[tuple[float, frozenset[str]]]] = {}
        self._first: dict[_Told, float] = {}

    def hear(self, place: str, request: site_pb2.SyncRequest, state: State, at: float) -> None:
        site = SiteName(place)
        self.asked[site], self.drains[site] = at, request.site.draining
        held = {job.attempt for job in state.live(site)}
        for line in request.attempts:
            told = (site, AttemptId(line.attempt))
            self._first.setdefault(told, at)
            if line.attempt in held:
                self.last[AttemptId(line.attempt)] = at
            if line.started:
                self._started.add(told)
            if line.HasField("usage"):
                self._use.setdefault(told, set()).add((line.usage.gpu_seconds, line.usage.seconds))
            if line.outcome in _OUTCOMES:
                self._ends.setdefault(told, set()).add((_OUTCOMES[line.outcome], line.contribution))
        goes_on = frozenset(
            line.attempt for line in request.attempts if line.phase != site_pb2.ATTEMPT_PHASE_ENDED
        )
        self._missing.setdefault(site, deque(maxlen=_SYNCS_KEPT)).append((at, goes_on))

    def backs(self, event: ev.AnyEvent, state: State) -> None:
        """Raises AssertionError for an event that tells what its site has not said."""
        match event:
            case ev.AttemptEnded() if event.outcome is not Outcome.EXPIRED:
                site = state.jobs[event.job].site
                assert site is not None
                outcomes = self._ends.get((site, event.attempt), set())
                said = {outcome for outcome, _ in outcomes}
                if event.outcome is Outcome.PREEMPTED and Outcome.EXPIRED in said:
                    return
                if event.outcome is Outcome.CORRUPT and (Outcome.SUCCEEDED, "") in outcomes:
                    return
                assert event.outcome in said, f"{site} never said that {event.attempt} was {event.outcome}"
            case ev.ContributionReceived():
                told = self._ends.get((event.site, event.attempt), set())
                assert (Outcome.SUCCEEDED, event.envelope) in told, f"{event.site} delivered no such thing"
            case ev.AttemptStarted():
                assert (event.site, event.attempt) in self._started, f"{event.site} said of no start"
            case ev.AttemptUsed():
                told_use = self._use.get((event.site, event.attempt), set())
                assert (event.gpu_seconds, event.seconds) in told_use, f"{event.site} told of no such use"
            case ev.AttemptGone():
                first = self._first.get((event.site, event.attempt), 0.0)
                syncs = self._missing.get(event.site, ())
                gone = any(at >= first and event.attempt not in goes_on for at, goes_on in syncs)
                assert gone, f"{event.attempt} goes on at {event.site}"
            case _:
                pass
