"""What a command adds to the ledger: the facts it establishes, or a refusal that says why and what to do.

Only the fact is recorded here; everything that follows from it is decided in ``plan``.
"""

from functools import singledispatch

from consortium.errors import BadInput, Refused, TooOften
from consortium.ids import SiteName, version_name
from consortium.manifests import VersionManifest
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.able import coordinator_merges
from coordinator.core.accounting import spending
from coordinator.core.budgets import BUDGETS, DESCRIBED, RENEWED, again_seconds, allows
from coordinator.core.keeping import due, in_words
from coordinator.core.known import enrolled_site, find_version, listed, open_campaign
from coordinator.core.moment import Moment
from coordinator.core.reports import reported
from coordinator.core.state import CampaignState, RoundState, State, Version
from coordinator.core.transitions import JobState
from coordinator.core.words import spoken
from policies.consistency import missing_in, problems_in

BY_HAND = "by hand: "  #: begins the reason of a promotion that the gate did not decide


@singledispatch
def decide(command: cm.Command, state: State, moment: Moment) -> list[ev.AnyEvent]:
    raise AssertionError(f"no rule decides {type(command).__name__}")


@decide.register
def _(command: cm.Tick, state: State, moment: Moment) -> list[ev.AnyEvent]:
    return []


# --- sites -----------------------------------------------------------------------------------------


@decide.register
def _(command: cm.IssueToken, state: State, moment: Moment) -> list[ev.AnyEvent]:
    if command.membership is None:
        raise Refused(f"site {command.site} of {command.organisation} ({command.country}): {command.refusal}")
    return [
        ev.TokenIssued(
            site=command.site,
            organisation=command.organisation,
            country=command.country,
            token_hash=command.token_hash,
            valid_until=command.valid_until,
            reason=command.membership,
        )
    ]


@decide.register
def _(command: cm.EnrolSite, state: State, moment: Moment) -> list[ev.AnyEvent]:
    invitation = state.tokens.get(command.token_hash)
    if invitation is None:
        raise Refused(
            "this enrolment token is unknown or already used; ask the consortium's admin for a new invitation"
        )
    if invitation.site != command.site:
        raise Refused(f"the enrolment token is for site {invitation.site}, the request names {command.site}")
    if moment.now > invitation.valid_until:
        raise Refused(
            f"site {command.site}: the enrolment token has expired; ask the admin for a new invitation"
        )
    known = state.sites.get(command.site)
    if known is not None and known.suspended_at is not None and invitation.issued_at <= known.suspended_at:
        raise Refused(
            f"site {command.site} was suspended after this invitation was given; only the admin can bring it back"
        )
    return [
        ev.SiteEnrolled(
            site=command.site,
            token_hash=command.token_hash,
            certificate=command.certificate,
            fingerprint=command.fingerprint,
            not_after=command.not_after,
        )
    ]


@decide.register
def _(command: cm.RenewCertificate, state: State, moment: Moment) -> list[ev.AnyEvent]:
    site = enrolled_site(state, command.site)
    if not allows(site, RENEWED, moment.now):
        raise TooOften(
            f"site {command.site} had {BUDGETS[RENEWED].burst} new certificates in a short time; it may have one more "
            f"every {spoken(BUDGETS[RENEWED].seconds)}: each stands in the ledger for good",
            again_seconds(site, RENEWED, moment.now),
        )
    return [
        ev.CertificateRenewed(
            site=command.site,
            certificate=command.certificate,
            fingerprint=command.fingerprint,
            not_after=command.not_after,
        )
    ]


@decide.register
def _(command: cm.SetSite, state: State, moment: Moment) -> list[ev.AnyEvent]:
    site = enrolled_site(state, command.site)
    if site.status == command.status:
        return []
    return [ev.SiteStatusChanged(site=site.name, status=command.status, reason=command.reason)]


@decide.register
def _(command: cm.RevokePerson, state: State, moment: Moment) -> list[ev.AnyEvent]:
    if (command.role, command.name) == ("admin", command.by):
        raise Refused(f"admin {command.by} cannot revoke their own certificate; another admin can")
    if f"{command.role}/{command.name}" in state.revoked:
        return []
    return [ev.PersonRevoked(role=command.role, name=command.name, by=command.by, reason=command.reason)]


@decide.register
def _(command: cm.SyncSite, state: State, moment: Moment) -> list[ev.AnyEvent]:
    site = enrolled_site(state, command.site)
    if site.status == "suspended":
        raise Refused(f"site {site.name} is suspended; its operator should talk to the consortium's admin")
    events: list[ev.AnyEvent] = []
    offered = {name: getattr(command, name) for name in _OFFER}
    is_new = any(getattr(site, name) != value for name, value in offered.items())
    if is_new and allows(site, DESCRIBED, moment.now):  # else a later Sync says it again
        events.append(ev.SiteDescribed(site=site.name, **offered))
    reports = {report.attempt: report for report in command.reports}  # of two on one attempt the last counts
    for _, report in sorted(reports.items()):
        events += spending(state, site, report, moment.now)
        events += reported(state, site, report)
    return events


#: What a Sync says of the site itself, as command, event and state all call it.
_OFFER = (
    "agent_version",
    "slots",
    "draining",
    "holdings",
    "merges",
    "allocations",
    "windows",
    "gpus",
    "launcher",
    "courier",
)


# --- campaigns -------------------------------------------------------------------------------------


@decide.register
def _(command: cm.SubmitCampaign, state: State, moment: Moment) -> list[ev.AnyEvent]:
    name = command.campaign.campaign
    if name in state.flower_runs:
        raise Refused(f"a Flower run {name!r} exists already; choose another name")
    if name in state.campaigns:
        if state.campaigns[name].spec == command.campaign:
            return []  # the same order, sent twice
        raise Refused(
            f"a campaign {name!r} exists already; choose another name (the ledger keeps the old one)"
        )
    # The file was checked where it was written; what comes over the wire is checked here.
    if wrong := (*missing_in(command.campaign), *problems_in(command.campaign)):
        raise BadInput(
            "; ".join(f"campaign {name}, {'.'.join(map(str, place))}: {what}" for place, what in wrong)
        )
    return [ev.CampaignOpened(campaign=command.campaign, sender=command.sender)]


@decide.register
def _(command: cm.StopCampaign, state: State, moment: Moment) -> list[ev.AnyEvent]:
    run = state.flower_runs.get(command.campaign)
    if run is None:
        open_campaign(state, command.campaign)
    elif run.status != "open":
        raise Refused(f"Flower run {command.campaign} is {run.status}: {run.reason}")
    cancelled: list[ev.AnyEvent] = [
        ev.JobCancelled(job=job.id, reason=f"{'Flower run' if run else 'campaign'} stopped: {command.reason}")
        for job in state.open_jobs()
        if job.campaign == command.campaign
    ]
    if run is not None:
        return [*cancelled, ev.FlowerRunEnded(run=run.spec.run, status="stopped", reason=command.reason)]
    return [
        *cancelled,
        ev.CampaignEnded(campaign=command.campaign, status="stopped", reason=command.reason),
    ]


@decide.register
def _(command: cm.MoveHead, state: State, moment: Moment) -> list[ev.AnyEvent]:
    campaign = state.campaigns.get(command.campaign)
    if campaign is None:
        raise Refused(f"there is no campaign {command.campaign!r}; known: {listed(state.campaigns)}")
    version = find_version(campaign, command.version)
    if version is None:
        known = [v.name for v in campaign.versions.values()]
        raise Refused(
            f"campaign {command.campaign} has no version {command.version!r}; known: {listed(known)}"
        )
    _still_has(version, command.verb)
    if command.verb == "promote":
        if version.status == "promoted":
            raise Refused(f"{version.name} is promoted already; to make it the head again, roll back to it")
        return [
            ev.VersionPromoted(
                campaign=command.campaign, version=version.digest, reason=BY_HAND + command.reason
            )
        ]
    if version.status != "promoted":
        raise Refused(f"{version.name} was never promoted ({version.status}); promote it by hand instead")
    if version.digest == campaign.head:
        return []
    return [ev.RolledBack(campaign=command.campaign, version=version.digest, reason=command.reason)]


def _still_has(version: Version, verb: str) -> None:
    """Raise Refused if a round could not begin from the version, for bytes that were let go."""
    for mark, what in (
        (version.weights_let_go, "weights were"),
        (version.outer_state_let_go, "outer optimizer's state was"),
    ):
        if mark is not None:
            also = (
                "; its model can be exported, and begin a campaign of its own"
                if what != "weights were"
                else ""
            )
            raise Refused(
                f"{version.name}: its {what} {in_words(mark)}, so no round can begin from it; "
                f"{verb.replace('_', ' ')} another{also}"
            )


@decide.register
def _(command: cm.LetGo, state: State, moment: Moment) -> list[ev.AnyEvent]:
    return due(state, command.rule, moment.now)


# --- what the coordinator's own worker did ---------------------------------------------------------


@decide.register
def _(command: cm.ReportBase, state: State, moment: Moment) -> list[ev.AnyEvent]:
    campaign = open_campaign(state, command.campaign)
    if campaign.head is not None:
        return []  # a second worker was slower
    if command.manifest is None:
        return [ev.CampaignEnded(campaign=command.campaign, status="failed", reason=command.reason)]
    return [
        ev.VersionMade(
            campaign=command.campaign,
            version=command.manifest.digest,
            name=version_name(command.campaign, 0),
            role="initial",
            round=0,
            manifest=command.manifest,
            reason=_origin(campaign),
        )
    ]


def _origin(campaign: CampaignState) -> str:
    if campaign.spec.model.files is not None:
        return "the base that the campaign was submitted with"
    return f"made from the campaign's config with seed {campaign.spec.model.seed}"


@decide.register
def _(command: cm.ReportInspection, state: State, moment: Moment) -> list[ev.AnyEvent]:
    job = state.jobs[command.job]
    if job.state is not JobState.DELIVERED or job.attempt != command.attempt:
        return []  # cancelled meanwhile, or inspected twice
    if command.contribution is None:
        return [ev.ContributionRefused(job=job.id, attempt=command.attempt, reason=command.reason)]
    admitted = ev.ContributionAdmitted(
        job=job.id,
        attempt=command.attempt,
        contribution=command.contribution,
        measures=command.measures,
        scores=command.scores,
        reason=command.reason,
    )
    if command.manifest is None:
        return [admitted]
    campaign = state.campaigns[job.campaign]
    made = _candidate(campaign, job.round, command.manifest, job.site, command.reason)
    return [admitted, made]


@decide.register
def _(command: cm.ReportMerge, state: State, moment: Moment) -> list[ev.AnyEvent]:
    campaign = open_campaign(state, command.campaign)
    round_ = campaign.rounds[command.round]
    if round_.state is not RoundState.MERGING or not coordinator_merges(state, round_):
        return []
    if command.manifest is None:
        return [ev.RoundFailed(campaign=command.campaign, round=command.round, reason=command.reason)]
    return [_candidate(campaign, command.round, command.manifest, None, command.reason)]


def _candidate(
    campaign: CampaignState, number: int, manifest: VersionManifest, site: SiteName | None, reason: str
) -> ev.AnyEvent:
    """What a merge brings its round; ``site`` made it, or the coordinator."""
    name = campaign.spec.campaign
    if known := campaign.versions.get(manifest.digest):
        reason = f"the merge gave {known.name} again, bit for bit: nothing new was learnt"
        return ev.RoundFailed(campaign=name, round=number, reason=reason)
    return ev.VersionMade(
        campaign=name,
        version=manifest.digest,
        name=version_name(name, len(campaign.versions)),
        role="candidate",
        round=number,
        manifest=manifest,
        merged_by=site,
        reason=reason,
    )


@decide.register
def _(command: cm.ReportVerdict, state: State, moment: Moment) -> list[ev.AnyEvent]:
    campaign = open_campaign(state, command.campaign)
    round_ = campaign.rounds[command.round]
    if round_.state is not RoundState.EVALUATING or round_.candidate is None:
        return []
    if any(not state.jobs[job].is_final for job in round_.gate_jobs):
        return []  # a judge came while the worker judged without any; it will be asked again
    verdict, version = command.verdict, round_.candidate
    judged = ev.GateJudged(campaign=command.campaign, round=command.round, version=version, verdict=verdict)
    if campaign.versions[version].status != "candidate":
        return [judged]  # an admin was faster than the gate
    if verdict.promote and campaign.head == round_.base:
        return [
            judged,
            ev.VersionPromoted(campaign=command.campaign, version=version, reason=verdict.reason),
        ]
    reason = verdict.reason
    if verdict.promote and campaign.head is not None:
        base, head = campaign.versions[round_.base].name, campaign.versions[campaign.head].name
        reason = f"passed the gate against {base}, but the head was moved to {head} meanwhile; "
        reason += "promote it by hand if it is the better one"
    return [judged, ev.VersionRejected(campaign=command.campaign, version=version, reason=reason)]
