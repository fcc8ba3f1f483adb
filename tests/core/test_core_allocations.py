"""Stories of money and time: what a site may spend, what it spent, when it may be asked, and who is told."""

from types import SimpleNamespace as Namespace

import pytest
from consortium_in_facts import (
    DEMO,
    GIVEN,
    HOUR,
    OWN,
    Coordinator,
    campaign,
    consortium,
    ended,
    given,
    success,
)

from consortium.canonical import replace
from consortium.capacity import Allocation, Usage, Window
from consortium.ids import SiteName
from consortium.jobs import Outcome, Phase
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.accounting import held_back, left
from coordinator.core.estimates import START_SECONDS
from coordinator.core.place import waiting
from coordinator.core.transitions import JobState
from coordinator.core.view import view
from coordinator.core.waits import waits
from policies.campaign import Quorum, Rivals

TRAIN = "demo_r1-train-north"
GRANT = Allocation(name="p-17", gpu_hours=10.0)
PATIENT = Quorum(deadline_hours=100.0)
#: Nothing is measured: a job of this toy model takes what every assumed job takes, on four GPUs.
EXPECTED = 4 * START_SECONDS


def limited(gpu_hours: float = 10.0, until: float | None = None, **changes: object) -> Coordinator:
    """Round 1 is open; north asked for its job with an allocation and four GPUs a job."""
    coordinator = given(lease_seconds=1e6, **changes)
    offer(coordinator, gpu_hours, until)
    return coordinator


def offer(
    coordinator: Coordinator, gpu_hours: float, until: float | None = None, **more: object
) -> list[str]:
    grant = Allocation(name="p-17", gpu_hours=gpu_hours, until=until)
    return coordinator.sync("north", gpus=4, allocations=(grant,), **more)


def uses(gpu_hours: float, phase: Phase = Phase.RUNNING, started: bool = True) -> cm.Report:
    usage = Usage(gpu_seconds=gpu_hours * HOUR, seconds=gpu_hours * 900, queued_seconds=600.0, joules=3.6e6)
    report = replace(success(f"{TRAIN}.a1"), usage=usage, started=started)
    if phase is Phase.ENDED:
        return report
    return replace(report, phase=phase, outcome=None, envelope=None)


def say(coordinator: Coordinator, report: cm.Report, gpu_hours: float = 10.0) -> list[str]:
    grant = Allocation(name="p-17", gpu_hours=gpu_hours)
    return coordinator.sync("north", report, gpus=4, allocations=(grant,))


def why(coordinator: Coordinator, job: str = TRAIN) -> str:
    return waiting(coordinator.state, coordinator.job(job), coordinator.moment)


def site(coordinator: Coordinator):  # type: ignore[no-untyped-def]
    return coordinator.state.sites[SiteName("north")]


def test_a_lease_names_its_allocation_and_holds_back_what_it_may_cost() -> None:
    coordinator = limited()
    job = coordinator.job(TRAIN)
    assert job.tries[job.attempt].allocation == "p-17"
    assert left(coordinator.state, site(coordinator), GRANT) == pytest.approx(10 * HOUR - EXPECTED)
    assert "of allocation p-17 (assumed for " in job.reason


def test_what_is_held_back_is_the_same_number_under_every_python() -> None:
    """`sum` rounds after each addition, but from Python 3.12 on it does not."""
    tries = {
        f"{n}.a1": Namespace(expected_gpu_seconds=0.1, gpu_seconds=0.0, allocation="p-17") for n in range(10)
    }
    state = Namespace(jobs={"many": Namespace(tries=tries)})
    assert held_back(state, Namespace(held=dict.fromkeys(tries, "many")), "p-17") == 1.0  # type: ignore[arg-type]


def test_nothing_is_leased_beyond_what_is_left() -> None:
    coordinator = limited(gpu_hours=EXPECTED / HOUR * 0.9)
    assert coordinator.job(TRAIN).state.value == "planned"
    assert "it needs about 0.1333 GPU-hours at north" in why(coordinator)
    assert "allocation p-17 has 0.12 GPU-hours left" in why(coordinator)
    assert offer(coordinator, 10.0) == ["SiteDescribed north", f"JobLeased {TRAIN}.a1 north"]


def test_what_runs_is_held_back_from_what_comes() -> None:
    """Two slots and two campaigns, but only one job's worth of GPU-hours."""
    coordinator = consortium(*(campaign(name, **GIVEN) for name in "ab"), slots=2)
    coordinator.work()
    happened = offer(coordinator, EXPECTED / HOUR * 1.5, slots=2)
    assert [line for line in happened if "JobLeased" in line] == ["JobLeased a_r1-train-north.a1 north"]
    assert "allocation p-17 has 0.06667 GPU-hours left" in why(coordinator, "b_r1-train-north")


def test_an_allocation_that_ends_too_soon_pays_for_nothing() -> None:
    coordinator = limited(until=1000.0 + START_SECONDS - 1)
    assert "allocation p-17 ends in" in why(coordinator)
    coordinator.now += HOUR
    assert why(coordinator) == "north's allocation has ended"


def test_an_allocation_that_ends_too_soon_leaves_its_site_out_of_the_round() -> None:
    """What a lease is refused for is known when the round opens: nobody plans a job that none can be given."""
    coordinator = consortium(slots=1)
    offer(coordinator, 10.0, until=coordinator.now + START_SECONDS - 1)
    coordinator.do(cm.SubmitCampaign(campaign=campaign(**GIVEN, lease_seconds=1e6)))
    coordinator.work()
    opened = coordinator.state.campaigns[DEMO].rounds[1]
    assert opened.jobs == ("demo_r1-train-south", "demo_r1-train-west")
    assert "it needs about 2 min at north, allocation p-17 ends in 1 min 59 s" in opened.reason


def test_usage_is_entered_at_the_end_and_at_sensible_steps() -> None:
    coordinator = limited()
    assert say(coordinator, uses(0.0)) == [f"AttemptStarted {TRAIN}.a1 north"]
    assert say(coordinator, uses(0.9)) == []
    assert say(coordinator, uses(1.0)) == [f"AttemptUsed {TRAIN}.a1 north"]
    assert say(coordinator, uses(1.5)) == []
    assert say(coordinator, uses(1.7, Phase.ENDED))[:2] == [
        f"AttemptUsed {TRAIN}.a1 north",
        f"ContributionReceived {TRAIN}.a1 north",
    ]
    assert site(coordinator).charged == {"p-17": pytest.approx(1.7 * HOUR)}
    assert site(coordinator).spent.joules == 3.6e6
    assert site(coordinator).queued == (600.0,)
    [shown] = [s for s in picture(coordinator).sites if s.site == "north"]
    assert (shown.allocations[0].used, shown.allocations[0].percent) == (
        pytest.approx(1.7),
        pytest.approx(17),
    )


def picture(coordinator: Coordinator):  # type: ignore[no-untyped-def]
    return view(coordinator.state, sequence=1, head="", now=coordinator.now, seen={}, sights={})


def test_what_an_attempt_spends_after_its_lease_is_still_charged() -> None:
    coordinator = limited(rounds=1)
    say(coordinator, uses(1.0))
    coordinator.do(cm.StopCampaign(campaign=DEMO, reason="no more money"))
    late = ended(f"{TRAIN}.a1", Outcome.CANCELLED)
    spent = replace(late, usage=Usage(gpu_seconds=3 * HOUR, seconds=60.0))
    assert say(coordinator, spent) == [f"AttemptUsed {TRAIN}.a1 north", f"AttemptGone {TRAIN}.a1 north"]
    assert say(coordinator, spent) == []
    assert site(coordinator).charged == {"p-17": 3 * HOUR}
    # and of another site's attempt nothing is
    assert coordinator.sync("south", replace(late, usage=Usage(gpu_seconds=9 * HOUR))) == []


@pytest.mark.parametrize("how", ["it ends", "its site has it no more"])
def test_what_nobody_waits_for_is_held_back_until_its_site_says_that_it_has_ended(how: str) -> None:
    """Or the next job would be given what the cancelled one goes on using."""
    coordinator = limited(gpu_hours=EXPECTED / HOUR * 1.5)
    coordinator.do(cm.StopCampaign(campaign=DEMO, reason="another is more urgent"))
    coordinator.do(cm.SubmitCampaign(campaign=campaign("next", **GIVEN)))
    coordinator.work()
    assert say(coordinator, uses(0.01), EXPECTED / HOUR * 1.5) == [f"AttemptStarted {TRAIN}.a1 north"]
    assert "allocation p-17 has 0.06667 GPU-hours left" in why(coordinator, "next_r1-train-north")
    coordinator.crash(from_snapshot=True)
    if how == "it ends":
        last = replace(ended(f"{TRAIN}.a1", Outcome.CANCELLED), usage=uses(0.02).usage, started=True)
        happened = say(coordinator, last, EXPECTED / HOUR * 1.5)
        assert happened[0] == f"AttemptUsed {TRAIN}.a1 north"
    else:
        happened = offer(coordinator, EXPECTED / HOUR * 1.5)
    assert happened[-2:] == [f"AttemptGone {TRAIN}.a1 north", "JobLeased next_r1-train-north.a1 north"]


def test_a_site_that_lost_its_attempt_can_pay_for_another() -> None:
    coordinator = given(lease_seconds=60.0)
    offer(coordinator, EXPECTED / HOUR * 1.5)
    assert coordinator.wait(61) == [f"AttemptEnded {TRAIN}.a1 expired"]
    happened = offer(coordinator, EXPECTED / HOUR * 1.5)
    assert happened == [f"AttemptGone {TRAIN}.a1 north", f"JobLeased {TRAIN}.a2 north"]


def test_an_attempt_that_came_back_is_held_back_again() -> None:
    coordinator = given(lease_seconds=60.0)
    offer(coordinator, 10.0)
    coordinator.wait(61)
    offer(coordinator, 10.0, slots=0)
    assert left(coordinator.state, site(coordinator), GRANT) == 10 * HOUR
    assert say(coordinator, uses(0.0))[-1] == f"LeaseResumed {TRAIN}.a1"
    assert left(coordinator.state, site(coordinator), GRANT) == pytest.approx(10 * HOUR - EXPECTED)


def test_warnings_come_at_80_and_95_percent_once_each() -> None:
    coordinator = limited(gpu_hours=10.0)
    assert "AllocationWarned north" not in say(coordinator, uses(7.9))
    assert say(coordinator, uses(9.0)) == [f"AttemptUsed {TRAIN}.a1 north", "AllocationWarned north"]
    assert say(coordinator, uses(9.4, Phase.RUNNING)) == []
    assert "AllocationWarned north" in say(coordinator, uses(9.6, Phase.ENDED))
    assert site(coordinator).warned == {"p-17": 95}
    offer(coordinator, 100.0)  # a new grant begins anew
    assert site(coordinator).warned == {}


def test_a_site_that_cannot_pay_is_left_out_of_the_round() -> None:
    coordinator = given(lease_seconds=1e6, rounds=2)
    coordinator.sync("north")
    attempt = coordinator.job(TRAIN).attempt
    assert attempt is not None
    grant = (Allocation(name="p-17", gpu_hours=0.1),)
    coordinator.sync("north", gpus=4, allocations=grant)
    for name in OWN:
        more = {"gpus": 4, "allocations": grant} if name == "north" else {}
        coordinator.sync(name, **more)
        coordinator.deliver(f"demo_r1-train-{name}", **more)
    coordinator.work()
    for name in OWN:
        coordinator.sync(name, **({"gpus": 4, "allocations": grant} if name == "north" else {}))
    for job in list(coordinator.state.jobs.values()):
        if "gate" in job.id and job.state.value == "leased":
            coordinator.deliver(job.id, **({"gpus": 4, "allocations": grant} if job.site == "north" else {}))
    cancelled = coordinator.job("demo_r1-gate-north")  # it cannot be paid either, and nobody waits for it
    assert cancelled.state is JobState.CANCELLED
    assert cancelled.reason.startswith("north has not the 2 GPU-hours left that its job needs")
    assert cancelled.reason.endswith("; its languages count as unscored")
    coordinator.work()
    opened = coordinator.state.campaigns[DEMO].rounds[2]
    assert opened.jobs == ("demo_r2-train-south", "demo_r2-train-west")
    assert "north has not the 0.1333 GPU-hours left that its job needs" in opened.reason


def test_where_no_judge_can_pay_the_gate_decides_at_once() -> None:
    coordinator = given(lease_seconds=1e6)
    coordinator.train_all()
    for name in OWN:
        coordinator.sync(name, slots=0, gpus=4, allocations=(replace(GRANT, gpu_hours=0.1),))
    coordinator.work()
    gates = [coordinator.job(f"demo_r1-gate-{name}") for name in OWN]
    assert [gate.state for gate in gates] == [JobState.CANCELLED] * 3
    assert coordinator.work()[0] == "GateJudged demo/v1"


def test_a_comparison_that_nobody_can_pay_ends_the_campaign() -> None:
    coordinator = given(lease_seconds=1e6, rivals=Rivals(specialists=True))
    coordinator.one_round()
    for name in OWN:
        coordinator.sync(name)
    for name in OWN:  # each can pay for nothing more, once it has delivered its rival
        poor = {"gpus": 4, "allocations": (replace(GRANT, gpu_hours=0.1),)}
        happened = coordinator.deliver(f"demo_rival-alone-{name}", **poor)
    assert happened[-4:] == [
        *(f"JobCancelled demo_compare-{name}" for name in OWN),
        "CampaignEnded demo completed",
    ]


def test_an_attempt_that_may_come_back_is_waited_for_though_the_allocation_is_used_up() -> None:
    coordinator = given(lease_seconds=60.0, quorum=PATIENT)
    coordinator.train_all()
    coordinator.work()
    gate = "demo_r1-gate-north"
    for name in OWN:
        coordinator.sync(name, gpus=4, allocations=(GRANT,))
    coordinator.wait(61)
    coordinator.sync("north", slots=0, gpus=4, allocations=(replace(GRANT, gpu_hours=0.1),))
    assert coordinator.job(gate).state is JobState.PLANNED
    coordinator.sync("north", success(f"{gate}.a1"), slots=0)
    assert coordinator.job(gate).state is JobState.DELIVERED


def test_a_round_waits_until_as_many_can_pay_as_its_quorum_needs() -> None:
    coordinator = consortium(slots=1)
    for name in ("north", "south"):
        coordinator.sync(name, gpus=4, allocations=(replace(GRANT, gpu_hours=0.1),))
    coordinator.do(
        cm.SubmitCampaign(
            campaign=campaign(**GIVEN, quorum=Quorum(minimum=2, deadline_hours=9), lease_seconds=1e6)
        )
    )
    assert coordinator.work() == ["VersionMade demo/v0"]
    [wait] = waits(coordinator.state, coordinator.moment)
    assert wait.reason.startswith(
        "allocations that can pay for round 1: 1 of the 2 contributions that it needs could come: "
        "north has not the 0.1333 GPU-hours left"
    )
    assert "RoundOpened demo/r1" in offer(coordinator, 10.0)
    assert coordinator.state.campaigns[DEMO].rounds[1].jobs == ("demo_r1-train-north", "demo_r1-train-west")


def test_a_job_that_nobody_can_pay_for_says_so_while_it_is_waited_for() -> None:
    coordinator = consortium(slots=0)
    coordinator.do(cm.SubmitCampaign(campaign=campaign(quorum=Quorum(deadline_hours=9))))
    for name in OWN:
        assert [wait.reason for wait in waits(coordinator.state, coordinator.moment)] == [
            "the tokenizer is being trained"
        ]
        coordinator.sync(name, slots=0, gpus=4, allocations=(replace(GRANT, gpu_hours=0.0001),))
    [wait] = waits(coordinator.state, coordinator.moment)
    assert wait.reason.startswith(
        "an allocation that can pay for demo_tokenizer, for 9 h from its planning: north has not the"
    )
    coordinator.sync("west", slots=1, gpus=4, allocations=(GRANT,))  # its operator got more
    assert coordinator.job("demo_tokenizer").site == "west"
    [wait] = waits(coordinator.state, coordinator.moment)
    assert wait.reason == "the tokenizer is being trained"


# --- windows ---------------------------------------------------------------------------------------

NIGHT = Window(cron="0 20 * * *", seconds=10 * HOUR)  # UTC; the coordinator's clock begins at 00:16:40


def test_a_lease_is_given_only_inside_a_window() -> None:
    coordinator = given(lease_seconds=1e6, quorum=PATIENT)
    coordinator.now = 12 * HOUR
    assert coordinator.sync("north", windows=(NIGHT,)) == ["SiteDescribed north"]
    assert why(coordinator) == "it is outside north's windows; they open in 8 h"
    coordinator.now = 20 * HOUR
    assert coordinator.sync("north", windows=(NIGHT,)) == [f"JobLeased {TRAIN}.a1 north"]


def measured(coordinator: Coordinator, hours: float) -> None:
    """North's speed is known: its job of the round takes so long."""
    happened = coordinator.sync("north")
    assert happened == [f"JobLeased {TRAIN}.a1 north"]
    usage = Usage(seconds=hours * HOUR)
    coordinator.sync("north", replace(success(f"{TRAIN}.a1"), usage=usage))
    coordinator.work()


def in_round_two(hours: float) -> Coordinator:
    coordinator = given(lease_seconds=1e6, rounds=2, quorum=PATIENT)
    measured(coordinator, hours)
    for name in ("south", "west"):
        coordinator.sync(name)
        coordinator.deliver(f"demo_r1-train-{name}")
    coordinator.work()
    coordinator.judge_all()
    coordinator.work()
    return coordinator


@pytest.mark.parametrize(
    ("hours", "now", "says"),
    [
        (3.0, 20.0, ""),
        (3.0, 26.9, ""),
        (3.0, 27.1, "it waits for the next"),  # the window closes at 30 h, six in the morning
        (12.0, 20.0, ""),  # longer than any window
        (12.0, 24.9, ""),
        (12.0, 25.1, "it waits for the first half of one"),
    ],
)
def test_a_job_of_known_length_begins_only_if_its_window_is_long_enough(
    hours: float, now: float, says: str
) -> None:
    coordinator = in_round_two(hours)
    coordinator.sync("north", slots=0, windows=(NIGHT,))
    coordinator.now = now * HOUR
    happened = coordinator.sync("north", windows=(NIGHT,))
    assert ("JobLeased demo_r2-train-north.a1 north" in happened) == (says == "")
    if says:
        assert why(coordinator, "demo_r2-train-north").endswith(says)


def test_the_ledger_says_what_it_cost() -> None:
    from coordinator.core.story import sentence

    coordinator = limited()
    events = coordinator.events_of(
        cm.SyncSite(
            **{
                name: getattr(site(coordinator), name)
                for name in ("agent_version", "slots", "draining", "holdings", "allocations", "gpus")
            },
            site=SiteName("north"),
            reports=(uses(2.0),),
        )
    )
    told = [sentence(event) for event in events if isinstance(event, ev.AttemptUsed | ev.AttemptStarted)]
    assert told == [
        f"{TRAIN}.a1 began to run at north, 10 min after its submission",
        f"{TRAIN}.a1 used 2 GPU-hours of allocation p-17 in 30 min, 1 kWh (by clock)",
    ]
