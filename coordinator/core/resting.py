"""How jobs that are over rest in memory: packed, many together, until somebody looks.

Of a hundred thousand jobs a few hundred are open. As objects the others cost a gigabyte, and a minute to write down
and to read at each start; packed they are a tenth of that, and copied from snapshot to snapshot as they are. Of each a
brief stays open, for whoever looks through all of them.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import msgspec

from consortium.canonical import encode
from consortium.ids import CampaignId, JobId, SiteName
from consortium.jobs import Purpose
from coordinator.core.transitions import FINAL, JobState

if TYPE_CHECKING:
    from coordinator.core.state import Job

_PACKED_TOGETHER = 64  # a quarter of a megabyte: jobs of a round are much alike, so a twelfth is left of it
_LEVEL = 3  # of zlib: as fast as 1 where so much repeats itself


class Brief(msgspec.Struct, array_like=True, gc=False):
    """What is asked of all jobs; of a job that rests it can be had without waking it."""

    id: JobId
    campaign: CampaignId
    round: int
    purpose: Purpose
    state: JobState
    site: SiteName | None  #: who holds or held the newest attempt
    contributor: SiteName | None  #: whose result was admitted
    admitted_at: float

    @property
    def is_final(self) -> bool:
        return self.state in FINAL


def brief(job: "Job") -> Brief:
    whose = None if job.contribution is None else job.contribution.site
    return Brief(job.id, job.campaign, job.round, job.purpose, job.state, job.site, whose, job.admitted_at)


class Pack(msgspec.Struct, array_like=True):
    """Jobs that rest together. Several states may share it, so it is never changed."""

    briefs: list[Brief | None]  #: None: it was woken and lies elsewhere
    data: bytes  #: deflated: a JSON array of the jobs, in the same order

    def jobs(self) -> list[msgspec.Raw]:
        return msgspec.json.decode(zlib.decompress(self.data), type=list[msgspec.Raw])


class Jobs(dict[JobId, "Job"]):
    """Jobs by id, some of them resting. Who looks at one wakes it, so that what is changed in it stays changed."""

    def __init__(self, jobs: Mapping[JobId, "Job | Pack"], kind: type["Job"]) -> None:
        super().__init__(jobs)  # type: ignore[arg-type]
        self._kind = kind
        # who wants one wants its neighbours
        self._opened: tuple[Pack, dict[JobId, msgspec.Raw]] | None = None

    def __getitem__(self, name: JobId) -> "Job":
        found = cast("Job | Pack", super().__getitem__(name))
        if isinstance(found, Pack):
            found = self[name] = self.glance(name)
        return found

    def get(self, name: JobId, default: Any = None) -> Any:
        return self[name] if name in self else default

    def glance(self, name: JobId) -> "Job":
        """The job, to be read only: one that rests goes on resting."""
        found = cast("Job | Pack", super().__getitem__(name))
        return (
            msgspec.json.decode(self._raw(found, name), type=self._kind) if isinstance(found, Pack) else found
        )

    def is_over(self, name: JobId) -> bool:
        """Whether the job is final; without waking it."""
        found = cast("Job | Pack", super().__getitem__(name))
        return isinstance(found, Pack) or found.is_final

    def newest_over(self, most: int) -> Iterator["Job"]:
        """Up to so many jobs that are final, the newest first, to be read only: about in the order of their plans."""
        return (self.glance(name) for name in islice((x for x in reversed(self) if self.is_over(x)), most))

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
            and all(self.glance(name) == _glance(other, name) for name in self)
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def written(self) -> dict[JobId, msgspec.Raw]:
        """Every job in canonical JSON."""
        return {
            name: self._raw(kept, name) if isinstance(kept, Pack) else msgspec.Raw(encode(kept))
            for name, kept in self._kept()
        }

    def rest(self) -> list[Pack]:
        """Those that are final rest from now on, in these packs."""
        kept, loose = [], [job for job in self.awake() if job.is_final]
        for pack in self._packs():
            here = [one if one and self._lies_in(pack, one.id) else None for one in pack.briefs]
            if 2 * here.count(None) > len(here):  # most were woken since
                loose += [self.glance(one.id) for one in here if one]
            elif here != pack.briefs:
                kept.append(self._put(Pack(here, pack.data)))
            else:
                kept.append(pack)
        loose.sort(key=lambda job: (job.planned_at, job.id))
        for start in range(0, len(loose), _PACKED_TOGETHER):
            jobs = loose[start : start + _PACKED_TOGETHER]
            data = b"[" + b",".join(map(encode, jobs)) + b"]"
            kept.append(self._put(Pack([brief(job) for job in jobs], zlib.compress(data, _LEVEL))))
        return kept

    def awake(self) -> Iterator["Job"]:
        return (kept for _, kept in self._kept() if not isinstance(kept, Pack))

    def briefs(self) -> Iterator[Brief]:
        """Of every job, in no order."""
        for job in self.awake():
            yield brief(job)
        for pack in self._packs():
            yield from (one for one in pack.briefs if one and self._lies_in(pack, one.id))

    def _put(self, pack: Pack) -> Pack:
        for one in pack.briefs:
            if one is not None:
                super().__setitem__(one.id, cast("Job", pack))
        return pack

    def _packs(self) -> list[Pack]:
        return list({id(kept): kept for _, kept in self._kept() if isinstance(kept, Pack)}.values())

    def _lies_in(self, pack: Pack, name: JobId) -> bool:
        return cast(object, super().__getitem__(name)) is pack

    def _raw(self, pack: Pack, name: JobId) -> msgspec.Raw:
        if self._opened is None or self._opened[0] is not pack:
            named = zip(pack.briefs, pack.jobs(), strict=True)
            self._opened = pack, {one.id: data for one, data in named if one is not None}
        return self._opened[1][name]

    def _kept(self) -> "Iterable[tuple[JobId, Job | Pack]]":
        return cast("Iterable[tuple[JobId, Job | Pack]]", super().items())


def _glance(jobs: "dict[JobId, Job]", name: JobId) -> "Job":
    return jobs.glance(name) if isinstance(jobs, Jobs) else jobs[name]
