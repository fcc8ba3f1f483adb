"""The referee outside of the world: what must hold after every event, every answer and every crash.

``Referee`` folds the ledger's events on its own and believes nobody; what does not hold becomes a sentence in
``violations``. Numbers are those of the invariants in docs/architecture.md.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sprachbund.v1 import site_pb2

from consortium.blobs import Blobs
from consortium.errors import SprachbundError
from consortium.ids import AttemptId, Digest, SiteName, job_of
from consortium.jobs import Outcome
from coordinator.core import events as ev
from coordinator.core.state import State
from coordinator.core.transitions import JobState
from coordinator.driver import Driver, decode_event
from coordinator.ledger import Recorded
from coordinator.verification import verify
from simulation.admitted import Admitted
from simulation.promptness import Promptness
from simulation.rules import Rules
from simulation.said import Said
from simulation.verdicts import Verdicts

_VIOLATIONS_MAX = 20  # one is enough to look into; the rest mostly follows from it
SYNC = "/sprachbund.v1.SiteService/Sync"
_TOLD_SECONDS = 60.0  # a site that waits for news hears within these that an attempt is no longer its own


class Referee:
    """violations: what did not hold, each with the step of the scheduler at which it was seen."""

    def __init__(
        self, step: Callable[[], int], clock: Callable[[], float], time: Callable[[], float]
    ) -> None:
        """``clock``: the coordinator's, seconds since the epoch; ``time``: seconds that nobody's clock bends."""
        self.violations: list[str] = []
        self.events: list[Callable[[ev.AnyEvent, float], None]] = []
        self.blamed: Callable[[], None] = lambda: None  #: called when something did not hold
        self._step, self._clock, self._time = step, clock, time
        self._rules = Rules()
        self._said = Said()
        self._admitted = Admitted()
        self._verdicts = Verdicts()
        self._promptness = Promptness(self._rules.shadow)
        self._started = 0.0  #: the coordinator that runs
        self._hindered = 0.0  #: when it last could not write anything down
        self._lost: dict[SiteName, float] = {}  #: when a site last lost an attempt, by ``time``
        self._agents: dict[str, list[str]] = {}  #: of each site, as this coordinator first answered them
        self._hashes: list[str] = []

    @property
    def state(self) -> State:
        """What the events tell, folded here."""
        return self._rules.state

    def look_into(self, store: Blobs) -> None:
        """The coordinator's, to look at what it admits."""
        self._admitted.store = self._verdicts.store = store

    @property
    def sequence(self) -> int:
        return len(self._hashes)

    @property
    def head(self) -> str:
        """Hash of the ledger's last entry."""
        return self._hashes[-1]

    def blame(self, what: str) -> None:
        if len(self.violations) < _VIOLATIONS_MAX:
            self.violations.append(f"step {self._step()}: {what}")
            self.blamed()

    # ---- 1, 3, 6: by event

    def wrote(self, recorded: Sequence[Recorded]) -> None:
        """These entries are durable now: all that one command brought, or what was there at the start."""
        for entry in recorded:
            if entry.seq != len(self._hashes) + 1:
                self.blame(f"invariant 2: entry {entry.seq} was written after {len(self._hashes)}")
            self._hashes.append(entry.hash)
            event = decode_event(entry)
            try:
                self._note_losses(event)
                self._said.backs(event, self.state)
                self._admitted.watch(event, self.state)
                self._verdicts.watch(event, self.state)
                self._rules.watch(event, entry.at, self._said.last, self._started)
            except (AssertionError, KeyError, ValueError, SprachbundError) as broken:
                self.blame(f"invariants 1, 3, 6, 7: entry {entry.seq}, {type(event).__name__}: {broken!r}")
            for hear in self.events:
                hear(event, entry.at)
        if recorded:
            self._prompt(recorded[-1].at)

    def _prompt(self, now: float) -> None:
        """What is decided when it has to be; the coordinator looks often enough."""
        for job in self.state.open_jobs():
            if job.state is JobState.LEASED and job.attempt is not None and job.site is not None:
                programme, site = self.state.programme(job.campaign), self.state.sites[job.site]
                last = max(self._said.last.get(job.attempt, 0.0), job.leased_at, self._started)
                if now > last + 2.0 * programme.lease_seconds(site):
                    self.blame(
                        f"invariant 3: {job.attempt} was not heard of for {now - last:.0f} s, and is leased"
                    )
                if site.status == "suspended":
                    self.blame(f"invariant 3: {site.name} is suspended, and {job.attempt} is leased to it")
        try:
            self._rules.orders.settled(self.state)
        except AssertionError as broken:
            self.blame(f"invariant 1: {broken!r}")
        able_since = max(self._started, self._hindered)
        for complaint in self._promptness.complaints(self.state, now, able_since, self._said.asked):
            self.blame(f"liveness: {complaint}")

    def _note_losses(self, event: ev.AnyEvent) -> None:
        if isinstance(event, ev.AttemptEnded | ev.JobCancelled):
            job = self.state.jobs[event.job]
            if job.state is JobState.LEASED and job.site is not None:
                self._lost[job.site] = self._time()

    def ticked(self, waiting: Iterable[tuple[str, float]]) -> None:
        """The coordinator has looked at its clock; while everybody waits nothing else shows what is overdue.

        ``waiting``: the sites whose Sync is being answered, and for how many seconds.
        """
        self._prompt(self._clock())
        for place, seconds in waiting:
            ago = self._time() - self._lost.get(SiteName(place), 0.0)
            if _TOLD_SECONDS < ago < seconds:
                self.blame(
                    f"liveness: {place} waits, and is not told for {ago:.0f} s that its attempt is gone"
                )

    def hindered(self) -> None:
        """The coordinator could not write down what was due: until it can, nothing is late."""
        self._hindered = self._clock()

    # ---- 2: what was acknowledged survives

    def restarted(self, driver: Driver) -> None:
        """A coordinator has read its ledger again."""
        self._started = self._clock()
        self._agents = {}
        known = (len(self._hashes), self._hashes[-1] if self._hashes else "")
        head = driver.checkpoint()
        if (head.sequence, head.head) != known:
            self.blame(f"invariant 2: after a crash the ledger ends at {head.sequence}, it had {known[0]}")
        elif driver.state.snapshot() != self.state.snapshot():
            self.blame("invariant 2: after a crash the state is not what the events tell")

    def settled(self, driver: Driver) -> None:
        """The living state is the replay of the ledger."""
        if driver.state.snapshot() != self.state.snapshot():
            self.blame("invariant 2: the living state is not what the events tell")

    def served(self, place: str, method: str, request: Any) -> None:
        """A site's words have reached the coordinator."""
        if method == SYNC:
            with contextlib.suppress(DecodeError):  # who hears it says so
                words = site_pb2.SyncRequest.FromString(request) if isinstance(request, bytes) else request
                self._said.hear(place, words, self.state, self._clock())

    def answered(self, place: str, method: str, request: bytes, response: bytes) -> None:
        """An answer leaves the coordinator: all that it acknowledges is written down."""
        if method != SYNC:
            return
        told, said = site_pb2.SyncRequest.FromString(request), site_pb2.SyncResponse.FromString(response)
        agents = self._agents.setdefault(place, [])
        if told.incarnation not in agents:
            agents.append(told.incarnation)
        elif told.incarnation != agents[-1]:
            self.blame(f"invariant 3: {place} has a newer agent, and the older one is answered")
        sequence = said.checkpoint.sequence
        if sequence > len(self._hashes) or self._hashes[sequence - 1] != said.checkpoint.head:
            self.blame(f"invariant 2: {place} was shown ledger head {sequence}, which is not written down")
        live = {job.attempt for job in self.state.live(SiteName(place)) if job.attempt is not None}
        site = self.state.sites[SiteName(place)]
        if site.status == "suspended":
            self.blame(f"invariant 7: {place} is suspended and gets an answer")
        drains = told.site.draining
        if drains == self._said.drains.get(site.name) != site.draining:  # nothing else was said meanwhile
            self.blame(f"invariant 1: {place} says {drains=}, is answered, and the ledger has it otherwise")
        goes_on = {line.attempt for line in told.attempts if line.phase != site_pb2.ATTEMPT_PHASE_ENDED}
        for kept in sorted(site.held.keys() - live - goes_on):
            self.blame(f"invariant 6: {kept} is held back, though {place} says that it does not go on")
        for kept in sorted(live - {wanted.attempt for wanted in said.wanted}):
            self.blame(f"invariant 3: {kept} is leased to {place}, which is not told")
        lease = (SiteName(place), JobState.LEASED)
        for line in told.attempts:  # who comes back before anybody else was asked goes on
            job = self.state.jobs.get(job_of(AttemptId(line.attempt)))
            if job is not None and (job.attempt, job.site) == (line.attempt, place):
                waits = job.state is JobState.PLANNED and job.outcome is Outcome.EXPIRED
                if waits and line.attempt in said.settled:
                    self.blame(f"invariant 3: {place} came back with {line.attempt}, which was not resumed")
        for name in said.settled:
            if name in live:
                self.blame(f"invariant 2: {name} was settled with {place}, but is still leased to it")
        for line in told.attempts:
            if line.attempt in said.settled and line.outcome == site_pb2.ATTEMPT_OUTCOME_SUCCEEDED:
                job = self.state.jobs.get(job_of(AttemptId(line.attempt)))
                if job is not None and (job.attempt, job.site, job.state) == (line.attempt, *lease):
                    self.blame(f"invariant 2: the result of {line.attempt} was settled and is not known")
        for wanted in said.wanted:
            if wanted.attempt not in live:
                self.blame(f"invariant 3: {place} was sent {wanted.attempt}, which is not leased to it")

    # ---- 7: who reads and writes what

    def read(self, place: str, digest: str) -> None:
        """The first bytes of a blob leave for a site."""
        allowed = any(
            digest == job.tokenizer or Digest(digest) in job.inputs
            for job in self.state.live(SiteName(place))
        )
        if not allowed:
            self.blame(f"invariant 7: {place} reads blob {digest[:12]}, which no job of its needs")

    def took(self, place: str, digest: str) -> None:
        """The bytes of a blob are taken from a site."""
        self._admitted.took(place, digest)
        if not self.state.live(SiteName(place)):
            self.blame(f"invariant 7: {place} writes blob {digest[:12]} and holds no job")

    # ---- 4, 5, and liveness: at the end

    def rebuilt(self, home: Path) -> dict[str, str]:
        """Every version made again from ledger and store; their digests by name."""
        report = verify(home)
        for problem in report.problems:
            self.blame(f"invariants 4, 5: {problem}")
        return report.versions

    def ended(self, why_not: Callable[[], Sequence[str]]) -> None:
        """Faults have stopped and time is up: what is still open is told with what it waits for."""
        for name, campaign in sorted(self.state.campaigns.items()):
            if campaign.status == "open":
                self.blame(f"liveness: campaign {name} has not ended: {'; '.join(why_not()) or 'no reason'}")
