"""What the wire's messages say, in our words, and ours in the wire's. Raises BadInput for what is in no contract."""

import math
from collections.abc import Iterable
from importlib.metadata import version
from itertools import pairwise
from typing import Literal

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sprachbund.v1 import (
    admin_pb2,
    site_pb2,
)

from consortium import ids
from consortium.canonical import replace
from consortium.capacity import Allocation, Usage, Window
from consortium.errors import BadInput, Refused
from consortium.harmless import harmless
from consortium.ids import SiteName
from consortium.jobs import Outcome, Phase
from consortium.manifests import Holding
from consortium.releases import misfit
from consortium.signing import Checkpoint
from coordinator.core import commands as cm
from coordinator.core.view import Sight
from policies import windows

_RELEASE = version("sprachbund")
_HOLDINGS_MAX = 1000  # two for every language there is text in; they go to the ledger
_DESCRIPTION_BYTES_MAX = 128 << 10  # of all that a site says of itself: so many holdings, with long licences
_ATTEMPTS_MAX = 10_000  # of one Sync: as many as a site can have slots
_NAME_CHARACTERS_MAX = 100
_REASON_CHARACTERS_MAX = 1000
_WINDOWS_MAX = 20  # and allocations
_COUNT_MAX = 1 << 53  # larger ones no float holds
_END_OF_TIME = 253_402_300_800.0  # of protobuf's timestamps and Python's dates: the year 10000
_DURATION_SECONDS_MAX = 315_576_000_000.0  # ten thousand years: the longest that protobuf knows


_PHASES = {
    site_pb2.ATTEMPT_PHASE_STAGING: Phase.STAGING,
    site_pb2.ATTEMPT_PHASE_QUEUED: Phase.QUEUED,
    site_pb2.ATTEMPT_PHASE_RUNNING: Phase.RUNNING,
    site_pb2.ATTEMPT_PHASE_UPLOADING: Phase.UPLOADING,
    site_pb2.ATTEMPT_PHASE_ENDED: Phase.ENDED,
}
_OUTCOMES = {
    site_pb2.ATTEMPT_OUTCOME_SUCCEEDED: Outcome.SUCCEEDED,
    site_pb2.ATTEMPT_OUTCOME_FAILED: Outcome.FAILED,
    site_pb2.ATTEMPT_OUTCOME_PREEMPTED: Outcome.PREEMPTED,
    site_pb2.ATTEMPT_OUTCOME_EXPIRED: Outcome.EXPIRED,
    site_pb2.ATTEMPT_OUTCOME_REFUSED: Outcome.REFUSED,
    site_pb2.ATTEMPT_OUTCOME_CORRUPT: Outcome.CORRUPT,
    site_pb2.ATTEMPT_OUTCOME_CANCELLED: Outcome.CANCELLED,
}
SITE_STATUS: dict[int, Literal["enrolled", "draining", "suspended"]] = {
    admin_pb2.SITE_COMMAND_DRAIN: "draining",
    admin_pb2.SITE_COMMAND_RESUME: "enrolled",
    admin_pb2.SITE_COMMAND_SUSPEND: "suspended",
}

PEOPLE: dict[str, Literal["admin", "auditor", "reader"]] = {
    "admin": "admin",
    "auditor": "auditor",
    "reader": "reader",
}


def sync_command(site: SiteName, request: site_pb2.SyncRequest) -> cm.SyncSite:
    """What a Sync says, in our words. Raises BadInput for what is not in the contract, Refused for an unfit release."""
    if len(request.attempts) > _ATTEMPTS_MAX:
        raise BadInput(f"{len(request.attempts)} attempts in one Sync; at most {_ATTEMPTS_MAX}")
    description = request.site.SerializeToString(deterministic=True)
    if len(description) > _DESCRIPTION_BYTES_MAX:
        raise BadInput(
            f"site {site} says {len(description)} bytes of itself, at most {_DESCRIPTION_BYTES_MAX}: they stand in the "
            "ledger for good; fewer holdings, shorter licences"
        )
    known = _DESCRIPTIONS.get(site)
    if known is None or known[0] != description:
        known = _DESCRIPTIONS[site] = description, _described(site, description)
    return replace(known[1], reports=tuple(_report(line) for line in request.attempts))


#: What each site said of itself last. It says the same in every Sync, so it is read and checked once.
_DESCRIPTIONS: dict[SiteName, tuple[bytes, cm.SyncSite]] = {}


def _described(site: SiteName, description: bytes) -> cm.SyncSite:
    """What a site says of itself, without reports."""
    request = site_pb2.SyncRequest(site=site_pb2.SiteDescription.FromString(description))
    if why := misfit(request.site.agent_version, _RELEASE):
        raise Refused(why)
    if len(request.site.holdings) > _HOLDINGS_MAX:
        raise BadInput(
            f"{len(request.site.holdings)} holdings; at most {_HOLDINGS_MAX}, one a language and access"
        )
    if max(len(request.site.allocations), len(request.site.windows)) > _WINDOWS_MAX:
        raise BadInput(f"more than {_WINDOWS_MAX} allocations or windows; a week needs fewer")
    if len({a.name for a in request.site.allocations}) < len(request.site.allocations):
        raise BadInput("two allocations of one name; what is used could not be told apart")
    return cm.SyncSite(
        site=site,
        agent_version=harmless(request.site.agent_version, _NAME_CHARACTERS_MAX),
        slots=min(request.site.slots, 10_000),
        draining=request.site.draining,
        merges=request.site.merges,
        allocations=tuple(_allocation(a) for a in sorted(request.site.allocations, key=lambda a: a.name)),
        windows=tuple(_window(w) for w in request.site.windows),
        gpus=min(request.site.gpus, 100_000),
        launcher=harmless(request.site.launcher, _NAME_CHARACTERS_MAX),
        holdings=_holdings(request.site.holdings),
        reports=(),
    )


def _holdings(told: Iterable[site_pb2.Holding]) -> tuple[Holding, ...]:
    """In order. They go to the ledger for good: each language and access once, in words that can be read."""
    holdings = tuple(
        Holding(
            language=ids.language(h.language),
            access="public" if h.is_public else "private",
            documents=h.documents,
            bytes=h.text_bytes,
            heldout_documents=h.heldout_documents,
            licence=h.licence[:200],
            digest=ids.digest(h.digest),
        )
        for h in sorted(told, key=lambda h: (h.language, h.is_public))
    )
    for one, next_ in pairwise(holdings):
        if (one.language, one.access) == (next_.language, next_.access):
            raise BadInput(
                f"two holdings of {one.access} {one.language} text; add them up, one a language and access"
            )
    for one in holdings:
        if not one.licence.isprintable():
            raise BadInput(
                f"the licence of {one.access} {one.language} text has characters that cannot be printed"
            )
    return holdings


def _report(line: site_pb2.AttemptReport) -> cm.Report:
    if line.phase not in _PHASES:
        raise BadInput(
            f"attempt {line.attempt!r}: phase {line.phase} is not in the contract; upgrade the agent"
        )
    ended = line.phase == site_pb2.ATTEMPT_PHASE_ENDED
    if ended and line.outcome not in _OUTCOMES:
        raise BadInput(f"attempt {line.attempt!r}: ended, but outcome {line.outcome} is not in the contract")
    return cm.Report(
        attempt=ids.attempt_id(line.attempt),
        phase=_PHASES[line.phase],
        outcome=_OUTCOMES[line.outcome] if ended else None,
        reason=harmless(line.reason, _REASON_CHARACTERS_MAX),
        envelope=ids.digest(line.contribution) if line.contribution else None,
        usage=_usage(line) if line.HasField("usage") else None,
        detail=harmless(line.detail, _REASON_CHARACTERS_MAX),
        started=line.started,
    )


def _usage(line: site_pb2.AttemptReport) -> Usage:
    told = line.usage
    joules = told.joules if told.HasField("joules") else None
    for name, number in (
        ("gpu_seconds", told.gpu_seconds),
        ("seconds", told.seconds),
        ("queued_seconds", told.queued_seconds),
        ("joules", joules or 0.0),
    ):
        if not 0.0 <= number < 1e15:  # NaN fails too; 1e15 s are thirty million years
            raise BadInput(
                f"attempt {line.attempt!r}: usage.{name} is {number}; it must be a number from 0 on"
            )
    return Usage(
        gpu_seconds=told.gpu_seconds,
        seconds=told.seconds,
        queued_seconds=told.queued_seconds,
        joules=joules,
        source="sacct" if told.source == site_pb2.USAGE_SOURCE_SACCT else "clock",
    )


def _allocation(told: site_pb2.Allocation) -> Allocation:
    if not 0.0 <= told.gpu_hours < 1e12:
        raise BadInput(f"allocation {told.name!r}: {told.gpu_hours} GPU-hours; it must be a number from 0 on")
    until = told.until.seconds + told.until.nanos / 1e9 if told.HasField("until") else None
    if until is not None and not 0.0 <= until < _END_OF_TIME:
        raise BadInput(
            f"allocation {told.name!r}: it ends at {until:g} s after 1970; no calendar has that day"
        )
    return Allocation(name=short(told.name, "allocation"), gpu_hours=told.gpu_hours, until=until)


def _window(told: site_pb2.Window) -> Window:
    return windows.check(
        Window(
            cron=short(told.cron, "cron"),
            seconds=seconds_of(told.length),
            timezone=short(told.timezone, "timezone") or "UTC",
        )
    )


def sight(line: site_pb2.AttemptReport, report: cm.Report) -> Sight:
    """What is shown of an attempt; a training that diverges has a loss that is no number."""
    progress, speed = line.progress, line.progress.tokens_per_second
    return Sight(
        phase=report.phase.value,
        step=min(progress.step, _COUNT_MAX),
        steps=min(progress.steps, _COUNT_MAX),
        tokens=min(progress.tokens, _COUNT_MAX),
        loss=progress.loss if progress.loss and math.isfinite(progress.loss) else None,
        tokens_per_second=speed if math.isfinite(speed) else 0.0,
    )


def move(request: admin_pb2.PromoteRequest, verb: Literal["promote", "roll_back"]) -> cm.MoveHead:
    return cm.MoveHead(
        campaign=ids.campaign_id(request.campaign),
        version=request.version,
        verb=verb,
        reason=said(request.reason),
    )


def short(name: str, what: str) -> str:
    if len(name) > _NAME_CHARACTERS_MAX:
        raise BadInput(f"{what} {name[:20]!r}… has {len(name)} characters; at most {_NAME_CHARACTERS_MAX}")
    if not name.isprintable():
        raise BadInput(f"{what} {name!r} has characters that cannot be printed; leave them out")
    return name


def seconds_of(duration: Duration) -> float:
    """As a number: protobuf's own conversion overflows on what a hostile caller may send."""
    seconds = float(duration.seconds + duration.nanos / 1e9)
    if seconds < 0:
        raise BadInput(f"{seconds:g} s; a duration cannot be negative")
    return seconds


def said(reason: str) -> str:
    if not reason.strip():
        raise BadInput("a reason is needed: it stands in the ledger for the auditor")
    return harmless(reason.strip(), _REASON_CHARACTERS_MAX)


def checkpoint_message(checkpoint: Checkpoint) -> site_pb2.LedgerCheckpoint:
    return site_pb2.LedgerCheckpoint(
        sequence=checkpoint.sequence,
        head=checkpoint.head,
        signature=checkpoint.signature,
        public_key=checkpoint.public_key,
    )


def duration_message(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(int(min(seconds, _DURATION_SECONDS_MAX) * 1e6))
    return duration


def timestamp_message(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(int(seconds * 1e6))
    return stamp
