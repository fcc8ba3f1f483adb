"""Stories of letting go: what a rule asks for goes, whatever must stay stays, and everybody is told why."""

import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

import consortium_in_facts
import pytest
from consortium_in_facts import DEMO, Coordinator, given
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from consortium.canonical import encode, replace
from consortium.errors import Refused
from consortium.ids import Digest, JobId, digest_of
from consortium.manifests import FileRef, VersionManifest
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.keeping import DAY, beyond_its_rule, day, due, why_gone
from coordinator.core.orders import merge_inputs
from coordinator.core.referenced import let_go, referenced
from coordinator.core.snapshot import keep, restore
from coordinator.core.state import CampaignState, RoundState
from coordinator.core.story import tell
from coordinator.core.view import view
from policies.campaign import Quorum
from policies.keeping import Keep

ROUNDS = 5
NEWEST = Keep(contributions_versions=1)


@pytest.fixture(autouse=True, scope="module")
def _momentum() -> Iterator[None]:
    """Every merge keeps what its outer optimizer has."""
    plain = consortium_in_facts.merged

    def merged(*arguments: Any) -> VersionManifest:
        manifest = plain(*arguments)
        momentum = FileRef(digest=digest_of(f"momentum of {manifest.digest}".encode()), size=11)
        return replace(manifest, outer_state={"momentum.safetensors": momentum})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consortium_in_facts, "merged", merged)
        yield


def begun(rounds: int = ROUNDS) -> Coordinator:
    """Jobs may take for ever, so days pass between rounds."""
    return given(rounds=rounds, quorum=Quorum(deadline_hours=1e6))


def demo(coordinator: Coordinator) -> CampaignState:
    return coordinator.state.campaigns[DEMO]


def after(*promoted: bool, rounds: int = ROUNDS) -> Coordinator:
    """So many rounds of the campaign, each with its verdict, a day apart; the next one is open."""
    made = begun(rounds)
    for number, verdict in enumerate(promoted, 1):
        made.one_round(number, promote=verdict)
        made.now += DAY
    return made


def of_round(coordinator: Coordinator, number: int) -> set[JobId]:
    return set(demo(coordinator).rounds[number].collected)


def deltas(coordinator: Coordinator, number: int) -> set[Digest]:
    jobs = [coordinator.state.jobs[name] for name in of_round(coordinator, number)]
    return {job.contribution.artifacts["delta"].digest for job in jobs if job.contribution}


def go(coordinator: Coordinator, rule: Keep) -> ev.ArtifactsLetGo:
    (event,) = coordinator.events_of(cm.LetGo(rule=rule))
    assert isinstance(event, ev.ArtifactsLetGo)
    return event


def test_without_a_rule_nothing_ever_goes() -> None:
    made = after(True, True, True)
    made.now += 10_000 * DAY
    assert due(made.state, Keep(), made.now) == []
    assert not let_go(made.state)


def test_what_went_into_older_versions_goes_and_the_proof_chain_stays() -> None:
    made = after(True, True, True)
    before = referenced(made.state)
    event = go(made, NEWEST)
    assert set(event.contributions) == of_round(made, 1) | of_round(made, 2)
    versions = {v.name: v for v in demo(made).versions.values()}
    assert set(event.unprovable) == {versions["demo/v1"].digest, versions["demo/v2"].digest}
    gone = let_go(made.state)
    assert gone.keys() == deltas(made, 1) | deltas(made, 2)
    assert referenced(made.state).keys() == before.keys() - gone.keys(), "nothing else goes"
    for name in event.contributions:
        job = made.state.jobs[name]
        assert job.contribution is not None and job.envelope in referenced(made.state)
    assert go_again(made, NEWEST) == ()
    assert beyond_its_rule(event, after(True, True, True).state, made.now) == ()


def go_again(made: Coordinator, rule: Keep) -> tuple[ev.AnyEvent, ...]:
    return made.events_of(cm.LetGo(rule=rule))


def test_days_and_versions_keep_for_as_long_as_either_says() -> None:
    made = after(True, True, True)
    rule = Keep(contributions_versions=1, contributions_days=2.5)
    assert set(go(made, rule).contributions) == of_round(made, 1), "the others are younger"
    made.now += DAY
    assert set(go(made, rule).contributions) == of_round(made, 2)
    made.now += 1000 * DAY
    assert go_again(made, rule) == (), "what made the head stays for ever"


def test_after_a_rollback_what_made_the_head_stays() -> None:
    made = after(True, True, True)
    made.do(cm.MoveHead(campaign=DEMO, version="demo/v2", verb="roll_back", reason="v3 is odd"))
    assert set(go(made, NEWEST).contributions) == of_round(made, 1)


def test_an_open_round_and_its_base_are_not_touched() -> None:
    made = after(True, True)
    made.train_all(3)
    made.now += 1000 * DAY
    go(made, Keep(contributions_versions=1, outer_state_versions=1, rejected_days=1e-9))
    needed = referenced(made.state)
    assert demo(made).rounds[3].state is RoundState.MERGING
    assert set(merge_inputs(made.state, demo(made), demo(made).rounds[3])) <= needed.keys()


def test_the_weights_of_a_rejected_model_go_and_it_cannot_be_promoted_any_more() -> None:
    made = after(True, False, False)
    rejected = {v.name: v for v in demo(made).versions.values() if v.status == "rejected"}
    rule = Keep(rejected_days=1.5)
    event = go(made, rule)
    assert event.weights == (rejected["demo/v2"].digest,), "the other is not old enough"
    manifest = rejected["demo/v2"].manifest
    own = {ref.digest for ref in (*manifest.files.values(), *manifest.outer_state.values())}
    assert let_go(made.state).keys() == own - referenced(made.state).keys() != set()
    assert rejected["demo/v2"].digest in referenced(made.state), "its manifest stays"
    with pytest.raises(Refused, match=r"its weights were let go on 1970-01-0\d by keep: rejected_days 1\.5"):
        made.do(cm.MoveHead(campaign=DEMO, version="demo/v2", verb="promote", reason="after all"))
    assert made.do(cm.MoveHead(campaign=DEMO, version="demo/v3", verb="promote", reason="this one"))


def test_of_the_outer_optimizers_states_those_stay_that_something_may_begin_from_or_is_proved_by() -> None:
    made = after(True, True, True, True)
    states = {v.name: set(v.manifest.outer_state.values()) for v in demo(made).versions.values()}
    assert go_again(made, Keep(outer_state_versions=1)) == (), "each is needed to make the next version again"
    event = go(made, Keep(outer_state_versions=1, contributions_versions=2))
    names = {v.digest: v.name for v in demo(made).versions.values()}
    assert [names[x] for x in event.outer_states] == ["demo/v1"]
    assert let_go(made.state).keys() == deltas(made, 1) | deltas(made, 2) | {
        r.digest for r in states["demo/v1"]
    }
    with pytest.raises(Refused, match="its model can be exported"):
        made.do(cm.MoveHead(campaign=DEMO, version="demo/v1", verb="roll_back", reason="all is wrong"))
    assert made.do(cm.MoveHead(campaign=DEMO, version="demo/v2", verb="roll_back", reason="so far"))


def test_an_event_that_lets_go_of_more_than_its_rule_is_told() -> None:
    made = after(True, True, True)
    (event,) = due(made.state, NEWEST, made.now)
    assert isinstance(event, ev.ArtifactsLetGo)
    newest = demo(made).head
    assert newest is not None
    too_much = replace(
        event, contributions=(*event.contributions, *sorted(of_round(made, 3))), weights=(newest,)
    )
    assert beyond_its_rule(too_much, made.state, made.now) == (
        *sorted(of_round(made, 3)),
        f"weights of {newest}",
    )
    assert beyond_its_rule(replace(event, rule=Keep()), made.state, made.now) == tuple(
        sorted(event.contributions)
    )


def test_a_job_a_version_and_a_round_tell_when_they_were_let_go() -> None:
    made = after(True, True, True)
    event = go(made, NEWEST)
    happened = [(1, made.now, event)]
    for subject in (event.contributions[0], event.unprovable[0], "demo/r1"):
        lines = [line.text for line in tell(happened, made.state, subject)]
        assert "let go of 6 contribution(s) of rounds before 3" in lines[0]
        assert "2 version(s) can no longer be made again" in lines[0]
    assert not tell(happened, made.state, "demo/r3")
    shown = view(made.state, sequence=1, head="", now=made.now, seen={}, sights={})
    said = {v.name: v.let_go for v in shown.campaigns[0].versions}
    assert said["demo/v1"].startswith("cannot be made again: its contributions were let go on 1970-01-")
    assert said["demo/v3"] == said["demo/v0"] == ""
    job = next(job for job in shown.jobs if job.job == event.contributions[0])
    assert job.let_go.endswith("by keep: contributions_versions 1")
    for digest in let_go(made.state):
        assert "of the contribution of demo_r" in (why_gone(made.state, digest) or "")


def test_a_snapshot_remembers_what_was_let_go() -> None:
    made = after(True, True, False)
    go(made, Keep(contributions_versions=1, rejected_days=1e-9))
    assert restore(keep(made.state)).snapshot() == made.state.snapshot() == made.replayed().snapshot()


@for_all(st.integers(0, 4_102_444_800))
def test_days_are_those_of_the_calendar(at: int) -> None:
    assert day(float(at)) == f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d}"


rules = st.builds(
    Keep,
    contributions_versions=st.none() | st.integers(1, 4),
    contributions_days=st.none() | st.floats(0.1, 6.0),
    outer_state_versions=st.none() | st.integers(1, 3),
    rejected_days=st.none() | st.floats(0.1, 6.0),
)


@settings(max_examples=60, deadline=None)
@for_all(
    st.lists(st.tuples(st.booleans(), rules, st.booleans()), min_size=1, max_size=4),
    rules,
    st.floats(0, 20),
)
def test_what_must_stay_is_never_let_go(
    rounds: list[tuple[bool, Keep, bool]], last: Keep, later: float
) -> None:
    """Whatever rules, in whatever order, with rollbacks between: see the first lines of ``core/keeping.py``."""
    made, gone_before = begun(), set[Digest]()
    for number, (promoted, rule, rolls_back) in enumerate(rounds, 1):
        made.one_round(number, promote=promoted)
        made.now += DAY
        if rolls_back:
            old = min(
                (v for v in demo(made).versions.values() if v.status == "promoted"), key=lambda v: v.number
            )
            lacks = old.outer_state_let_go is not None
            with pytest.raises(Refused, match="let go") if lacks else contextlib.nullcontext():
                made.do(cm.MoveHead(campaign=DEMO, version=old.name, verb="roll_back", reason="so"))
        made.do(cm.LetGo(rule=rule))
        gone = set(let_go(made.state))
        assert gone_before <= gone | referenced(made.state).keys()
        gone_before = gone
    made.now += later * DAY
    for event in made.events_of(cm.LetGo(rule=last)):
        assert len(encode(event)) < 64 << 10
    check_what_stays(made)


def check_what_stays(made: Coordinator) -> None:
    campaign, needed = demo(made), referenced(made.state)
    gone = let_go(made.state)
    assert not gone.keys() & needed.keys()
    for version in campaign.versions.values():
        assert version.digest in needed
        if version.status == "promoted":
            assert {ref.digest for ref in version.manifest.files.values()} <= needed.keys()
        if version.role == "candidate" and version.unprovable is None:
            made_of = merge_inputs(made.state, campaign, campaign.rounds[version.round])
            assert set(made_of) <= needed.keys(), f"{version.name} can be made again"
    assert campaign.head is not None and campaign.versions[campaign.head].unprovable is None
    head = campaign.versions[campaign.head].manifest
    assert {ref.digest for ref in head.outer_state.values()} <= needed.keys()
    for job in made.state.open_jobs():
        assert set(job.inputs) <= needed.keys()
    for job in map(made.state.jobs.glance, made.state.jobs):
        assert job.envelope is None or job.envelope in needed
        for kind, ref in job.contribution.artifacts.items() if job.contribution else ():
            assert kind in ("delta", "token_counts") or ref.digest in needed
