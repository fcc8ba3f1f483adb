"""How the core's words are spelt in the messages of ``sprachbund.v1.SiteService``, and back."""

from collections.abc import Iterable, Sequence

from sprachbund.v1 import site_pb2

from consortium.canonical import decode
from consortium.capacity import Allocation, Usage, Window
from consortium.errors import BadInput, SprachbundError
from consortium.ids import AttemptId, SiteName, attempt_id
from consortium.jobs import Assignment
from consortium.manifests import DataManifest
from consortium.signing import ASSIGNMENT, Checkpoint, verify
from site_agent.core.facts import Budget, Offer, Progress, Report, UsedUp

_BUDGETS: dict[int, Budget] = {
    site_pb2.BUDGET_KIND_DESCRIBED: "described",
    site_pb2.BUDGET_KIND_RENEWED: "renewed",
    site_pb2.BUDGET_KIND_RETURNED: "returned",
}


def report_message(report: Report) -> site_pb2.AttemptReport:
    ended, told = report.ended, report.progress
    return site_pb2.AttemptReport(
        attempt=report.attempt,
        phase=f"ATTEMPT_PHASE_{report.phase.name}",
        outcome=f"ATTEMPT_OUTCOME_{ended.outcome.name}" if ended else None,
        reason=ended.reason if ended else "",
        native_id=report.native_id,
        progress=_progress_message(told) if told else None,
        contribution=(ended.contribution or "") if ended else "",
        usage=_usage_message(report.usage) if report.usage else None,
        detail=report.detail,
        started=report.started,
    )


def description_message(
    data: DataManifest | None,
    slots: int,
    version: str,
    merges: bool = False,
    *,
    draining: bool = False,
    allocation: Allocation | None = None,
    windows: Sequence[Window] = (),
    gpus: int = 0,
    launcher: str = "",
) -> site_pb2.SiteDescription:
    holdings = [
        site_pb2.Holding(
            language=holding.language,
            is_public=holding.access == "public",
            documents=holding.documents,
            text_bytes=holding.bytes,
            heldout_documents=holding.heldout_documents,
            licence=holding.licence,
            digest=holding.digest,
        )
        for holding in (data.holdings if data else ())
    ]
    return site_pb2.SiteDescription(
        agent_version=version,
        slots=slots,
        holdings=holdings,
        merges=merges,
        draining=draining,
        allocations=[_allocation_message(allocation)] if allocation else [],
        windows=[_window_message(window) for window in windows],
        gpus=gpus,
        launcher=launcher,
    )


def offer(message: site_pb2.SignedAssignment, site: SiteName, ledger_key: bytes) -> Offer:
    """The offer, or why it is none. Raises BadInput if the attempt has no name to answer under."""
    attempt = attempt_id(message.attempt)
    try:
        verify(ledger_key, ASSIGNMENT, message.job, message.signature)
        assignment = decode(message.job, Assignment, f"assignment {attempt}")
        _check(assignment, attempt, site)
    except SprachbundError as error:
        return Offer(attempt=attempt, problem=f"the assignment cannot be accepted: {error}")
    return Offer(attempt=attempt, assignment=assignment)


def used_up(messages: Iterable[site_pb2.UsedUpBudget], now: float) -> tuple[UsedUp, ...]:
    """``now``: epoch seconds, when the answer came. A kind that a newer coordinator knows is "other"."""
    return tuple(
        UsedUp(
            budget=_BUDGETS.get(message.kind, "other"),
            again_at=now + max(0.0, message.again.ToNanoseconds() / 1e9),
            reason=message.reason,
        )
        for message in messages
    )


def checkpoint(message: site_pb2.LedgerCheckpoint) -> Checkpoint:
    return Checkpoint(
        sequence=message.sequence,
        head=message.head,
        signature=message.signature,
        public_key=message.public_key,
    )


def _progress_message(told: Progress) -> site_pb2.Progress:
    return site_pb2.Progress(
        step=told.step,
        steps=told.steps,
        tokens=told.tokens,
        loss=told.loss or 0.0,
        tokens_per_second=told.tokens_per_second,
        joules=told.joules,
    )


def _usage_message(usage: Usage) -> site_pb2.Usage:
    return site_pb2.Usage(
        gpu_seconds=usage.gpu_seconds,
        seconds=usage.seconds,
        queued_seconds=usage.queued_seconds,
        joules=usage.joules,
        source=f"USAGE_SOURCE_{usage.source.upper()}",
    )


def _allocation_message(allocation: Allocation) -> site_pb2.Allocation:
    message = site_pb2.Allocation(name=allocation.name, gpu_hours=allocation.gpu_hours)
    if allocation.until is not None:
        message.until.FromMicroseconds(int(allocation.until * 1e6))
    return message


def _window_message(window: Window) -> site_pb2.Window:
    message = site_pb2.Window(cron=window.cron, timezone=window.timezone)
    message.length.FromMicroseconds(int(window.seconds * 1e6))
    return message


def _check(assignment: Assignment, attempt: AttemptId, site: SiteName) -> None:
    if assignment.schema != 1:
        raise BadInput(f"its schema is {assignment.schema}, this agent knows 1; update the agent")
    if assignment.attempt != attempt:
        raise BadInput(f"it says attempt {assignment.attempt}, but was sent as {attempt}")
    if assignment.site != site:
        raise BadInput(f"it is for site {assignment.site}, this is {site}")
