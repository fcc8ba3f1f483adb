"""What a ledger tells without its coordinator: for whoever has the file, or a copy of it."""

from pathlib import Path

from consortium.errors import BadInput
from consortium.views import ConsortiumView
from coordinator.core.story import Line, tell
from coordinator.core.view import view
from coordinator.driver import decode_event, openings, replay
from coordinator.ledgers import open_ledger
from coordinator.stores import places_of


def view_of(home: Path) -> ConsortiumView:
    """The consortium as it stood at the last event of the coordinator whose home, or config, this is."""
    with open_ledger(places_of(home).ledger, read_only=True) as ledger:
        last = max((recorded.at for recorded in ledger.read(ledger.head.seq)), default=0.0)
        state = replay(ledger)
        return view(
            state,
            sequence=ledger.head.seq,
            head=ledger.head.hash,
            now=last,
            seen={},
            sights={},
            openings=openings(state, last),
        )


def story_of(home: Path, subject: str) -> tuple[Line, ...]:
    """One subject's life, as ``sprachbund why`` tells it. Raises BadInput if no event speaks of it."""
    with open_ledger(places_of(home).ledger, read_only=True) as ledger:
        happened = ((recorded.seq, recorded.at, decode_event(recorded)) for recorded in ledger.read())
        lines = tell(happened, replay(ledger), subject)
    if not lines:
        raise BadInput(unknown_subject(subject))
    return lines


def unknown_subject(subject: str) -> str:
    return (
        f"nothing in the ledger speaks of {subject[:80]!r}; name a campaign, round (demo/r1), job, "
        "version (demo/v1 or its digest) or site"
    )
