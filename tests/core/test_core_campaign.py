"""The story of a campaign, phase by phase: exactly which events follow from which."""

import pytest
from consortium_in_facts import (
    DEMO,
    GIVEN,
    HOUR,
    LANGUAGES,
    OPTIMIZER,
    OWN,
    SEED_ROUND,
    Coordinator,
    answer,
    campaign,
    consortium,
    d,
    ended,
    given,
    holdings,
    merged,
    success,
)

from consortium.canonical import replace
from consortium.ids import JobId, Language, SiteName, digest_of
from consortium.jobs import Evaluate, Outcome, Purpose, Subject, Tokenizer, Train
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.owed import Judge, MakeBase, Merge, owed
from coordinator.core.waits import waits
from policies.campaign import Gate, TokenizerSource


def test_from_a_tokenizer_to_a_promoted_model() -> None:
    coordinator = Coordinator()
    assert coordinator.do(cm.SubmitCampaign(campaign=campaign(seed_round=SEED_ROUND))) == [
        "CampaignOpened demo"
    ]
    assert coordinator.enrol("north") == ["SiteDescribed north"]
    assert coordinator.enrol("south") == ["SiteDescribed south"]
    assert [w.reason for w in waits(coordinator.state)] == [
        "2 of the 3 expected sites are enrolled and hold text of its languages (north, south)"
    ]
    coordinator.sync("south", draining=True)
    assert [w.reason for w in waits(coordinator.state)] == [
        "1 of the 3 expected sites are enrolled and hold text of its languages (north); south is draining"
    ]
    coordinator.sync("south")
    assert coordinator.enrol("west") == [
        "SiteDescribed west",
        "JobPlanned demo_tokenizer",
        "JobLeased demo_tokenizer.a1 west",
    ]
    assert owed(coordinator.state) == ()
    assert coordinator.deliver("demo_tokenizer") == [
        "ContributionReceived demo_tokenizer.a1 west",
        "ContributionAdmitted demo_tokenizer.a1",
        "TokenizerChosen demo",
    ]
    assert owed(coordinator.state) == (MakeBase(campaign=DEMO),)
    assert coordinator.work() == ["VersionMade demo/v0", "RoundOpened demo/r0", "JobPlanned demo_r0-seed"]
    assert coordinator.sync("south") == ["JobLeased demo_r0-seed.a1 south"]
    assert coordinator.sync("north") == []
    assert coordinator.deliver("demo_r0-seed") == [
        "ContributionReceived demo_r0-seed.a1 south",
        "ContributionAdmitted demo_r0-seed.a1",
        "RoundCollected demo/r0",
    ]
    assert owed(coordinator.state) == (Merge(campaign=DEMO, round=0),)
    assert coordinator.work() == ["VersionMade demo/v1", *(f"JobPlanned demo_r0-gate-{site}" for site in OWN)]
    for site in OWN:
        assert owed(coordinator.state) == ()
        coordinator.sync(site)
        done = [
            f"ContributionReceived demo_r0-gate-{site}.a1 {site}",
            f"ContributionAdmitted demo_r0-gate-{site}.a1",
        ]
        assert coordinator.deliver(f"demo_r0-gate-{site}") == done
    assert owed(coordinator.state) == (Judge(campaign=DEMO, round=0),)
    assert coordinator.work() == [
        "GateJudged demo/v1",
        "VersionPromoted demo/v1",
        "RoundOpened demo/r1",
        *(f"JobPlanned demo_r1-train-{site}" for site in OWN),
    ]
    assert coordinator.train_all()[-1] == "RoundCollected demo/r1"
    assert coordinator.work() == ["VersionMade demo/v2", *(f"JobPlanned demo_r1-gate-{site}" for site in OWN)]
    coordinator.judge_all()
    assert coordinator.work() == [
        "GateJudged demo/v2",
        "VersionPromoted demo/v2",
        "CampaignEnded demo completed",
    ]
    assert (owed(coordinator.state), waits(coordinator.state)) == ((), ())
    assert coordinator.state.snapshot() == coordinator.replayed().snapshot()


def test_what_the_jobs_of_a_round_are_asked() -> None:
    coordinator = consortium(campaign(**GIVEN, rounds=2, seed=7))
    (base, opened, *planned) = coordinator.events_of(answer(owed(coordinator.state)[0], coordinator.state))
    assert isinstance(base, ev.VersionMade) and base.role == "initial"
    assert opened == ev.RoundOpened(
        campaign=DEMO, round=1, base=base.version, reason="3 site(s) take part: north, south, west"
    )
    inputs = tuple(sorted([base.version, d("weights"), d("tokenizer")]))
    work = Train(
        base=base.version,
        languages=(Language("fi"),),
        public_languages=LANGUAGES,
        replay_share=0.5,
        steps=10,
        batch_sequences=2,
        sequence_tokens=8,
        optimizer=OPTIMIZER,
        schedule_start=0,
        schedule_steps=20,
        seed=int(digest_of(b"7/1/north")[:12], 16),
        split_seed=7,
    )
    assert planned[0] == ev.JobPlanned(
        job=JobId("demo_r1-train-north"),
        campaign=DEMO,
        round=1,
        purpose=Purpose.ROUND,
        sites=(SiteName("north"),),
        work=work,
        inputs=inputs,
        tokenizer=d("tokenizer"),
        reason="north holds fi",
    )
    coordinator.one_round()
    second = coordinator.job("demo_r2-train-north").work
    assert isinstance(second, Train) and second.base == coordinator.state.campaigns[DEMO].head != base.version
    assert second == replace(
        work, base=second.base, schedule_start=10, seed=int(digest_of(b"7/2/north")[:12], 16)
    )


def test_a_round_waits_for_the_expected_sites() -> None:
    coordinator = Coordinator()
    coordinator.do(cm.SubmitCampaign(campaign=campaign(**GIVEN)))
    coordinator.enrol("north")
    assert coordinator.work() == ["VersionMade demo/v0"]  # the base needs nobody
    assert coordinator.enrol("south") == ["SiteDescribed south"]
    assert coordinator.enrol("west")[:2] == ["SiteDescribed west", "RoundOpened demo/r1"]


def test_what_seed_and_tokenizer_jobs_are_asked() -> None:
    coordinator = consortium(campaign(seed_round=SEED_ROUND, seed=7))
    tokenizer = coordinator.job("demo_tokenizer")
    assert tokenizer.sites == ("north", "south", "west") and tokenizer.inputs == ()
    assert tokenizer.work == Tokenizer(
        languages=LANGUAGES, vocabulary_size=300, bytes_per_language=1_000_000, split_seed=7
    )
    coordinator.deliver("demo_tokenizer")
    coordinator.work()
    seed = coordinator.job("demo_r0-seed")
    assert seed.tokenizer == d("tokenizer of demo_tokenizer.a1") and isinstance(seed.work, Train)
    work = seed.work
    assert (work.languages, work.replay_share, work.public_languages) == ((), 1.0, LANGUAGES)
    assert (work.steps, work.schedule_start, work.schedule_steps) == (20, 0, 20)


def test_public_text_in_all_languages_is_needed_for_the_tokenizer_and_the_seed() -> None:
    for changes, phase in (({}, "JobPlanned demo_tokenizer"), ({**GIVEN, "seed_round": SEED_ROUND}, "")):
        coordinator = Coordinator()
        coordinator.do(cm.SubmitCampaign(campaign=campaign(**changes)))
        for site in OWN:
            assert "JobPlanned" not in str(coordinator.enrol(site, holdings=holdings(site, ["fi", "ga"])))
        assert "JobPlanned" not in str(coordinator.work())
        assert [w.reason for w in waits(coordinator.state)] == [
            "no site holds public text in all of fi, ga, hu"
        ]
        happened = coordinator.sync("south")
        assert phase in happened or "JobPlanned demo_r0-seed" in happened
        assert coordinator.state.jobs.popitem()[1].sites == ("south",)


def test_a_tokenizer_may_be_given() -> None:
    spec = campaign(tokenizer=TokenizerSource(digest=d("mine")))
    coordinator = Coordinator()
    assert coordinator.do(cm.SubmitCampaign(campaign=spec)) == ["CampaignOpened demo", "TokenizerChosen demo"]
    assert coordinator.state.campaigns[DEMO].tokenizer == d("mine")


def test_no_tokenizer_no_campaign() -> None:
    coordinator = consortium(campaign(attempts_max=2))
    for number in (1, 2):
        attempt = f"demo_tokenizer.a{number}"
        happened = coordinator.sync("west", ended(attempt, Outcome.FAILED, "out of memory"))
    assert happened == [
        "AttemptEnded demo_tokenizer.a2 failed",
        "JobFailed demo_tokenizer",
        "CampaignEnded demo failed",
    ]
    assert coordinator.state.campaigns[DEMO].reason == (
        "no tokenizer: 2 attempts failed, the last: out of memory"
    )


def test_a_tokenizer_is_not_waited_for_without_end() -> None:
    coordinator = consortium(campaign(lease_seconds=1e6))
    assert coordinator.wait(2 * HOUR) == []
    assert coordinator.wait(1) == ["JobCancelled demo_tokenizer", "CampaignEnded demo failed"]
    assert coordinator.state.campaigns[DEMO].reason.startswith(
        "no tokenizer in time, it did not start within 2 h: leased, "
    )
    assert coordinator.sync("west", success("demo_tokenizer.a1")) == []


def test_no_base_no_campaign() -> None:
    coordinator = consortium(campaign(**GIVEN))
    report = cm.ReportBase(campaign=DEMO, manifest=None, reason="no such model_type")
    assert coordinator.do(report) == ["CampaignEnded demo failed"]
    assert coordinator.state.campaigns[DEMO].reason == "no such model_type"


def test_a_base_is_made_once() -> None:
    coordinator = consortium(campaign(**GIVEN))
    report = answer(owed(coordinator.state)[0], coordinator.state)
    assert coordinator.do(report)[0] == "VersionMade demo/v0"
    assert coordinator.do(report) == []


def test_a_failed_seed_round_ends_the_campaign() -> None:
    coordinator = given(seed_round=SEED_ROUND, attempts_max=1)
    coordinator.sync("north")
    assert coordinator.sync("north", ended("demo_r0-seed.a1", Outcome.FAILED)) == [
        "AttemptEnded demo_r0-seed.a1 failed",
        "JobFailed demo_r0-seed",
        "RoundFailed demo/r0",
        "CampaignEnded demo failed",
    ]
    assert coordinator.state.campaigns[DEMO].reason.startswith("no model to branch from: 0 of 1 needed")


def test_a_rejected_candidate_leaves_the_head_where_it_was() -> None:
    coordinator = given(rounds=2)
    head = coordinator.state.campaigns[DEMO].head
    assert coordinator.one_round(promote=False)[:3] == [
        "GateJudged demo/v1",
        "VersionRejected demo/v1",
        "RoundOpened demo/r2",
    ]
    state = coordinator.state.campaigns[DEMO]
    assert state.rounds[2].base == state.head == head
    assert coordinator.one_round(2)[-1] == "CampaignEnded demo completed"
    assert state.reason == "all 2 rounds are closed; 1 version(s) were promoted"


def test_the_base_is_scored_once_at_each_site() -> None:
    coordinator = given(rounds=2)
    coordinator.train_all()
    coordinator.work()
    state = coordinator.state.campaigns[DEMO]
    base, candidate = state.rounds[1].base, state.rounds[1].candidate
    assert candidate is not None
    subjects = (Subject(name=candidate, version=candidate), Subject(name=base, version=base))
    assert coordinator.job("demo_r1-gate-north").work == Evaluate(
        subjects=subjects, languages=(Language("fi"),), sequence_tokens=8, split_seed=0
    )
    files = {ref.digest for v in (base, candidate) for ref in state.versions[v].manifest.files.values()}
    assert coordinator.job("demo_r1-gate-north").inputs == tuple(sorted({base, candidate, *files}))
    coordinator.judge_all()
    coordinator.work(promote=False)
    coordinator.train_all(2)
    coordinator.work()
    work = coordinator.job("demo_r2-gate-north").work
    assert isinstance(work, Evaluate) and [s.name for s in work.subjects] == [state.rounds[2].candidate]


def test_nobody_can_judge() -> None:
    """No held-out text anywhere: the gate is asked at once, and if a judge comes meanwhile, asked again."""
    coordinator = Coordinator()
    coordinator.do(cm.SubmitCampaign(campaign=campaign(**GIVEN, sites_expected=1)))
    blind = tuple(replace(h, heldout_documents=0) for h in holdings("north"))
    coordinator.enrol("north", holdings=blind)
    coordinator.work()
    coordinator.sync("north", holdings=blind)
    coordinator.deliver("demo_r1-train-north", holdings=blind)
    assert coordinator.work() == ["VersionMade demo/v1"]
    assert owed(coordinator.state) == (Judge(campaign=DEMO, round=1),)
    late = answer(owed(coordinator.state)[0], coordinator.state)
    assert coordinator.sync("north") == [
        "SiteDescribed north",
        "JobPlanned demo_r1-gate-north",
        "JobLeased demo_r1-gate-north.a1 north",
    ]
    assert coordinator.do(late) == []
    assert coordinator.deliver("demo_r1-gate-north")[-1] == "ContributionAdmitted demo_r1-gate-north.a1"
    assert coordinator.work()[-1] == "CampaignEnded demo completed"


def gate_without_north(status: str, **gate: object) -> tuple[Coordinator, list[str]]:
    """A merged round of which north, which alone knows fi, takes no work when the candidate is made."""
    coordinator = given(rounds=2, gate=Gate(**gate))  # type: ignore[arg-type]
    coordinator.train_all()
    if status == "draining":
        coordinator.sync("north", draining=True)
    else:
        coordinator.do(cm.SetSite(site=SiteName("north"), status="suspended", reason="a lost key"))
    return coordinator, coordinator.work()[1:]


@pytest.mark.parametrize("status", ["draining", "suspended"])
def test_who_alone_knows_a_language_is_waited_for(status: str) -> None:
    """Without it the work of all sites would be lost, for an hour of absence."""
    coordinator, planned = gate_without_north(status)
    assert planned == [f"JobPlanned demo_r1-gate-{site}" for site in ("north", "south", "west")]
    for site in ("south", "west"):
        coordinator.sync(site)
        coordinator.deliver(f"demo_r1-gate-{site}")
    assert [w.reason for w in waits(coordinator.state) if "north" in w.reason]
    assert coordinator.work() == []
    if status == "suspended":
        coordinator.do(cm.SetSite(site=SiteName("north"), status="enrolled", reason="a new one"))
    assert "JobLeased demo_r1-gate-north.a1 north" in coordinator.sync("north")
    coordinator.deliver("demo_r1-gate-north")
    assert coordinator.work()[:2] == ["GateJudged demo/v1", "VersionPromoted demo/v1"]


def test_who_alone_knows_a_language_is_not_waited_for_for_ever() -> None:
    coordinator, _ = gate_without_north("suspended")
    for site in ("south", "west"):
        coordinator.sync(site)
        coordinator.deliver(f"demo_r1-gate-{site}")
    assert coordinator.wait(2 * HOUR) == []
    assert coordinator.wait(1) == ["JobCancelled demo_r1-gate-north"]
    assert "its languages count as unscored" in coordinator.job("demo_r1-gate-north").reason
    assert owed(coordinator.state) == (Judge(campaign=DEMO, round=1),)


@pytest.mark.parametrize("gate", [{"unscored": "allow"}, {"protected": (Language("ga"),)}])
def test_who_takes_no_work_is_no_judge_where_the_gate_can_do_without(gate: dict[str, object]) -> None:
    _, planned = gate_without_north("draining", **gate)
    assert planned == ["JobPlanned demo_r1-gate-south", "JobPlanned demo_r1-gate-west"]


def test_late_judges_are_not_waited_for() -> None:
    coordinator = given()
    coordinator.train_all()
    coordinator.work()
    for site in ("north", "south"):
        coordinator.sync(site)
        coordinator.deliver(f"demo_r1-gate-{site}")
    assert coordinator.wait(2 * HOUR) == []
    assert coordinator.wait(1) == ["JobCancelled demo_r1-gate-west"]
    assert coordinator.work()[:2] == ["GateJudged demo/v1", "VersionPromoted demo/v1"]


def test_a_refused_merge_fails_the_round_and_the_next_one_opens() -> None:
    coordinator = given(rounds=2)
    coordinator.train_all()
    no = cm.ReportMerge(campaign=DEMO, round=1, manifest=None, reason="merge refused: zero weights")
    assert coordinator.do(no)[:2] == ["RoundFailed demo/r1", "RoundOpened demo/r2"]
    assert coordinator.state.campaigns[DEMO].rounds[1].reason == "merge refused: zero weights"
    assert coordinator.do(no) == []


def test_a_merge_that_learnt_nothing_new_fails_the_round() -> None:
    coordinator = given(rounds=2)
    coordinator.train_all()
    again = merged(coordinator.state, DEMO, 1)
    coordinator.work()
    coordinator.judge_all()
    coordinator.work(promote=False)
    coordinator.train_all(2)
    report = cm.ReportMerge(campaign=DEMO, round=2, manifest=again, reason="merged")
    assert coordinator.do(report) == ["RoundFailed demo/r2", "CampaignEnded demo completed"]
    assert "demo/v1 again" in coordinator.state.campaigns[DEMO].rounds[2].reason
    assert len(coordinator.state.campaigns[DEMO].versions) == 2
