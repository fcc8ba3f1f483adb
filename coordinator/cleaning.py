"""How the store gets rid of what nothing refers to, while uploads come in and after a crash in the middle.

What the rule of keeping no longer asks for is let go first, by an event: while a coordinator runs by that one, else
here. A blob goes if the ledger does not name it, or says that it was let go, and it was stored before the oldest open
job was planned and longer ago than the grace. The store is listed before the ledger is read: what a site or the worker
stores, and then reports, is young or named. Whoever stores a blob that is here already makes it young again, and blobs
are looked at and deleted under a lock. Deleting is repeated by the next cleaning; nothing else is changed.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from consortium.canonical import Fact
from consortium.errors import Unavailable
from consortium.files import disk_errors
from consortium.ids import Digest
from coordinator.chain import AnyLedger
from coordinator.config import is_bucket
from coordinator.core.fold import apply
from coordinator.core.keeping import due
from coordinator.core.referenced import named, open_since, referenced
from coordinator.core.state import State
from coordinator.core.story import sentence
from coordinator.driver import replay
from coordinator.ledgers import open_ledger
from coordinator.making import forget, unclaimed
from coordinator.stores import Places, open_store

Progress = Callable[[int, int], None]  #: so many of so many
GRACE_HOURS = 168.0  # an admin's upload of a large base, before the campaign that names it, may take days


class Cleaned(Fact):
    """What went, or would go."""

    kept: int  #: blobs
    young: int  #: of those, not named by the ledger, but stored too lately
    removed: tuple[Digest, ...]  #: sorted
    removed_bytes: int
    partials: int  #: abandoned uploads
    leftovers: (
        int  #: what crashes left half written or half made, models laid out for campaigns that are over
    )
    dry_run: bool
    rule: str = ""  #: of keeping, in words
    let_go: int = 0  #: of those removed, blobs that the ledger once asked to keep
    let_go_bytes: int = 0
    decided: tuple[str, ...] = ()  #: what was let go just now, or would be: the events in words
    waits_for: str = ""  #: why nothing more is let go now


def clean(
    places: Places,
    now: float,
    grace_hours: float = GRACE_HOURS,
    dry_run: bool = False,
    progress: Progress = lambda done, all_: None,
) -> Cleaned:
    """Delete what nothing refers to. The coordinator may run meanwhile, unless its store is a bucket.

    now  seconds since the epoch, by the clock of the store's disk
    Raises Unavailable if the ledger cannot be read, or for a bucket if a coordinator runs; then nothing was deleted.
    """
    store = open_store(places)
    with contextlib.ExitStack() as stack:
        ledger: AnyLedger | None = None
        if is_bucket(places.store) and not dry_run:
            ledger = stack.enter_context(open_ledger(places.ledger))  # so that nobody stores anything now
        listed, partials = store.digests(), store.partials()
        state, decided, waits_for = _after_the_rule(places, now, dry_run, ledger)
        named_by_it, gone = named(state)
        needed = named_by_it.keys() | (_of_busy_sites(state, places) if is_bucket(places.store) else set())
        oldest = open_since(state)
        before = (now if oldest is None else min(now, oldest)) - grace_hours * 3600.0
        removed, removed_bytes, young, gone_bytes = [], 0, 0, 0
        for number, digest in enumerate(listed, 1):
            progress(number, len(listed))
            if digest in needed:
                continue
            try:
                size = store.size(digest) if store.stored_at(digest) < before else None
                if size is not None and not dry_run:
                    size = store.remove(digest, stored_before=before) or None
            except Unavailable:  # somebody else removed it
                continue
            if size is None:
                young += 1
            else:
                removed.append(digest)
                removed_bytes += size
                gone_bytes += size if digest in gone else 0
        abandoned = [(digest, owner) for digest, owner, at in partials if at < before]
        leftovers = list(_left_behind(Path(places.home), state, before))
        unfinished = unclaimed(Path(places.home) / "work" / "making", before)
        num_left = len(leftovers) + len(unfinished)
        if not dry_run:
            for digest, owner in abandoned:
                store.discard(digest, owner)
            for folder in leftovers:
                _discard(folder)
            for place in unfinished:
                forget(place)
            num_left += store.sweep(before)
    return Cleaned(
        kept=len(listed) - len(removed),
        young=young,
        removed=tuple(removed),
        removed_bytes=removed_bytes,
        partials=len(abandoned),
        leftovers=num_left,
        dry_run=dry_run,
        rule=places.keep.words,
        let_go=len(gone.keys() & set(removed)),
        let_go_bytes=gone_bytes,
        decided=decided,
        waits_for=waits_for,
    )


def _after_the_rule(
    places: Places, now: float, dry_run: bool, held: AnyLedger | None
) -> tuple[State, tuple[str, ...], str]:
    """The state, once all is let go that the rule allows; that in words; why it could not be, if so.

    dry_run  nothing is written down: the state as it would be
    held     the ledger, if it is open for writing already
    """
    with contextlib.ExitStack() as stack:
        waits_for = ""
        if held is None and not dry_run and places.keep.lets_go:
            try:
                held = stack.enter_context(open_ledger(places.ledger))
            except Unavailable as error:
                waits_for = f"a coordinator that runs lets go by its own rule, every hour ({error})"
        ledger = held or stack.enter_context(open_ledger(places.ledger, read_only=True))
        state = replay(ledger)
        events = due(state, places.keep, now) if dry_run or held is not None else []
        if events and held is not None and not dry_run:
            held.append(events, now)
        for event in events:
            apply(event, state, now)
        return state, tuple(sentence(event) for event in events), waits_for


def _of_busy_sites(state: State, places: Places) -> set[Digest]:
    """What was ever sent by a site that holds an open job: in a bucket, asking for a blob does not make it young."""
    busy = {job.site for job in state.open_jobs() if job.site is not None}
    return {digest for digest, owner in open_store(places).deliveries() if owner in busy}


def _left_behind(home: Path, state: State, before: float) -> Iterator[Path]:
    """Models laid out long ago for campaigns that are over; who wants one lays it out again."""
    wanted = {
        digest
        for campaign in state.campaigns.values()
        if campaign.status == "open"
        for digest, version in campaign.versions.items()
        if version.weights_let_go is None
    }
    laid_out = home / "work" / "versions"
    for path in sorted(laid_out.iterdir()) if laid_out.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # another cleaning has it just now
            if path.name not in wanted and path.stat().st_mtime < before:
                yield path


def _discard(folder: Path) -> None:
    """At once, as far as anybody sees: half a model must never pass for one."""
    gone = folder if folder.name.startswith(".") else folder.with_name(f".{folder.name}.gone")
    with disk_errors(folder), contextlib.suppress(FileNotFoundError):  # another cleaning has it already
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def require_whole(state: State, has: Callable[[Digest], bool]) -> None:
    """Raise Unavailable unless every blob that the state names is there; names the first and what it is for."""
    lost = {digest: what for digest, what in sorted(referenced(state).items()) if not has(digest)}
    for digest, what in lost.items():
        raise Unavailable(
            f"{len(lost)} blob(s) that the ledger names are missing, such as {digest} of {what}"
        )
