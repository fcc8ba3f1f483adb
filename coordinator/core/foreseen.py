"""Where a forecast's jobs go: a copy of the sites on which slots, queues, windows and allocations are used up."""

from collections.abc import Callable
from dataclasses import dataclass, field

from consortium.capacity import ALWAYS, Allocation, Opening
from consortium.forecasts import (
    Assumptions,
    PlannedJob,
    PlannedRound,
    SiteAssumption,
)
from consortium.ids import Digest, SiteName, digest_of
from consortium.jobs import Purpose, Train, Work
from consortium.manifests import Holding
from coordinator.core.accounting import held_back, in_force
from coordinator.core.estimates import Cost, Estimate, cost, cost_of, queue_seconds
from coordinator.core.state import CampaignState, Site, State
from coordinator.core.words import gpu_hours, spoken
from policies.campaign import Campaign

HOUR = 3600.0
NO_BASE = Digest("0" * 64)  #: of a campaign that has not begun
_LOOKS_MAX = 400  # at windows, for one job: more than a year of nights

OpeningAt = Callable[[Site, float], Opening]


@dataclass(slots=True)
class Given:
    """A job that found its site."""

    job: PlannedJob
    waited_for: str  #: what made it begin no earlier


@dataclass(slots=True)
class Account:
    site: SiteName
    allocation: Allocation
    used: float
    held: float
    needed: float = 0.0  #: GPU-seconds

    @property
    def left(self) -> float:
        return self.allocation.gpu_hours * HOUR - self.used - self.held - self.needed


@dataclass(slots=True)
class Found:
    jobs: list[PlannedJob] = field(default_factory=list)
    rounds: list[PlannedRound] = field(default_factory=list)
    limits: dict[str, None] = field(default_factory=dict)  # in the order they came up, each once
    undone: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # (purpose, why) -> rounds
    assumed: dict[str, None] = field(default_factory=dict)


class Places:
    """Sites as they will be, job by job; what stood in the way, and what had to be assumed."""

    def __init__(
        self, state: State, spec: Campaign, now: float, opening_at: OpeningAt, assumptions: Assumptions
    ) -> None:
        self.state = state
        self.campaign = CampaignState(spec=spec, opened_at=now, head=NO_BASE)
        self.now, self._opening_at = now, opening_at
        self.told: dict[SiteName, Estimate] = {}
        self.found = Found()
        for assumption in sorted(assumptions.sites, key=lambda one: one.site):
            self._assume(assumption)
        sites = self.state.sites
        self.slots = {name: self._busy_until(site) for name, site in sorted(sites.items())}
        self.accounts = {
            (name, allocation.name): Account(
                name,
                allocation,
                site.charged.get(allocation.name, 0.0),
                held_back(self.state, site, allocation.name),
            )
            for name, site in sorted(sites.items())
            for allocation in site.allocations
        }

    # --- what is given ---

    def _assume(self, told: SiteAssumption) -> None:
        """Change the copy of the state by what somebody says of a site."""
        site = self.state.sites.get(told.site)
        if site is None:
            site = Site(told.site, "", "", "", "", 0.0, slots=1)
            self.state.sites[told.site] = site
            self.found.assumed[f"{told.site} is taken to be enrolled, with public text in all languages"] = (
                None
            )
        if told.languages is not None or not site.holdings:
            spec = self.campaign.spec
            own = spec.languages if told.languages is None else told.languages
            site.holdings = tuple(_holding(x, "private") for x in own)
            site.holdings += tuple(_holding(x, "public") for x in spec.languages)
        if told.gpus is not None:
            site.gpus = told.gpus
        if told.slots is not None:
            site.slots = told.slots
        if told.tokens_per_second is not None:
            how = f"{told.tokens_per_second:.4g} tokens/s at {told.site}, as you say"
            self.told[told.site] = Estimate(told.tokens_per_second, how, True)
        if told.queue_hours is not None:
            site.queued = (told.queue_hours * HOUR,)
            self.found.assumed[f"{told.queue_hours:g} h in {told.site}'s queue, as you say"] = None
        if told.gpu_hours is not None:
            site.allocations = (Allocation(name="assumed", gpu_hours=told.gpu_hours, until=told.until),)
            site.charged = {}
        if told.windows is not None:
            site.windows = told.windows

    def _busy_until(self, site: Site) -> list[float]:
        """For each of its slots, when what runs in it is expected to end."""
        queue = queue_seconds(site).value
        ends = []
        for job in self.state.live(site.name):
            takes = cost(self.state, site, job).seconds.value
            began = job.leased_at + queue if job.started_at is None else job.started_at
            ends.append(max(self.now, began + takes))
        return sorted([*ends, *[self.now] * max(0, site.slots - len(ends))])

    def opening(self, site: Site, at: float) -> Opening:
        """How its windows will stand; of a courier's site nobody asks, as ``Moment.opening`` has it."""
        return ALWAYS if site.courier else self._opening_at(site, at)

    # --- one job ---

    def give(
        self, number: int, purpose: Purpose, sites: tuple[Site, ...], work: Work, at: float, why: str = ""
    ) -> Given:
        """The job at the site that would finish it first, entered in slots and accounts."""
        steps = work.steps if isinstance(work, Train) else 0
        options, refusals = [], []
        for site in sites:
            takes = cost_of(self.state, self.campaign, site, work, purpose, self.told.get(site.name))
            found = self._option(site, takes, at)
            if isinstance(found, str):
                refusals.append(found)
            else:
                options.append((found[1] + takes.seconds.value, site.name, found, takes))
        if not options:
            return self.undone(number, purpose, steps, "; ".join(refusals) or "no site holds what it needs")
        ends, name, (given_at, starts, allocation, waited), takes = min(options, key=lambda one: one[:2])
        slots = self.slots[name]
        slots[0] = ends
        slots.sort()
        if allocation:
            self.accounts[name, allocation].needed += takes.gpu_seconds
            charged = self.state.sites[name].charged  # of the copy: by it rounds tell who can pay
            charged[allocation] = charged.get(allocation, 0.0) + takes.gpu_seconds
        if not takes.seconds.is_measured:
            self.found.assumed[f"{purpose.value} at {name}: {takes.seconds.how}"] = None
        queue = queue_seconds(self.state.sites[name])
        if queue.value and not queue.is_measured:
            self.found.assumed[queue.how + f" ({spoken(queue.value)})"] = None
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
        self.found.jobs.append(job)
        return Given(job, waited)

    def undone(self, number: int, purpose: Purpose, steps: int, reason: str) -> Given:
        """A job that nobody gets."""
        self.found.undone.setdefault((purpose.value, reason), []).append(number)
        job = PlannedJob(round=number, purpose=purpose.value, site="", steps=steps, reason=reason)
        self.found.jobs.append(job)
        return Given(job, reason)

    def _option(self, site: Site, takes: Cost, at: float) -> tuple[float, float, str, str] | str:
        """When the site could be given the job and begin it, who pays, what it waits for; or why never."""
        free = self.slots[site.name][0] if self.slots[site.name] else None
        if free is None:
            return f"{site.name} has no slot"
        given_at = max(at, free)
        waited = "a free slot" if free > at else ""
        queue = queue_seconds(site).value
        needs = queue + takes.seconds.value
        for _ in range(_LOOKS_MAX):
            opening = self.opening(site, given_at)
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
            account = self.accounts[site.name, allocation.name]
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


def _fits(opening: Opening, at: float, needs: float, is_measured: bool) -> bool:
    """The rule of windows, as coordinator/core/place.py has it."""
    if opening.until is None or not is_measured or at + needs <= opening.until:
        return True
    length = opening.until - (at if opening.since is None else opening.since)
    return needs > length and at <= opening.until - length / 2.0


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
