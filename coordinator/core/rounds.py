"""How a round opens: who takes part in it, with how many steps, and what it takes over from the one before."""

from collections.abc import Iterator, Mapping

from consortium.canonical import replace
from consortium.ids import SiteName, job_named
from consortium.jobs import Purpose, Train
from coordinator.core import events as ev
from coordinator.core.able import holders_of_public_text, names_of, own_languages, participants
from coordinator.core.charging import lacking
from coordinator.core.estimates import Estimate, cost_of
from coordinator.core.late import taken_over
from coordinator.core.moment import Moment
from coordinator.core.orders import fed_back, planned, train_inputs, train_order
from coordinator.core.pace import shares
from coordinator.core.state import CampaignState, Site, State


def open_round(state: State, campaign: CampaignState, number: int, moment: Moment) -> Iterator[ev.AnyEvent]:
    """The round and its jobs, when enough able sites are enrolled and enough of them can pay; else nothing."""
    if len(participants(state, campaign)) < campaign.spec.sites_expected:
        return
    if number == 0:
        yield from _seed_round(state, campaign)
    else:
        yield from _round(state, campaign, number, moment)


def _seed_round(state: State, campaign: CampaignState) -> Iterator[ev.AnyEvent]:
    spec = campaign.spec
    assert campaign.head is not None and spec.seed_round is not None
    holders = holders_of_public_text(state, campaign)
    if not holders:
        return
    yield ev.RoundOpened(
        campaign=spec.campaign,
        round=0,
        base=campaign.head,
        reason=f"seed round: public text at any of {len(holders)} site(s)",
    )
    seed = train_order(campaign, campaign.head, 0, "seed", (), spec.seed_round.steps, replay_share=1.0)
    seed = replace(seed, optimizer=spec.seed_round.optimizer, schedule_steps=seed.steps)
    reason = "the base that every specialist branches from"
    job = job_named(spec.campaign, "r0-seed")
    yield planned(campaign, job, 0, Purpose.SEED, holders, seed, train_inputs(campaign, seed), reason)


def _round(state: State, campaign: CampaignState, number: int, moment: Moment) -> Iterator[ev.AnyEvent]:
    spec = campaign.spec
    assert campaign.head is not None
    late = taken_over(state, campaign, number)
    able, out = who_takes_part(state, campaign, number, moment)
    if len(able) + len(late) < spec.quorum.minimum:
        return
    reason = f"{len(able)} site(s) take part: {names_of(able)}"
    yield ev.RoundOpened(
        campaign=spec.campaign,
        round=number,
        base=campaign.head,
        late=late,
        reason="; ".join((reason, *out)),
    )
    given = shares(state, campaign, able, moment)
    for site in able:
        share = given[site.name]
        work = fed_back(order_of_site(campaign, number, site, share.steps), state, campaign, site.name)
        holds = f"{site.name} holds {', '.join(own_languages(site, campaign))}"
        yield planned(
            campaign,
            job_named(spec.campaign, f"r{number}-train-{site.name}"),
            number,
            Purpose.ROUND,
            (site.name,),
            work,
            train_inputs(campaign, work),
            f"{holds}; {share.reason}" if share.reason else holds,
        )


def who_takes_part(
    state: State,
    campaign: CampaignState,
    number: int,
    moment: Moment,
    told: Mapping[SiteName, Estimate] | None = None,
) -> tuple[tuple[Site, ...], tuple[str, ...]]:
    """Sites that get a job in a round that opens now, and in sentences why others do not.

    told  tokens per second of sites of which somebody knows better than the ledger
    """
    busy = {
        state.jobs[name].site: state.jobs[name]
        for name in taken_over(state, campaign, number)
        if not state.jobs[name].is_final
    }
    able, out = [], []
    for site in participants(state, campaign):
        if site.name in busy:
            out.append(f"{site.name} goes on with its job of round {busy[site.name].round}")
            continue
        order = order_of_site(campaign, number, site, campaign.spec.train.steps)
        takes = cost_of(state, campaign, site, order, Purpose.ROUND, (told or {}).get(site.name))
        if (lacks := lacking(site, takes, moment.now)) is not None:
            out.append(lacks)
        else:
            able.append(site)
    return tuple(able), tuple(out)


def too_few_can_pay(state: State, campaign: CampaignState, number: int, moment: Moment) -> str | None:
    """Why a round with enough sites does not open: too few allocations allow its jobs. None: enough do."""
    if number == 0 or campaign.head is None:
        return None
    able, out = who_takes_part(state, campaign, number, moment)
    coming, minimum = len(able) + len(taken_over(state, campaign, number)), campaign.spec.quorum.minimum
    if coming >= minimum:
        return None
    return f"{coming} of the {minimum} contributions that it needs could come: {'; '.join(out)}"


def order_of_site(campaign: CampaignState, number: int, site: Site, steps: int) -> Train:
    """A site's job of a round; its learning rate decays over the rounds as everybody's, whatever its steps."""
    plan, spec = campaign.spec.train, campaign.spec
    assert campaign.head is not None
    work = train_order(
        campaign,
        campaign.head,
        number,
        site.name,
        own_languages(site, campaign),
        steps,
        replay_share=plan.replay_share,
    )
    return replace(work, schedule_start=(number - 1) * steps, schedule_steps=spec.rounds * steps)
