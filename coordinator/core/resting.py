"""How jobs that are over rest in memory: as the bytes that a snapshot has of them, until somebody looks.

Of a hundred thousand jobs a few hundred are open. As objects the others cost a gigabyte, and a minute to write down
and to read at each start; as bytes they are copied from snapshot to snapshot as they are.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

from consortium.canonical import encode
from consortium.ids import CampaignId, JobId, SiteName
from consortium.jobs import Purpose
from coordinator.core.transitions import FINAL, JobState

if TYPE_CHECKING:
    from coordinator.core.state import Job


class _Contributed(msgspec.Struct):
    site: SiteName


class Brief(msgspec.Struct):
    """What the index wants to know of a job; cheaply read from its bytes."""

    id: JobId
    campaign: CampaignId
    purpose: Purpose
    state: JobState = JobState.PLANNED
    site: SiteName | None = None
    contribution: _Contributed | None = None
    admitted_at: float = 0.0

    @property
    def is_final(self) -> bool:
        return self.state in FINAL


class Jobs(dict[JobId, "Job"]):
    """Jobs by id, some of them resting. Who looks at one wakes it, so that what is changed in it stays changed."""

    def __init__(self, jobs: Mapping[JobId, "Job | msgspec.Raw"], kind: type["Job"]) -> None:
        super().__init__(jobs)  # type: ignore[arg-type]
        self._kind = kind

    def __getitem__(self, name: JobId) -> "Job":
        found = cast("Job | msgspec.Raw", super().__getitem__(name))
        if isinstance(found, msgspec.Raw):
            found = self[name] = msgspec.json.decode(found, type=self._kind)
        return found

    def get(self, name: JobId, default: Any = None) -> Any:
        return self[name] if name in self else default

    def values(self) -> Iterator["Job"]:  # type: ignore[override]
        return (self[name] for name in self)

    def items(self) -> Iterator[tuple[JobId, "Job"]]:  # type: ignore[override]
        return ((name, self[name]) for name in self)

    def __or__(self, others: Mapping[JobId, "Job"]) -> "Jobs":  # type: ignore[override]
        return Jobs({**dict(self._kept()), **others}, self._kind)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, dict)
            and self.keys() == other.keys()
            and all(v == other[k] for k, v in self.items())
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def written(self) -> dict[JobId, msgspec.Raw]:
        """Every job in canonical JSON. Those that are final rest from now on."""
        found = {}
        for name, kept in self._kept():
            if isinstance(kept, msgspec.Raw):
                found[name] = kept
                continue
            found[name] = msgspec.Raw(encode(kept))
            if kept.is_final:
                super().__setitem__(name, cast("Job", found[name]))  # no key is new: the loop may go on
        return found

    def briefs(self) -> "Iterator[Brief | Job]":
        """Each job, or of one that rests the brief; by id."""
        for _, kept in sorted(self._kept(), key=lambda pair: pair[0]):
            yield msgspec.json.decode(kept, type=Brief) if isinstance(kept, msgspec.Raw) else kept

    def _kept(self) -> "Iterable[tuple[JobId, Job | msgspec.Raw]]":
        return cast("Iterable[tuple[JobId, Job | msgspec.Raw]]", super().items())
