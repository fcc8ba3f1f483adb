"""One site says too much: what it causes in the ledger is bounded, and nobody else is worse off for it."""

import pytest
from consortium_in_facts import Coordinator, consortium, contribution, d, decoded, ended, given

from consortium.canonical import encode, replace
from consortium.capacity import Usage
from consortium.errors import TooOften
from consortium.ids import AttemptId, CampaignId, JobId, Language, SiteName
from consortium.jobs import Evaluate, Outcome, Phase, Purpose, Subject
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.budgets import BUDGETS, DESCRIBED, RENEWED, RETURNED, USED_MAX, used_up
from coordinator.core.estimates import OTHER_SECONDS, cost_of
from coordinator.core.place import waiting
from coordinator.core.state import Job
from coordinator.core.transitions import JobState
from coordinator.core.view import view

NORTH = SiteName("north")


def entries(coordinator: Coordinator, kind: type[ev.Event]) -> int:
    return sum(isinstance(decoded(data), kind) for data, _ in coordinator.ledger)


def test_a_site_that_describes_itself_without_end_is_taken_down_so_often_and_no_more() -> None:
    coordinator = consortium()
    before, burst = entries(coordinator, ev.SiteDescribed), BUDGETS[DESCRIBED].burst
    for number in range(1000):
        coordinator.now += 0.02
        coordinator.sync("north", slots=1 + number)
    assert entries(coordinator, ev.SiteDescribed) - before < burst
    coordinator.now += BUDGETS[DESCRIBED].seconds
    coordinator.sync("north", slots=7)  # what was not taken down is, when it is said again
    assert coordinator.state.sites[NORTH].slots == 7
    before = entries(coordinator, ev.SiteDescribed)
    coordinator.sync("south", slots=9)  # another site's words are counted for itself
    assert entries(coordinator, ev.SiteDescribed) == before + 1
    assert encode(coordinator.replayed().sites[NORTH].budgets) == encode(
        coordinator.state.sites[NORTH].budgets
    )


def test_people_see_that_a_site_is_not_listened_to_and_when_it_is_again() -> None:
    coordinator = consortium()

    def told(site: str) -> tuple[str, ...]:
        shown = view(coordinator.state, sequence=1, head="", now=coordinator.now, seen={}, sights={})
        return next(one.held_back for one in shown.sites if one.site == site)

    assert told("north") == ()
    for number in range(2 * BUDGETS[DESCRIBED].burst):
        coordinator.sync("north", slots=1 + number)
    [why] = told("north")
    assert why.startswith(
        "its agent described itself in other words more than 60 times in a short time; one more"
    )
    assert told("south") == ()
    coordinator.now += BUDGETS[DESCRIBED].seconds
    assert told("north") == ()


def test_a_site_is_told_which_budget_is_used_up_and_when_one_more_is_taken() -> None:
    coordinator = consortium()

    def told() -> dict[str, float]:
        used = used_up(coordinator.state.sites[NORTH], coordinator.now)
        return {one.kind: one.again_seconds for one in used}

    assert told() == {}
    for number in range(2 * BUDGETS[DESCRIBED].burst):
        coordinator.sync("north", slots=1 + number)
    assert told() == {DESCRIBED: pytest.approx(BUDGETS[DESCRIBED].seconds)}
    coordinator.now += 0.75 * BUDGETS[DESCRIBED].seconds
    assert told() == {DESCRIBED: pytest.approx(0.25 * BUDGETS[DESCRIBED].seconds)}
    coordinator.now += told()[DESCRIBED] + 0.001
    assert told() == {}
    coordinator.sync("north", slots=7)
    assert coordinator.state.sites[NORTH].slots == 7


def test_a_clock_that_is_put_back_fills_nothing() -> None:
    coordinator = consortium()
    for number in range(200):
        coordinator.sync("north", slots=1 + number)
        coordinator.now += 100.0 if number % 2 else -100.0
    assert entries(coordinator, ev.SiteDescribed) <= 3 + BUDGETS[DESCRIBED].burst


def test_use_that_grows_with_every_sync_has_so_many_entries() -> None:
    coordinator = given()
    coordinator.sync("north")
    attempt = coordinator.job("demo_r1-train-north").attempt
    assert attempt is not None

    def says(gpu_seconds: float, phase: Phase) -> None:
        usage = Usage(
            gpu_seconds=gpu_seconds, seconds=gpu_seconds, queued_seconds=0.0, joules=None, source="clock"
        )
        coordinator.sync("north", cm.Report(attempt=attempt, phase=phase, usage=usage))

    for number in range(2000):
        says(4000.0 * number, Phase.RUNNING)
    grown = entries(coordinator, ev.AttemptUsed)
    assert 20 < grown < USED_MAX
    coordinator.sync("north", ended(attempt, Outcome.FAILED))
    for number in range(1000):  # what has ended may still be corrected, by turns
        says(1.0 + number % 2, Phase.ENDED)
    assert entries(coordinator, ev.AttemptUsed) == USED_MAX


def test_who_gives_every_job_back_gets_fewer() -> None:
    coordinator, burst = given(), BUDGETS[RETURNED].burst
    for _ in range(burst + 200):
        coordinator.sync("north")
        job = coordinator.job("demo_r1-train-north")
        if job.site == NORTH and job.attempt is not None:
            coordinator.sync("north", ended(job.attempt, Outcome.PREEMPTED))
        coordinator.now += 0.02
    attempts = coordinator.job("demo_r1-train-north").attempts
    assert attempts <= burst + 2
    why = waiting(coordinator.state, coordinator.job("demo_r1-train-north"), coordinator.moment)
    assert why == "north gave back 400 jobs or more in a short time; it gets one every 30 s"
    coordinator.now += 2 * BUDGETS[RETURNED].seconds
    coordinator.sync("north")
    assert coordinator.job("demo_r1-train-north").attempts == attempts + 1


def test_certificates_without_end_are_refused() -> None:
    coordinator = consortium()

    def renew(number: int) -> None:
        coordinator.do(
            cm.RenewCertificate(site=NORTH, certificate=f"{number}", fingerprint=f"{number}", not_after=1e9)
        )

    for number in range(BUDGETS[RENEWED].burst):
        renew(number)
    with pytest.raises(
        TooOften, match="had 20 new certificates in a short time; it may have one more every 1 h"
    ) as refused:
        renew(99)
    assert refused.value.again_seconds == pytest.approx(BUDGETS[RENEWED].seconds)
    coordinator.now += refused.value.again_seconds
    renew(100)


SCORING = Evaluate(
    sequence_tokens=8,
    languages=(Language("fi"),),
    subjects=(Subject(name=d("a model"), version=d("a model")),),
)


def scored(coordinator: Coordinator, site: str, seconds: float) -> None:
    """``site`` says that an evaluation took it so long, and is believed."""
    name = JobId(f"demo_r1-gate{len(coordinator.state.jobs)}-{site}")
    job = Job(name, CampaignId("demo"), 1, Purpose.GATE, (SiteName(site),), SCORING, (), None)
    job.attempt, job.site, job.state = AttemptId(f"{name}.a1"), SiteName(site), JobState.DONE
    job.contribution, job.admitted_at = replace(contribution(job), seconds=seconds), coordinator.now
    coordinator.state.jobs[name] = job
    coordinator.state.index.admit(job)


def test_what_one_site_says_of_its_times_decides_nothing_for_another() -> None:
    coordinator = given()
    sites = coordinator.state.sites

    def expected(site: str) -> float:
        return cost_of(coordinator.state, None, sites[SiteName(site)], SCORING, Purpose.GATE).seconds.value

    for _ in range(9):
        scored(coordinator, "north", 1e7)  # longer than any allocation lasts
    assert expected("north") == 1e7  # its own business
    assert expected("south") == OTHER_SECONDS  # one site's word
    scored(coordinator, "west", 100.0)
    assert expected("south") == OTHER_SECONDS  # one of the two lies; which?
    scored(coordinator, "east", 120.0)
    assert expected("south") == 120.0
    for _ in range(9):
        scored(coordinator, "north", 1e-9)
    assert 100.0 <= expected("south") <= 120.0
