"""How many steps each site does in a round, so that all finish together and the sum stays what the campaign says.

Site i does s_i = r_i (T - w_i) steps: r_i steps per second measured there, w_i seconds until it can begin (its queue,
its windows). T is the one time for which the s_i, each kept within its bounds, add up to the total; it is found by
bisection, because the sum grows with T. What rounding leaves over goes to the largest remainders.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from consortium.ids import SiteName
from coordinator.core.charging import payable_seconds
from coordinator.core.estimates import START_SECONDS, Estimate, median, queue_seconds, tokens_per_second
from coordinator.core.moment import Moment
from coordinator.core.state import CampaignState, Site, State
from coordinator.core.words import spoken

_STEPS_MAX = 1 << 53
_A_LITTLE_LESS = 1.0 - 1e-9  # so that rounding never makes a job dearer than what is left
_BISECTIONS = 200  # halvings of seconds: far below what a float can tell apart


@dataclass(frozen=True, slots=True)
class Runner:
    """One site, as far as sharing out steps goes."""

    steps_per_second: float
    wait_seconds: float  #: before its first step
    least: int
    most: int

    def steps_by(self, seconds: float) -> float:
        """Steps it would do within ``seconds``, kept within its bounds."""
        done = self.steps_per_second * (seconds - self.wait_seconds)
        return min(float(self.most), max(float(self.least), done))


@dataclass(frozen=True, slots=True)
class Share:
    steps: int
    reason: str  #: "" where every site does the same


def share_out(total: int, runners: Mapping[SiteName, Runner]) -> dict[SiteName, int]:
    """``total`` steps over sites, so that they finish together as far as their bounds allow.

    The sum is ``total``, unless all bounds together forbid it: then everybody is at the bound.
    """
    low, high = 0.0, max(r.wait_seconds + r.most / r.steps_per_second for r in runners.values())
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if math.fsum(r.steps_by(middle) for r in runners.values()) < total:
            low = middle
        else:
            high = middle
    exact = {name: runner.steps_by(high) for name, runner in sorted(runners.items())}
    whole = {name: min(runners[name].most, math.floor(steps)) for name, steps in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (whole[name] - exact[name], name))
    while (missing := total - sum(whole.values())) > 0:
        able = [name for name in by_remainder if whole[name] < runners[name].most]
        if not able:
            break
        for name in able[:missing]:
            whole[name] += 1
    return whole


def shares(
    state: State,
    campaign: CampaignState,
    sites: tuple[Site, ...],
    moment: Moment,
    told: Mapping[SiteName, Estimate] | None = None,
) -> dict[SiteName, Share]:
    """The steps of each site's job in a round that opens now on the campaign's head.

    sites  each can pay for a job of ``train.steps``; how many more it does is for its allocations to say, too
    told   tokens per second of sites of which somebody knows better than the ledger
    """
    plan = campaign.spec.train
    equal = {site.name: Share(plan.steps, "") for site in sites}
    if plan.pace == "equal_steps" or len(sites) < 2:
        return equal
    rates = {site.name: tokens_per_second(state, campaign, site, campaign.head) for site in sites}
    rates |= {name: rate for name, rate in (told or {}).items() if name in rates}
    known = [rate.value for rate in rates.values() if rate.is_measured]
    if not known:
        why = f"{plan.steps} steps like everybody: no site's speed has been measured yet"
        return {name: Share(plan.steps, why) for name in equal}
    typical = Estimate(median(known), "not measured there, so taken as the median of the others")
    least = max(1, math.ceil(plan.steps * plan.steps_share_min))
    most = math.floor(plan.steps * plan.steps_share_max)
    runners, how = {}, {}
    for site in sites:
        rate = rates[site.name] if rates[site.name].is_measured else typical
        per_second = rate.value / (plan.batch_sequences * plan.sequence_tokens)
        wait = queue_seconds(site).value + _until_open(site, moment)
        payable = _payable_steps(state, campaign, site, rates[site.name], moment.now)
        runners[site.name] = Runner(per_second, wait, least, max(plan.steps, min(most, payable)))
        how[site.name] = f"{rate.value:.4g} tokens/s {rate.how}"
    given = share_out(plan.steps * len(sites), runners)
    found = {}
    for name, steps in sorted(given.items()):
        ends = runners[name].wait_seconds + steps / runners[name].steps_per_second
        bound = " (the least allowed)" if steps == least else ""
        if steps == runners[name].most:
            bound = " (the most allowed)" if steps == most else " (the most that its allocation can pay)"
        why = f"{steps} steps{bound} where equal ones were {plan.steps}, to end with the others in "
        found[name] = Share(steps, f"{why}{spoken(ends)}: {how[name]}")
    return found


def _payable_steps(state: State, campaign: CampaignState, site: Site, rate: Estimate, now: float) -> int:
    """Of one job of the site; what it costs is reckoned as when the job is leased."""
    plan = campaign.spec.train
    seconds = payable_seconds(state, site, now)
    if math.isinf(seconds):
        return _STEPS_MAX
    seconds -= 0.0 if rate.is_measured else START_SECONDS
    steps = seconds * rate.value / (plan.batch_sequences * plan.sequence_tokens)
    return min(_STEPS_MAX, math.floor(max(0.0, steps) * _A_LITTLE_LESS))


def _until_open(site: Site, moment: Moment) -> float:
    opening = moment.opening(site)
    return 0.0 if opening.is_open or opening.until is None else opening.until - moment.now
