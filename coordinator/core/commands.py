"""What is asked of the coordinator: by admins, by sites, and by its own worker reporting what it did.

Who asks has been established by the shell (a certificate); a command carries the name, not the proof.
"""

from typing import Literal

from consortium.canonical import Fact
from consortium.capacity import Allocation, Usage, Window
from consortium.flower.runs import FlowerOrder, FlowerRun
from consortium.ids import AttemptId, CampaignId, Digest, JobId, Language, SiteName
from consortium.jobs import Outcome, Phase
from consortium.manifests import Contribution, Holding, VersionManifest
from coordinator.core.events import ScoreSummary
from coordinator.core.gate import GateVerdict
from policies.campaign import Campaign
from policies.keeping import Keep


class IssueToken(Fact):
    site: SiteName
    organisation: str
    country: str
    token_hash: str
    valid_until: float
    membership: str | None  #: the membership rule's reason; None: the rule says no, and ``refusal`` why
    refusal: str = ""


class EnrolSite(Fact):
    site: SiteName
    token_hash: str
    certificate: str
    fingerprint: str
    not_after: float


class RenewCertificate(Fact):
    site: SiteName
    certificate: str
    fingerprint: str
    not_after: float


class SetSite(Fact):
    site: SiteName
    status: Literal["enrolled", "draining", "suspended"]
    reason: str


class RevokePerson(Fact):
    role: Literal["admin", "auditor", "reader"]
    name: str
    by: str  #: the admin who asks for it
    reason: str


class SubmitCampaign(Fact):
    campaign: Campaign
    sender: str = ""  #: the admin, by the name in the certificate


class StopCampaign(Fact):
    campaign: CampaignId
    reason: str


class OpenFlowerRun(Fact):
    run: FlowerRun
    sender: str = ""  #: the admin, by the name in the certificate


class PushFlowerMessages(Fact):
    """What a ServerApp sends; such as was sent before changes nothing."""

    run: CampaignId
    orders: tuple[FlowerOrder, ...]


class CompleteFlowerRun(Fact):
    run: CampaignId
    reason: str


class Report(Fact):
    """What an agent says of one attempt that it holds."""

    attempt: AttemptId
    phase: Phase
    outcome: Outcome | None = None
    reason: str = ""
    envelope: Digest | None = None  #: the signed contribution, when it succeeded
    usage: Usage | None = None  #: of all its lives so far; None: the agent does not count
    detail: str = ""  #: for people: why it waits
    started: bool = False  #: some life of it has begun to run


class SyncSite(Fact):
    site: SiteName
    agent_version: str
    slots: int
    draining: bool
    holdings: tuple[Holding, ...]
    merges: bool = False
    allocations: tuple[Allocation, ...] = ()
    windows: tuple[Window, ...] = ()
    gpus: int = 0
    launcher: str = ""
    courier: bool = False  #: it came in a bundle; never the site's own word
    reports: tuple[Report, ...]


class ReportInspection(Fact):
    """The worker looked at a delivered contribution. ``contribution`` is None when it is refused."""

    job: JobId
    attempt: AttemptId
    contribution: Contribution | None
    measures: dict[str, float] = {}
    scores: dict[str, dict[Language, ScoreSummary]] = {}
    manifest: VersionManifest | None = None  #: of a merge job: the version that the site made
    reason: str


class ReportBase(Fact):
    campaign: CampaignId
    manifest: VersionManifest | None  #: None: no base can be made, and ``reason`` says why
    reason: str = ""


class ReportMerge(Fact):
    campaign: CampaignId
    round: int
    manifest: VersionManifest | None  #: None: the merge was refused, and ``reason`` says why
    reason: str


class ReportVerdict(Fact):
    campaign: CampaignId
    round: int
    verdict: GateVerdict


class MoveHead(Fact):
    """``promote`` a candidate by hand, or ``roll_back`` to an earlier promoted version."""

    campaign: CampaignId
    version: str  #: name or digest (twelve digits are enough)
    verb: Literal["promote", "roll_back"]
    reason: str


class LetGo(Fact):
    """Time to see what the rule of keeping no longer asks for."""

    rule: Keep


class Tick(Fact):
    """Time has passed."""


Command = (
    IssueToken
    | EnrolSite
    | RenewCertificate
    | SetSite
    | RevokePerson
    | SubmitCampaign
    | StopCampaign
    | OpenFlowerRun
    | PushFlowerMessages
    | CompleteFlowerRun
    | SyncSite
    | ReportInspection
    | ReportBase
    | ReportMerge
    | ReportVerdict
    | MoveHead
    | LetGo
    | Tick
)
