"""Are rounds opened, and orders written, as the campaign says: for whom, of what, with how many steps, from when on.

What a campaign's file promises is read here anew; the product's own placing and planning is not asked.
"""

from consortium.ids import CampaignId, Digest, JobId, SiteName
from consortium.jobs import Evaluate, Purpose, Train, Work
from coordinator.core import events as ev
from coordinator.core.state import CampaignState, Job, RoundState, Site, State
from coordinator.core.transitions import JobState

_JUDGING = (Purpose.GATE, Purpose.CHECK, Purpose.COMPARE)
_NEVER = (JobState.FAILED, JobState.CANCELLED)


class Orders:
    def __init__(self) -> None:
        self._seeds: dict[tuple[CampaignId, int], tuple[int, tuple[SiteName, ...]]] = {}

    def watch(self, event: ev.AnyEvent, state: State, at: float) -> None:
        """Raises AssertionError. ``state``: before the event."""
        match event:
            case ev.RoundOpened():
                campaign = state.campaigns[event.campaign]
                there = [site for site in state.sites.values() if takes_part(campaign, site)]
                assert len(there) >= campaign.spec.sites_expected, "opened before enough sites were there"
                if event.round > 0 and campaign.spec.seed_round is not None:
                    seed = campaign.rounds.get(0)
                    assert seed is not None and seed.candidate is not None, "without the seed round's model"
                gone = [name for name in event.late if state.jobs[name].state in _NEVER]
                assert not gone, f"waits for what will never come: {gone}"
            case ev.JobPlanned() if event.purpose not in (Purpose.FLOWER, Purpose.MERGE):
                self._planned(event, state, at)
            case ev.JobLeased():
                self._leased(event, state)
            case ev.RoundCollected():
                campaign = state.campaigns[event.campaign]
                free = [one for one in state.sites.values() if one.slots > len(state.live(one.name))]
                anybody = any(one.merges and one.status == "enrolled" and not one.draining for one in free)
                want = {"coordinator": "coordinator", "site": "site", "any": "site"}[campaign.spec.merge_at]
                assert event.merged_by == want or campaign.spec.merge_at == "any"
                assert event.merged_by == "coordinator" or campaign.spec.merge_at == "site" or anybody, (
                    "no site has a slot to merge in"
                )
            case ev.RolledBack():
                version = state.campaigns[event.campaign].versions[event.version]
                assert version.status == "promoted", "rolled back to what was never promoted"
            case _:
                pass

    def settled(self, state: State) -> None:
        """When all that follows from a command has been decided."""
        for campaign in state.campaigns.values():
            if not campaign.rounds or campaign.status != "open":
                continue
            round_ = campaign.rounds[max(campaign.rounds)]
            if round_.state is not RoundState.TRAINING or round_.number == 0:
                continue
            could = len(round_.jobs) + len(round_.late)
            assert could >= campaign.spec.quorum.minimum, "opened for fewer than it needs"
            jobs = [state.jobs[name] for name in round_.jobs]
            total = campaign.spec.train.steps * len(jobs)
            steps = sum(job.work.steps for job in jobs if isinstance(job.work, Train))
            free = all(not state.sites[name].allocations for job in jobs for name in job.sites)
            assert steps == total or not free, f"{steps} steps are ordered, {total} are planned"

    def _planned(self, event: ev.JobPlanned, state: State, at: float) -> None:
        campaign, work = state.campaigns[event.campaign], event.work
        assert event.job not in state.jobs, "planned twice"
        needs = _needed(campaign, work)
        assert set(event.inputs) == needs, f"its inputs are {event.inputs}, it needs {sorted(needs)}"
        wanted = set(work.languages)
        for site in (state.sites[name] for name in event.sites):
            stands = site.status == "enrolled" and not site.draining
            may_wait = event.purpose is Purpose.RIVAL or _is_missed(campaign, state, event, site)
            assert stands or may_wait, f"{site.name} takes no work"
            assert site.name in (campaign.spec.sites or event.sites), f"{site.name} is not invited"
            access = "public" if event.purpose in (Purpose.SEED, Purpose.TOKENIZER) else "private"
            text = set(site.languages(access, event.purpose in _JUDGING))
            assert wanted <= text, f"{site.name} has not the text"
            if event.purpose is Purpose.ROUND:
                late = [state.jobs[name] for name in campaign.rounds[event.round].late]
                busy = [job.id for job in late if job.site == site.name and not job.is_final]
                assert not busy, f"{site.name} is at a late job"
                assert not site.allocations or has_means(site, at), f"{site.name} has nothing left to spend"
            if isinstance(work, Evaluate) and event.purpose is Purpose.CHECK:
                trained = state.jobs[JobId(work.subjects[-1].name)]
                assert site.name != trained.site or not _others_judge(campaign, state, trained), (
                    f"{site.name} judges what it trained itself"
                )
            if isinstance(work, Evaluate) and event.purpose is Purpose.GATE:
                base = campaign.rounds[event.round].base
                known = campaign.scores.get(base, {})
                scored = all(site.name in known.get(language, {}) for language in work.languages)
                twice = scored and base in {subject.version for subject in work.subjects}
                assert not twice or base == campaign.rounds[event.round].candidate, "its base is scored again"
        if isinstance(work, Train):
            mine = (event.round, event.sites)
            assert self._seeds.setdefault((event.campaign, work.seed), mine) == mine, "dice thrown twice"
            assert work.base == (campaign.rounds[event.round].base if event.round in campaign.rounds else "")
            if event.purpose is Purpose.ROUND:
                decay = ((event.round - 1) * work.steps, campaign.spec.rounds * work.steps)
                assert (work.schedule_start, work.schedule_steps) == decay, "another decay"

    def _leased(self, event: ev.JobLeased, state: State) -> None:
        job, site = state.jobs[event.job], state.sites[event.site]
        campaign = state.campaigns.get(job.campaign)
        if job.purpose is not Purpose.RIVAL or campaign is None:
            return
        ahead = len([n for n in campaign.rounds if n > 0]) < campaign.spec.rounds or any(
            round_.state is not RoundState.CLOSED for round_ in campaign.rounds.values()
        )
        assert not ahead or len(state.live(site.name)) + 1 < site.slots, "a rival took the last slot"


def _needed(campaign: CampaignState, work: Work) -> set[Digest]:
    """Every blob that a site has to read for it, less the tokenizer."""
    versions: list[Digest] = []
    found: set[Digest] = set()
    if isinstance(work, Train):
        versions.append(work.base)
    if isinstance(work, Evaluate):
        for subject in work.subjects:
            versions.append(subject.version)
            found |= {subject.delta} if subject.delta is not None else set()
    for name in versions:
        found |= {name, *(ref.digest for ref in campaign.versions[name].manifest.files.values())}
    return found


def takes_part(campaign: CampaignState, site: Site) -> bool:
    """Whether the site can train in the campaign's rounds now."""
    invited = not campaign.spec.sites or site.name in campaign.spec.sites
    holds = set(site.languages("private")) & set(campaign.spec.languages)
    return site.status == "enrolled" and not site.draining and invited and bool(holds)


def _others_judge(campaign: CampaignState, state: State, trained: Job) -> bool:
    """Whether a site that did not train it holds text of its languages back, and takes work."""
    return any(
        site.name != trained.site
        and takes_part(campaign, site)
        and set(trained.work.languages) & set(site.languages("private", heldout=True))
        for site in state.sites.values()
    )


def _is_missed(campaign: CampaignState, state: State, event: ev.JobPlanned, absent: Site) -> bool:
    """Whether a candidate must fail without this site, which takes no work now: nobody else knows a language."""
    gate = campaign.spec.gate
    if event.purpose is not Purpose.GATE or gate.unscored != "reject":
        return False
    known = {
        language
        for site in state.sites.values()
        if site.status == "enrolled"
        and not site.draining
        and site.name in (campaign.spec.sites or (site.name,))
        for language in site.languages("private", heldout=True)
    }
    wanted = set(gate.protected or campaign.spec.languages) - known
    return bool(wanted & set(absent.languages("private", heldout=True)))


def has_means(site: Site, at: float) -> bool:
    """Whether anything is left of an allocation that has not ended."""
    return any(
        (one.until is None or at < one.until) and site.charged.get(one.name, 0.0) < one.gpu_hours * 3600.0
        for one in site.allocations
    )
