"""What a campaign would do and cost from the present state on, before a GPU-hour is spent.

The phases of a campaign one after the other, with the same rules that place its jobs in earnest: the same estimates,
steps, windows, allocations and queues. What is left out is what nobody can know: failures, other campaigns to come,
and a merge at the coordinator (taken to last no time beside training). Pure: windows are read by ``opening_at``.
"""

import math
from collections.abc import Iterable

from consortium.errors import BadInput
from consortium.forecasts import (
    AllocationForecast,
    Assumptions,
    Forecast,
    PlannedJob,
    PlannedRound,
)
from consortium.ids import SiteName
from consortium.jobs import Evaluate, Purpose, Subject, Tokenizer
from coordinator.core.able import holders_of_public_text, judges, own_languages, participants
from coordinator.core.foreseen import HOUR, NO_BASE, Given, OpeningAt, Places
from coordinator.core.moment import Moment
from coordinator.core.orders import train_order
from coordinator.core.pace import shares
from coordinator.core.rounds import order_of_site, who_takes_part
from coordinator.core.state import Site, State
from coordinator.core.words import spoken
from policies.campaign import Campaign

_JOBS_MAX = 20_000


def forecast(
    state: State, spec: Campaign, now: float, opening_at: OpeningAt, assumptions: Assumptions
) -> Forecast:
    """The campaign as if submitted at ``now``. Uses ``state`` up: give it a copy. Raises BadInput for a huge one."""
    if spec.rounds * max(1, len(state.sites)) > _JOBS_MAX:
        raise BadInput(
            f"{spec.rounds} rounds of {len(state.sites)} sites are too many to forecast; try fewer"
        )
    return _Foresight(state, spec, now, opening_at, assumptions).all()


class _Foresight(Places):
    """The phases, one after the other."""

    def all(self) -> Forecast:
        spec, found = self.campaign.spec, self.found
        able = participants(self.state, self.campaign)
        if len(able) < spec.sites_expected:
            names = ", ".join(site.name for site in able) or "none"
            found.limits[
                f"{len(able)} of the {spec.sites_expected} expected sites hold text of its languages ({names}); "
                "it would wait for the others"
            ] = None
        at = self._beginnings(self.now)
        first = at
        for number in range(1, spec.rounds + 1):
            ends = self._round(number, at)
            if ends is None:
                break
            at = ends
        at = max(at, self._rivals(first, at))
        return Forecast(
            campaign=spec.campaign,
            now=self.now,
            ends_at=at,
            gpu_hours=math.fsum(job.gpu_hours for job in found.jobs),
            rounds=tuple(found.rounds),
            jobs=tuple(found.jobs),
            allocations=tuple(
                AllocationForecast(
                    site=one.site,
                    allocation=one.allocation.name,
                    granted=one.allocation.gpu_hours,
                    used=one.used / HOUR,
                    held_back=one.held / HOUR,
                    needed=one.needed / HOUR,
                    until=one.allocation.until,
                )
                for _, one in sorted(self.accounts.items())
            ),
            limits=(*found.limits, *_in_words(found.undone)),
            assumptions=tuple(found.assumed),
        )

    def _beginnings(self, at: float) -> float:
        """Tokenizer and seed round, if the campaign has them."""
        spec, campaign = self.campaign.spec, self.campaign
        holders = self._sites(holders_of_public_text(self.state, campaign))
        if spec.tokenizer.vocabulary_size is not None:
            work = Tokenizer(
                languages=spec.languages,
                vocabulary_size=spec.tokenizer.vocabulary_size,
                bytes_per_language=spec.tokenizer.bytes_per_language,
            )
            at = self.give(0, Purpose.TOKENIZER, holders, work, at).job.ends_at or at
        if spec.seed_round is not None:
            seed = train_order(campaign, NO_BASE, 0, "seed", (), spec.seed_round.steps, replay_share=1.0)
            given = self.give(0, Purpose.SEED, holders, seed, at)
            closes = given.job.ends_at or at
            ends = self._judged(0, closes)
            self.found.rounds.append(
                PlannedRound(round=0, opens_at=at, closes_at=closes, ends_at=ends, bound_by=_binding([given]))
            )
            at = ends
        return at

    def _round(self, number: int, at: float) -> float | None:
        """One round from its opening to its verdict; None: nobody can take part."""
        campaign, quorum = self.campaign, self.campaign.spec.quorum
        all_sites = participants(self.state, campaign)
        moment = Moment(now=at, openings={site.name: self.opening(site, at) for site in all_sites})
        sites, out = who_takes_part(self.state, campaign, number, moment, self.told)
        for reason in out:
            self.undone(number, Purpose.ROUND, campaign.spec.train.steps, reason)
        if len(sites) < min(quorum.minimum, len(all_sites)):
            self.found.limits[
                f"round {number}: {len(sites)} of the {quorum.minimum} contributions that it needs could come; the "
                "campaign would wait there"
            ] = None
            return None
        if not sites:
            return None
        given_steps = shares(self.state, campaign, sites, moment, self.told)
        given = []
        for site in sites:
            share = given_steps[site.name]
            order = order_of_site(campaign, number, site, share.steps)
            given.append(self.give(number, Purpose.ROUND, (site,), order, at, share.reason))
        over = {one.job.site: self._given_up_at(one.job) for one in given if one.job.site}
        if not over:
            self.found.limits[f"round {number}: no site can train; the campaign would stop here"] = None
            return None
        done = sorted(
            (one.job.ends_at, one.job.site) for one in given if over.get(one.job.site) == one.job.ends_at
        )
        closes, last = max((at, name) for name, at in over.items())
        bound = _binding(given) if closes in [at for at, _ in done] else f"{last}: its deadline"
        wanted = max(quorum.minimum, math.ceil(quorum.share * len(given) - 1e-9))
        if quorum.share < 1.0 and len(done) >= wanted:
            met, last = done[wanted - 1]
            if (with_grace := met + quorum.grace_hours * HOUR) < closes:
                grace = f" and {quorum.grace_hours:g} h of grace" if quorum.grace_hours else ""
                closes, bound = with_grace, f"the quorum of {wanted}, with {last}{grace}"
        for one in given:
            if one.job.site and one.job.ends_at > closes and quorum.late == "refuse":  # cancelled then
                slots = self.slots[SiteName(one.job.site)]
                slots[slots.index(one.job.ends_at)] = closes
                slots.sort()
        ends = self._judged(number, closes)
        self.found.rounds.append(
            PlannedRound(round=number, opens_at=at, closes_at=closes, ends_at=ends, bound_by=bound)
        )
        return ends

    def _given_up_at(self, job: PlannedJob) -> float:
        """When a job of a round would end, or be waited for no longer."""
        quorum = self.campaign.spec.quorum
        queue_max = quorum.deadline_hours if quorum.queue_hours_max is None else quorum.queue_hours_max
        opened = (
            job.given_at
        )  # a busy site or a closed window counts, too, but is seldom longer than the queue
        if job.starts_at > opened + queue_max * HOUR:
            self.found.limits[
                f"{job.site}: its queue takes {spoken(job.starts_at - opened)}, jobs may wait {queue_max:g} h; "
                "raise queue_hours_max"
            ] = None
            return opened + queue_max * HOUR
        hours = (job.ends_at - job.starts_at) / HOUR
        if hours > quorum.deadline_hours:
            self.found.limits[
                f"{job.site} needs {spoken(hours * HOUR)} for its job of a round, the deadline is "
                f"{quorum.deadline_hours:g} h; raise it, or ask for fewer steps"
            ] = None
            return job.starts_at + quorum.deadline_hours * HOUR
        return job.ends_at

    def _judged(self, number: int, at: float) -> float:
        """When every site with held-out text has scored the candidate."""
        ends = at
        for site, languages in judges(self.state, self.campaign):
            subjects = tuple(Subject(name=name, version=NO_BASE) for name in ("candidate", "base"))
            work = Evaluate(
                subjects=subjects[: 1 if number == 0 else 2],
                languages=languages,
                sequence_tokens=self.campaign.spec.train.sequence_tokens,
            )
            ends = max(ends, self.give(number, Purpose.GATE, (site,), work, at).job.ends_at)
        return ends

    def _rivals(self, first: float, at: float) -> float:
        """Comparisons use what the rounds leave free; here they begin when the last round has ended."""
        spec, campaign = self.campaign.spec, self.campaign
        sites = participants(self.state, campaign)
        steps, ends = spec.rounds * spec.train.steps, at
        if spec.rivals.public_only and sites:
            work = train_order(campaign, NO_BASE, 1, "public", (), steps * len(sites), replay_share=1.0)
            holders = self._sites(holders_of_public_text(self.state, campaign))
            ends = max(ends, self.give(1, Purpose.RIVAL, holders, work, at).job.ends_at)
        if spec.rivals.specialists:
            for site in sites:
                own = own_languages(site, campaign)
                share = spec.train.replay_share
                work = train_order(campaign, NO_BASE, 1, site.name, own, steps, replay_share=share)
                ends = max(ends, self.give(1, Purpose.RIVAL, (site,), work, at).job.ends_at)
        if ends > at:
            ends = self._judged(spec.rounds, ends)
        return ends

    def _sites(self, names: Iterable[SiteName]) -> tuple[Site, ...]:
        return tuple(self.state.sites[name] for name in names)


def _in_words(undone: dict[tuple[str, str], list[int]]) -> Iterable[str]:
    for (purpose, why), numbers in undone.items():
        rounds = f"round {numbers[0]}" if len(set(numbers)) == 1 else f"rounds {numbers[0]} to {numbers[-1]}"
        yield f"{rounds}, {purpose}: {why}"


def _binding(given: list[Given]) -> str:
    """What the last job of a round waits for."""
    last = max((one for one in given if one.job.site), key=lambda one: one.job.ends_at, default=None)
    if last is None:
        return "nobody can do it"
    job = last.job
    parts = [
        (job.starts_at - job.given_at, "its queue"),
        (job.ends_at - job.starts_at, "its work"),
    ]
    what = max(parts)[1]
    return f"{job.site}: {what}" + (f", after {last.waited_for}" if last.waited_for else "")
