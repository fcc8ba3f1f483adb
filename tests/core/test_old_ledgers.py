"""A ledger of release 0.1.0 (no allocations, windows or usage in it) still tells its story, and goes on.

``ledgers/release-0.1.0.jsonl`` was written by that release's own core in its hostile world, seed 21: a campaign of
several rounds with lost leases, failures and an admin's meddling. The snapshot beside it is that release's, too.
"""

import json
from pathlib import Path

import msgspec
import pytest
from consortium_in_facts import campaign, decoded

from coordinator.core import commands as cm
from coordinator.core.fold import apply
from coordinator.core.machine import handle
from coordinator.core.moment import Moment
from coordinator.core.snapshot import is_current, restore
from coordinator.core.state import State
from coordinator.core.story import tell
from coordinator.core.view import view

LEDGERS = Path(__file__).parent / "ledgers"


def replayed() -> tuple[State, list[tuple[int, float, object]]]:
    state, events = State(), []
    for number, line in enumerate((LEDGERS / "release-0.1.0.jsonl").read_text().splitlines(), 1):
        entry = json.loads(line)
        event = decoded(json.dumps(entry["event"]).encode())
        apply(event, state, entry["at"])
        events.append((number, entry["at"], event))
    return state, events


def test_it_tells_the_same_state() -> None:
    """Whatever the old release's own snapshot says, the replay by this one says too."""
    state, _ = replayed()
    old, new = json.loads((LEDGERS / "release-0.1.0.snapshot.json").read_text()), json.loads(state.snapshot())

    def differences(old: object, new: object, place: str = "") -> list[str]:
        if isinstance(old, dict) and isinstance(new, dict):
            return [x for key in old for x in differences(old[key], new.get(key), f"{place}.{key}")]
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            pairs = zip(old, new, strict=True)
            return [x for n, (a, b) in enumerate(pairs) for x in differences(a, b, f"{place}[{n}]")]
        return [] if old == new else [f"{place}: {old!r} -> {new!r}"]

    assert differences(old, new) == []


def test_its_snapshot_is_not_used() -> None:
    data = (LEDGERS / "release-0.1.0.snapshot.json").read_bytes()
    assert not is_current(data)
    with pytest.raises(msgspec.ValidationError, match="another release"):
        restore(data)


def test_it_can_be_told_shown_and_continued() -> None:
    state, events = replayed()
    last = events[-1][1]
    for subject in (*state.campaigns, *state.sites, *state.jobs):
        assert tell(events, state, subject)  # type: ignore[arg-type]
    shown = view(state, sequence=len(events), head="", now=last, seen={}, sights={})
    assert {site.allocations for site in shown.sites} == {()}
    moment = Moment(now=last + 1)
    handle(state, cm.SubmitCampaign(campaign=campaign("next", sites_expected=1)), moment)
    assert state.campaigns["next"].tokenizer_job is not None  # type: ignore[index]
