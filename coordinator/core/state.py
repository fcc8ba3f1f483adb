"""What the coordinator knows: the fold of its events.

``apply`` is the only code that changes a state. The state is plain data, so it can be written down as a
snapshot and compared byte for byte with a replay.
"""

import enum
import math
from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import get_type_hints

import msgspec

from consortium.canonical import encode
from consortium.capacity import Allocation, Window
from consortium.flower.runs import FlowerRun
from consortium.ids import AttemptId, CampaignId, Digest, JobId, Language, SiteName
from consortium.jobs import ANY_SITE, Assignment, Evaluate, Outcome, Purpose, Work
from consortium.manifests import Contribution, Holding, VersionManifest
from coordinator.core import events as ev
from coordinator.core.gate import GateVerdict
from coordinator.core.index import Index
from coordinator.core.resting import Jobs
from coordinator.core.transitions import FINAL, JobState, step
from policies.campaign import Campaign


class Invitation(msgspec.Struct):
    site: SiteName
    organisation: str
    country: str
    valid_until: float
    issued_at: float = 0.0


class Spent(msgspec.Struct):
    """What a site's attempts used, all told: by the events, so by what its agent said."""

    gpu_seconds: float = 0.0
    seconds: float = 0.0
    joules: float = 0.0  #: of attempts that told


class Site(msgspec.Struct):
    name: SiteName
    organisation: str
    country: str
    certificate: str  #: PEM
    fingerprint: str
    not_after: float
    status: str = "enrolled"
    agent_version: str = ""
    slots: int = 0
    draining: bool = False  #: by the site's own wish
    holdings: tuple[Holding, ...] = ()
    merges: bool = False  #: lends itself to merging other sites' deltas
    allocations: tuple[Allocation, ...] = ()  #: none: no limit
    windows: tuple[Window, ...] = ()  #: none: always open
    gpus: int = 0  #: of one job; 0: CPU
    launcher: str = ""
    courier: bool = False  #: what it says and hears is carried by hand
    spent: Spent = msgspec.field(default_factory=Spent)
    charged: dict[str, float] = {}  #: GPU-seconds by allocation
    held: dict[AttemptId, JobId] = {}  #: attempts that may still use an allocation, wanted or not
    warned: dict[str, int] = {}  #: percent that its people were last warned of, by allocation
    queued: tuple[float, ...] = ()  #: seconds that its newest attempts waited in its queue, oldest first
    certificates: dict[str, str] = {}  #: every one it ever had, by fingerprint
    token_hash: str = ""  #: of the invitation it enrolled with last
    since_enrolment: tuple[str, ...] = ()  #: fingerprints of its certificates since then, the newest last
    suspended_at: float | None = None  #: since when; None: it is not

    def languages(self, access: str, heldout: bool = False) -> tuple[Language, ...]:
        """Languages of which the site holds documents (or held-out documents), sorted."""
        return tuple(
            sorted(
                {
                    h.language
                    for h in self.holdings
                    if h.access == access and (h.heldout_documents > 0 if heldout else h.documents > 0)
                }
            )
        )


class Try(msgspec.Struct):
    """One attempt, as far as its cost goes; kept when the job has moved on, because it may still compute."""

    site: SiteName
    allocation: str = ""
    expected_gpu_seconds: float = 0.0
    started: bool = False
    gpu_seconds: float = 0.0
    seconds: float = 0.0
    joules: float | None = None
    order: str = ""  #: digest of the job.json that was signed


class Job(msgspec.Struct):
    id: JobId
    campaign: CampaignId
    round: int
    purpose: Purpose
    sites: tuple[SiteName, ...]
    work: Work
    inputs: tuple[Digest, ...]
    tokenizer: Digest | None
    state: JobState = JobState.PLANNED
    reason: str = ""
    attempts: int = 0
    failures: int = 0
    attempt: AttemptId | None = None  #: the newest
    site: SiteName | None = None  #: who holds or held the newest attempt
    outcome: Outcome | None = None  #: of the newest attempt, when it ended without a result
    leased_at: float = 0.0
    envelope: Digest | None = None
    delivered_at: float = 0.0
    contribution: Contribution | None = None
    measures: dict[str, float] = {}  #: what its inspection measured
    checks: tuple[JobId, ...] = ()  #: evaluations of its delta alone, before it is merged
    judged: dict[SiteName, float] = {}  #: by how much they found the loss of its languages to grow
    refused_by: tuple[SiteName, ...] = ()
    disproved: tuple[SiteName, ...] = ()  #: whose result of this merge was refused; there is one right result
    planned_at: float = 0.0
    free_since: float = 0.0  #: when it last began to wait for a site
    started_at: float | None = None  #: when the first of its attempts began to run
    admitted_at: float = 0.0
    tries: dict[AttemptId, Try] = {}
    sender: str = ""  #: who submitted the campaign
    merged_by: tuple[str, ...] | None = None  #: sites that may merge its delta

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    def assignment(self, attempt: AttemptId, site: SiteName) -> Assignment:
        """The order for one attempt: what the site finds as job.json."""
        return Assignment(
            job=self.id,
            attempt=attempt,
            campaign=self.campaign,
            round=self.round,
            site=site,
            purpose=self.purpose,
            work=self.work,
            inputs=self.inputs,
            tokenizer=self.tokenizer,
            sender=self.sender,
            merged_by=self.merged_by,
        )


class Version(msgspec.Struct):
    digest: Digest
    name: str
    campaign: CampaignId
    round: int
    role: str
    manifest: VersionManifest
    merged_by: SiteName | None = None  #: None: the coordinator
    status: str = "candidate"  #: candidate, promoted, rejected
    reason: str = ""

    @property
    def number(self) -> int:
        """In the order in which the campaign made them: 3 of ``demo/v3``."""
        return int(self.name.rpartition("/v")[2])


class RoundState(enum.StrEnum):
    TRAINING = "training"
    MERGING = "merging"
    EVALUATING = "evaluating"
    CLOSED = "closed"


class Round(msgspec.Struct):
    number: int
    base: Digest
    opened_at: float
    state: RoundState = RoundState.TRAINING
    reason: str = ""
    jobs: tuple[JobId, ...] = ()  #: training
    late: tuple[JobId, ...] = ()  #: of earlier rounds, taken over
    left: tuple[JobId, ...] = ()  #: for the next round: still at it when it closed, or done when it failed
    gate_jobs: tuple[JobId, ...] = ()
    collected: tuple[JobId, ...] = ()
    merged_by: str = "coordinator"  #: or "site", by ``merge_job``
    merge_job: JobId | None = None
    candidate: Digest | None = None
    candidate_at: float = 0.0
    verdict: GateVerdict | None = None


class CampaignState(msgspec.Struct):
    spec: Campaign
    opened_at: float
    sender: str = ""
    status: str = "open"  #: open, completed, stopped, failed
    reason: str = ""
    tokenizer: Digest | None = None
    tokenizer_job: JobId | None = None
    head: Digest | None = None
    rounds: dict[int, Round] = {}
    rivals: tuple[JobId, ...] = ()
    compare_jobs: tuple[JobId, ...] = ()
    versions: dict[Digest, Version] = {}
    #: subject name -> language -> site -> score
    scores: dict[str, dict[Language, dict[SiteName, ev.ScoreSummary]]] = {}

    @property
    def mergers(self) -> tuple[str, ...]:
        """Sites that a round's deltas may go to, to be merged or scored; none: the coordinator merges."""
        if self.spec.admission.loss_check != "off":  # whoever holds text of its languages scores it
            return self.spec.sites or (ANY_SITE,)
        if self.spec.merge_at == "coordinator":
            return ()
        return self.spec.merge_sites or self.spec.sites or (ANY_SITE,)

    def lease_seconds(self, site: Site) -> float:
        """How long ``site`` may be silent. Days pass between two bundles, so its lease cannot be the others'."""
        return self.spec.courier_lease_hours * 3600.0 if site.courier else self.spec.lease_seconds


class FlowerRunState(msgspec.Struct):
    spec: FlowerRun
    opened_at: float
    sender: str = ""
    status: str = "open"  #: open, completed, stopped
    reason: str = ""
    kept: dict[SiteName, Digest] = {}  #: what the app kept at each site with its newest admitted reply

    def lease_seconds(self, site: Site) -> float:
        return self.spec.courier_lease_hours * 3600.0 if site.courier else self.spec.lease_seconds


#: Of snapshots; to be raised when a field of the state is added. One of another layout is not used: events say it all.
LAYOUT = 4

#: Of so many newest attempts a site's queue waits are remembered: weeks, at the pace of rounds.
QUEUED_KEPT = 20


class State(msgspec.Struct, dict=True):
    consortium: str = ""
    ledger_key: str = ""
    authority: str = ""
    policies: dict[str, Digest] = {}
    tokens: dict[str, Invitation] = {}  #: by hash; removed when used
    sites: dict[SiteName, Site] = {}
    campaigns: dict[CampaignId, CampaignState] = {}
    flower_runs: dict[CampaignId, FlowerRunState] = {}
    jobs: Jobs = msgspec.field(default_factory=lambda: Jobs({}, Job))
    revoked: dict[str, str] = {}  #: people whose certificates are refused, as ``admin/ada``, and why
    layout: int = LAYOUT

    @property
    def index(self) -> Index:
        """Made when it is first asked for."""
        found: Index | None = self.__dict__.get("_index")
        if found is None:
            found = self.__dict__["_index"] = Index(self.jobs)
        return found

    def programme(self, name: CampaignId) -> CampaignState | FlowerRunState:
        """What a job is part of: a campaign or a Flower run, which share one space of names."""
        return self.flower_runs.get(name) or self.campaigns[name]

    def open_jobs(self) -> tuple[Job, ...]:
        """Jobs that are not final, by id."""
        return self.index.open_jobs()

    def live(self, site: SiteName) -> tuple[Job, ...]:
        """Jobs this site holds a lease on, by id."""
        return self.index.live(site)

    def snapshot(self) -> bytes:
        """The state in canonical JSON. Jobs that are over rest as what stands there, see ``Jobs``."""
        parts = {name: encode(getattr(self, name)) for name in self.__struct_fields__ if name != "jobs"}
        parts["jobs"] = msgspec.json.encode(self.jobs.written(), order="sorted")
        return msgspec.json.encode({name: msgspec.Raw(part) for name, part in parts.items()}, order="sorted")


class _Layout(msgspec.Struct):
    layout: int = 1  #: the first had no name


#: A state whose jobs are not read yet.
_Written = msgspec.defstruct(
    "_Written",
    [
        (name, dict[JobId, msgspec.Raw] if name == "jobs" else kind, msgspec.field(default=None))
        for name, kind in get_type_hints(State).items()
        if name in State.__struct_fields__
    ],
)


def is_current(snapshot: bytes) -> bool:
    """Whether this release's states are laid out like the snapshot."""
    return msgspec.json.decode(snapshot, type=_Layout).layout == LAYOUT


def restore(snapshot: bytes) -> State:
    """The state that ``snapshot`` spells. Raises msgspec.ValidationError if another release wrote it."""
    if not is_current(snapshot):
        raise msgspec.ValidationError("the snapshot was written by another release")
    written = msgspec.json.decode(snapshot, type=_Written)
    fields = {name: getattr(written, name) for name in State.__struct_fields__}
    return State(**{**fields, "jobs": Jobs(fields["jobs"], Job)})


def fold(state: State, happened: Iterable[tuple[ev.AnyEvent, float]]) -> State:
    """The state after these events, each with the time it was recorded. Changes and returns ``state``."""
    for event, at in happened:
        apply(event, state, at)
    return state


@singledispatch
def apply(event: ev.AnyEvent, state: State, at: float) -> None:
    raise AssertionError(f"no rule applies {type(event).__name__}")


@apply.register
def _(event: ev.ConsortiumFounded, state: State, at: float) -> None:
    state.consortium = event.consortium
    state.ledger_key = event.ledger_key
    state.authority = event.authority
    state.policies = dict(sorted(event.policies.items()))


@apply.register
def _(event: ev.TokenIssued, state: State, at: float) -> None:
    # A newer invitation for the same site replaces the older one.
    state.tokens = {h: t for h, t in state.tokens.items() if t.site != event.site}
    state.tokens[event.token_hash] = Invitation(
        event.site, event.organisation, event.country, event.valid_until, at
    )


@apply.register
def _(event: ev.SiteEnrolled, state: State, at: float) -> None:
    invitation = state.tokens.pop(event.token_hash)
    known = state.sites.get(event.site)
    site = known or Site(event.site, "", "", "", "", 0.0)
    site.organisation, site.country = invitation.organisation, invitation.country
    site.status, site.token_hash = "enrolled", event.token_hash
    site.since_enrolment, site.suspended_at = (), None
    state.sites[event.site] = site
    _new_certificate(site, event.certificate, event.fingerprint, event.not_after)


@apply.register
def _(event: ev.CertificateRenewed, state: State, at: float) -> None:
    _new_certificate(state.sites[event.site], event.certificate, event.fingerprint, event.not_after)


def _new_certificate(site: Site, certificate: str, fingerprint: str, not_after: float) -> None:
    site.certificate, site.fingerprint, site.not_after = certificate, fingerprint, not_after
    site.certificates = {**site.certificates, fingerprint: certificate}
    site.since_enrolment = (*site.since_enrolment, fingerprint)


@apply.register
def _(event: ev.SiteDescribed, state: State, at: float) -> None:
    site = state.sites[event.site]
    site.agent_version, site.slots = event.agent_version, event.slots
    site.draining, site.holdings, site.merges = event.draining, event.holdings, event.merges
    granted = {allocation.name: allocation.gpu_hours for allocation in site.allocations}
    for allocation in event.allocations:
        if granted.get(allocation.name) != allocation.gpu_hours:
            site.warned.pop(allocation.name, None)  # another grant, other warnings
    site.allocations, site.windows = event.allocations, event.windows
    site.gpus, site.launcher, site.courier = event.gpus, event.launcher, event.courier


@apply.register
def _(event: ev.SiteStatusChanged, state: State, at: float) -> None:
    site = state.sites[event.site]
    site.status = event.status
    site.suspended_at = at if event.status == "suspended" else None


@apply.register
def _(event: ev.PersonRevoked, state: State, at: float) -> None:
    state.revoked = dict(sorted({**state.revoked, f"{event.role}/{event.name}": event.reason}.items()))


@apply.register
def _(event: ev.CampaignOpened, state: State, at: float) -> None:
    state.campaigns[event.campaign.campaign] = CampaignState(
        spec=event.campaign, opened_at=at, sender=event.sender
    )


@apply.register
def _(event: ev.CampaignEnded, state: State, at: float) -> None:
    campaign = state.campaigns[event.campaign]
    campaign.status, campaign.reason = event.status, event.reason


@apply.register
def _(event: ev.FlowerRunOpened, state: State, at: float) -> None:
    state.flower_runs[event.run.run] = FlowerRunState(spec=event.run, opened_at=at, sender=event.sender)


@apply.register
def _(event: ev.FlowerRunEnded, state: State, at: float) -> None:
    run = state.flower_runs[event.run]
    run.status, run.reason = event.status, event.reason


@apply.register
def _(event: ev.TokenizerChosen, state: State, at: float) -> None:
    state.campaigns[event.campaign].tokenizer = event.tokenizer


@apply.register
def _(event: ev.VersionMade, state: State, at: float) -> None:
    campaign = state.campaigns[event.campaign]
    version = Version(
        event.version,
        event.name,
        event.campaign,
        event.round,
        event.role,
        event.manifest,
        event.merged_by,
        reason=event.reason,
    )
    campaign.versions[event.version] = version
    if event.role == "initial":
        version.status = "promoted"
        campaign.head = event.version
    else:
        round_ = campaign.rounds[event.round]
        round_.candidate, round_.candidate_at = event.version, at
        round_.state, round_.reason = RoundState.EVALUATING, event.reason


@apply.register
def _(event: ev.RoundOpened, state: State, at: float) -> None:
    state.campaigns[event.campaign].rounds[event.round] = Round(
        event.round, event.base, at, reason=event.reason, late=event.late
    )


@apply.register
def _(event: ev.JobPlanned, state: State, at: float) -> None:
    state.jobs[event.job] = Job(
        event.job, event.campaign, event.round, event.purpose, event.sites, event.work, event.inputs,
        event.tokenizer, reason=event.reason, planned_at=at, free_since=at,
    )  # fmt: skip
    state.index.note(state.jobs[event.job])
    if event.purpose is Purpose.FLOWER:
        state.jobs[event.job].sender = state.flower_runs[event.campaign].sender
        return
    campaign = state.campaigns[event.campaign]
    if campaign.sender:  # else a release before this one opened it, and its orders said nothing of it
        state.jobs[event.job].sender = campaign.sender
        state.jobs[event.job].merged_by = campaign.mergers
    match event.purpose:
        case Purpose.TOKENIZER:
            campaign.tokenizer_job = event.job
        case Purpose.SEED | Purpose.ROUND:
            campaign.rounds[event.round].jobs += (event.job,)
        case Purpose.CHECK:
            assert isinstance(event.work, Evaluate)
            state.jobs[JobId(event.work.subjects[-1].name)].checks += (event.job,)
        case Purpose.GATE:
            campaign.rounds[event.round].gate_jobs += (event.job,)
        case Purpose.RIVAL:
            campaign.rivals += (event.job,)
        case Purpose.COMPARE:
            campaign.compare_jobs += (event.job,)
        case Purpose.MERGE:
            campaign.rounds[event.round].merge_job = event.job


def _move(state: State, job: JobId, verb: str, reason: str) -> Job:
    """The only place where a job changes its state; whoever moves it says why."""
    moved = state.jobs[job]
    moved.state = step(job, moved.state, verb)
    moved.reason = reason
    state.index.note(moved)
    return moved


@apply.register
def _(event: ev.JobLeased, state: State, at: float) -> None:
    job = _move(state, event.job, "lease", event.reason)
    job.attempts += 1
    job.attempt, job.site, job.leased_at, job.outcome = event.attempt, event.site, at, None
    state.index.note(job)  # whose it is
    job.tries[event.attempt] = Try(
        event.site, event.allocation, event.gpu_hours * 3600.0, order=event.assignment
    )
    _hold(state, job, event.attempt)


def _hold(state: State, job: Job, attempt: AttemptId) -> None:
    """From now on it may use what its site was granted, until it is known to have ended there."""
    known = job.tries[attempt]
    if known.allocation:
        state.sites[known.site].held[attempt] = job.id


def _let_go(state: State, job: Job, attempt: AttemptId) -> None:
    if attempt in job.tries:
        state.sites[job.tries[attempt].site].held.pop(attempt, None)


@apply.register
def _(event: ev.AttemptStarted, state: State, at: float) -> None:
    job, site = state.jobs[event.job], state.sites[event.site]
    job.tries[event.attempt].started = True
    if job.started_at is None and job.attempt == event.attempt and not job.is_final:
        job.started_at = at
    site.queued = (*site.queued, event.queued_seconds)[-QUEUED_KEPT:]


@apply.register
def _(event: ev.AttemptUsed, state: State, at: float) -> None:
    known, site = state.jobs[event.job].tries[event.attempt], state.sites[event.site]
    more = event.gpu_seconds - known.gpu_seconds
    site.spent.gpu_seconds += more
    site.spent.seconds += event.seconds - known.seconds
    site.spent.joules += (event.joules or 0.0) - (known.joules or 0.0)
    if event.allocation:
        site.charged[event.allocation] = site.charged.get(event.allocation, 0.0) + more
    known.gpu_seconds, known.seconds, known.joules = event.gpu_seconds, event.seconds, event.joules


@apply.register
def _(event: ev.AttemptGone, state: State, at: float) -> None:
    _let_go(state, state.jobs[event.job], event.attempt)


@apply.register
def _(event: ev.AllocationWarned, state: State, at: float) -> None:
    state.sites[event.site].warned[event.allocation] = event.percent


@apply.register
def _(event: ev.LeaseResumed, state: State, at: float) -> None:
    job = _move(state, event.job, "resume", event.reason)
    job.leased_at, job.outcome = at, None
    if event.attempt in job.tries:
        _hold(state, job, event.attempt)


@apply.register
def _(event: ev.AttemptEnded, state: State, at: float) -> None:
    job = _move(state, event.job, "release", event.reason)
    job.outcome, job.free_since = event.outcome, at
    if event.outcome is not Outcome.EXPIRED:  # which only says that nobody has heard of it
        _let_go(state, job, event.attempt)
    if event.outcome in (Outcome.FAILED, Outcome.CORRUPT):
        job.failures += 1
    if event.outcome is Outcome.REFUSED and job.site is not None:
        job.refused_by = tuple(sorted({*job.refused_by, job.site}))


@apply.register
def _(event: ev.ContributionReceived, state: State, at: float) -> None:
    job = _move(state, event.job, "deliver", "delivered; waits for inspection")
    job.envelope, job.delivered_at = event.envelope, at
    _let_go(state, job, event.attempt)


@apply.register
def _(event: ev.ContributionAdmitted, state: State, at: float) -> None:
    job = _move(state, event.job, "admit", event.reason)
    job.contribution, job.admitted_at, job.measures = event.contribution, at, event.measures
    state.index.admit(job)
    if job.purpose is Purpose.FLOWER:
        kept = state.flower_runs[job.campaign].kept
        kept.pop(event.contribution.site, None)
        if event.contribution.residual is not None:
            kept[event.contribution.site] = event.contribution.residual
        return
    if job.purpose is Purpose.CHECK:
        _judge(state, job, event)
        return
    scores = state.campaigns[job.campaign].scores
    for subject, languages in sorted(event.scores.items()):
        for language, score in sorted(languages.items()):
            scores.setdefault(subject, {}).setdefault(language, {})[event.contribution.site] = score


def _judge(state: State, check: Job, event: ev.ContributionAdmitted) -> None:
    assert isinstance(check.work, Evaluate)
    found, job = growth(check.work, event.scores), state.jobs[JobId(check.work.subjects[-1].name)]
    if found is not None:
        job.judged = dict(sorted({**job.judged, event.contribution.site: found}.items()))


def growth(check: Evaluate, scores: Mapping[str, Mapping[Language, ev.ScoreSummary]]) -> float | None:
    """By how much the nats of held-out text grow when the second subject takes the first one's place, relatively.

    None: nothing was held out of which both were scored.
    """
    base, subject = (scores.get(one.name, {}) for one in check.subjects)
    common = sorted(base.keys() & subject.keys())
    before = math.fsum(base[language].nats for language in common)
    return math.fsum(subject[language].nats for language in common) / before - 1.0 if before > 0.0 else None


@apply.register
def _(event: ev.ContributionRefused, state: State, at: float) -> None:
    job = _move(state, event.job, "refuse", event.reason)
    job.failures += 1
    job.outcome, job.envelope, job.free_since = Outcome.CORRUPT, None, at
    if job.purpose is Purpose.MERGE and job.site is not None:
        job.disproved = tuple(sorted({*job.disproved, job.site}))


@apply.register
def _(event: ev.JobFailed, state: State, at: float) -> None:
    _move(state, event.job, "give_up", event.reason)


@apply.register
def _(event: ev.JobCancelled, state: State, at: float) -> None:
    _move(state, event.job, "cancel", event.reason)


@apply.register
def _(event: ev.RoundCollected, state: State, at: float) -> None:
    round_ = state.campaigns[event.campaign].rounds[event.round]
    round_.state, round_.collected, round_.reason = RoundState.MERGING, event.jobs, event.reason
    round_.merged_by, round_.left = event.merged_by, event.left
    for name, why in event.left_out.items():
        state.jobs[name].reason = f"left out of the merge of round {event.round}: {why}"


@apply.register
def _(event: ev.RoundFailed, state: State, at: float) -> None:
    round_ = state.campaigns[event.campaign].rounds[event.round]
    round_.state, round_.reason = RoundState.CLOSED, event.reason
    round_.left += event.left


@apply.register
def _(event: ev.GateJudged, state: State, at: float) -> None:
    round_ = state.campaigns[event.campaign].rounds[event.round]
    round_.verdict = event.verdict
    round_.state, round_.reason = RoundState.CLOSED, event.verdict.reason


@apply.register
def _(event: ev.VersionPromoted, state: State, at: float) -> None:
    version = state.campaigns[event.campaign].versions[event.version]
    version.status, version.reason = "promoted", event.reason
    state.campaigns[event.campaign].head = event.version


@apply.register
def _(event: ev.VersionRejected, state: State, at: float) -> None:
    version = state.campaigns[event.campaign].versions[event.version]
    version.status, version.reason = "rejected", event.reason


@apply.register
def _(event: ev.RolledBack, state: State, at: float) -> None:
    state.campaigns[event.campaign].head = event.version
