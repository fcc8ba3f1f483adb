"""What the coordinator knows: plain data, made of its events by ``coordinator.core.fold`` alone.

It can be written down as a snapshot and compared byte for byte with a replay.
"""

import enum

import msgspec

from consortium.canonical import encode
from consortium.capacity import Allocation, Window
from consortium.flower.runs import FlowerRun
from consortium.ids import AttemptId, CampaignId, Digest, JobId, Language, SiteName
from consortium.jobs import ANY_SITE, Assignment, Outcome, Purpose, Work
from consortium.manifests import Contribution, Holding, VersionManifest
from coordinator.core import events as ev
from coordinator.core.gate import GateVerdict
from coordinator.core.index import Index
from coordinator.core.resting import Jobs
from coordinator.core.transitions import FINAL, JobState
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
    budgets: dict[
        str, tuple[float, float]
    ] = {}  #: entries that it may still cause, and when it was so; by kind

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
    entries: int = 0  #: of its use, so far


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


class LetGo(msgspec.Struct, frozen=True):
    """When, and by which rule, bytes were let go."""

    at: float  #: seconds since the epoch
    rule: str  #: in words


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
    weights_let_go: LetGo | None = None  #: its files, less config and tokenizer; never of a promoted one
    outer_state_let_go: LetGo | None = None
    unprovable: LetGo | None = None  #: since when it cannot be made again: what went into it was let go

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
    let_go: dict[JobId, LetGo] = {}  #: jobs whose deltas were

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
    let_go: dict[JobId, LetGo] = {}  #: messages whose arrays were

    def lease_seconds(self, site: Site) -> float:
        return self.spec.courier_lease_hours * 3600.0 if site.courier else self.spec.lease_seconds


#: Of snapshots; to be raised when a field of the state is added. One of another layout is not used: events say it all.
LAYOUT = 6


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
