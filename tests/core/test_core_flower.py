"""A Flower run's messages are jobs: leased, retried, given up, refused; and asked for again they are there."""

from typing import Any

import pytest
from consortium_in_facts import HOUR, Coordinator, campaign, consortium, d, decoded, ended, round_trip, sync

from consortium.canonical import encode, replace
from consortium.errors import BadInput, Refused
from consortium.flower.runs import FlowerOrder, FlowerRun, job_part, node_of
from consortium.ids import CampaignId, SiteName
from consortium.jobs import FlowerMessage, Outcome
from consortium.manifests import FileRef
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.story import tell
from coordinator.core.transitions import JobState
from coordinator.core.view import view

RUN = CampaignId("quick")
APP = "app.client:app"


def run(**changes: Any) -> FlowerRun:
    return FlowerRun(**{"run": RUN, "app": APP, "lease_seconds": 60.0, **changes})


def order(site: str, ordinal: int = 1, said: str = "weights", **changes: Any) -> FlowerOrder:
    letter = FileRef(digest=d(said), size=9)
    plain = FlowerOrder(
        ordinal=ordinal,
        site=SiteName(site),
        message_type="train",
        group="1",
        letter=letter,
        inputs=(letter.digest,),
    )
    return replace(plain, **changes)


def opened(**changes: Any) -> Coordinator:
    coordinator = consortium()
    coordinator.do(cm.OpenFlowerRun(run=run(**changes), sender="ada"))
    return coordinator


def push(coordinator: Coordinator, *orders: FlowerOrder) -> list[str]:
    return coordinator.do(cm.PushFlowerMessages(run=RUN, orders=orders))


def test_a_run_takes_place_at_every_enrolled_site_unless_it_names_some() -> None:
    coordinator = opened()
    assert coordinator.state.flower_runs[RUN].spec.sites == ("north", "south", "west")
    named = consortium()
    named.do(cm.OpenFlowerRun(run=run(sites=("west", "north"))))
    assert named.state.flower_runs[RUN].spec.sites == ("north", "west")


def test_opened_again_with_the_same_words_it_goes_on_and_with_others_it_does_not() -> None:
    coordinator = opened()
    assert coordinator.do(cm.OpenFlowerRun(run=run())) == []
    for other in (run(app="another:app"), run(sites=("north",)), run(run_config={"rounds": 5})):
        with pytest.raises(Refused, match="of other apps, sites or settings exists already"):
            coordinator.do(cm.OpenFlowerRun(run=other))


def test_names_are_shared_with_campaigns() -> None:
    coordinator = consortium(campaign("quick"))
    with pytest.raises(Refused, match="a campaign 'quick' exists already"):
        coordinator.do(cm.OpenFlowerRun(run=run()))
    with pytest.raises(Refused, match="a Flower run 'quick' exists already"):
        opened().do(cm.SubmitCampaign(campaign=campaign("quick")))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (run(sites=("nowhere",)), "site 'nowhere' is not enrolled"),
        (run(app="no reference"), "expected module:attribute"),
        (run(run="Not A Name"), "campaign name"),
    ],
)
def test_a_run_that_cannot_be_is_refused(wrong: FlowerRun, why: str) -> None:
    with pytest.raises((BadInput, Refused), match=why):
        consortium().do(cm.OpenFlowerRun(run=wrong))


def test_a_message_becomes_a_job_of_its_site_and_is_leased() -> None:
    coordinator = opened()
    assert push(coordinator, order("south"), order("north")) == [
        "JobPlanned quick_m1-train-south",
        "JobPlanned quick_m1-train-north",
    ]
    job = coordinator.job("quick_m1-train-north")
    assert isinstance(job.work, FlowerMessage)
    assert (job.sites, job.sender, job.inputs) == (("north",), "ada", (d("weights"),))
    assert (job.work.app, job.work.node) == (APP, node_of(SiteName("north")))
    assert coordinator.sync("north") == ["JobLeased quick_m1-train-north.a1 north"]
    assert coordinator.sync("west") == []


def test_the_same_message_again_is_the_same_job_whatever_became_of_it() -> None:
    coordinator = opened()
    push(coordinator, order("north"))
    assert push(coordinator, order("north")) == []
    coordinator.sync("north")
    assert push(coordinator, order("north")) == []
    coordinator.deliver("quick_m1-train-north")
    assert push(coordinator, order("north"), order("north", 2)) == ["JobPlanned quick_m2-train-north"]
    assert coordinator.replayed().snapshot() == coordinator.state.snapshot()


def test_another_message_in_the_same_place_is_refused() -> None:
    """A reply to the one would be taken for a reply to the other."""
    coordinator = opened()
    push(coordinator, order("north"))
    with pytest.raises(
        Refused, match="planned for another message: started again, this ServerApp sends something"
    ):
        push(coordinator, order("north", said="other weights"))
    with pytest.raises(BadInput, match="two messages for one place"):
        push(coordinator, order("west"), order("west", group="2"))
    assert push(coordinator, order("west"), order("west", copy=2)) == [
        "JobPlanned quick_m1-train-west",
        "JobPlanned quick_m1-train2-west",
    ]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (order("nowhere"), "has no site 'nowhere'"),
        (order("north", message_type="destroy"), "expected train, evaluate or query"),
        (order("north", ordinal=0), "count from 1 on"),
        (order("north", inputs=()), "name the letter as an input"),
    ],
)
def test_a_message_that_cannot_be_is_refused_and_none_of_its_company_is_sent(
    wrong: FlowerOrder, why: str
) -> None:
    coordinator = opened()
    with pytest.raises(BadInput, match=why):
        push(coordinator, order("south"), wrong)
    assert coordinator.state.jobs == {}


def test_each_message_goes_on_from_what_the_one_before_left_at_the_site() -> None:
    coordinator = opened()
    push(coordinator, order("north"), order("south"))
    coordinator.sync("north")
    coordinator.deliver("quick_m1-train-north")
    push(coordinator, order("north", 2), order("south", 2))
    states = {name: job.work.state for name, job in coordinator.state.jobs.items()}  # type: ignore[union-attr]
    assert states == {
        "quick_m1-train-north": None,
        "quick_m1-train-south": None,
        "quick_m2-train-north": d("residual of quick_m1-train-north.a1"),
        "quick_m2-train-south": None,
    }
    assert (
        push(coordinator, order("north"), order("north", 2)) == []
    )  # what was kept is not the ServerApp's word


def test_it_is_tried_again_and_given_up() -> None:
    coordinator = opened(attempts_max=2)
    push(coordinator, order("north"))
    coordinator.sync("north")
    assert coordinator.sync("north", ended("quick_m1-train-north.a1", Outcome.FAILED)) == [
        "AttemptEnded quick_m1-train-north.a1 failed",
        "JobLeased quick_m1-train-north.a2 north",
    ]
    failed = coordinator.sync("north", ended("quick_m1-train-north.a2", Outcome.FAILED))
    assert failed[-1] == "JobFailed quick_m1-train-north"


def test_a_lease_lapses_by_the_runs_own_length() -> None:
    coordinator = opened()
    push(coordinator, order("north"))
    coordinator.sync("north")
    assert coordinator.wait(59.0) == []
    assert coordinator.wait(2.0) == ["AttemptEnded quick_m1-train-north.a1 expired"]


def test_a_site_that_refuses_leaves_an_error_for_the_server_app() -> None:
    coordinator = opened()
    push(coordinator, order("north"))
    coordinator.sync("north")
    coordinator.sync("north", ended("quick_m1-train-north.a1", Outcome.REFUSED, "not this app"))
    assert coordinator.job("quick_m1-train-north").reason == "every able site refused, the last: not this app"


def test_reply_hours_give_a_message_up() -> None:
    coordinator = opened(reply_hours=2.0)
    push(coordinator, order("north"))
    assert coordinator.wait(2 * HOUR) == []
    assert coordinator.wait(1.0) == ["JobCancelled quick_m1-train-north"]
    assert "no reply within 2 h: planned" in coordinator.job("quick_m1-train-north").reason
    assert push(coordinator, order("north")) == []  # and so it stays


def test_a_completed_run_answers_but_takes_nothing_new() -> None:
    coordinator = opened()
    push(coordinator, order("north"), order("south"))
    coordinator.sync("north")
    coordinator.deliver("quick_m1-train-north")
    end = cm.CompleteFlowerRun(run=RUN, reason="done")
    assert coordinator.do(end) == ["JobCancelled quick_m1-train-south", "FlowerRunEnded completed"]
    assert coordinator.do(end) == []
    assert push(coordinator, order("north"), order("south")) == []
    with pytest.raises(Refused, match="quick is completed: done; it sends nothing new"):
        push(coordinator, order("north", 2))


def test_stop_ends_a_run_as_it_ends_a_campaign() -> None:
    coordinator = opened()
    push(coordinator, order("north"))
    stop = cm.StopCampaign(campaign=RUN, reason="enough")
    assert coordinator.do(stop) == ["JobCancelled quick_m1-train-north", "FlowerRunEnded stopped"]
    with pytest.raises(Refused, match="Flower run quick is stopped: enough"):
        coordinator.do(stop)
    with pytest.raises(Refused, match="is stopped"):
        coordinator.do(cm.CompleteFlowerRun(run=RUN, reason="done"))


def test_it_is_told_and_shown_and_survives_a_crash() -> None:
    coordinator = opened()
    push(coordinator, order("north"))
    coordinator.sync("north")
    coordinator.crash()
    coordinator.crash(from_snapshot=True)
    events = [(n, at, round_trip(event)) for n, (event, at) in enumerate(_events(coordinator), 1)]
    told = [line.text for line in tell(events, coordinator.state, RUN)]
    assert told[0] == "Flower run quick of app.client:app opened at north, south, west"
    assert told[1] == "quick_m1-train-north planned: the ServerApp sends north a message: train"
    shown = view(coordinator.state, sequence=1, head="", now=coordinator.now, seen={}, sights={})
    assert [job.purpose for job in shown.jobs] == ["flower"]
    assert [(run.status, run.messages, run.answered) for run in shown.flower_runs] == [("open", 1, 0)]
    assert coordinator.deliver("quick_m1-train-north")[-1] == "ContributionAdmitted quick_m1-train-north.a1"


def _events(coordinator: Coordinator) -> list[tuple[ev.AnyEvent, float]]:
    return [(decoded(data), at) for data, at in coordinator.ledger]


def test_a_job_names_its_message_so_that_none_can_be_taken_for_another() -> None:
    """Two copies for ``a``, one for a site called ``2-a`` or ``a-2``: all different."""
    names = {
        job_part(order(site, copy=copy, message_type=kind))
        for site in ("a", "a-2", "2-a")
        for copy in (1, 2, 12)
        for kind in ("train", "evaluate.loss", "query")
    }
    assert len(names) == 27


def test_campaigns_go_on_beside_a_run() -> None:
    coordinator = consortium(campaign())
    coordinator.do(cm.OpenFlowerRun(run=run()))
    push(coordinator, *(order(site) for site in ("north", "south", "west")))
    leased = [line for site in ("north", "south", "west") for line in coordinator.do(sync(site, slots=2))]
    assert {line.split(".")[0] for line in leased} >= {
        f"JobLeased quick_m1-train-{site}" for site in ("north", "south", "west")
    }
    assert coordinator.job("demo_tokenizer").state is JobState.LEASED
    assert encode(coordinator.state) == encode(coordinator.replayed())
