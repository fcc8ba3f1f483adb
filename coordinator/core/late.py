"""What becomes of a job that is still at it when its round closes: cancelled, or merged a round later.

With ``late: next_round`` it goes on, its site gets no new job meanwhile, and its delta joins the merge of the round
that is open when it arrives, at most ``staleness_max`` rounds after its own. The delta is relative to its own job's
base, as every delta is; being stale, it weighs less, by integers: its tokens times ``stale_percent`` over 100 for
each round that it is behind (the staleness-weighting of asynchronous federated learning, Xie et al. 2019,
arXiv:1903.03934, in exact numbers). Nothing is merged twice: a job is left by one round and taken over by the next.
Deltas that are finished when their round fails for want of others are left to the next one in the same way.
"""

import math

from consortium.ids import JobId
from consortium.jobs import Purpose
from coordinator.core.lateness import overdue
from coordinator.core.state import CampaignState, Job, Round, State
from coordinator.core.transitions import JobState

_PERCENT = 100


def may_go_on(campaign: CampaignState, round_: Round, job: Job, now: float) -> bool:
    """Whether an open job of a round that closes now is left to finish."""
    is_at_it = job.state in (JobState.LEASED, JobState.DELIVERED)
    return is_at_it and may_be_kept(campaign, round_, job) and overdue(campaign, job, now) is None


def may_be_kept(campaign: CampaignState, round_: Round, job: Job) -> bool:
    """Whether the round after one that closes now may merge a job's delta."""
    quorum, following = campaign.spec.quorum, round_.number + 1
    return (
        quorum.late == "next_round"
        and job.purpose is Purpose.ROUND
        and following <= campaign.spec.rounds
        and following - job.round <= quorum.staleness_max
    )


def taken_over(state: State, campaign: CampaignState, number: int) -> tuple[JobId, ...]:
    """Jobs of earlier rounds whose deltas may still be merged in round ``number``, which opens now."""
    before = campaign.rounds.get(number - 1)
    return tuple(
        sorted(
            name
            for name in (before.left if before else ())
            if state.jobs[name].state not in (JobState.FAILED, JobState.CANCELLED)
        )
    )


def staleness(round_: Round, job: Job) -> int:
    """Rounds that a job is behind the one that merges it; 0: it is of that round."""
    return round_.number - job.round


def weights(counts: list[tuple[int, int]], percent: int) -> list[int]:
    """Integer weights of contributions, given as (tokens, staleness), stale ones discounted.

    Exactly tokens * (percent / 100) ** staleness, up to a common factor. Where none is stale they are the tokens.
    """
    most = max((behind for _, behind in counts), default=0)
    if most == 0:
        return [tokens for tokens, _ in counts]
    found = [tokens * percent**behind * _PERCENT ** (most - behind) for tokens, behind in counts]
    common = math.gcd(*found) or 1
    return [weight // common for weight in found]
