"""Why nothing happens: what each open campaign waits for, in sentences."""

from consortium.canonical import Fact
from consortium.ids import CampaignId
from coordinator.core.able import (
    holders,
    holders_of_public_text,
    merging_sites,
    participants,
    why_no_merge,
)
from coordinator.core.charging import unpayable
from coordinator.core.lateness import hours_to_begin
from coordinator.core.moment import Moment
from coordinator.core.owed import owed
from coordinator.core.plan import next_round
from coordinator.core.rounds import too_few_can_pay
from coordinator.core.state import CampaignState, Round, RoundState, State


class Waiting(Fact):
    """Something that would follow if only …"""

    campaign: CampaignId
    round: int
    reason: str


def waits(state: State, moment: Moment | None = None) -> tuple[Waiting, ...]:
    """What each open campaign waits for, in sentences: the other face of ``follow``."""
    found = []
    for name, campaign in sorted(state.campaigns.items()):
        if campaign.status != "open":
            continue
        number = max(campaign.rounds, default=0)
        found.append(Waiting(campaign=name, round=number, reason=_waits_for(state, campaign, moment)))
    return tuple(found)


def _waits_for(state: State, campaign: CampaignState, moment: Moment | None) -> str:
    last = campaign.rounds[max(campaign.rounds)] if campaign.rounds else None
    if last is not None and _waits_for_a_merger(last):
        why = "; ".join(filter(None, map(why_no_merge, merging_sites(state, campaign))))
        return f"a site that can merge round {last.number}: {why or 'none of its merge_sites is enrolled'}"
    open_jobs = [job for job in state.open_jobs() if job.campaign == campaign.spec.campaign]
    for job in open_jobs:
        if moment is not None and (unpaid := unpayable(state, job, moment.now)) is not None:
            hours = hours_to_begin(campaign)
            return f"an allocation that can pay for {job.id}, for {hours:g} h from its planning: {unpaid}"
    able = [s.name for s in participants(state, campaign)]
    if len(able) < campaign.spec.sites_expected and _is_next_to_begin(campaign, last):
        away = [f"; {s.name} is draining" for s in holders(state, campaign) if s.draining]
        return (
            f"{len(able)} of the {campaign.spec.sites_expected} expected sites are enrolled and hold text "
            f"of its languages ({', '.join(able) or 'none'}){''.join(away)}"
        )
    if campaign.tokenizer is None:
        if campaign.tokenizer_job is None and not holders_of_public_text(state, campaign):
            return f"no site holds public text in all of {', '.join(campaign.spec.languages)}"
        return "the tokenizer is being trained"
    if campaign.head is None:
        return "the base is being made"
    if next_round(campaign) == 0 and not holders_of_public_text(state, campaign):
        return f"no site holds public text in all of {', '.join(campaign.spec.languages)}"
    following = next_round(campaign)
    closed = last is None or last.state is RoundState.CLOSED
    if moment is not None and closed and following is not None:
        if (unpaid := too_few_can_pay(state, campaign, following, moment)) is not None:
            return f"allocations that can pay for round {following}: {unpaid}"
    if open_jobs:
        named = ", ".join(job.id for job in open_jobs[:4])
        return f"{len(open_jobs)} job(s): {named}{' …' if len(open_jobs) > 4 else ''}"
    return "the coordinator's worker: " + ", ".join(
        type(w).__name__.lower()
        for w in owed(state)
        if getattr(w, "campaign", None) == campaign.spec.campaign
    )


def _is_next_to_begin(campaign: CampaignState, last: Round | None) -> bool:
    """Whether what comes next is the tokenizer's job or a round, which begin only with enough sites."""
    if campaign.tokenizer is None:
        return campaign.tokenizer_job is None
    return next_round(campaign) is not None and (last is None or last.state is RoundState.CLOSED)


def _waits_for_a_merger(round_: Round) -> bool:
    return round_.state is RoundState.MERGING and round_.merged_by == "site" and round_.merge_job is None
