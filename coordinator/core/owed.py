"""What the coordinator's own worker owes: derived from the state each time, so never lost or done twice."""

from consortium.canonical import Fact
from consortium.ids import CampaignId, Digest, JobId
from coordinator.core.able import coordinator_merges, judges_of_candidate
from coordinator.core.state import CampaignState, Round, RoundState, State
from coordinator.core.transitions import JobState


class MakeBase(Fact, tag=True):
    campaign: CampaignId


class Inspect(Fact, tag=True):
    job: JobId
    attempt: str
    envelope: Digest


class Merge(Fact, tag=True):
    campaign: CampaignId
    round: int


class Judge(Fact, tag=True):
    campaign: CampaignId
    round: int


Owed = MakeBase | Inspect | Merge | Judge


def owed(state: State) -> tuple[Owed, ...]:
    """The worker's present obligations, in a fixed order."""
    work: list[Owed] = [
        Inspect(job=job.id, attempt=job.attempt, envelope=job.envelope)
        for job in state.open_jobs()
        if job.state is JobState.DELIVERED and job.attempt is not None and job.envelope is not None
    ]
    for name, campaign in sorted(state.campaigns.items()):
        if campaign.status != "open":
            continue
        if campaign.tokenizer is not None and campaign.head is None:
            work.append(MakeBase(campaign=name))
        for number, round_ in sorted(campaign.rounds.items()):
            if round_.state is RoundState.MERGING and coordinator_merges(state, round_):
                work.append(Merge(campaign=name, round=number))
            elif round_.state is RoundState.EVALUATING and _is_evaluated(state, campaign, round_):
                work.append(Judge(campaign=name, round=number))
    return tuple(work)


def _is_evaluated(state: State, campaign: CampaignState, round_: Round) -> bool:
    if not round_.gate_jobs:
        return not judges_of_candidate(state, campaign)  # nobody can judge: the gate says what that means
    return all(state.jobs[j].is_final for j in round_.gate_jobs)
