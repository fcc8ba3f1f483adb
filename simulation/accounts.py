"""Who was charged what, and might a lease be given at all: invariant 6, counted from the events alone."""

import math
import statistics

from consortium.capacity import Allocation
from consortium.ids import AttemptId, CampaignId, SiteName
from consortium.jobs import Outcome, Purpose, Train
from coordinator.core import events as ev
from coordinator.core.state import Job, Site, State
from coordinator.core.transitions import JobState
from policies.windows import opening

_CHARGING = (
    *(ev.JobLeased, ev.LeaseResumed, ev.AttemptEnded, ev.AttemptGone),
    *(ev.ContributionReceived, ev.JobCancelled),
)
_RATES_KEPT = 5  # of a site's newest jobs the median is what it is expected to do
_ABOUT = 1.02  # what the sites tell is rounded


class Accounts:
    """Invariant 6, counted on its own: who was charged what, and whether a lease may have been given at all."""

    def __init__(self) -> None:
        self.used: dict[AttemptId, tuple[SiteName, str, float]] = {}  #: GPU-seconds, all told
        self.charges: dict[tuple[SiteName, str], float] = {}  #: the same, by site and allocation
        self.expected: dict[AttemptId, tuple[SiteName, str, float]] = {}
        self.at_work: set[AttemptId] = set()  #: as far as their sites have said, wanted or not
        self._seconds: dict[AttemptId, float] = {}  #: that an attempt has run, by its site
        self._rates: dict[tuple[CampaignId, SiteName], list[float]] = {}  #: tokens a second, job by job

    def watch(self, event: ev.AnyEvent, state: State, at: float) -> None:
        match event:
            case ev.JobPlanned() if event.purpose is Purpose.ROUND:
                self._can_pay(event, state)
            case ev.ContributionAdmitted() if isinstance(state.jobs[event.job].work, Train):
                self._measure(event, state.jobs[event.job])
            case ev.JobLeased():
                self._may_be_given(event, state, at)
                self.expected[event.attempt] = (event.site, event.allocation, event.gpu_hours * 3600.0)
                self.at_work.add(event.attempt)
            case ev.LeaseResumed():
                self.at_work.add(event.attempt)
            case ev.AttemptEnded() if event.outcome is not Outcome.EXPIRED:
                self.at_work.remove(event.attempt)
            case ev.ContributionReceived():
                self.at_work.remove(event.attempt)
            case ev.AttemptGone():
                job = state.jobs[event.job]
                assert job.state is not JobState.LEASED or job.attempt != event.attempt, "it is wanted"
                self.at_work.remove(event.attempt)
            case ev.AttemptStarted():
                assert not state.jobs[event.job].tries[event.attempt].started, "it started twice"
                assert self.expected[event.attempt][0] == event.site
            case ev.AttemptUsed():
                assert self.expected[event.attempt][:2] == (event.site, event.allocation), (
                    "charged to another"
                )
                assert event.gpu_seconds >= 0
                place = (event.site, event.allocation)
                before = self.used.get(event.attempt, (*place, 0.0))[2]
                self.charges[place] = self.charges.get(place, 0.0) + event.gpu_seconds - before
                self.used[event.attempt] = (*place, event.gpu_seconds)
                self._seconds[event.attempt] = event.seconds
            case ev.AllocationWarned():
                site = state.sites[event.site]
                assert event.percent in (80, 95) and site.warned.get(event.allocation, 0) < event.percent
            case _:
                pass

    def _may_be_given(self, event: ev.JobLeased, state: State, at: float) -> None:
        site = state.sites[event.site]
        assert site.courier or opening(site.windows, at).is_open, "leased outside its windows"
        if not site.allocations:
            assert event.allocation == ""
            return
        [allocation] = [one for one in site.allocations if one.name == event.allocation]
        assert allocation.until is None or at < allocation.until, "leased after its end"
        if site.gpus and allocation.until is not None:
            ends = at + event.gpu_hours * 3600.0 / site.gpus
            assert ends <= allocation.until + 1e-6, "it would outlive the allocation that pays"
        free = self._left(site, allocation)
        assert 0.0 < free and event.gpu_hours * 3600.0 <= free * (1 + 1e-9), "leased beyond what is left"

    def _left(self, site: Site, allocation: Allocation) -> float:
        """GPU-seconds of it that are neither used nor kept for what is at work."""
        free = allocation.gpu_hours * 3600.0 - self.charged(site.name, allocation.name)
        for attempt in sorted(self.at_work):
            holder, name, expected = self.expected[attempt]
            if (holder, name) == (site.name, allocation.name):
                free -= max(0.0, expected - self.used.get(attempt, (holder, name, 0.0))[2])
        return free

    def _measure(self, event: ev.ContributionAdmitted, job: Job) -> None:
        done = event.contribution
        seconds = self._seconds.get(event.attempt, 0.0) or done.seconds
        if seconds > 0.0 and done.tokens:
            rates = self._rates.setdefault((job.campaign, done.site), [])
            rates.append(sum(done.tokens.values()) / seconds)

    def _can_pay(self, event: ev.JobPlanned, state: State) -> None:
        """More steps than the campaign's are no gift, if they are more than the site's allocations have left."""
        site, work = state.sites[event.sites[0]], event.work
        rates = self._rates.get((event.campaign, site.name), [])[-_RATES_KEPT:]
        assert isinstance(work, Train)
        if (
            not site.allocations
            or not rates
            or work.steps <= state.campaigns[event.campaign].spec.train.steps
        ):
            return
        tokens = work.steps * work.batch_sequences * work.sequence_tokens
        needs = tokens / statistics.median(rates) * site.gpus
        left = max(self._left(site, one) for one in site.allocations)
        assert needs <= left * _ABOUT, (
            f"{site.name} has {left:.0f} GPU-seconds left, its job needs {needs:.0f}"
        )

    def charged(self, site: SiteName, allocation: str) -> float:
        return self.charges.get((site, allocation), 0.0)

    def agree(self, event: ev.AnyEvent, state: State) -> None:
        """The state's sums, and what it holds back, are those of the events."""
        if isinstance(event, _CHARGING):
            self._held(state)
        if not isinstance(event, ev.AttemptUsed | ev.SiteDescribed):
            return
        for name, site in state.sites.items():
            mine = {allocation: used for (s, allocation), used in self.charges.items() if s == name}
            assert math.isclose(site.spent.gpu_seconds, math.fsum(mine.values()), abs_tol=1e-6, rel_tol=1e-9)
            for allocation, charged in site.charged.items():
                assert math.isclose(charged, mine.get(allocation, 0.0), abs_tol=1e-6, rel_tol=1e-9)

    def _held(self, state: State) -> None:
        paid = {attempt for attempt in self.at_work if self.expected[attempt][1]}
        held = {attempt for site in state.sites.values() for attempt in site.held}
        assert held == paid, f"held back are {sorted(held)}, at work are {sorted(paid)}"
