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
    admitted,
    answer,
    campaign,
    consortium,
    d,
    ended,
    holdings,
    merged,
    refused,
    success,
)

from consortium.canonical import replace
from consortium.errors import BadInput, Refused
from consortium.ids import CampaignId, Digest, JobId, Language, SiteName, digest_of
from consortium.jobs import Evaluate, Outcome, Purpose, Subject, Tokenizer, Train
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.plan import Judge, MakeBase, Merge, owed, waits
from coordinator.core.state import RoundState
from policies.campaign import Campaign, Rivals, TokenizerSource


def train_all(coordinator: Coordinator, number: int = 1) -> list[str]:
    for site in OWN:
        coordinator.sync(site)
    return [line for site in OWN for line in coordinator.deliver(f"demo_r{number}-train-{site}")]


def judge_all(coordinator: Coordinator, number: int = 1) -> list[str]:
    for site in OWN:
        coordinator.sync(site)
    return [line for site in OWN for line in coordinator.deliver(f"demo_r{number}-gate-{site}")]


def one_round(coordinator: Coordinator, number: int = 1, promote: bool = True) -> list[str]:
    """Train, merge, evaluate and judge; what the verdict brought."""
    train_all(coordinator, number)
    coordinator.work()
    judge_all(coordinator, number)
    return coordinator.work(promote)


def given(**changes: object) -> Coordinator:
    """Three sites, and a campaign that starts from given files: round 1 is open."""
    coordinator = consortium(campaign(**{**GIVEN, **changes}))
    coordinator.work()
    return coordinator


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
    assert train_all(coordinator)[-1] == "RoundCollected demo/r1"
    assert coordinator.work() == ["VersionMade demo/v2", *(f"JobPlanned demo_r1-gate-{site}" for site in OWN)]
    judge_all(coordinator)
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
    one_round(coordinator)
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
    assert one_round(coordinator, promote=False)[:3] == [
        "GateJudged demo/v1",
        "VersionRejected demo/v1",
        "RoundOpened demo/r2",
    ]
    state = coordinator.state.campaigns[DEMO]
    assert state.rounds[2].base == state.head == head
    assert one_round(coordinator, 2)[-1] == "CampaignEnded demo completed"
    assert state.reason == "all 2 rounds are closed; 1 version(s) were promoted"


def test_the_base_is_scored_once_at_each_site() -> None:
    coordinator = given(rounds=2)
    train_all(coordinator)
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
    judge_all(coordinator)
    coordinator.work(promote=False)
    train_all(coordinator, 2)
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


def test_late_judges_are_not_waited_for() -> None:
    coordinator = given()
    train_all(coordinator)
    coordinator.work()
    for site in ("north", "south"):
        coordinator.sync(site)
        coordinator.deliver(f"demo_r1-gate-{site}")
    assert coordinator.wait(2 * HOUR) == []
    assert coordinator.wait(1) == ["JobCancelled demo_r1-gate-west"]
    assert coordinator.work()[:2] == ["GateJudged demo/v1", "VersionPromoted demo/v1"]


def test_a_refused_merge_fails_the_round_and_the_next_one_opens() -> None:
    coordinator = given(rounds=2)
    train_all(coordinator)
    no = cm.ReportMerge(campaign=DEMO, round=1, manifest=None, reason="merge refused: zero weights")
    assert coordinator.do(no)[:2] == ["RoundFailed demo/r1", "RoundOpened demo/r2"]
    assert coordinator.state.campaigns[DEMO].rounds[1].reason == "merge refused: zero weights"
    assert coordinator.do(no) == []


def test_a_merge_that_learnt_nothing_new_fails_the_round() -> None:
    coordinator = given(rounds=2)
    train_all(coordinator)
    again = merged(coordinator.state, DEMO, 1)
    coordinator.work()
    judge_all(coordinator)
    coordinator.work(promote=False)
    train_all(coordinator, 2)
    report = cm.ReportMerge(campaign=DEMO, round=2, manifest=again, reason="merged")
    assert coordinator.do(report) == ["RoundFailed demo/r2", "CampaignEnded demo completed"]
    assert "demo/v1 again" in coordinator.state.campaigns[DEMO].rounds[2].reason
    assert len(coordinator.state.campaigns[DEMO].versions) == 2


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
    one_round(coordinator)
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
    one_round(coordinator)
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


def test_a_campaign_is_stopped() -> None:
    coordinator = given()
    coordinator.sync("north")
    coordinator.sync("south")
    coordinator.sync("south", success("demo_r1-train-south.a1"))
    stop = cm.StopCampaign(campaign=DEMO, reason="no more money")
    inspection = admitted(coordinator.job("demo_r1-train-south"))
    assert coordinator.do(stop) == [
        *(f"JobCancelled demo_r1-train-{site}" for site in OWN),
        "CampaignEnded demo stopped",
    ]
    assert owed(coordinator.state) == ()
    assert coordinator.sync("north", ended("demo_r1-train-north.a1", Outcome.CANCELLED)) == []
    assert coordinator.do(inspection) == []
    with pytest.raises(Refused, match="campaign demo is stopped: no more money"):
        coordinator.do(stop)
    with pytest.raises(BadInput, match="no campaign 'other'; known: demo"):
        coordinator.do(cm.StopCampaign(campaign=CampaignId("other"), reason="so"))


def test_a_campaign_is_submitted_once() -> None:
    coordinator = given()
    assert coordinator.do(cm.SubmitCampaign(campaign=campaign(**GIVEN))) == []
    with pytest.raises(Refused, match="exists already"):
        coordinator.do(cm.SubmitCampaign(campaign=campaign(**GIVEN, rounds=9)))


def test_a_campaign_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(BadInput, match="tokenizer"):
        Coordinator().do(cm.SubmitCampaign(campaign=campaign(tokenizer=TokenizerSource())))


def test_two_campaigns_do_not_mix() -> None:
    alone = given(rounds=2)
    one_round(alone)
    other: Campaign = campaign("other", **GIVEN, seed=5)
    both = consortium(campaign(**GIVEN, rounds=2), other, slots=2)
    assert [line.split()[1] for line in both.work() if "RoundOpened" in line] == ["demo/r1", "other/r1"]
    for site in OWN:
        assert both.sync(site, slots=2) == [
            f"JobLeased demo_r1-train-{site}.a1 {site}",
            f"JobLeased other_r1-train-{site}.a1 {site}",
        ]
    for site in OWN:
        both.deliver(f"demo_r1-train-{site}", slots=2)
    assert both.work()[0] == "VersionMade demo/v1"
    for site in OWN:
        both.sync(site, slots=2)
        both.deliver(f"demo_r1-gate-{site}", slots=2)
    both.work()
    first, second = (both.state.campaigns[CampaignId(name)] for name in ("demo", "other"))
    assert first.head == alone.state.campaigns[DEMO].head  # as if it were alone
    assert second.rounds[1].state is RoundState.TRAINING
    assert (
        both.do(cm.StopCampaign(campaign=CampaignId("other"), reason="so"))[-1]
        == "CampaignEnded other stopped"
    )
    assert (first.status, second.status) == ("open", "stopped")


def test_ten_rounds_survive_a_snapshot() -> None:
    """Numbers sort as numbers, and versions are shown as they were made."""
    coordinator = given(rounds=11)
    for number in range(1, 12):
        one_round(coordinator, number)
        coordinator.crash(from_snapshot=True)
    assert coordinator.state.campaigns[DEMO].status == "completed"
    assert sorted(coordinator.state.campaigns[DEMO].rounds) == list(range(1, 12))
    assert coordinator.state.snapshot() == coordinator.replayed().snapshot()


def test_a_refused_contribution_is_never_merged() -> None:
    coordinator = given(attempts_max=1)
    for site in OWN:
        coordinator.sync(site)
    coordinator.deliver("demo_r1-train-north")
    coordinator.deliver("demo_r1-train-west")
    coordinator.sync("south", success("demo_r1-train-south.a1"))
    coordinator.do(refused(coordinator.job("demo_r1-train-south")))
    collected = coordinator.state.campaigns[DEMO].rounds[1].collected
    assert collected == ("demo_r1-train-north", "demo_r1-train-west")
    deltas: list[Digest] = [p.delta.digest for p in merged(coordinator.state, DEMO, 1).ingredients]
    assert deltas == sorted([d("delta of demo_r1-train-north.a1"), d("delta of demo_r1-train-west.a1")])
