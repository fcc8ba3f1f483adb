"""What the rounds before say of a new delta: how far such deltas moved, and which are known already.

Only what was collected in rounds before the job's own counts: that stands when the job is planned, so whoever inspects
the delta again in three years measures it by the same.
"""

import statistics
from collections.abc import Iterator

from consortium.ids import Digest
from coordinator.core.state import CampaignState, Job, State

NORMS_MIN = 3  #: fewer say nothing of what is usual


def usual_norm(state: State, campaign: CampaignState, job: Job) -> float | None:
    """The median norm, relative to the base's, of the deltas of earlier rounds; None: there are too few."""
    norms = [
        before.measures["norm"] / before.measures["base_norm"]
        for before in _before(state, campaign, job)
        if before.measures.get("base_norm")
    ]
    return statistics.median(norms) if len(norms) >= NORMS_MIN else None


def known_deltas(state: State, campaign: CampaignState, job: Job) -> frozenset[Digest]:
    """Deltas that were collected in earlier rounds: who sends one of them again has not trained."""
    return frozenset(
        before.contribution.artifacts["delta"].digest
        for before in _before(state, campaign, job)
        if before.contribution is not None
    )


def _before(state: State, campaign: CampaignState, job: Job) -> Iterator[Job]:
    for number, round_ in sorted(campaign.rounds.items()):
        if 1 <= number < job.round:
            yield from (state.jobs[name] for name in round_.collected)
