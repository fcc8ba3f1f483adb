"""What a campaign would do and cost from the present state on, before a GPU-hour is spent.

The phases of a campaign one after the other, with the same rules that place its jobs in earnest: the same estimates,
steps, windows, allocations and queues. What is left out is what nobody can know: failures, other campaigns to come,
and a merge at the coordinator (taken to last no time beside training). Pure: windows are read by ``opening_at``.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from consortium.capacity import Allocation, Opening
from consortium.errors import BadInput
from consortium.forecasts import (
    AllocationForecast,
    Assumptions,
    Forecast,
    PlannedJob,
    PlannedRound,
    SiteAssumption,
)
from consortium.ids import Digest, SiteName, digest_of
from consortium.jobs import Evaluate, Purpose, Subject, Tokenizer, Train, Work
from consortium.manifests import Holding
from coordinator.core.able import holders_of_public_text, judges, own_languages, participants
from coordinator.core.accounting import held_back, in_force
from coordinator.core.decide import Moment
from coordinator.core.estimates import Cost, Estimate, cost_of, queue_seconds
from coordinator.core.orders import train_order
from coordinator.core.pace import shares
from coordinator.core.rounds import order_of_site
from coordinator.core.state import CampaignState, Site, State
from coordinator.core.words import gpu_hours, spoken
from policies.campaign import Campaign

HOUR = 3600.0
_JOBS_MAX = 20_000
_LOOKS_MAX = 400  # at windows, for one job: more than a year of nights
_NO_BASE = Digest("0" * 64)

OpeningAt = Callable[[Site, float], Opening]


def forecast(
    state: State, spec: Campaign, now: float, opening_at: OpeningAt, assumptions: Assumptions
) -> Forecast:
    """The campaign as if submitted at ``now``. Uses ``state`` up: give it a copy. Raises BadInput for a huge one."""
    if spec.rounds * max(1, len(state.sites)) > _JOBS_MAX:
        raise BadInput(
            f"{spec.rounds} rounds of {len(state.sites)} sites are too many to forecast; try fewer"
        )
    return _Foresight(state, spec, now, opening_at, assumptions).all()


@dataclass(slots=True)
class _Given:
    """A job that found its site."""

    job: PlannedJob
    waited_for: str  #: what made it begin no earlier


@dataclass(slots=True)
class _Account:
    site: SiteName
    allocation: Allocation
    used: float
    held: float
    needed: float = 0.0  #: GPU-seconds

    @property
    def left(self) -> float:
        return self.allocation.gpu_hours * HOUR - self.used - self.held - self.needed


@dataclass(slots=True)
class _Found:
    jobs: list[PlannedJob] = field(default_factory=list)
    rounds: list[PlannedRound] = field(default_factory=list)
    limits: dict[str, None] = field(default_factory=dict)  # in the order they came up, each once
    undone: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # (purpose, why) -> rounds
    assumed: dict[str, None] = field(default_factory=dict)


class _Foresight:
    def __init__(
        self, state: State, spec: Campaign, now: float, opening_at: OpeningAt, assumptions: Assumptions
    ) -> None:
        self._state = state
        self._campaign = CampaignState(spec=spec, opened_at=now, head=_NO_BASE)
        self._now, self._opening_at = now, opening_at
        self._told: dict[SiteName, Estimate] = {}
        self._found = _Found()
        for assumption in sorted(assumptions.sites, key=lambda one: one.site):
            self._assume(assumption)
        sites = self._state.sites
        self._slots = {name: self._busy_until(site) for name, site in sorted(sites.items())}
        self._accounts = {
            (name, allocation.name): _Account(
                name,
                allocation,
                site.charged.get(allocation.name, 0.0),
                held_back(self._state, site, allocation.name),
            )
            for name, site in sorted(sites.items())
            for allocation in site.allocations
        }

    # --- what is given ---

    def _assume(self, told: SiteAssumption) -> None:
        """Change the copy of the state by what somebody says of a site."""
        site = self._state.sites.get(told.site)
        if site is None:
            site = Site(told.site, "", "", "", "", 0.0, slots=1)
            self._state.sites[told.site] = site
            self._found.assumed[f"{told.site} is taken to be enrolled, with public text in all languages"] = (
                None
            )
        if told.languages is not None or not site.holdings:
            spec = self._campaign.spec
            own = spec.languages if told.languages is None else told.languages
            site.holdings = tuple(_holding(x, "private") for x in own)
            site.holdings += tuple(_holding(x, "public") for x in spec.languages)
        if told.gpus is not None:
            site.gpus = told.gpus
        if told.slots is not None:
            site.slots = told.slots
        if told.tokens_per_second is not None:
            how = f"{told.tokens_per_second:.4g} tokens/s at {told.site}, as you say"
            self._told[told.site] = Estimate(told.tokens_per_second, how, True)
        if told.queue_hours is not None:
            site.queued = (told.queue_hours * HOUR,)
            self._found.assumed[f"{told.queue_hours:g} h in {told.site}'s queue, as you say"] = None
        if told.gpu_hours is not None:
            site.allocations = (Allocation(name="assumed", gpu_hours=told.gpu_hours, until=told.until),)
            site.charged = {}
        if told.windows is not None:
            site.windows = told.windows

    def _busy_until(self, site: Site) -> list[float]:
        """For each of its slots, when what runs in it is expected to end."""
        queue = queue_seconds(site).value
        ends = []
        for job in self._state.live(site.name):
            campaign = self._state.campaigns[job.campaign]
            takes = cost_of(self._state, campaign, site, job.work, job.purpose).seconds.value
            began = job.leased_at + queue if job.started_at is None else job.started_at
            ends.append(max(self._now, began + takes))
        return sorted([*ends, *[self._now] * max(0, site.slots - len(ends))])

    # --- the phases ---

    def all(self) -> Forecast:
        spec, found = self._campaign.spec, self._found
        able = participants(self._state, self._campaign)
        if len(able) < spec.sites_expected:
            names = ", ".join(site.name for site in able) or "none"
            found.limits[
                f"{len(able)} of the {spec.sites_expected} expected sites hold text of its languages ({names}); "
                "it would wait for the others"
            ] = None
        at = self._beginnings(self._now)
        first = at
        for number in range(1, spec.rounds + 1):
            ends = self._round(number, at)
            if ends is None:
                break
            at = ends
        at = max(at, self._rivals(first, at))
        return Forecast(
            campaign=spec.campaign,
            now=self._now,
            ends_at=at,
            gpu_hours=sum(job.gpu_hours for job in found.jobs),
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
                for _, one in sorted(self._accounts.items())
            ),
            limits=(*found.limits, *_in_words(found.undone)),
            assumptions=tuple(found.assumed),
        )

    def _beginnings(self, at: float) -> float:
        """Tokenizer and seed round, if the campaign has them."""
        spec, campaign = self._campaign.spec, self._campaign
        holders = self._sites(holders_of_public_text(self._state, campaign))
        if spec.tokenizer.vocabulary_size is not None:
            work = Tokenizer(
                languages=spec.languages,
                vocabulary_size=spec.tokenizer.vocabulary_size,
                bytes_per_language=spec.tokenizer.bytes_per_language,
            )
            at = self._give(0, Purpose.TOKENIZER, holders, work, at).job.ends_at or at
        if spec.seed_round is not None:
            seed = train_order(campaign, _NO_BASE, 0, "seed", (), spec.seed_round.steps, replay_share=1.0)
            given = self._give(0, Purpose.SEED, holders, seed, at)
            closes = given.job.ends_at or at
            ends = self._judged(0, closes)
            self._found.rounds.append(
                PlannedRound(round=0, opens_at=at, closes_at=closes, ends_at=ends, bound_by=_binding([given]))
            )
            at = ends
        return at

    def _round(self, number: int, at: float) -> float | None:
        """One round from its opening to its verdict; None: nobody can take part."""
        campaign, quorum = self._campaign, self._campaign.spec.quorum
        sites = participants(self._state, campaign)
        if not sites:
            return None
        moment = Moment(now=at, openings={site.name: self._opening_at(site, at) for site in sites})
        given_steps = shares(self._state, campaign, sites, moment, self._told)
        given = []
        for site in sites:
            share = given_steps[site.name]
            order = order_of_site(campaign, number, site, share.steps)
            given.append(self._give(number, Purpose.ROUND, (site,), order, at, share.reason))
        over = {one.job.site: self._given_up_at(one.job) for one in given if one.job.site}
        if not over:
            self._found.limits[f"round {number}: no site can train; the campaign would stop here"] = None
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
                slots = self._slots[SiteName(one.job.site)]
                slots[slots.index(one.job.ends_at)] = closes
                slots.sort()
        ends = self._judged(number, closes)
        self._found.rounds.append(
            PlannedRound(round=number, opens_at=at, closes_at=closes, ends_at=ends, bound_by=bound)
        )
        return ends

    def _given_up_at(self, job: PlannedJob) -> float:
        """When a job of a round would end, or be waited for no longer."""
        quorum = self._campaign.spec.quorum
        queue_max = quorum.deadline_hours if quorum.queue_hours_max is None else quorum.queue_hours_max
        opened = (
            job.given_at
        )  # a busy site or a closed window counts, too, but is seldom longer than the queue
        if job.starts_at > opened + queue_max * HOUR:
            self._found.limits[
                f"{job.site}: its queue takes {spoken(job.starts_at - opened)}, jobs may wait {queue_max:g} h; "
                "raise queue_hours_max"
            ] = None
            return opened + queue_max * HOUR
        hours = (job.ends_at - job.starts_at) / HOUR
        if hours > quorum.deadline_hours:
            self._found.limits[
                f"{job.site} needs {spoken(hours * HOUR)} for its job of a round, the deadline is "
                f"{quorum.deadline_hours:g} h; raise it, or ask for fewer steps"
            ] = None
            return job.starts_at + quorum.deadline_hours * HOUR
        return job.ends_at

    def _judged(self, number: int, at: float) -> float:
        """When every site with held-out text has scored the candidate."""
        ends = at
        for site, languages in judges(self._state, self._campaign):
            subjects = tuple(Subject(name=name, version=_NO_BASE) for name in ("candidate", "base"))
            work = Evaluate(
                subjects=subjects[: 1 if number == 0 else 2],
                languages=languages,
                sequence_tokens=self._campaign.spec.train.sequence_tokens,
            )
            ends = max(ends, self._give(number, Purpose.GATE, (site,), work, at).job.ends_at)
        return ends

    def _rivals(self, first: float, at: float) -> float:
        """Comparisons use what the rounds leave free; here they begin when the last round has ended."""
        spec, campaign = self._campaign.spec, self._campaign
        sites = participants(self._state, campaign)
        steps, ends = spec.rounds * spec.train.steps, at
        if spec.rivals.public_only and sites:
            work = train_order(campaign, _NO_BASE, 1, "public", (), steps * len(sites), replay_share=1.0)
            holders = self._sites(holders_of_public_text(self._state, campaign))
            ends = max(ends, self._give(1, Purpose.RIVAL, holders, work, at).job.ends_at)
        if spec.rivals.specialists:
            for site in sites:
                own = own_languages(site, campaign)
                share = spec.train.replay_share
                work = train_order(campaign, _NO_BASE, 1, site.name, own, steps, replay_share=share)
                ends = max(ends, self._give(1, Purpose.RIVAL, (site,), work, at).job.ends_at)
        if ends > at:
            ends = self._judged(spec.rounds, ends)
        return ends

    def _sites(self, names: Iterable[SiteName]) -> tuple[Site, ...]:
        return tuple(self._state.sites[name] for name in names)

    # --- one job ---

    def _give(
        self, number: int, purpose: Purpose, sites: tuple[Site, ...], work: Work, at: float, why: str = ""
    ) -> _Given:
        """The job at the site that would finish it first, entered in slots and accounts."""
        steps = work.steps if isinstance(work, Train) else 0
        options, refusals = [], []
        for site in sites:
            takes = cost_of(self._state, self._campaign, site, work, purpose, self._told.get(site.name))
            found = self._option(site, takes, at)
            if isinstance(found, str):
                refusals.append(found)
            else:
                options.append((found[1] + takes.seconds.value, site.name, found, takes))
        if not options:
            reason = "; ".join(refusals) or "no site holds what it needs"
            self._found.undone.setdefault((purpose.value, reason), []).append(number)
            job = PlannedJob(round=number, purpose=purpose.value, site="", steps=steps, reason=reason)
            self._found.jobs.append(job)
            return _Given(job, reason)
        ends, name, (given_at, starts, allocation, waited), takes = min(options, key=lambda one: one[:2])
        slots = self._slots[name]
        slots[0] = ends
        slots.sort()
        if allocation:
            self._accounts[name, allocation].needed += takes.gpu_seconds
        if not takes.seconds.is_measured:
            self._found.assumed[f"{purpose.value} at {name}: {takes.seconds.how}"] = None
        queue = queue_seconds(self._state.sites[name])
        if queue.value and not queue.is_measured:
            self._found.assumed[queue.how + f" ({spoken(queue.value)})"] = None
        reason = why or takes.seconds.how
        if len(options) > 1:
            other_ends, other, *_ = sorted(options, key=lambda one: one[:2])[1]
            reason = f"finishes first; {other} would {spoken(other_ends - ends)} later; {reason}"
        job = PlannedJob(
            round=number,
            purpose=purpose.value,
            site=name,
            steps=steps,
            given_at=given_at,
            starts_at=starts,
            ends_at=ends,
            gpu_hours=takes.gpu_seconds / HOUR,
            allocation=allocation,
            is_measured=takes.seconds.is_measured,
            reason=reason,
        )
        self._found.jobs.append(job)
        return _Given(job, waited)

    def _option(self, site: Site, takes: Cost, at: float) -> tuple[float, float, str, str] | str:
        """When the site could be given the job and begin it, who pays, what it waits for; or why never."""
        free = self._slots[site.name][0] if self._slots[site.name] else None
        if free is None:
            return f"{site.name} has no slot"
        given_at = max(at, free)
        waited = "a free slot" if free > at else ""
        queue = queue_seconds(site).value
        needs = queue + takes.seconds.value
        for _ in range(_LOOKS_MAX):
            opening = self._opening_at(site, given_at)
            if opening.is_open and _fits(opening, given_at, needs, takes.seconds.is_measured):
                break
            if opening.until is None:
                return f"{site.name}'s windows never open again"
            given_at, waited = opening.until, "a window"
        else:
            return f"no window of {site.name} is long enough"
        starts = given_at + queue
        if not site.allocations:
            return given_at, starts, "", waited
        why = f"{site.name}'s allocation has ended by then"
        for allocation in in_force(site, given_at):
            account = self._accounts[site.name, allocation.name]
            if takes.gpu_seconds > account.left or account.left <= 0.0:
                why = (
                    f"{site.name} would need {gpu_hours(takes.gpu_seconds)}, allocation {allocation.name} has "
                    f"{gpu_hours(max(0.0, account.left))} left by then"
                )
            elif allocation.until is not None and starts + takes.seconds.value > allocation.until:
                why = f"it would end after allocation {allocation.name} of {site.name} does"
            else:
                return given_at, starts, allocation.name, waited
        return why


def _in_words(undone: dict[tuple[str, str], list[int]]) -> Iterable[str]:
    for (purpose, why), numbers in undone.items():
        rounds = f"round {numbers[0]}" if len(set(numbers)) == 1 else f"rounds {numbers[0]} to {numbers[-1]}"
        yield f"{rounds}, {purpose}: {why}"


def _fits(opening: Opening, at: float, needs: float, is_measured: bool) -> bool:
    """The rule of windows, as coordinator/core/place.py has it."""
    if opening.until is None or not is_measured or at + needs <= opening.until:
        return True
    length = opening.until - (at if opening.since is None else opening.since)
    return needs > length and at <= opening.until - length / 2.0


def _binding(given: list[_Given]) -> str:
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


def _holding(language: str, access: str) -> Holding:
    return Holding(
        language=language,  # type: ignore[arg-type]
        access=access,  # type: ignore[arg-type]
        documents=1,
        bytes=1,
        heldout_documents=1 if access == "private" else 0,
        licence="",
        digest=digest_of(f"{language}.{access}".encode()),
    )
