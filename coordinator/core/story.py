"""One subject's life in words, told from the ledger: what ``sprachbund why`` prints."""

from collections.abc import Iterable

from consortium.canonical import Fact
from consortium.ids import JobId, short
from coordinator.core import events as ev
from coordinator.core.moment import Moment
from coordinator.core.place import waiting
from coordinator.core.state import State
from coordinator.core.transitions import JobState
from coordinator.core.waits import waits
from coordinator.core.words import spoken


class Line(Fact):
    at: float  #: seconds since the epoch
    sequence: int
    text: str


def tell(
    happened: Iterable[tuple[int, float, ev.AnyEvent]],
    state: State,
    subject: str,
    moment: Moment | None = None,
) -> tuple[Line, ...]:
    """Every event that concerns ``subject``, in words, then what it waits for now.

    subject   a job, an attempt, a round (``demo/r2``), a version (name or digest), a site or a campaign
    moment    of "now"; None: when the last event was written
    Returns no lines if nothing in the ledger speaks of it.
    """
    lines, end = past(happened, known_as(state, subject))
    return (*lines, *present(state, subject, moment or Moment(now=end.at), end))


class End(Fact):
    """Where a story's past ends."""

    sequence: int = 0
    at: float = 0.0


def known_as(state: State, subject: str) -> frozenset[str]:
    """All names by which events may speak of ``subject``."""
    return frozenset({subject, _digest_of(state, subject) or subject})


def past(
    happened: Iterable[tuple[int, float, ev.AnyEvent]], names: frozenset[str]
) -> tuple[tuple[Line, ...], End]:
    """Every event that concerns one of ``names``. Needs no state: a thread may read a long ledger."""
    lines, end, known = [], End(), _Known()
    for sequence, at, event in happened:
        end = End(sequence=sequence, at=at)
        known.note(event)
        if names & _concerned(event, known):
            lines.append(Line(at=at, sequence=sequence, text=sentence(event)))
    return tuple(lines), end


def present(state: State, subject: str, moment: Moment, end: End) -> tuple[Line, ...]:
    """What ``subject`` waits for now."""
    return tuple(
        Line(at=end.at, sequence=end.sequence, text=f"now: {text}") for text in _now(state, subject, moment)
    )


class _Known:
    """What earlier events said of those that later ones only name."""

    def __init__(self) -> None:
        self.holders: dict[str, str] = {}  #: attempt -> site
        self.holds: dict[str, str] = {}  #: job -> the site of its newest attempt
        self.only: dict[str, str] = {}  #: job -> the one site that it is for
        self.made: dict[tuple[str, str], int] = {}  #: campaign and version -> round

    def note(self, event: ev.AnyEvent) -> None:
        match event:
            case ev.JobPlanned() if len(event.sites) == 1:
                self.only[event.job] = event.sites[0]
            case ev.JobLeased():
                self.holders[event.attempt] = self.holds[event.job] = event.site
            case ev.VersionMade():
                self.made[event.campaign, event.version] = event.round


def _digest_of(state: State, subject: str) -> str | None:
    for campaign in state.campaigns.values():
        for digest, version in campaign.versions.items():
            if version.name == subject or (len(subject) >= 8 and digest.startswith(subject)):
                return digest
    return None


def _concerned(event: ev.AnyEvent, known: _Known) -> set[str]:
    """Everybody and everything that an event is about."""
    if isinstance(event, ev.CampaignOpened):
        return {event.campaign.campaign}
    if isinstance(event, ev.FlowerRunOpened):
        return {event.run.run, *event.run.sites}
    if isinstance(event, ev.FlowerRunEnded):
        return {event.run}
    said = {name: getattr(event, name, None) for name in ("job", "attempt", "site", "version", "campaign")}
    names = {str(value) for value in said.values() if value is not None}
    if (number := getattr(event, "round", None)) is not None:
        names.add(f"{said['campaign']}/r{number}")
    if (job := said["job"]) is not None:
        names.add(_round_of_job(job))
        if job in known.only:
            names.add(known.only[job])
    if (holder := known.holders.get(str(said["attempt"]))) is not None:
        names.add(holder)
    if isinstance(event, ev.RoundCollected):  # whose delta is not merged is told so
        names.update(job for job in event.left_out)
        names.update(known.holds[job] for job in event.left_out if job in known.holds)
    if isinstance(event, ev.VersionMade):
        names.add(event.name)
        if event.merged_by is not None:
            names.add(event.merged_by)
    if isinstance(event, ev.ArtifactsLetGo):
        names |= {*event.contributions, *event.weights, *event.outer_states, *event.unprovable}
        names |= {_round_of_job(job) for job in event.contributions}
        names |= {known.holds[job] for job in event.contributions if job in known.holds}
    if isinstance(event, ev.VersionPromoted | ev.VersionRejected | ev.RolledBack):
        names.add(f"{event.campaign}/r{known.made[event.campaign, event.version]}")
    return names


def _round_of_job(job: str) -> str:
    """``demo/r2`` of ``demo_r2-train-x``: rounds are told with the jobs that made them."""
    campaign, _, what = job.partition("_")
    return f"{campaign}/{what.partition('-')[0]}"


def _now(state: State, subject: str, moment: Moment) -> list[str]:
    for name in (JobId(subject), JobId(subject.rpartition(".a")[0])):  # a job, an attempt of one
        if name in state.jobs:
            job = state.jobs.glance(name)
            if subject in (name, job.attempt):
                reason = waiting(state, job, moment) if job.state is JobState.PLANNED else job.reason
                return [f"{job.state.value}: {reason}"]
    for wait in waits(state, moment):
        if subject in (wait.campaign, f"{wait.campaign}/r{wait.round}"):
            return [f"waits for {wait.reason}"]
    return []


def sentence(event: ev.AnyEvent) -> str:
    """One event in words; the reason it carries closes the sentence."""
    match event:
        case ev.ConsortiumFounded():
            return f"consortium {event.consortium} was founded"
        case ev.TokenIssued():
            return f"{event.organisation} ({event.country}) was invited as site {event.site}: {event.reason}"
        case ev.SiteEnrolled():
            return f"site {event.site} enrolled with certificate {short(event.fingerprint)}"
        case ev.CertificateRenewed():
            return f"site {event.site} renewed its certificate, now {short(event.fingerprint)}"
        case ev.SiteDescribed():
            held = (
                ", ".join(sorted({h.language for h in event.holdings if h.access == "private"})) or "nothing"
            )
            state = (", draining" if event.draining else "") + (", by courier" if event.courier else "")
            return f"site {event.site} offers {event.slots} slot(s) and holds {held}{state}"
        case ev.SiteStatusChanged():
            return f"site {event.site} is now {event.status}: {event.reason}"
        case ev.PersonRevoked():
            return f"the certificates of {event.role} {event.name} were revoked by {event.by}: {event.reason}"
        case ev.CampaignOpened():
            spec = event.campaign
            return f"campaign {spec.campaign} opened: {spec.rounds} rounds, {', '.join(spec.languages)}"
        case ev.CampaignEnded():
            return f"campaign {event.campaign} {event.status}: {event.reason}"
        case ev.FlowerRunOpened():
            return f"Flower run {event.run.run} of {event.run.app} opened at {', '.join(event.run.sites)}"
        case ev.FlowerRunEnded():
            return f"Flower run {event.run} {event.status}: {event.reason}"
        case ev.TokenizerChosen():
            return f"tokenizer {short(event.tokenizer)} chosen: {event.reason}"
        case ev.VersionMade():
            made_of = (
                f" from {len(event.manifest.ingredients)} contribution(s)" if event.role != "initial" else ""
            )
            where = f" at {event.merged_by}" if event.merged_by else ""
            decided = "".join(f"; {sentence}" for sentence in event.manifest.decisions)
            return f"{event.name} ({short(event.version)}) made{made_of}{where}: {event.reason}{decided}"
        case ev.RoundOpened():
            return f"round {event.round} opened on {short(event.base)}: {event.reason}"
        case ev.JobPlanned():
            return f"{event.job} planned: {event.reason}"
        case ev.JobLeased():
            return f"{event.attempt} leased to {event.site}: {event.reason}"
        case ev.LeaseResumed():
            return f"{event.attempt} got its lease back: {event.reason}"
        case ev.AttemptStarted():
            return f"{event.attempt} began to run at {event.site}, {spoken(event.queued_seconds)} after its submission"
        case ev.AttemptGone():
            return f"{event.attempt}: nothing is held back for it any more: {event.reason}"
        case ev.AttemptUsed():
            charged = f" of allocation {event.allocation}" if event.allocation else ""
            energy = f", {event.joules / 3.6e6:.3g} kWh" if event.joules is not None else ""
            return (
                f"{event.attempt} used {event.gpu_seconds / 3600:.3g} GPU-hours{charged} in "
                f"{spoken(event.seconds)}{energy} (by {event.source})"
            )
        case ev.AllocationWarned():
            return (
                f"{event.site}: allocation {event.allocation} is {event.percent} percent used: {event.reason}"
            )
        case ev.AttemptEnded():
            return f"{event.attempt} {event.outcome.value}: {event.reason}"
        case ev.ContributionReceived():
            return f"{event.attempt} delivered by {event.site}, envelope {short(event.envelope)}"
        case ev.ContributionAdmitted():
            return f"{event.attempt} admitted: {event.reason}"
        case ev.ContributionRefused():
            return f"{event.attempt} refused: {event.reason}"
        case ev.JobFailed():
            return f"{event.job} failed: {event.reason}"
        case ev.JobCancelled():
            return f"{event.job} cancelled: {event.reason}"
        case ev.RoundCollected():
            unused = "".join(f"; {job} is left out: {why}" for job, why in event.left_out.items())
            return f"round {event.round} collected {len(event.jobs)} contribution(s): {event.reason}{unused}"
        case ev.RoundFailed():
            return f"round {event.round} failed: {event.reason}"
        case ev.GateJudged():
            verdict = "passed" if event.verdict.promote else "did not pass"
            return f"{short(event.version)} {verdict} the gate: {event.verdict.reason}"
        case ev.VersionPromoted():
            return f"{short(event.version)} promoted: {event.reason}"
        case ev.VersionRejected():
            return f"{short(event.version)} rejected: {event.reason}"
        case ev.RolledBack():
            return f"head moved back to {short(event.version)}: {event.reason}"
        case ev.ArtifactsLetGo():
            unprovable = len(event.unprovable)
            ended = f"; {unprovable} version(s) can no longer be made again" if unprovable else ""
            return f"let go of {event.reason}{ended}; digests, sizes and signatures stay in this ledger"
