"""Frozen pictures of a consortium for people and scripts: what ``status``, ``watch`` and ``--json`` show.

A view is made by the coordinator's core from its state and from presence; a screen is a function of a view.
"""

from consortium.canonical import Fact


class AttemptView(Fact):
    attempt: str
    job: str
    site: str
    phase: str
    step: int
    steps: int
    tokens: int
    loss: float | None  #: nats per token
    tokens_per_second: float


class JobView(Fact):
    job: str
    campaign: str
    round: int
    purpose: str
    site: str | None  #: None: any able site may take it
    state: str
    reason: str  #: of the last change
    attempts: int
    let_go: str = ""  #: when its bytes were, and by which rule
    expected_start: float | None = None  #: seconds since the epoch; None: it runs, is over, or nobody can say


class AllocationView(Fact):
    """GPU-hours; what runs is expected to use ``held_back`` more."""

    name: str
    granted: float
    used: float
    held_back: float
    until: float | None  #: seconds since the epoch

    @property
    def percent(self) -> float:
        return 100.0 * self.used / self.granted if self.granted else 100.0


class SiteView(Fact):
    site: str
    organisation: str
    status: str
    languages: tuple[str, ...]
    slots: int
    busy: int
    seen_seconds_ago: float | None  #: None: not since the coordinator started
    agent_version: str
    gpus: int = 0  #: of one job; 0: CPU
    gpu_hours: float = 0.0  #: used here so far, all told
    joules: float = 0.0  #: of those attempts that told
    allocations: tuple[AllocationView, ...] = ()  #: none: no limit
    has_windows: bool = False
    is_open: bool = True
    changes_at: float | None = None  #: when its windows close or open next; None: not foreseen
    queue_seconds: float | None = None  #: that our jobs usually wait there; None: nobody knows
    held_back: tuple[str, ...] = ()  #: why what its agent says is not taken down just now, in words


class LanguageResult(Fact):
    """Bits per byte of one model on one language's held-out text."""

    language: str
    bits_per_byte: float
    documents: int


class ModelView(Fact):
    """A scored model: a version, a round's specialist or a rival."""

    name: str
    role: str  #: version, specialist, rival
    version: str  #: digest of the version (or of the base that the delta is relative to)
    delta: str | None
    results: tuple[LanguageResult, ...]
    mean: float | None  #: unweighted over languages


class RoundView(Fact):
    round: int
    state: str
    reason: str
    base: str | None
    candidate: str | None
    jobs_done: int
    jobs: int


class VersionView(Fact):
    name: str
    digest: str
    status: str
    round: int
    base: str | None
    contributions: int
    reason: str
    merged_by: str | None = None  #: a site; None: the coordinator made it
    let_go: str = ""  #: what of it was, when, and by which rule


class ReleaseView(Fact):
    """A promoted version, for everybody: nothing of sites, jobs or text."""

    name: str
    digest: str
    campaign: str
    round: int
    is_head: bool  #: the newest word of its campaign
    languages: tuple[str, ...]
    results: tuple[LanguageResult, ...]  #: on the consortium's held-out text, as far as it was scored


class Releases(Fact):
    consortium: str
    sequence: int  #: last event in the ledger
    head: str  #: its hash
    releases: tuple[ReleaseView, ...]  #: oldest first, campaign by campaign


class CampaignView(Fact):
    campaign: str
    status: str
    reason: str
    languages: tuple[str, ...]
    rounds_planned: int
    tokenizer: str | None
    head: str | None  #: digest of the promoted version
    rounds: tuple[RoundView, ...]
    versions: tuple[VersionView, ...]
    models: tuple[ModelView, ...]
    rounds_left_out: int = 0  #: older than those that are shown
    versions_left_out: int = 0


class FlowerRunView(Fact):
    """A Flower app under way, or over."""

    run: str
    app: str  #: of the ClientApp
    status: str  #: open, completed, stopped
    reason: str
    sites: tuple[str, ...]
    messages: int  #: sent by its ServerApp so far
    answered: int
    given_up: int  #: for which there will be no reply


class ConsortiumView(Fact):
    consortium: str
    sequence: int  #: last event in the ledger
    head: str  #: its hash
    now: float
    sites: tuple[SiteView, ...]
    campaigns: tuple[CampaignView, ...]
    jobs: tuple[JobView, ...]
    attempts: tuple[AttemptView, ...]
    flower_runs: tuple[FlowerRunView, ...] = ()
    jobs_left_out: int = 0  #: that are over, and older than those that are shown
    notices: tuple[str, ...] = ()  #: what the operator of the coordinator's machine should see to
