"""What the worker's thread is given of the state: a copy that stays as it is while the loop goes on changing the state.

Copied is what may still change; facts, and jobs that are final, are shared. A copy of everything would take the longer
the older a consortium is, at each contribution.
"""

import copy

from consortium.ids import CampaignId
from coordinator.core.owed import Inspect, Owed
from coordinator.core.state import CampaignState, FlowerRunState, Job, State


def excerpt(state: State, what: Owed) -> State:
    """The state as it is now, as far as the obligation's campaign goes; other campaigns must not be looked at."""
    name = state.jobs[what.job].campaign if isinstance(what, Inspect) else what.campaign
    part: State = State(**{field: getattr(state, field) for field in State.__struct_fields__})
    part.jobs = state.jobs | {job.id: _job(job) for job in state.open_jobs()}
    part.sites = {site: copy.copy(found) for site, found in state.sites.items()}
    if name in state.campaigns:
        part.campaigns = {name: _campaign(state.campaigns[name])}
    else:
        part.flower_runs = {name: _run(state, name)}
    return part


def _job(job: Job) -> Job:
    found = copy.copy(job)
    found.tries = {attempt: copy.copy(one) for attempt, one in job.tries.items()}
    return found


def _campaign(campaign: CampaignState) -> CampaignState:
    found = copy.copy(campaign)
    found.rounds = {number: copy.copy(round_) for number, round_ in campaign.rounds.items()}
    found.versions = {digest: copy.copy(version) for digest, version in campaign.versions.items()}
    found.scores = {
        subject: {language: dict(sites) for language, sites in languages.items()}
        for subject, languages in campaign.scores.items()
    }
    return found


def _run(state: State, name: CampaignId) -> FlowerRunState:
    found = copy.copy(state.flower_runs[name])
    found.kept = dict(found.kept)
    return found
