"""What is decided upon a copy of the state leaves the state alone, and a full disk costs no reading of the ledger."""

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from consortium_in_facts import DEMO, Coordinator, invitation
from delivering_site import NOW, TRAIN, House
from hostile_world import World

from consortium.canonical import encode
from consortium.errors import DiskFull, Unavailable
from coordinator import ledger as ledger_module
from coordinator.chain import Head, Recorded
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.draft import draft
from coordinator.core.index import Index
from coordinator.core.machine import handle
from coordinator.core.snapshot import keep
from coordinator.core.state import State
from coordinator.driver import Driver, replay
from coordinator.ledger import Ledger

# ---- the copy


class OnCopies(Coordinator):
    """Every command is first decided upon a copy that is thrown away, as on a full disk; then upon one that is kept."""

    state: State
    kinds: collections.Counter[str]

    def events_of(self, command: cm.Command) -> tuple[ev.AnyEvent, ...]:
        before, index, moment = self.state.snapshot(), draft(self.state).index, self.moment_of(command)
        lost = handle(self.state, command, moment, draft)
        assert self.state.snapshot() == before, f"{type(command).__name__} showed through its copy"
        assert self.state.index == index == Index(self.state.jobs)
        if isinstance(command, cm.SyncSite):
            held = {job.attempt for job in self.state.live(command.site)}
            self.renewed.update((r.attempt, self.now) for r in command.reports if r.attempt in held)
        kept = handle(self.state, command, self.moment_of(command), draft)
        assert (kept.state is self.state) == (not kept.events)
        if kept.events:
            assert self.state.snapshot() == before
        assert lost.events == kept.events or isinstance(command, cm.SyncSite)
        self.state = kept.state
        if len(self.ledger) % 5 == 0:
            keep(self.state)  # jobs that are over rest in both
        self.ledger.extend((encode(event), self.now) for event in kept.events)
        self.kinds.update(type(event).__name__ for event in kept.events)
        return kept.events


def test_nothing_shows_through_a_copy_in_a_hostile_world() -> None:
    """The world compares the state with the fold of its events after every command."""
    kinds: collections.Counter[str] = collections.Counter()
    for seed in range(4):
        world = World(seed)
        world.coordinator.__class__ = OnCopies
        world.coordinator.kinds = kinds
        world.run()
    events = (
        "AttemptUsed AttemptEnded ContributionAdmitted FlowerRunOpened GateJudged JobLeased SiteDescribed"
    )
    assert set(events.split()) <= kinds.keys()


def test_every_dictionary_of_the_state_is_a_copys_own(training: House) -> None:
    """Whatever field is added: what can be changed in place is not shared, down to the facts."""
    training.report(TRAIN, training.seal(training.contribution(training.job(TRAIN))))
    training.work()
    state = training.driver.state
    copied = draft(state)

    def changeable(value: Any, place: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            yield place, value
            for name, one in value.items():
                yield from changeable(one, f"{place}.{name}")
        elif hasattr(value, "__struct_fields__") and not value.__struct_config__.frozen:
            yield place, value
            for name in value.__struct_fields__:
                yield from changeable(getattr(value, name), f"{place}.{name}")

    ours, theirs = dict(changeable(state, "state")), dict(changeable(copied, "state"))
    assert ours.keys() == theirs.keys() and len(ours) > 30
    assert [place for place in ours if ours[place] is theirs[place]] == []
    assert copied.snapshot() == state.snapshot() and copied == state


# ---- the driver


class Counted(Ledger):
    """A ledger that counts how often it is read, and takes nothing while its disk is full."""

    readings = 0
    fails: Callable[[], None] | None = None

    def read(self, from_seq: int = 1) -> Iterator[Recorded]:
        self.readings += 1
        return super().read(from_seq)

    def append(self, events: Sequence[Any], at: float) -> list[Recorded]:
        if self.fails is not None:
            self.fails()
        return super().append(events, at)


def full() -> None:
    raise DiskFull("no room")


@pytest.fixture
def ledger(training: House) -> Counted:
    """Of the house, whose driver reads from it and writes to it."""
    training.ledger.__class__ = Counted
    assert isinstance(training.ledger, Counted)
    return training.ledger


def told(house: House) -> bytes:
    """What the file says, to somebody who has just come."""
    with ledger_module.Ledger(house.home / "ledger.sqlite", read_only=True) as again:
        return replay(again, from_snapshot=False).snapshot()


def test_a_full_disk_costs_one_reading_however_many_commands_fail(training: House, ledger: Counted) -> None:
    driver, before = training.driver, training.driver.state.snapshot()
    ledger.fails = full
    for number in range(50):
        for command in (
            invitation(f"site-{number}", NOW + 60),
            cm.StopCampaign(campaign=DEMO, reason="no more money"),
        ):
            with pytest.raises(DiskFull):
                driver.execute(command)
            assert driver.state.snapshot() == before == told(training)
    assert ledger.readings == 1, "the first failure is met by a state that was changed already"
    ledger.fails = None
    driver.execute(cm.StopCampaign(campaign=DEMO, reason="no more money"))
    assert driver.state.campaigns[DEMO].status == "stopped"
    assert driver.state.snapshot() == told(training)
    assert ledger.readings == 1


def test_a_disk_that_is_full_now_and_then_costs_no_more(training: House, ledger: Counted) -> None:
    driver = training.driver
    for number in range(40):
        ledger.fails = full if number % 2 else None
        try:
            driver.execute(invitation(f"site-{number}", NOW + 60))
        except DiskFull:
            assert number % 2
        assert driver.state.snapshot() == told(training)
    assert ledger.readings == 1 and len(driver.state.tokens) == 20


def test_after_enough_good_decisions_nothing_is_copied_any_more(
    training: House, ledger: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.driver._CAREFUL_DECISIONS", 2)
    driver = training.driver
    ledger.fails = full
    with pytest.raises(DiskFull):
        driver.execute(invitation("east", NOW + 60))
    ledger.fails = None
    states = [driver.state]
    for number in range(4):
        driver.execute(invitation(f"site-{number}", NOW + 60))
        driver.execute(cm.Tick())  # nothing happens, and nothing is copied for it
        states.append(driver.state)
    assert [one is next_ for one, next_ in itertools.pairwise(states)] == [
        False,
        False,
        True,
        True,
    ]


def test_what_was_written_after_all_is_read(training: House, ledger: Counted) -> None:
    """An append that fails may have reached the disk. Then the copy's original is not what the ledger tells."""
    driver = training.driver
    ledger.fails = full
    for _ in range(2):
        with pytest.raises(DiskFull):
            driver.execute(invitation("east", NOW + 60))
    assert ledger.readings == 1
    append, ledger.fails = super(Counted, ledger).append, None
    west = driver.foresee(invitation("west", NOW + 60))

    def done_and_lost() -> None:
        append(west, NOW)
        ledger.head = Head(seq=ledger.head.seq - 1, hash="as it was")
        raise Unavailable("nobody answered")

    ledger.fails = done_and_lost
    with pytest.raises(Unavailable):
        driver.execute(invitation("east", NOW + 60))
    assert driver.state.snapshot() == told(training)
    assert [token.site for token in driver.state.tokens.values()] == ["west"]
    assert ledger.readings == 2
    ledger.fails = full
    for _ in range(5):  # it knows what it has read, and need not read it again
        with pytest.raises(DiskFull):
            driver.execute(invitation("east", NOW + 60))
    assert ledger.readings == 2


def test_a_mistake_of_the_core_costs_one_reading_however_often_it_is_met(
    training: House, ledger: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that has found one may call as often as it likes."""
    before = training.driver.state.snapshot()

    def contradicted(*_: object) -> None:
        raise AssertionError("the table is contradicted")

    monkeypatch.setattr("coordinator.core.machine.follow", contradicted)
    for number in range(20):
        with pytest.raises(AssertionError):
            training.driver.execute(invitation(f"site-{number}", NOW + 60))
        assert training.driver.state.snapshot() == before
    assert ledger.readings == 1


def test_the_driver_of_a_house_is_the_real_one(training: House, ledger: Counted) -> None:
    assert type(training.driver) is Driver and training.driver._ledger is ledger
