"""A consortium made of facts alone: sites, campaigns, and a coordinator that is a list of events and a number.

``Coordinator`` is what the driver is in production, less disk and clock; ``answer`` is the worker, less models.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET

from consortium.canonical import digest_of_fact, encode, replace
from consortium.codecs.names import is_coded
from consortium.ids import AttemptId, CampaignId, Digest, Language, SiteName, digest_of
from consortium.jobs import Evaluate, FlowerMessage, Optimizer, Outcome, Phase, Tokenizer, Train
from consortium.jobs import Merge as MergeWork
from consortium.manifests import Contribution, FileRef, Holding, Ingredient, VersionManifest
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.fold import apply
from coordinator.core.gate import GateVerdict
from coordinator.core.machine import handle
from coordinator.core.moment import Moment
from coordinator.core.owed import Inspect, Judge, MakeBase, Merge, Owed, owed
from coordinator.core.snapshot import keep, restore
from coordinator.core.state import Job, State
from coordinator.driver import openings
from policies.campaign import Campaign, ModelSource, Quorum, SeedRound, TokenizerSource, TrainPlan

LANGUAGES = (Language("fi"), Language("ga"), Language("hu"))
OWN = {"north": ("fi",), "south": ("hu",), "west": ("ga",)}  #: what each site alone holds
OPTIMIZER = Optimizer(learning_rate=0.01)
DEMO = CampaignId("demo")
HOUR = 3600.0


def d(text: str) -> Digest:
    """A digest of something that nobody needs to see."""
    return digest_of(text.encode())


def holding(language: str, access: str = "private", documents: int = 100, heldout: int = 30) -> Holding:
    return Holding(
        language=Language(language),
        access="public" if access == "public" else "private",
        documents=documents,
        bytes=documents * 1000,
        heldout_documents=heldout,
        licence="CC0-1.0",
        digest=d(f"{language}.{access}"),
    )


def holdings(site: str, public: Iterable[str] = LANGUAGES) -> tuple[Holding, ...]:
    """Own text of the site's languages and public text in ``public``."""
    return (*(holding(x) for x in OWN[site]), *(holding(x, "public", heldout=0) for x in public))


def campaign(name: str = "demo", /, **changes: Any) -> Campaign:
    """Three sites, one round, tokenizer and base made in the campaign; ``changes`` are fields of it."""
    plain = Campaign(
        campaign=CampaignId(name),
        languages=LANGUAGES,
        sites_expected=3,
        model=ModelSource(config={"model_type": "llama", "rms_norm_eps": 1e-06}),
        tokenizer=TokenizerSource(vocabulary_size=300),
        rounds=1,
        train=TrainPlan(steps=10, batch_sequences=2, sequence_tokens=8, optimizer=OPTIMIZER),
        quorum=Quorum(deadline_hours=2.0),
        lease_seconds=60.0,
    )
    return replace(plain, **changes)


GIVEN: dict[str, Any] = {  #: the quick way to round 1: nothing to train or choose before
    "model": ModelSource(
        files={
            "model.safetensors": FileRef(digest=d("weights"), size=9),
            "tokenizer.json": FileRef(digest=d("tokenizer"), size=5),
        }
    ),
    "tokenizer": TokenizerSource(digest=d("tokenizer")),
}
SEED_ROUND = SeedRound(steps=20, optimizer=OPTIMIZER)


def verdict(promote: bool) -> GateVerdict:
    return GateVerdict(promote=promote, reason="nobody lost" if promote else "fi lost", languages=())


# --- the worker's answers ------------------------------------------------------------------------------


def contribution(job: Job, steps: int | None = None) -> Contribution:
    """What the site of the job's newest attempt would sign."""
    assert job.attempt is not None and job.site is not None
    work = job.work
    kind = {
        Train: "delta",
        Evaluate: "scores",
        Tokenizer: "tokenizer",
        MergeWork: "version",
        FlowerMessage: "letter",
    }[type(work)]
    planned = work.steps if isinstance(work, Train) else 1
    done = planned if steps is None else steps
    return Contribution(
        job=job.id,
        attempt=job.attempt,
        campaign=job.campaign,
        site=job.site,
        assignment=digest_of_fact(job.assignment(job.attempt, job.site)),
        base=work.base if isinstance(work, Train | MergeWork) else None,
        artifacts={kind: FileRef(digest=d(f"{kind} of {job.attempt}"), size=7)},
        steps=done,
        planned_steps=planned,
        tokens={x: done * 16 for x in work.languages[:1]} if isinstance(work, Train) else {},
        residual_before=work.residual if isinstance(work, Train) else None,
        residual=d(f"residual of {job.attempt}")
        if isinstance(work, FlowerMessage) or (isinstance(work, Train) and is_coded(work.delta_dtype))
        else None,
        moments_before=work.moments if isinstance(work, Train) else UNSET,
        moments=d(f"moments of {job.attempt}")
        if isinstance(work, Train) and work.optimizer.moments == "keep"
        else UNSET,
    )


def admitted(job: Job, steps: int | None = None, state: State | None = None) -> cm.ReportInspection:
    """``state`` is needed for a merge: the version follows from what was collected."""
    assert job.attempt is not None
    scores: dict[str, dict[Language, ev.ScoreSummary]] = {}
    if isinstance(job.work, Evaluate):
        score = ev.ScoreSummary(nats=50.0, bytes=100, documents=30, heldout=d(f"heldout of {job.site}"))
        scores = {subject.name: dict.fromkeys(job.work.languages, score) for subject in job.work.subjects}
    return cm.ReportInspection(
        job=job.id,
        attempt=job.attempt,
        contribution=contribution(job, steps),
        scores=scores,
        manifest=merged(state, job.campaign, job.round)
        if state and isinstance(job.work, MergeWork)
        else None,
        measures={"norm": 1.0},
        reason="fine",
    )


def refused(job: Job, reason: str = "a NaN") -> cm.ReportInspection:
    assert job.attempt is not None
    return cm.ReportInspection(job=job.id, attempt=job.attempt, contribution=None, reason=reason)


def merged(state: State, name: CampaignId, number: int) -> VersionManifest:
    """The candidate of a round, as a function of its base and of what was collected."""
    round_ = state.campaigns[name].rounds[number]
    found = [state.jobs[job].contribution for job in round_.collected]
    deltas = sorted(((c.artifacts["delta"], c) for c in found if c), key=lambda pair: pair[0].digest)
    parts = tuple(Ingredient(delta=ref, weight=sum(c.tokens.values())) for ref, c in deltas)
    weights = FileRef(digest=d(f"{round_.base} + {[ref.digest for ref, _ in deltas]}"), size=9)
    return VersionManifest(
        base=round_.base,
        files={
            "model.safetensors": weights,
            "tokenizer.json": FileRef(digest=state.campaigns[name].tokenizer or d("none"), size=5),
        },
        ingredients=parts,
    )


def answer(what: Owed, state: State, promote: bool = True) -> cm.Command:
    """What the worker reports when nothing goes wrong."""
    match what:
        case MakeBase():
            spec, tokenizer = state.campaigns[what.campaign].spec, state.campaigns[what.campaign].tokenizer
            files = spec.model.files or {
                "model.safetensors": FileRef(digest=d(f"base of {what.campaign}"), size=9),
                "tokenizer.json": FileRef(digest=tokenizer or d("none"), size=5),
            }
            manifest = VersionManifest(base=None, files=files)
            return cm.ReportBase(campaign=what.campaign, manifest=manifest)
        case Inspect():
            return admitted(state.jobs[what.job], state=state)
        case Merge():
            manifest = merged(state, what.campaign, what.round)
            return cm.ReportMerge(
                campaign=what.campaign, round=what.round, manifest=manifest, reason="merged"
            )
        case Judge():
            return cm.ReportVerdict(campaign=what.campaign, round=what.round, verdict=verdict(promote))


# --- a coordinator without disk and clock --------------------------------------------------------------


def round_trip(event: ev.AnyEvent) -> ev.AnyEvent:
    """The event as it comes back from the ledger."""
    back = decoded(encode(event))
    assert encode(back) == encode(event)
    return back


def decoded(data: bytes) -> ev.AnyEvent:
    event: ev.AnyEvent = msgspec.convert(msgspec.json.decode(data), type=ev.AnyEvent)
    return event


class Coordinator:
    """State, time and presence; ``ledger`` has each event's bytes and when it happened."""

    def __init__(self, now: float = 1000.0) -> None:
        self.state = State()
        self.now = now
        self.started_at = 0.0
        self.renewed: dict[AttemptId, float] = {}
        self.ledger: list[tuple[bytes, float]] = []

    def do(self, command: cm.Command) -> list[str]:
        """Carry out a command; what happened, in brief."""
        return [brief(event, self.state) for event in self.events_of(command)]

    def events_of(self, command: cm.Command) -> tuple[ev.AnyEvent, ...]:
        if isinstance(command, cm.SyncSite):
            held = {job.attempt for job in self.state.live(command.site)}
            self.renewed.update((r.attempt, self.now) for r in command.reports if r.attempt in held)
        happened = handle(self.state, command, self.moment_of(command)).events
        self.ledger.extend((encode(event), self.now) for event in happened)
        return happened

    @property
    def moment(self) -> Moment:
        return self.moment_of(cm.Tick())

    def moment_of(self, command: cm.Command) -> Moment:
        """As the driver would say it."""
        return Moment(
            now=self.now,
            started_at=self.started_at,
            renewed=self.renewed,
            openings=openings(self.state, self.now, command),
        )

    def replayed(self) -> State:
        state = State()
        for data, at in self.ledger:
            apply(decoded(data), state, at)
        return state

    def crash(self, from_snapshot: bool = False) -> None:
        """Forget everything but the ledger (or but a snapshot of the state), and start again."""
        self.state = restore(keep(self.state)) if from_snapshot else self.replayed()
        self.renewed, self.started_at = {}, self.now

    # --- what tests say ---

    def enrol(self, site: str, **offer: object) -> list[str]:
        """Invite and enrol a site, and let it describe itself."""
        self.invite(site)
        self.do(enrolment(site))
        return self.sync(site, **offer)

    def invite(self, site: str, seconds: float = HOUR) -> list[str]:
        return self.do(invitation(site, self.now + seconds))

    def sync(self, site: str, *reports: cm.Report, **offer: object) -> list[str]:
        return self.do(sync(site, *reports, **offer))

    def wait(self, seconds: float) -> list[str]:
        self.now += seconds
        return self.do(cm.Tick())

    def deliver(self, job: str, **offer: object) -> list[str]:
        """The site that holds the job reports success; the worker admits it."""
        held = self.job(job)
        assert held.attempt is not None and held.site is not None
        return self.sync(held.site, success(held.attempt), **offer) + self.do(
            admitted(self.job(job), state=self.state)
        )

    def work(self, promote: bool = True) -> list[str]:
        """The worker does what it owes now."""
        return [line for what in owed(self.state) for line in self.do(answer(what, self.state, promote))]

    def train_all(self, number: int = 1) -> list[str]:
        """Every site takes and delivers its job of the round."""
        return self._all(f"r{number}-train")

    def judge_all(self, number: int = 1) -> list[str]:
        return self._all(f"r{number}-gate")

    def _all(self, what: str) -> list[str]:
        for site in OWN:
            self.sync(site)
        return [line for site in OWN for line in self.deliver(f"demo_{what}-{site}")]

    def to_the_gate(self, number: int = 1) -> None:
        """Train, merge and evaluate; the worker owes the verdict."""
        self.train_all(number)
        self.work()
        self.judge_all(number)

    def one_round(self, number: int = 1, promote: bool = True) -> list[str]:
        """A whole round; what its verdict brought."""
        self.to_the_gate(number)
        return self.work(promote)

    def job(self, name: str) -> Job:
        return {str(job): found for job, found in self.state.jobs.items()}[name]


def consortium(*campaigns: Campaign, slots: int = 1) -> Coordinator:
    """Campaigns submitted, then all three sites enrolled, in alphabetical order."""
    coordinator = Coordinator()
    for spec in campaigns:
        coordinator.do(cm.SubmitCampaign(campaign=spec))
    for site in OWN:
        coordinator.enrol(site, slots=slots)
    return coordinator


def given(**changes: Any) -> Coordinator:
    """Three sites, and a campaign that starts from given files: round 1 is open."""
    coordinator = consortium(campaign(**{**GIVEN, **changes}))
    coordinator.work()
    return coordinator


def invitation(site: str, until: float) -> cm.IssueToken:
    return cm.IssueToken(
        site=SiteName(site),
        organisation=f"{site} university",
        country="FI",
        token_hash=d(f"token of {site}"),
        valid_until=until,
        membership="FI is a member state",
    )


def enrolment(site: str, token_of: str | None = None) -> cm.EnrolSite:
    return cm.EnrolSite(
        site=SiteName(site),
        token_hash=d(f"token of {token_of or site}"),
        certificate=f"certificate of {site}",
        fingerprint=d(f"certificate of {site}"),
        not_after=1e9,
    )


def sync(site: str, *reports: cm.Report, **offer: object) -> cm.SyncSite:
    plain = cm.SyncSite(
        site=SiteName(site),
        agent_version="0.1.0",
        slots=1,
        draining=False,
        holdings=holdings(site),
        reports=reports,
    )
    return replace(plain, **offer)


def running(attempt: str) -> cm.Report:
    return cm.Report(attempt=AttemptId(attempt), phase=Phase.RUNNING)


def ended(attempt: str, outcome: Outcome, reason: str = "so it is") -> cm.Report:
    return cm.Report(attempt=AttemptId(attempt), phase=Phase.ENDED, outcome=outcome, reason=reason)


def success(attempt: str) -> cm.Report:
    envelope = d(f"envelope of {attempt}")
    return cm.Report(
        attempt=AttemptId(attempt), phase=Phase.ENDED, outcome=Outcome.SUCCEEDED, envelope=envelope
    )


def brief(event: ev.AnyEvent, state: State) -> str:
    """An event's kind and what tells it from others of that kind; versions by name."""
    if isinstance(event, ev.CampaignOpened):
        return f"CampaignOpened {event.campaign.campaign}"
    said = {name: str(getattr(event, name)) for name in _TELLING if hasattr(event, name)}
    if "version" in said:
        versions = state.campaigns[CampaignId(said["campaign"])].versions
        what = versions[Digest(said["version"])].name
    elif "attempt" in said or "job" in said:
        what = said.get("attempt") or said["job"]
    elif "round" in said:
        what = f"{said['campaign']}/r{said['round']}"
    else:
        what = said.get("campaign", "")
    rest = (said[name] for name in ("site", "outcome", "status") if name in said)
    return " ".join(word for word in (type(event).__name__, what, *rest) if word)


_TELLING = ("campaign", "round", "job", "attempt", "version", "site", "outcome", "status")
