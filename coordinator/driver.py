"""Takes commands to the core and makes its events durable: the one place where the coordinator's state lives.

Ledger first, world second: nobody is told of an event before it is on disk. The driver belongs to one thread
(the event loop's); an append is one SQLite transaction of a few milliseconds, so it is not moved elsewhere.
"""

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterator

import msgspec
from cryptography.hazmat.primitives.asymmetric import ed25519

from consortium.capacity import Opening, Window
from consortium.errors import BadInput, Refused, SprachbundError, Superseded, Unavailable
from consortium.ids import AttemptId, SiteName
from consortium.signing import Checkpoint, sign_checkpoint
from consortium.views import ConsortiumView, Releases
from coordinator.chain import AnyLedger, Recorded
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.concerned import Standing, concerned, standing
from coordinator.core.decide import decide
from coordinator.core.draft import draft
from coordinator.core.fold import apply
from coordinator.core.machine import Decision, handle
from coordinator.core.moment import Moment
from coordinator.core.snapshot import keep, restore
from coordinator.core.state import State
from coordinator.core.story import Line, known_as, past, present, sentence
from coordinator.core.transitions import JobState
from coordinator.core.view import SHOWN_MAX, Sight, releases, view
from policies.windows import Openings, opening

_log = logging.getLogger(__name__)

#: After these a signed checkpoint, and a snapshot if the last one is old.
_MILESTONES = (ev.VersionPromoted, ev.VersionRejected, ev.RoundFailed, ev.CampaignEnded)

#: A snapshot when so many of all events have happened since the last: it costs the more the more there are, and a start
#: has so many to read again. For years that is at every milestone.
_SNAPSHOT_SHARE = 0.02
# in a replay: so many events later jobs that are over rest, lest all be in memory at once
_REST_EVENTS = 50_000
_PAUSE_SECONDS = 0.01  # after an event, for others to come: whom they concern is looked up once for all
_PAUSE_SHARE = 4.0  # and no sooner again than after so many times what the last look took

#: After one that could not be written down, so many decisions are tried on a copy of the state first: a copy takes
#: milliseconds, reading a long ledger again seconds, and a disk that is full stays so, or comes and goes.
_CAREFUL_DECISIONS = 1000

_INCARNATIONS_MAX = 1000  # of one site; an agent from cron is a new one every few minutes


class _Told(msgspec.Struct):
    event: ev.AnyEvent


_TOLD = msgspec.json.Decoder(_Told)


def decode_event(recorded: Recorded) -> ev.AnyEvent:
    return _TOLD.decode(recorded.entry).event


def replay(ledger: AnyLedger, *, from_snapshot: bool = True) -> State:
    """The state that the ledger tells: its snapshot, if there is a whole one, and everything since."""
    state, seq = State(), 0
    with _nothing_collected():
        if from_snapshot and (snapshot := ledger.snapshot()):
            with contextlib.suppress(
                msgspec.ValidationError
            ):  # another release wrote it; the events say it all
                state, seq = restore(snapshot.state), snapshot.seq
        for recorded in ledger.read(seq + 1):
            apply(decode_event(recorded), state, recorded.at)
            if recorded.seq % _REST_EVENTS == 0:
                state.jobs.rest()
    return state


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """While a state is read nothing of it becomes garbage, and looking for some would take longer than the reading."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def openings(
    state: State,
    now: float,
    command: cm.Command | None = None,
    look: Callable[[tuple[Window, ...], float], Opening] = opening,
) -> dict[SiteName, Opening]:
    """How the windows of every site that has some stand at ``now``; ``command`` may tell of new ones."""
    known = {name: site.windows for name, site in state.sites.items() if site.windows}
    if isinstance(command, cm.SyncSite):
        known[command.site] = command.windows
    return {name: opening_of(windows, now, look) for name, windows in sorted(known.items()) if windows}


def opening_of(
    windows: tuple[Window, ...],
    now: float,
    look: Callable[[tuple[Window, ...], float], Opening] = opening,
) -> Opening:
    """How windows stand; such as cannot be read, for another tzdata wrote them down, are closed and say why."""
    try:
        return look(windows, now)
    except BadInput as error:
        return Opening(is_open=False, trouble=str(error))


class _Waiting:
    """A Sync that is held until there is something to say."""

    def __init__(self, site: SiteName, stood: Standing) -> None:
        self.site = site
        self.stood = stood
        self.news = asyncio.Event()
        self.told_at: float | None = None  #: when the news came, on the event loop's clock


class Driver:
    """State, ledger and presence, and the only way to change them."""

    def __init__(
        self, ledger: AnyLedger, key: ed25519.Ed25519PrivateKey, clock: Callable[[], float] | None = None
    ) -> None:
        self._ledger = ledger
        self._key = key
        self.clock: Callable[[], float] = clock or time.time
        self._told = ledger.last()  #: the last entry that the state knows of
        self._state: State | None = replay(ledger)
        self._careful = 0  # so many decisions are still to be tried on a copy
        self._kept = 0  # the sequence of the newest snapshot that this process kept
        self.started_at = self.clock()
        self.renewed: dict[AttemptId, float] = {}
        self.seen: dict[SiteName, float] = {}
        self.sights: dict[AttemptId, Sight] = {}
        self._openings = Openings()
        self._troubles: dict[SiteName, str] = {}
        self._incarnations: dict[SiteName, list[str]] = {}
        self._changed = asyncio.Event()
        self._waiting: dict[_Waiting, None] = {}  # in the order in which they came, not in that of a set
        self._look: asyncio.TimerHandle | None = None  # for whom of them there is news
        self._announced_at = 0.0
        self._pause = _PAUSE_SECONDS
        self._checkpoint: Checkpoint | None = None
        self.notices: tuple[str, ...] = ()  #: of the machine that this runs on, for the view

    @property
    def state(self) -> State:
        """What the ledger tells; read from it anew if it may tell another. Nobody sees what is not written down."""
        if self._state is None:
            self._told = self._ledger.last()
            self._state = replay(self._ledger)
        return self._state

    def execute(self, command: cm.Command) -> Decision:
        """Decide ``command`` and everything that follows, durably. Raises what the core or the disk refuses."""
        now = self.clock()
        state, decision = self.state, None
        moment = self._moment(state, now, command)
        try:
            decision = handle(state, command, moment, draft if self._careful else None)
            recorded = self._ledger.append(decision.events, now) if decision.events else []
        except BaseException as error:
            if decision is not None or not isinstance(error, Refused | BadInput):
                self._take_back()
            raise
        if not recorded:
            return decision
        self._state, self._told, self._careful = decision.state, self._ledger.head, max(0, self._careful - 1)
        for event, entry in zip(decision.events, recorded, strict=True):
            _log.info("%s", sentence(event), extra={"event": entry.kind, "sequence": entry.seq})
        self._forget()
        self.announce()
        if any(isinstance(event, _MILESTONES) for event in decision.events):
            self._keep(_SNAPSHOT_SHARE * self.sequence)
        return decision

    def _take_back(self) -> None:
        """What could not be written down has not happened, in a copy or in the state itself, which is then forgotten.

        Nobody knows what became of a write that failed, so the copy's original has to end where the ledger does.
        """
        was_draft, self._careful = self._careful > 0, _CAREFUL_DECISIONS
        try:
            is_told = was_draft and self._ledger.last() == self._told
        except SprachbundError:
            is_told = False
        if not is_told:
            self._state = None

    def _moment(self, state: State, now: float, command: cm.Command | None = None) -> Moment:
        found = openings(state, now, command, self._openings)
        troubles = {site: opening.trouble for site, opening in found.items() if opening.trouble}
        for site, trouble in sorted(troubles.items()):
            if self._troubles.get(site) != trouble:
                _log.error("the windows of site %s count as closed: %s", site, trouble)
        self._troubles = troubles
        return Moment(now=now, started_at=self.started_at, renewed=self.renewed, openings=found)

    def foresee(self, command: cm.Command) -> list[ev.AnyEvent]:
        """What ``command`` would establish now, less what follows from it. Nothing happens; raises the same."""
        return decide(command, self.state, self._moment(self.state, self.clock(), command))

    def _forget(self) -> None:
        """What was heard of attempts that are no longer live."""
        live = {job.attempt for job in self.state.open_jobs() if job.state is JobState.LEASED}
        for attempt in self.renewed.keys() - live:
            del self.renewed[attempt]
        for attempt in self.sights.keys() - live:
            del self.sights[attempt]

    def _keep(self, events: float) -> None:
        """A signed checkpoint, and a snapshot if there were so many events since the last. The past stands without."""
        try:
            if self.sequence - self._kept >= events:
                self._ledger.save_snapshot(keep(self.state), self._ledger.head)
                self._kept = self.sequence
            self._ledger.save_checkpoint(self.checkpoint())
        except Unavailable as error:
            _log.warning("no snapshot and no checkpoint at %d: %s", self.sequence, error)

    def announce(self) -> None:
        """Wake everybody who waits for news."""
        self._changed.set()
        self._changed = asyncio.Event()
        if self._waiting and self._look is None:
            loop = asyncio.get_running_loop()
            self._announced_at = loop.time()
            self._look = loop.call_later(self._pause, self._wake)

    def _wake(self) -> None:
        """Let sites go on for which there is an answer. Looking for them takes a small part of the time at most."""
        began, self._look = time.perf_counter(), None
        calls = list(self._waiting)
        try:
            state = self.state
            waiting = {call.site: call.stood for call in calls}
            for call in calls:  # of two agents of one site, either may wait for another answer
                if call.stood != standing(state, call.site):
                    waiting[call.site] = call.stood
            found = concerned(state, self._moment(state, self.clock()), waiting)
        except SprachbundError:  # the ledger cannot be read: let everybody hear it
            found = {call.site for call in calls}
        for call in calls:
            if call.site in found and not call.news.is_set():
                call.told_at = self._announced_at
                call.news.set()
        self._pause = max(_PAUSE_SECONDS, _PAUSE_SHARE * (time.perf_counter() - began))

    async def news(self, seconds: float) -> bool:
        """Whether something changed within ``seconds``."""
        changed = self._changed
        with contextlib.suppress(TimeoutError):
            # not wait_for: before Python 3.12 it swallows a cancellation that comes together with the news
            async with asyncio.timeout(seconds):
                await changed.wait()
            return True
        return False

    async def news_for(self, site: SiteName, seconds: float) -> float:
        """Wait until there may be something to say to ``site``, at most so long; seconds until there was."""
        began = asyncio.get_running_loop().time()
        call = _Waiting(site, standing(self.state, site))
        self._waiting[call] = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await call.news.wait()
        finally:
            self._waiting.pop(call, None)
        return seconds if call.told_at is None else max(0.0, min(seconds, call.told_at - began))

    def arrive(self, site: SiteName, incarnation: str, by_courier: bool = False) -> None:
        """Two agents of one site: the newest holds it, the older is told so at its next call.

        A courier's site has one name for all its agents, so where a network comes and goes it may come back.
        """
        known = self._incarnations.setdefault(site, [])
        if by_courier and incarnation in known:
            known.remove(incarnation)
        if incarnation not in known:
            known.append(incarnation)
            del known[:-_INCARNATIONS_MAX]
        self.fence(site, incarnation)
        self.seen[site] = self.clock()

    def fence(self, site: SiteName, incarnation: str) -> None:
        """Raise Superseded for an agent that a newer one has replaced. One that is unknown has not synced yet."""
        known = self._incarnations.get(site, [])
        if incarnation in known[:-1]:
            raise Superseded(f"another, newer agent of site {site} has taken over; stop this one")

    def still_leads(self) -> None:
        """Raise Unavailable if another coordinator may write to the ledger by now."""
        self._ledger.still_mine()

    @property
    def sequence(self) -> int:
        return self._ledger.head.seq

    def checkpoint(self) -> Checkpoint:
        """The signed head. Signing costs 50 µs; it is done once per head."""
        head = self._ledger.head
        if self._checkpoint is None or self._checkpoint.sequence != head.seq:
            self._checkpoint = sign_checkpoint(self._key, head.seq, head.hash)
        return self._checkpoint

    def view(self, most: int = SHOWN_MAX) -> ConsortiumView:
        """As it stands; of what is over the newest, see ``core.view``."""
        head = self._ledger.head
        return view(
            self.state,
            sequence=head.seq,
            head=head.hash,
            now=self.clock(),
            seen=self.seen,
            sights=self.sights,
            openings=openings(self.state, self.clock(), look=self._openings),
            most=most,
            notices=self.notices,
        )

    def releases(self) -> Releases:
        head = self._ledger.head
        return releases(self.state, sequence=head.seq, head=head.hash)

    def events(self) -> Iterator[tuple[int, float, ev.AnyEvent]]:
        for recorded in self._ledger.read():
            yield recorded.seq, recorded.at, decode_event(recorded)

    def entries(self, from_sequence: int) -> Iterator[Recorded]:
        yield from self._ledger.read(max(1, from_sequence))

    async def why(self, subject: str) -> tuple[Line, ...]:
        """See ``core.story``. The ledger is read by a thread: a million entries take a while."""
        lines, end = await asyncio.to_thread(
            lambda names: past(self.events(), names), known_as(self.state, subject)
        )
        return (*lines, *present(self.state, subject, self._moment(self.state, self.clock()), end))
