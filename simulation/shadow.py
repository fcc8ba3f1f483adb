"""What has become of every job, reckoned from the events alone: neither the product's table nor its fold is asked.

So a mistake in either is seen as well: ``agree`` compares what a state says with what is known here.
"""

from consortium.ids import AttemptId, CampaignId, Digest, JobId, SiteName
from consortium.jobs import Outcome, Purpose
from coordinator.core import events as ev
from coordinator.core.state import Job, State

_ENDS_WELL = "done"
_FINAL = {_ENDS_WELL, "failed", "cancelled"}
#: Of the job that an event speaks of: from which phases, and to which.
_NEW_PHASE: dict[type, tuple[set[str | None], str]] = {
    ev.JobPlanned: ({None}, "planned"),
    ev.JobLeased: ({"planned"}, "leased"),
    ev.LeaseResumed: ({"planned"}, "leased"),
    ev.AttemptEnded: ({"leased"}, "planned"),
    ev.ContributionReceived: ({"leased"}, "delivered"),
    ev.ContributionAdmitted: ({"delivered"}, _ENDS_WELL),
    ev.ContributionRefused: ({"delivered"}, "planned"),
    ev.JobFailed: ({"planned"}, "failed"),
    ev.JobCancelled: ({"planned", "leased", "delivered"}, "cancelled"),
}


class Shadow:
    """since: when each job came to its present phase"""

    def __init__(self) -> None:
        self.since: dict[JobId, float] = {}
        self.attempts: dict[JobId, int] = {}
        self.failures: dict[JobId, int] = {}
        self.refused_by: dict[JobId, set[SiteName]] = {}
        self.liars: dict[JobId, set[SiteName]] = {}  #: whose merge was refused
        self._phases: dict[JobId, str] = {}
        self._open: dict[JobId, None] = {}
        self._holders: dict[JobId, SiteName] = {}
        self._newest: dict[JobId, AttemptId] = {}
        self._purposes: dict[JobId, Purpose] = {}
        self._certificates: dict[SiteName, set[str]] = {}
        self._heads: dict[CampaignId, Digest] = {}

    def unasked(self, job: Job) -> set[SiteName]:
        """Sites that could still be given it."""
        return set(job.sites) - self.refused_by.get(job.id, set()) - self.liars.get(job.id, set())

    def watch(self, event: ev.AnyEvent, at: float) -> None:
        match event:
            case ev.VersionMade() if event.role == "initial":
                self._heads[event.campaign] = event.version
            case ev.SiteEnrolled() | ev.CertificateRenewed():
                self._certificates.setdefault(event.site, set()).add(event.fingerprint)
            case ev.VersionPromoted() | ev.RolledBack():
                self._heads[event.campaign] = event.version
            case ev.JobPlanned():
                self._purposes[event.job] = event.purpose
            case ev.JobLeased():
                self.attempts[event.job] = self.attempts.get(event.job, 0) + 1
                self._holders[event.job], self._newest[event.job] = event.site, event.attempt
            case ev.AttemptEnded() if event.outcome in (Outcome.FAILED, Outcome.CORRUPT):
                self.failures[event.job] = self.failures.get(event.job, 0) + 1
            case ev.AttemptEnded() if event.outcome is Outcome.REFUSED:
                self.refused_by.setdefault(event.job, set()).add(self._holders[event.job])
            case ev.ContributionRefused():
                self.failures[event.job] = self.failures.get(event.job, 0) + 1
                if self._purposes[event.job] is Purpose.MERGE:
                    self.liars.setdefault(event.job, set()).add(self._holders[event.job])
            case _:
                pass
        if type(event) in _NEW_PHASE:
            allowed, phase = _NEW_PHASE[type(event)]
            job: JobId = event.job  # type: ignore[union-attr]
            assert self._phases.get(job) in allowed, f"{job} is {self._phases.get(job)}: {event}"
            self._phases[job], self.since[job] = phase, at
            if phase in _FINAL:
                del self._open[job]
            else:
                self._open[job] = None

    def agree(self, event: ev.AnyEvent, state: State) -> None:
        """What the state says of the job, or the campaign, that an event has just changed."""
        if type(event) in _NEW_PHASE:
            name: JobId = event.job  # type: ignore[union-attr]
            job = state.jobs[name]
            said = (job.state.value, job.attempts, job.failures, set(job.refused_by), set(job.disproved))
            known = (
                self._phases[name],
                self.attempts.get(name, 0),
                self.failures.get(name, 0),
                self.refused_by.get(name, set()),
                self.liars.get(name, set()),
            )
            assert said == known, f"{name} is {said} by the state, {known} by its events"
            assert (job.attempt, job.site) == (self._newest.get(name), self._holders.get(name))
            if known[0] == "planned":
                assert job.free_since == self.since[name], f"{name} is free since {job.free_since}"
            if known[0] == "leased":
                assert job.leased_at == self.since[name], f"{name} is leased since {job.leased_at}"
            assert (job.contribution is not None) == (known[0] == _ENDS_WELL), f"{name} has a result"
            assert [one.id for one in state.open_jobs()] == sorted(self._open), "open jobs are not those"
        if isinstance(event, ev.SiteEnrolled):
            assert event.token_hash not in state.tokens, "its invitation is good for another"
        if isinstance(event, ev.SiteEnrolled | ev.CertificateRenewed):
            site = state.sites[event.site]
            assert site.fingerprint == event.fingerprint
            assert set(site.certificates) == self._certificates[event.site], "a certificate is forgotten"
        if isinstance(event, ev.VersionMade):
            version = state.campaigns[event.campaign].versions[event.version]
            assert (version.merged_by, version.name) == (event.merged_by, event.name)
        campaign = getattr(event, "campaign", None)
        if isinstance(campaign, str) and campaign in state.campaigns:
            known_head = self._heads.get(CampaignId(campaign))
            assert state.campaigns[CampaignId(campaign)].head == known_head, "the head is another version"
