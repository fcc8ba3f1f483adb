"""Does the coordinator's disk run low, and which rule would let it keep less: sentences for the view and the log."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from coordinator.config import is_bucket, is_postgres
from coordinator.stores import Places
from policies.keeping import Keep

FREE_SHARE_MIN = (
    0.1  # of a file system: below, ext4 and Lustre slow down, and a round of 20 sites may not fit any more
)


def notices(places: Places, free_share_min: float = FREE_SHARE_MIN) -> tuple[str, ...]:
    """One sentence for each file system of ours that has less than that share free; sorted."""
    return tuple(sorted(_notices(places, free_share_min)))


def _notices(places: Places, free_share_min: float) -> Iterator[str]:
    seen: set[int] = set()
    for place in _folders(places):
        try:
            device, room = place.stat().st_dev, shutil.disk_usage(place)
        except OSError:
            continue  # whoever writes there hears it
        if device in seen or room.free >= free_share_min * room.total:
            continue
        seen.add(device)
        yield (
            f"{place}: {room.free / 1e9:.1f} of {room.total / 1e9:.0f} GB are free; {way_out(places.keep)}, "
            "or give it a larger disk"
        )


def _folders(places: Places) -> Iterator[Path]:
    if not is_bucket(places.store):
        yield Path(places.store)
    if not is_postgres(places.ledger):
        yield Path(places.ledger).parent
    yield Path(places.home)


def way_out(rule: Keep) -> str:
    """What an operator can do, by the names of the settings."""
    if rule.contributions_versions is None and rule.contributions_days is None:
        return (
            "every delta ever sent is kept: set `keep: {contributions_versions: 3}` in the coordinator's config, "
            "then run `sprachbund gc`"
        )
    return f"run `sprachbund gc`, or keep less than now ({rule.words})"
