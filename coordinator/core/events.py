"""What happened: the only durable truth. The state is the fold of these, in ledger order.

Events are past tense, hold everything a reader needs in three years, and never change their meaning:
a field is added with a default, an event that is no longer written stays readable.
"""

from typing import Literal

from consortium.canonical import Fact
from consortium.capacity import Allocation, Window
from consortium.flower.runs import FlowerRun
from consortium.ids import AttemptId, CampaignId, Digest, JobId, Language, SiteName
from consortium.jobs import Outcome, Purpose, Work
from consortium.manifests import Contribution, Holding, VersionManifest
from coordinator.core.gate import GateVerdict
from policies.campaign import Campaign
from policies.keeping import Keep


class Event(Fact, tag=True, tag_field="kind"):
    """Base of all; its ``kind`` is the class's name."""


class ConsortiumFounded(Event):
    consortium: str
    ledger_key: str  #: Ed25519 public key, hex: signs assignments and checkpoints
    authority: str  #: the CA's certificate, PEM
    policies: dict[str, Digest]  #: of each policy file in force, by name


class TokenIssued(Event):
    site: SiteName
    organisation: str
    country: str
    token_hash: str
    valid_until: float
    reason: str  #: the membership rule's verdict


class SiteEnrolled(Event):
    site: SiteName
    token_hash: str
    certificate: str  #: PEM; its key signs the site's contributions
    fingerprint: str
    not_after: float


class CertificateRenewed(Event):
    site: SiteName
    certificate: str
    fingerprint: str
    not_after: float


class SiteDescribed(Event):
    """What a site offers; written when it changes."""

    site: SiteName
    agent_version: str
    slots: int
    draining: bool
    holdings: tuple[Holding, ...]
    merges: bool = False  #: it lends itself to merging other sites' deltas
    allocations: tuple[Allocation, ...] = ()  #: none: no limit
    windows: tuple[Window, ...] = ()  #: none: always open
    gpus: int = 0  #: of one job; 0: it computes on CPUs
    launcher: str = ""
    courier: bool = False  #: a courier carries what it says, so its leases last as long as a round trip


class SiteStatusChanged(Event):
    site: SiteName
    status: Literal["enrolled", "draining", "suspended"]
    reason: str


class PersonRevoked(Event):
    """Certificates of this name are refused for good; the person is given one of another name."""

    role: Literal["admin", "auditor", "reader"]
    name: str
    by: str  #: the admin who asked for it
    reason: str


class CampaignOpened(Event):
    campaign: Campaign
    sender: str = ""  #: the admin, by the name in the certificate


class CampaignEnded(Event):
    campaign: CampaignId
    status: Literal["completed", "stopped", "failed"]
    reason: str


class FlowerRunOpened(Event):
    run: FlowerRun
    sender: str = ""  #: the admin, by the name in the certificate


class FlowerRunEnded(Event):
    run: CampaignId
    status: Literal["completed", "stopped"]
    reason: str


class TokenizerChosen(Event):
    campaign: CampaignId
    tokenizer: Digest
    reason: str


class VersionMade(Event):
    """A model exists. ``initial`` ones are the head at once, candidates wait for the gate."""

    campaign: CampaignId
    version: Digest
    name: str
    role: Literal["initial", "candidate"]
    round: int
    manifest: VersionManifest
    merged_by: SiteName | None = None  #: None: the coordinator made it
    reason: str


class RoundOpened(Event):
    campaign: CampaignId
    round: int
    base: Digest
    late: tuple[JobId, ...] = ()  #: jobs of earlier rounds whose deltas may be merged in this one
    reason: str


class JobPlanned(Event):
    job: JobId
    campaign: CampaignId
    round: int
    purpose: Purpose
    sites: tuple[SiteName, ...]  #: any of these may do it
    work: Work
    inputs: tuple[Digest, ...]
    tokenizer: Digest | None
    reason: str


class JobLeased(Event):
    job: JobId
    attempt: AttemptId
    site: SiteName
    lease_seconds: float
    assignment: Digest  #: of the job.json that was signed
    allocation: str = ""  #: the site's, which it is charged to; empty: none
    gpu_hours: float = 0.0  #: expected, and held back from that allocation while it runs
    reason: str


class LeaseResumed(Event):
    """The site came back with the newest attempt after its lease had lapsed; nobody else had been asked."""

    job: JobId
    attempt: AttemptId
    reason: str


class AttemptStarted(Event):
    """Its first life began to run: from here on a round counts the hours of its job."""

    job: JobId
    attempt: AttemptId
    site: SiteName
    queued_seconds: float  #: from the first submit to this start, by the site's clock


class AttemptUsed(Event):
    """What an attempt has spent so far, all told; a later one of the same attempt replaces it."""

    job: JobId
    attempt: AttemptId
    site: SiteName
    allocation: str = ""  #: charged; empty: none
    gpu_seconds: float
    seconds: float
    joules: float | None = None
    source: Literal["sacct", "clock"] = "clock"


class AttemptGone(Event):
    """Nothing of an attempt that nobody waits for goes on at its site: what was held back for it is free again."""

    job: JobId
    attempt: AttemptId
    site: SiteName
    reason: str


class AllocationWarned(Event):
    """An allocation is nearly used up; said once for each level."""

    site: SiteName
    allocation: str
    percent: int  #: the level that was passed
    reason: str


class AttemptEnded(Event):
    """Without a result; ``ContributionReceived`` is the other ending."""

    job: JobId
    attempt: AttemptId
    outcome: Outcome
    reason: str


class ContributionReceived(Event):
    job: JobId
    attempt: AttemptId
    site: SiteName
    envelope: Digest  #: the signed contribution manifest, as stored


class ScoreSummary(Fact):
    """One model on one language at one site."""

    nats: float
    bytes: int
    documents: int
    heldout: Digest


class ContributionAdmitted(Event):
    job: JobId
    attempt: AttemptId
    contribution: Contribution
    measures: dict[str, float]  #: what the inspection measured, e.g. ``norm``, ``base_norm``
    scores: dict[str, dict[Language, ScoreSummary]] = {}  #: of an evaluation: subject -> language
    reason: str


class ContributionRefused(Event):
    job: JobId
    attempt: AttemptId
    reason: str


class JobFailed(Event):
    job: JobId
    reason: str


class JobCancelled(Event):
    job: JobId
    reason: str


class RoundCollected(Event):
    """Training is over; these jobs' deltas will be merged."""

    campaign: CampaignId
    round: int
    jobs: tuple[JobId, ...]
    merged_by: Literal["coordinator", "site"] = "coordinator"  #: a site by a job of its own
    left: tuple[JobId, ...] = ()  #: still at it; the next round takes them over
    left_out: dict[JobId, str] = {}  #: admitted, and not merged: why
    reason: str


class RoundFailed(Event):
    campaign: CampaignId
    round: int
    left: tuple[JobId, ...] = ()  #: still at it, or finished for nothing; the next round takes them over
    reason: str


class GateJudged(Event):
    campaign: CampaignId
    round: int
    version: Digest
    verdict: GateVerdict


class VersionPromoted(Event):
    campaign: CampaignId
    version: Digest
    reason: str


class VersionRejected(Event):
    campaign: CampaignId
    version: Digest
    reason: str


class RolledBack(Event):
    campaign: CampaignId
    version: Digest  #: the head from now on
    reason: str


class ArtifactsLetGo(Event):
    """By the coordinator's rule nobody needs these bytes any more; they may be deleted from now on.

    Their digests, sizes and signatures stay in this ledger: what ends is that it can be computed again.
    """

    campaign: CampaignId  #: or a Flower run
    rule: Keep
    contributions: tuple[JobId, ...] = ()  #: of these the artifacts, less scores, tokenizers and letters
    weights: tuple[Digest, ...] = ()  #: of these versions, which were not promoted
    outer_states: tuple[Digest, ...] = ()  #: of these versions: the outer optimizer's state
    unprovable: tuple[Digest, ...] = ()  #: versions that nobody can make again for want of these
    reason: str


AnyEvent = (
    ConsortiumFounded
    | TokenIssued
    | SiteEnrolled
    | CertificateRenewed
    | SiteDescribed
    | SiteStatusChanged
    | PersonRevoked
    | CampaignOpened
    | CampaignEnded
    | FlowerRunOpened
    | FlowerRunEnded
    | TokenizerChosen
    | VersionMade
    | RoundOpened
    | JobPlanned
    | JobLeased
    | LeaseResumed
    | AttemptStarted
    | AttemptUsed
    | AttemptGone
    | AllocationWarned
    | AttemptEnded
    | ContributionReceived
    | ContributionAdmitted
    | ContributionRefused
    | JobFailed
    | JobCancelled
    | RoundCollected
    | RoundFailed
    | GateJudged
    | VersionPromoted
    | VersionRejected
    | RolledBack
    | ArtifactsLetGo
)
