"""What must hold after every single event, whatever the world does: architecture's invariants 1 to 4 and 6, checked.

``Rules`` folds the events on its own, from their bytes, so it is a replay that can be compared with the live state.
"""

from collections.abc import Mapping

import msgspec

from consortium.canonical import encode
from consortium.ids import AttemptId, CampaignId, Digest, JobId, SiteName, attempt_of
from consortium.jobs import FlowerMessage, Merge, Outcome, Purpose, Train
from coordinator.core import events as ev
from coordinator.core.fold import apply
from coordinator.core.state import CampaignState, RoundState, State
from coordinator.core.transitions import JobState
from simulation.accounts import Accounts
from simulation.forgone import let_go
from simulation.orders import Orders
from simulation.promptness import is_enough, is_over, may_close
from simulation.shadow import Shadow


class Rules:
    def __init__(self) -> None:
        self.state = State()
        self.live: dict[JobId, AttemptId] = {}
        self.used: set[AttemptId] = set()
        self.merged: set[Digest] = set()
        self.shadow = Shadow()
        self.orders = Orders()
        self.by_gate: set[Digest] = set()
        self.accounts = Accounts()
        self.kept: dict[tuple[CampaignId, SiteName], Digest | None] = {}  #: by Flower apps at their sites

    def watch(self, event: ev.AnyEvent, at: float, heard: Mapping[AttemptId, float], started: float) -> None:
        """``heard``: when a Sync last spoke of each attempt since the coordinator started."""
        event = round_trip(event)
        self._before(event, at, heard, started)
        self.orders.watch(event, self.state, at)
        self.accounts.watch(event, self.state, at)
        self.shadow.watch(event, at)
        apply(event, self.state, at)
        self.shadow.agree(event, self.state)
        self.accounts.agree(event, self.state)
        self._after(event)

    # --- what must be so for the event to be allowed ---

    def _before(
        self, event: ev.AnyEvent, at: float, heard: Mapping[AttemptId, float], started: float
    ) -> None:
        state = self.state
        name = getattr(event, "campaign", None)
        after_all = ev.VersionPromoted | ev.RolledBack | ev.ArtifactsLetGo
        if isinstance(name, str) and not isinstance(event, after_all):
            assert state.programme(CampaignId(name)).status == "open", f"after its end: {event}"
        match event:
            case ev.SiteEnrolled():
                assert state.tokens[event.token_hash].site == event.site
                assert at <= state.tokens[event.token_hash].valid_until
            case ev.JobLeased():
                job, site = state.jobs[event.job], state.sites[event.site]
                assert event.job not in self.live, "two live leases of one job"
                assert event.attempt == attempt_of(event.job, self.shadow.attempts.get(event.job, 0) + 1)
                assert event.attempt not in self.used
                assert event.site in self.shadow.unasked(job), "asked again after a refusal, or never able"
                assert site.status == "enrolled" and not site.draining
                limit = state.programme(job.campaign).spec.attempts_max
                assert self.shadow.failures.get(event.job, 0) < limit
                assert job.purpose is not Purpose.MERGE or site.merges, "merging without consent"
                assert len(state.live(event.site)) < site.slots, "more leases than slots"
                self.live[event.job] = event.attempt
                self.used.add(event.attempt)
            case ev.LeaseResumed():
                job = state.jobs[event.job]
                assert event.job not in self.live, "two live leases of one job"
                assert event.attempt == job.attempt and job.outcome is Outcome.EXPIRED
                assert job.site is not None and state.sites[job.site].status != "suspended"
                self.live[event.job] = event.attempt
            case ev.AttemptEnded():
                assert self.live.pop(event.job) == event.attempt
                if event.outcome is Outcome.EXPIRED:
                    self._lapsed(event, at, heard, started)
            case ev.ContributionReceived():
                assert self.live.pop(event.job) == event.attempt
                assert state.jobs[event.job].site == event.site
            case ev.ContributionAdmitted() | ev.ContributionRefused():
                job = state.jobs[event.job]
                assert job.attempt == event.attempt and job.site is not None
                if isinstance(event, ev.ContributionAdmitted) and job.purpose is Purpose.FLOWER:
                    self.kept[job.campaign, job.site] = event.contribution.residual
            case ev.JobFailed():
                job = state.jobs[event.job]
                limit = state.programme(job.campaign).spec.attempts_max
                assert self.shadow.failures.get(event.job, 0) >= limit or not self.shadow.unasked(job)
            case ev.JobPlanned() if event.purpose is Purpose.FLOWER:
                assert event.job not in state.jobs, "a message became two jobs"
                assert isinstance(event.work, FlowerMessage) and len(event.sites) == 1
                assert event.work.state == self.kept.get((event.campaign, event.sites[0])), "another state"
            case ev.JobPlanned() if event.purpose is Purpose.MERGE:
                self._may_be_merged_at_a_site(event)
            case ev.JobCancelled():
                self.live.pop(event.job, None)
                self._may_be_cancelled(event, at, started)
            case ev.RoundOpened():
                campaign = state.campaigns[event.campaign]
                assert event.base == campaign.head
                assert all(r.state is RoundState.CLOSED for r in campaign.rounds.values())
                before = campaign.rounds.get(event.round - 1)
                assert set(event.late) <= set(before.left if before else ()), "taken over from nowhere"
            case ev.RoundCollected():
                self._collected(event, at)
            case ev.RoundFailed():
                self._failed(event, at)
            case ev.VersionMade() if event.role == "initial":
                assert not state.campaigns[event.campaign].versions, "a campaign begins twice"
            case ev.VersionMade() if event.role == "candidate":
                self._made_of_what_was_collected(event)
            case ev.GateJudged():
                round_ = state.campaigns[event.campaign].rounds[event.round]
                assert event.version == round_.candidate and round_.state is RoundState.EVALUATING
                assert all(state.jobs[job].is_final for job in round_.gate_jobs)
                if event.verdict.promote and state.campaigns[event.campaign].head == round_.base:
                    self.by_gate.add(event.version)
            case ev.VersionPromoted():
                assert event.reason.startswith("by hand") or event.version in self.by_gate
            case ev.VersionRejected():
                assert event.version not in self.by_gate
                assert state.campaigns[event.campaign].versions[event.version].status == "candidate"
            case ev.ArtifactsLetGo():
                let_go(event, state)
            case ev.CampaignEnded() if event.status == "completed":
                self._is_compared(state.campaigns[event.campaign])
            case _:
                pass

    def _lapsed(
        self, event: ev.AttemptEnded, at: float, heard: Mapping[AttemptId, float], started: float
    ) -> None:
        job = self.state.jobs[event.job]
        assert job.site is not None
        since = max(heard.get(event.attempt, 0.0), job.leased_at, started)
        late = at - since > self.state.programme(job.campaign).lease_seconds(self.state.sites[job.site])
        assert late or self.state.sites[job.site].status == "suspended", "lapsed too early"

    def _may_be_cancelled(self, event: ev.JobCancelled, at: float, started: float) -> None:
        """A training job ends unasked only when its round may close, or with its campaign."""
        job = self.state.jobs[event.job]
        campaign = self.state.campaigns.get(job.campaign)
        if campaign is None or event.reason.startswith("campaign stopped"):
            return
        if job.purpose is Purpose.MERGE:
            assert job.state is not JobState.DELIVERED, "cut off while it is inspected"
            since = max(self.shadow.since[job.id], started)
            unasked = campaign.spec.merge_at == "any" and job.state is JobState.PLANNED
            waited = unasked and at > since + campaign.spec.lease_seconds
            assert waited or is_over(campaign, job, at), "cancelled before its time"
        if job.purpose in (Purpose.GATE, Purpose.CHECK, Purpose.COMPARE) and not is_over(campaign, job, at):
            back = job.state is JobState.PLANNED and job.outcome is Outcome.EXPIRED
            assert job.state is JobState.PLANNED and not back, "a judge who may come back is given up"
            assert all(self.state.sites[name].allocations for name in job.sites), "a judge is given up"
        for round_ in campaign.rounds.values():
            asked = [self.state.jobs[name] for name in (*round_.jobs, *round_.late)]
            if job in asked and round_.state is RoundState.TRAINING:
                assert may_close(campaign, round_, asked, at), "cancelled before its round could close"

    def _failed(self, event: ev.RoundFailed, at: float) -> None:
        campaign = self.state.campaigns[event.campaign]
        round_ = campaign.rounds[event.round]
        assert round_.state in (RoundState.TRAINING, RoundState.MERGING), f"{round_.state}, and failed"
        asked = [self.state.jobs[name] for name in (*round_.jobs, *round_.late)]
        if round_.state is RoundState.TRAINING:
            assert may_close(campaign, round_, asked, at), "failed before it could close"
            assert {job.id for job in asked if not job.is_final} <= set(event.left), "goes on unasked"
            enough = sum(is_enough(campaign, job) for job in asked)
            checked = campaign.spec.admission.loss_check == "decide"
            needed = campaign.spec.quorum.minimum if event.round else 1
            assert checked or enough < needed, f"{enough} contributions are enough"
            following, quorum = event.round + 1, campaign.spec.quorum
            kept = {
                job.id
                for job in asked
                if is_enough(campaign, job)
                and job.purpose is Purpose.ROUND
                and (quorum.late == "next_round" and following <= campaign.spec.rounds)
                and following - job.round <= quorum.staleness_max
            }
            assert checked or kept <= set(event.left), "what it has is dropped"
        self._left(event)

    def _is_compared(self, campaign: CampaignState) -> None:
        rivals = [self.state.jobs[name] for name in campaign.rivals]
        if not any(job.state is JobState.DONE for job in rivals) or campaign.compare_jobs:
            return
        held = [
            site.name
            for site in self.state.sites.values()
            if site.status == "enrolled"
            and not site.draining
            and site.name in (campaign.spec.sites or (site.name,))
            and set(site.languages("private", heldout=True)) & set(campaign.spec.languages)
        ]
        assert not held, "its rivals are not compared"

    def _collected(self, event: ev.RoundCollected, at: float) -> None:
        campaign = self.state.campaigns[event.campaign]
        round_ = campaign.rounds[event.round]
        assert round_.state is RoundState.TRAINING
        jobs = [self.state.jobs[name] for name in (*round_.jobs, *round_.late)]
        assert may_close(campaign, round_, jobs, at), "closed too early"
        assert event.jobs == tuple(sorted(set(event.jobs))) and event.jobs
        asked = (*round_.jobs, *round_.late)
        assert set(event.jobs) <= set(asked)
        assert len(event.jobs) >= (campaign.spec.quorum.minimum if event.round else 1)
        assert {job for job in asked if not self.state.jobs[job].is_final} == set(event.left)
        self._left(event)
        for name in event.jobs:
            job = self.state.jobs[name]
            assert job.state is JobState.DONE and job.contribution is not None
            assert job.purpose in (Purpose.SEED, Purpose.ROUND)
            behind = round_.number - job.round
            assert behind == 0 or (
                campaign.spec.quorum.late == "next_round" and 0 < behind <= campaign.spec.quorum.staleness_max
            ), "too stale"
            assert isinstance(job.work, Train)
            assert job.contribution.base == job.work.base == campaign.rounds[job.round].base
            assert job.contribution.site == job.site
            assert job.contribution.attempt == job.attempt
            share = job.contribution.steps / job.contribution.planned_steps
            assert share >= campaign.spec.admission.tokens_share_min
            delta = job.contribution.artifacts["delta"].digest
            assert delta not in self.merged, "merged twice"
            self.merged.add(delta)

    def _left(self, event: ev.RoundCollected | ev.RoundFailed) -> None:
        """What goes on when its round closes may only do so for a round that is still to come."""
        campaign = self.state.campaigns[event.campaign]
        for name in event.left:
            assert campaign.spec.quorum.late == "next_round" and event.round < campaign.spec.rounds
            job = self.state.jobs[name]
            at_it = job.state in (JobState.LEASED, JobState.DELIVERED)
            assert at_it or (job.state is JobState.DONE and isinstance(event, ev.RoundFailed))
            assert event.round + 1 - job.round <= campaign.spec.quorum.staleness_max

    def _made_of_what_was_collected(self, event: ev.VersionMade) -> None:
        campaign = self.state.campaigns[event.campaign]
        round_ = campaign.rounds[event.round]
        found = [self.state.jobs[job].contribution for job in round_.collected]
        assert round_.state is RoundState.MERGING and event.version not in campaign.versions
        assert event.version == event.manifest.digest and event.manifest.base == round_.base
        assert [part.delta for part in event.manifest.ingredients] == sorted(
            (c.artifacts["delta"] for c in found if c), key=lambda ref: ref.digest
        )
        assert event.name not in {version.name for version in campaign.versions.values()}
        job = self.state.jobs[round_.merge_job] if round_.merge_job else None
        if event.merged_by is not None:
            assert campaign.spec.merge_at != "coordinator"
            assert job is not None and (job.state, job.site) == (JobState.DONE, event.merged_by)
        else:
            assert campaign.spec.merge_at != "site"
            assert job is None or job.state in (JobState.FAILED, JobState.CANCELLED), "merged twice at once"

    def _may_be_merged_at_a_site(self, event: ev.JobPlanned) -> None:
        campaign = self.state.campaigns[event.campaign]
        round_ = campaign.rounds[event.round]
        assert campaign.spec.merge_at != "coordinator" and round_.state is RoundState.MERGING
        assert round_.merge_job is None and event.sites
        for name in event.sites:
            site = self.state.sites[name]
            assert site.merges and site.status == "enrolled" and not site.draining
            assert name in (campaign.spec.merge_sites or campaign.spec.sites or event.sites)
        work = event.work
        assert isinstance(work, Merge)
        deltas = [self.state.jobs[job].contribution for job in round_.collected]
        asked_for = {part.delta.digest for part in work.parts}
        assert asked_for == {c.artifacts["delta"].digest for c in deltas if c} and len(work.parts) == len(
            deltas
        )
        base = campaign.versions[round_.base]
        assert {*event.inputs} == {
            base.digest,
            *asked_for,
            *(ref.digest for ref in {**base.manifest.files, **base.manifest.outer_state}.values()),
        }

    # --- what must be so afterwards ---

    def _after(self, event: ev.AnyEvent) -> None:
        if isinstance(event, ev.CampaignEnded | ev.FlowerRunEnded):
            ended = event.campaign if isinstance(event, ev.CampaignEnded) else event.run
            open_jobs = [j.id for j in self.state.jobs.values() if j.campaign == ended]
            assert all(self.state.jobs[job].is_final for job in open_jobs), "work goes on after the end"
        leased = {j.id: j.attempt for j in self.state.open_jobs() if j.state is JobState.LEASED}
        assert leased == self.live
        for campaign in self.state.campaigns.values():
            self._head(campaign)
            for round_ in campaign.rounds.values():
                if round_.merge_job is not None and round_.state is not RoundState.MERGING:
                    assert self.state.jobs[round_.merge_job].is_final or isinstance(
                        event, ev.RoundFailed | ev.VersionMade
                    )

    def _head(self, campaign: CampaignState) -> None:
        assert campaign.head is None or campaign.versions[campaign.head].status == "promoted"
        numbers = sorted(version.number for version in campaign.versions.values())
        assert numbers == list(range(len(numbers)))


def round_trip(event: ev.AnyEvent) -> ev.AnyEvent:
    """The event as it comes back from the ledger."""
    data = encode(event)
    back: ev.AnyEvent = msgspec.convert(msgspec.json.decode(data), type=ev.AnyEvent)
    assert encode(back) == data
    return back
