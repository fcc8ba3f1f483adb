"""Contributions are scored by other sites before they are merged: who harms its own language is left out."""

from typing import Any

import pytest
from consortium_in_facts import GIVEN, HOUR, Coordinator, admitted, campaign, d, enrolment, holding, success

from consortium.canonical import replace
from consortium.ids import SiteName
from consortium.jobs import ANY_SITE, Evaluate, Purpose
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.history import known_deltas, usual_norm
from coordinator.core.state import Job
from coordinator.core.transitions import JobState
from policies.campaign import Admission

HELD = {"east": ("fi",), "north": ("fi",), "south": ("fi", "hu"), "west": ("ga",)}
JOBS = {site: f"demo_r1-train-{site}" for site in HELD}
FINE = dict.fromkeys(HELD, -0.1)


def say(coordinator: Coordinator, site: str, *reports: cm.Report) -> None:
    coordinator.do(
        cm.SyncSite(
            site=SiteName(site),
            agent_version="0.1.0",
            slots=9,
            draining=False,
            holdings=tuple(holding(x) for x in HELD[site]),
            reports=reports,
        )
    )


def deliver(coordinator: Coordinator, job: str) -> Job:
    """The site that holds it says that it is done; what the worker finds is the caller's to say."""
    held = coordinator.job(job)
    say(coordinator, str(held.site), success(str(held.attempt)))
    return coordinator.job(job)


def trained(loss_check: str = "decide", **changes: Any) -> Coordinator:
    """Round 1's deltas are admitted; what there is to be scored is asked of the sites."""
    coordinator = Coordinator()
    admission = Admission(loss_check=loss_check)  # type: ignore[arg-type]
    spec = campaign(**GIVEN, admission=admission, **{"rounds": 2, "sites_expected": 4, **changes})
    coordinator.do(cm.SubmitCampaign(campaign=spec, sender="ada"))
    for site in HELD:
        coordinator.invite(site)
        coordinator.do(enrolment(site))
        say(coordinator, site)
    coordinator.work()
    for site in HELD:
        say(coordinator, site)
    for site in HELD:
        coordinator.do(admitted(deliver(coordinator, JOBS[site])))
    return coordinator


def checks(coordinator: Coordinator) -> dict[str, tuple[str, ...]]:
    """Who is asked to score whose delta, on what."""
    return {
        str(job.id).removeprefix("demo_r1-check-"): job.work.languages
        for job in coordinator.state.jobs.values()
        if job.purpose is Purpose.CHECK
    }


def score(coordinator: Coordinator, growths: dict[str, float]) -> None:
    """Every judge scores; ``growths``: by whose delta, or by ``author-by-judge``, how much the loss grows."""
    for name in sorted(checks(coordinator)):
        author, judge = name.split("-by-")
        say(coordinator, judge)
        job = deliver(coordinator, f"demo_r1-check-{name}")
        base, subject = (one.name for one in job.work.subjects)
        growth = growths.get(name, growths.get(author, 0.0))
        scores = {
            base: {x: summary(100.0) for x in job.work.languages},
            subject: {x: summary(100.0 * (1.0 + growth)) for x in job.work.languages},
        }
        coordinator.do(replace(admitted(job), scores=scores))


def summary(nats: float) -> ev.ScoreSummary:
    return ev.ScoreSummary(nats=nats, bytes=100, documents=30, heldout=d("held out"))


def collected(coordinator: Coordinator) -> set[str]:
    return {str(job).rpartition("-")[2] for job in coordinator.state.campaigns["demo"].rounds[1].collected}


def test_others_score_what_a_site_claims_and_only_the_lone_one_itself() -> None:
    assert checks(trained()) == {
        "east-by-north": ("fi",),
        "east-by-south": ("fi",),
        "north-by-east": ("fi",),
        "north-by-south": ("fi",),
        "south-by-east": ("fi",),
        "south-by-north": ("fi",),
        "west-by-west": ("ga",),
    }


def test_a_check_names_base_and_delta_and_may_read_both() -> None:
    coordinator = trained()
    check, job = coordinator.job("demo_r1-check-north-by-east"), coordinator.job(JOBS["north"])
    assert isinstance(check.work, Evaluate) and job.contribution is not None
    base, subject = check.work.subjects
    assert base.version == subject.version == job.work.base and base.delta is None  # type: ignore[union-attr]
    assert subject.delta == job.contribution.artifacts["delta"].digest
    assert {base.version, subject.delta} <= set(check.inputs)
    assert job.merged_by == (
        ANY_SITE,
    )  # the order said that others will get the delta: consent is asked for it


def test_nothing_is_merged_before_it_is_scored() -> None:
    coordinator = trained()
    assert collected(coordinator) == set() and coordinator.wait(1.0) == []
    score(coordinator, FINE)
    assert collected(coordinator) == set(HELD)


def test_who_harms_its_own_language_is_left_out_and_the_ledger_says_why() -> None:
    coordinator = trained()
    score(coordinator, {**FINE, "north": 0.2})
    assert collected(coordinator) == {"east", "south", "west"}
    reason = coordinator.state.campaigns["demo"].rounds[1].reason
    assert (
        "demo_r1-train-north: left out, loss of its own languages with it: +20.00% at east, +20.00%" in reason
    )
    assert "demo_r1-train-west: loss of its own languages with it: -10.00% at west" in reason
    assert "only its own held-out text could say so" in reason
    assert coordinator.replayed().snapshot() == coordinator.state.snapshot()


def test_advice_merges_all_the_same() -> None:
    coordinator = trained("advise")
    score(coordinator, {**FINE, "north": 0.2})
    assert collected(coordinator) == set(HELD)
    assert "+20.00% at east" in coordinator.state.campaigns["demo"].rounds[1].reason


def test_off_asks_nobody() -> None:
    coordinator = trained("off")
    assert checks(coordinator) == {} and collected(coordinator) == set(HELD)


def test_one_judge_that_lies_is_not_believed_against_another() -> None:
    coordinator = trained()
    score(coordinator, {**FINE, "north-by-east": 5.0})
    assert collected(coordinator) == set(HELD)


def test_a_little_worse_is_noise() -> None:
    coordinator = trained()
    score(coordinator, {**FINE, "north": 0.0049, "south": 0.0051})
    assert collected(coordinator) == {"east", "north", "west"}


def test_the_lone_language_goes_in_and_its_own_word_against_itself_counts() -> None:
    coordinator = trained()
    score(coordinator, {**FINE, "west": 0.3})
    assert collected(coordinator) == {"east", "north", "south"}


def test_judges_that_never_answer_are_not_waited_for() -> None:
    coordinator = trained()
    happened = coordinator.wait(2.1 * HOUR)
    assert "JobCancelled demo_r1-check-west-by-west" in happened
    assert collected(coordinator) == set(HELD)
    assert "demo_r1-train-west: nobody could score it; norms and the gate bound it" in (
        coordinator.state.campaigns["demo"].rounds[1].reason
    )


def test_too_few_are_left() -> None:
    coordinator = trained(quorum=replace(campaign().quorum, minimum=3))
    score(coordinator, dict.fromkeys(HELD, 0.5))
    assert "0 of 3 needed contributions" in coordinator.state.campaigns["demo"].rounds[1].reason


def test_candidates_are_gated_as_before() -> None:
    """What a check scored is not the gate's: both are asked for."""
    coordinator = trained()
    score(coordinator, FINE)
    coordinator.work()
    gates = [job for job in coordinator.state.jobs.values() if job.purpose is Purpose.GATE]
    assert len(gates) == 4 and all(len(job.work.subjects) == 2 for job in gates)
    assert set(coordinator.state.campaigns["demo"].scores) == set()


@pytest.mark.parametrize("norm", [1.0, 3.0])
def test_history_is_of_rounds_that_were_collected_before(norm: float) -> None:
    coordinator = trained("off")
    state, spec = coordinator.state, coordinator.state.campaigns["demo"]
    first = coordinator.job(JOBS["north"])
    assert first.state is JobState.DONE
    assert usual_norm(state, spec, first) is None and known_deltas(state, spec, first) == frozenset()
    for site in HELD:
        coordinator.job(JOBS[site]).measures = {"norm": norm, "base_norm": 10.0}
    first.round = 2  # as a job of the next round would see it
    assert usual_norm(state, spec, first) == pytest.approx(norm / 10.0)
    assert known_deltas(state, spec, first) == {
        coordinator.job(name).contribution.artifacts["delta"].digest  # type: ignore[union-attr]
        for name in JOBS.values()
    }
