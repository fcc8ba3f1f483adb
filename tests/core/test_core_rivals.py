"""Stories of rivals: trained for comparison, never in the way, never waited for without end."""

from consortium_in_facts import (
    DEMO,
    GIVEN,
    HOUR,
    LANGUAGES,
    OWN,
    Coordinator,
    campaign,
    consortium,
    d,
    ended,
    given,
    holdings,
)

from consortium.ids import Language
from consortium.jobs import Evaluate, Outcome, Subject, Train
from coordinator.core import commands as cm
from policies.campaign import Rivals


def test_rivals_run_beside_the_rounds_and_are_compared_at_the_end() -> None:
    coordinator = consortium(campaign(**GIVEN, rivals=Rivals(public_only=True, specialists=True)), slots=3)
    assert coordinator.work() == [
        "VersionMade demo/v0",
        "RoundOpened demo/r1",
        *(f"JobPlanned demo_r1-train-{site}" for site in OWN),
        "JobPlanned demo_rival-public",
        *(f"JobPlanned demo_rival-alone-{site}" for site in OWN),
    ]
    public, alone = coordinator.job("demo_rival-public").work, coordinator.job("demo_rival-alone-south").work
    assert isinstance(public, Train) and isinstance(alone, Train)
    assert (public.steps, public.schedule_steps, public.languages) == (30, 30, ())
    assert (alone.steps, alone.schedule_steps, alone.languages) == (10, 10, (Language("hu"),))
    assert public.replay_share == 1.0 and alone.replay_share == 0.5
    for site in OWN:
        coordinator.sync(site, slots=3)
    for site in OWN:
        coordinator.deliver(f"demo_r1-train-{site}", slots=3)
    coordinator.work()
    for site in OWN:
        coordinator.sync(site, slots=3)
        coordinator.deliver(f"demo_r1-gate-{site}", slots=3)
    assert coordinator.work()[-1] == "VersionPromoted demo/v1"
    for site in OWN:
        coordinator.sync(site, slots=3)
        happened = coordinator.deliver(f"demo_rival-alone-{site}", slots=3)
    assert happened[-1] == "ContributionAdmitted demo_rival-alone-west.a1"
    happened = coordinator.deliver("demo_rival-public", slots=3)
    assert happened[-3:] == [f"JobPlanned demo_compare-{site}" for site in OWN]
    work = coordinator.job("demo_compare-west").work
    assert isinstance(work, Evaluate) and len(work.subjects) == 4
    first = coordinator.state.campaigns[DEMO].rounds[1].base
    assert work.subjects[0] == Subject(
        name="demo_rival-public", version=first, delta=d("delta of demo_rival-public.a1")
    )
    assert work.subjects[0].delta in coordinator.job("demo_compare-west").inputs
    for site in OWN:
        coordinator.sync(site, slots=3)
        happened = coordinator.deliver(f"demo_compare-{site}", slots=3)
    assert happened[-1] == "CampaignEnded demo completed"
    assert set(coordinator.state.campaigns[DEMO].scores["demo_rival-public"]) == set(LANGUAGES)


def test_a_late_rival_is_left_out_and_the_others_are_compared() -> None:
    coordinator = given(rivals=Rivals(specialists=True))
    coordinator.one_round()
    for site in OWN:
        coordinator.sync(site)
    coordinator.deliver("demo_rival-alone-north")
    assert coordinator.wait(2 * HOUR) == [
        f"AttemptEnded demo_rival-alone-{site}.a1 expired" for site in ("south", "west")
    ]
    assert coordinator.wait(1) == [
        "JobCancelled demo_rival-alone-south",
        "JobCancelled demo_rival-alone-west",
        *(f"JobPlanned demo_compare-{site}" for site in OWN),
    ]
    assert coordinator.wait(2 * HOUR) == []
    assert coordinator.wait(1) == [
        *(f"JobCancelled demo_compare-{site}" for site in OWN),
        "CampaignEnded demo completed",
    ]


def test_no_rival_was_trained() -> None:
    coordinator = given(rivals=Rivals(public_only=True), attempts_max=1)
    coordinator.one_round()
    coordinator.sync("north")
    assert coordinator.sync("north", ended("demo_rival-public.a1", Outcome.FAILED)) == [
        "AttemptEnded demo_rival-public.a1 failed",
        "JobFailed demo_rival-public",
        "CampaignEnded demo completed",
    ]


def test_a_rival_that_nobody_can_train_fails_at_once() -> None:
    coordinator = Coordinator()
    coordinator.do(cm.SubmitCampaign(campaign=campaign(**GIVEN, rivals=Rivals(public_only=True))))
    for site in OWN:
        coordinator.enrol(site, holdings=holdings(site, ["fi"]))
    assert coordinator.work()[-2:] == ["JobPlanned demo_rival-public", "JobFailed demo_rival-public"]
    assert coordinator.job("demo_rival-public").reason == "no site is able"
