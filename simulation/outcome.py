"""What a simulated run was: how it ended, what it cost, and everything that happened on the way, as facts."""

from consortium.canonical import Fact
from consortium.ids import CampaignId, Digest, Language, SiteName


class Happening(Fact):
    """Something at one place, for a stretch of time or, with ``until`` None, at one moment.

    kind  spans: ``queued``, ``running``, ``staging``, ``uploading``, ``down``, ``partitioned``, ``window closed``,
          ``merging``, ``inspecting``, ``judging``, ``making``, ``round``;
          moments: ``seed``, ``promoted``, ``rejected``, ``campaign ended``, ``refused``, ``preempted``, ``node lost``,
          ``agent killed``, ``crash``, ``disk full``, ``torn write``, ``clock jump``, ``hostile``,
          ``second agent``, ``admin``
    """

    at: float  #: seconds since the epoch, true time (not any host's clock)
    place: str  #: a site's name, or ``coordinator``
    kind: str
    subject: str = ""  #: an attempt, a round (``campaign/3``), a version, a message
    detail: str = ""  #: for people
    until: float | None = None


class Cost(Fact):
    """What one site gave."""

    gpu_hours: float = 0.0
    joules: float = 0.0
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0
    attempts: int = 0
    trained_tokens: dict[Language, int] = {}  #: in contributions that were merged, by language


class Ending(Fact):
    campaign: CampaignId
    status: str  #: completed, stopped, failed, or open: the time was up first
    reason: str
    rounds: int  #: closed
    promoted: int


class Made(Fact):
    """A version."""

    name: str  #: ``nordic/v3``
    digest: Digest
    status: str  #: promoted, rejected, candidate
    round: int


class Outcome(Fact):
    """Two runs of one plan, weather and seed give the same of these, byte for byte, on any machine."""

    seed: int
    plan: Digest  #: of the plan as it was read, so also of a generated one
    weather: str
    began_at: float  #: seconds since the epoch, true time
    hours: float  #: simulated
    head: str  #: hash of the ledger's last entry
    events: int  #: in the ledger
    steps: int  #: of the scheduler; which of them is the subject of a violation
    versions: tuple[Made, ...] = ()
    happenings: tuple[Happening, ...] = ()
    tokens: dict[Language, int] = {}  #: in contributions that were merged
    costs: dict[SiteName, Cost] = {}
    faults: dict[str, int] = {}  #: how many of each kind fell
    ended: tuple[Ending, ...] = ()
    violations: tuple[str, ...] = ()  #: of invariants and of liveness; empty: all held
