"""Stories of a round that is merged at a site: who may, who does, who is not asked again, and who steps in."""

import msgspec
import pytest
from consortium_in_facts import (
    DEMO,
    HOUR,
    OWN,
    Coordinator,
    admitted,
    answer,
    d,
    ended,
    given,
    merged,
    refused,
    running,
    success,
)

from consortium.canonical import decode, encode, replace
from consortium.ids import SiteName
from consortium.jobs import Merge, Outcome
from consortium.merging.recipe import Recipe
from consortium.roles import Role
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.access import may_read
from coordinator.core.owed import Merge as OwedMerge
from coordinator.core.owed import owed
from coordinator.core.state import Round, RoundState
from coordinator.core.story import tell
from coordinator.core.transitions import JobState
from coordinator.core.waits import waits
from policies.campaign import Quorum, Rivals

JOB = "demo_r1-merge"
A1, A2 = f"{JOB}.a1", f"{JOB}.a2"


def collected(
    merge_at: str = "site", willing: tuple[str, ...] = ("north", "south"), **changes: object
) -> Coordinator:
    """Round 1 is collected; these sites offer to merge, and have a slot free."""
    coordinator = given(merge_at=merge_at, **changes)
    for site in OWN:
        coordinator.sync(site, merges=site in willing)
    for site in OWN:
        coordinator.deliver(f"demo_r1-train-{site}", merges=site in willing)
    return coordinator


def first(coordinator: Coordinator) -> Round:
    return coordinator.state.campaigns[DEMO].rounds[1]


def delivered(coordinator: Coordinator, attempt: str = A1, site: str = "south") -> None:
    """A site takes the merge and reports it done."""
    assert coordinator.sync(site, merges=True) == [f"JobLeased {attempt} {site}"]
    assert coordinator.sync(site, success(attempt), merges=True) == [f"ContributionReceived {attempt} {site}"]


def story(coordinator: Coordinator, subject: str) -> list[str]:
    events = [(n, at, decode(data, ev.AnyEvent)) for n, (data, at) in enumerate(coordinator.ledger, 1)]
    return [line.text for line in tell(events, coordinator.state, subject)]


def test_a_site_merges_and_the_round_goes_on_as_if_the_coordinator_had() -> None:
    here, there = collected("coordinator"), collected("site")
    here.work()
    assert owed(there.state) == ()
    delivered(there)
    assert there.work()[:2] == [f"ContributionAdmitted {A1}", "VersionMade demo/v1"]
    assert first(here).candidate == first(there).candidate
    versions = [c.state.campaigns[DEMO].versions[first(c).candidate] for c in (here, there)]
    assert [version.merged_by for version in versions] == [None, "south"]
    for coordinator in (here, there):
        coordinator.judge_all()
        assert coordinator.work()[-1] == "CampaignEnded demo completed"
    assert here.state.campaigns[DEMO].head == there.state.campaigns[DEMO].head


def test_the_ledger_says_where_and_by_whom() -> None:
    coordinator = collected()
    delivered(coordinator)
    coordinator.work()
    made = next(line for line in story(coordinator, "demo/v1") if " made " in line)
    assert made.endswith("made from 3 contribution(s) at south: fine")
    assert made in story(coordinator, "south") and made in story(coordinator, "demo/r1")
    assert f"{JOB} planned: any of north, south can merge 3 contribution(s)" in story(coordinator, JOB)


def test_the_order_is_whole_and_the_site_reads_it_and_nothing_else() -> None:
    coordinator = collected(merge=Recipe())
    job = coordinator.job(JOB)
    assert isinstance(job.work, Merge)
    assert [part.cohort for part in sorted(job.work.parts, key=lambda part: part.cohort)] == [
        "fi",
        "ga",
        "hu",
    ]
    assert [part.delta.digest for part in job.work.parts] == sorted(
        part.delta.digest for part in job.work.parts
    )
    assert {part.weight for part in job.work.parts} == {160} and job.work.languages == ("fi", "ga", "hu")
    assert job.work.recipe == Recipe() and job.work.base == first(coordinator).base
    deltas = {part.delta.digest for part in job.work.parts}
    assert set(job.inputs) == {job.work.base, *deltas, d("weights"), d("tokenizer")}

    def readable(site: str) -> set[str]:
        known = {*job.inputs, d("envelope of demo_r1-train-west.a1"), *map(d, ("another blob",))}
        return {x for x in known if may_read(coordinator.state, Role.SITE, site, x).allowed}

    assert readable("south") == readable("north") == set()
    coordinator.sync("south", merges=True)
    assert readable("south") == set(job.inputs) and readable("north") == set()
    coordinator.sync("south", success(A1), merges=True)
    assert readable("south") == set()


def test_the_outer_state_of_the_base_is_an_input() -> None:
    """Round 2 starts from a version whose momentum lies beside it."""
    coordinator = collected(rounds=2)
    manifest = merged(coordinator.state, DEMO, 1)
    momentum = replace(manifest.files["model.safetensors"], digest=d("momentum"))
    manifest = replace(manifest, outer_state={"outer.safetensors": momentum})
    delivered(coordinator)
    coordinator.do(replace(admitted(coordinator.job(JOB), state=coordinator.state), manifest=manifest))
    coordinator.judge_all()
    coordinator.work()
    coordinator.train_all(2)
    coordinator.sync("north", merges=True)
    job = coordinator.job("demo_r2-merge")
    assert isinstance(job.work, Merge)
    assert job.work.outer_state == {"outer.safetensors": momentum} and momentum.digest in job.inputs


def test_uniform_weights_are_ones() -> None:
    job = collected(merge=Recipe(weights="uniform")).job(JOB)
    assert isinstance(job.work, Merge) and [part.weight for part in job.work.parts] == [1, 1, 1]


# --- who may ----------------------------------------------------------------------------------------


def test_only_who_offers_is_asked() -> None:
    coordinator = collected(willing=("west",))
    assert coordinator.job(JOB).sites == ("west",)
    assert coordinator.sync("north") == [] and coordinator.sync("west", merges=True) == [
        f"JobLeased {A1} west"
    ]


def test_only_who_is_named_is_asked() -> None:
    coordinator = collected(willing=("north", "south", "west"), merge_sites=(SiteName("west"),))
    assert coordinator.job(JOB).sites == ("west",)


def test_uninvited_sites_do_not_merge() -> None:
    sites = (SiteName("north"), SiteName("south"))
    coordinator = given(merge_at="site", sites=sites, sites_expected=2)
    for site in sites:
        coordinator.sync(site)
    coordinator.sync("west", merges=True)
    for site in sites:
        coordinator.deliver(f"demo_r1-train-{site}")
    assert first(coordinator).merge_job is None
    coordinator.sync("south", merges=True)
    assert coordinator.job(JOB).sites == ("south",)


def test_who_does_not_offer_any_longer_is_not_given_it() -> None:
    coordinator = collected()
    assert coordinator.sync("south", merges=False) == ["SiteDescribed south"]
    assert "south no longer offers to merge" in story(coordinator, JOB)[-1]
    assert coordinator.sync("north", merges=True) == [f"JobLeased {A1} north"]


def test_a_merge_comes_before_everything_else_in_a_free_slot() -> None:
    """North's rival would take the first of two, and leave the last to the rounds."""
    coordinator = collected(rivals=Rivals(specialists=True))
    happened = coordinator.sync("north", merges=True, slots=2)
    assert happened == ["SiteDescribed north", f"JobLeased {A1} north"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (None, "north does not offer to merge; south does not offer to merge; west does not offer to merge"),
        ("draining", "north does not offer to merge; south is draining; west does not offer to merge"),
        ("suspended", "north does not offer to merge; south is suspended; west does not offer to merge"),
    ],
)
def test_a_site_is_waited_for_with_the_reason(spoil: str | None, why: str) -> None:
    coordinator = given(merge_at="site")
    for site in OWN:
        coordinator.sync(site)
    for site in ("north", "south"):
        coordinator.deliver(f"demo_r1-train-{site}", merges=spoil is not None and site == "south")
    if spoil:
        plain = cm.SetSite(site=SiteName("south"), status="draining", reason="so")
        coordinator.do(replace(plain, status=spoil))
    coordinator.deliver("demo_r1-train-west")
    assert first(coordinator).state is RoundState.MERGING and first(coordinator).merge_job is None
    assert owed(coordinator.state) == ()
    assert [w.reason for w in waits(coordinator.state)] == [f"a site that can merge round 1: {why}"]
    coordinator.do(cm.SetSite(site=SiteName("south"), status="enrolled", reason="back"))
    coordinator.sync("south", merges=True)
    assert coordinator.job(JOB).state is JobState.LEASED


# --- what can go wrong -------------------------------------------------------------------------------


def test_a_failed_try_is_made_again() -> None:
    coordinator = collected()
    coordinator.sync("south", merges=True)
    happened = coordinator.sync("south", ended(A1, Outcome.FAILED, "no memory"), merges=True)
    assert happened == [f"AttemptEnded {A1} failed", f"JobLeased {A2} south"]
    coordinator.sync("south", success(A2), merges=True)
    assert (
        coordinator.work()[-1].startswith("JobPlanned") and first(coordinator).state is RoundState.EVALUATING
    )


def test_a_silent_site_loses_it_to_another() -> None:
    coordinator = collected()
    coordinator.sync("south", merges=True)
    coordinator.wait(61)
    assert coordinator.sync("north", merges=True) == [f"JobLeased {A2} north"]
    assert coordinator.sync("south", success(A1), merges=True) == []


def test_who_gave_a_wrong_merge_is_not_asked_again() -> None:
    coordinator = collected()
    delivered(coordinator)
    assert coordinator.do(refused(coordinator.job(JOB), "other bytes")) == [f"ContributionRefused {A1}"]
    assert coordinator.sync("south", merges=True) == []
    assert "south delivered a wrong result" in story(coordinator, JOB)[-1]
    delivered(coordinator, A2, "north")
    coordinator.work()
    assert coordinator.state.campaigns[DEMO].versions[first(coordinator).candidate].merged_by == "north"


def test_with_only_wrong_merges_the_coordinator_does_it() -> None:
    coordinator = collected("any", willing=("south",))
    delivered(coordinator)
    assert owed(coordinator.state) != () and not any(
        isinstance(w, OwedMerge) for w in owed(coordinator.state)
    )
    happened = coordinator.do(refused(coordinator.job(JOB), "other bytes"))
    assert happened == [f"ContributionRefused {A1}", f"JobFailed {JOB}"]
    assert coordinator.job(JOB).reason == "no site is left to ask, the last was refused: other bytes"
    assert coordinator.work()[0] == "VersionMade demo/v1"
    assert coordinator.state.campaigns[DEMO].versions[first(coordinator).candidate].merged_by is None


@pytest.mark.parametrize("merge_at", ["site", "any"])
def test_after_attempts_max_failures(merge_at: str) -> None:
    coordinator = collected(merge_at, attempts_max=2)
    coordinator.sync("south", merges=True)
    coordinator.sync("south", ended(A1, Outcome.FAILED, "no memory"), merges=True)
    happened = coordinator.sync("south", ended(A2, Outcome.FAILED, "no memory"), merges=True)
    why = "2 attempts failed, the last: no memory"
    if merge_at == "any":
        assert happened == [f"AttemptEnded {A2} failed", f"JobFailed {JOB}"]
        assert owed(coordinator.state) == (OwedMerge(campaign=DEMO, round=1),)
        assert coordinator.work()[0] == "VersionMade demo/v1"
    else:
        assert happened[:3] == [f"AttemptEnded {A2} failed", f"JobFailed {JOB}", "RoundFailed demo/r1"]
        assert first(coordinator).reason.startswith(f"no site could merge it: {why}; merge_at: any lets ")


def test_everybody_refused() -> None:
    coordinator = collected("any")
    for number, site in ((1, "south"), (2, "north")):
        coordinator.sync(site, merges=True)
        happened = coordinator.sync(site, ended(f"{JOB}.a{number}", Outcome.REFUSED, "not mk"), merges=True)
    assert happened[1:] == [f"JobFailed {JOB}"]
    assert owed(coordinator.state) == (OwedMerge(campaign=DEMO, round=1),)


def test_any_takes_the_coordinator_where_no_site_has_a_slot() -> None:
    coordinator = collected("any", willing=())
    assert first(coordinator).reason.endswith(
        "; no site that merges has a free slot, so the coordinator does it"
    )
    assert coordinator.work()[0] == "VersionMade demo/v1"
    assert first(coordinator).merge_job is None


def test_any_does_not_wait_for_a_site_that_is_busy() -> None:
    coordinator = given(merge_at="any")
    for site in OWN:
        coordinator.sync(site)
    for site in OWN:
        coordinator.deliver(f"demo_r1-train-{site}", merges=True, slots=0)
    assert owed(coordinator.state) == (OwedMerge(campaign=DEMO, round=1),)
    assert first(coordinator).merge_job is None


def test_any_waits_a_lease_for_a_site_and_then_takes_the_coordinator() -> None:
    coordinator = collected("any")
    assert coordinator.wait(59) == [] and owed(coordinator.state) == ()
    assert coordinator.wait(2) == [f"JobCancelled {JOB}"]
    assert coordinator.job(JOB).reason == "no site took it within 60 s; the coordinator merges"
    assert coordinator.work()[0] == "VersionMade demo/v1"


def test_a_restarted_coordinator_waits_anew_before_it_steps_in() -> None:
    coordinator = collected("any")
    coordinator.now += HOUR / 2
    coordinator.crash()
    assert coordinator.wait(1) == []
    assert coordinator.sync("south", merges=True) == [f"JobLeased {A1} south"]


def test_an_attempt_lost_late_gives_the_others_a_lease_of_time() -> None:
    coordinator = collected("any")
    coordinator.sync("south", merges=True)
    for _ in range(10):
        coordinator.now += 50
        coordinator.sync("south", running(A1), merges=True)
        coordinator.renewed[A1] = coordinator.now  # type: ignore[index]
    assert coordinator.wait(61) == [f"AttemptEnded {A1} expired"]
    assert coordinator.wait(50) == []
    assert coordinator.sync("north", merges=True) == [f"JobLeased {A2} north"]


def test_with_site_nobody_steps_in_before_the_deadline() -> None:
    coordinator = collected("site", quorum=Quorum(deadline_hours=2))
    assert coordinator.wait(HOUR) == []
    assert coordinator.wait(HOUR + 1)[:2] == [f"JobCancelled {JOB}", "RoundFailed demo/r1"]
    assert "no merge in time, it did not start within 2 h: planned, " in first(coordinator).reason


def test_a_merge_that_is_being_inspected_is_not_cut_off() -> None:
    coordinator = collected("any", quorum=Quorum(deadline_hours=2))
    delivered(coordinator)
    assert coordinator.wait(3 * HOUR) == []
    assert coordinator.work()[:2] == [f"ContributionAdmitted {A1}", "VersionMade demo/v1"]


def test_a_slow_merge_is_cut_off_at_the_deadline() -> None:
    coordinator = collected("any", quorum=Quorum(deadline_hours=2), lease_seconds=3 * HOUR)
    coordinator.sync("south", merges=True)
    assert coordinator.wait(2 * HOUR + 1) == [f"JobCancelled {JOB}"]
    assert owed(coordinator.state) == (OwedMerge(campaign=DEMO, round=1),)


def test_the_coordinator_does_not_merge_what_a_site_merges() -> None:
    """A worker that is late, or confused, changes nothing."""
    coordinator = collected()
    late = answer(OwedMerge(campaign=DEMO, round=1), coordinator.state)
    assert coordinator.do(late) == []
    delivered(coordinator)
    assert coordinator.do(late) == []
    coordinator.work()
    assert coordinator.do(late) == []


def test_a_merge_that_brings_nothing_new_fails_the_round() -> None:
    coordinator = collected()
    delivered(coordinator)
    known = coordinator.state.campaigns[DEMO].versions[first(coordinator).base].manifest
    report = replace(admitted(coordinator.job(JOB), state=coordinator.state), manifest=known)
    assert coordinator.do(report)[:2] == [f"ContributionAdmitted {A1}", "RoundFailed demo/r1"]
    assert first(coordinator).reason.startswith("the merge gave demo/v0 again")


def test_a_stopped_campaign_leaves_no_merge_behind() -> None:
    coordinator = collected()
    coordinator.sync("south", merges=True)
    happened = coordinator.do(cm.StopCampaign(campaign=DEMO, reason="no money"))
    assert f"JobCancelled {JOB}" in happened and coordinator.state.live(SiteName("south")) == ()


def test_ledgers_written_before_sites_merged_are_read() -> None:
    """The fields are younger than the events."""
    coordinator = collected("coordinator")
    coordinator.work()
    younger = {
        "merged_by": "RoundCollected VersionMade",
        "merges": "SiteDescribed",
        "merge_at": "CampaignOpened",
    }
    for data, _ in coordinator.ledger:
        plain = msgspec.json.decode(data)
        for key, kinds in younger.items():
            if plain["kind"] in kinds.split():
                (plain["campaign"] if key == "merge_at" else plain).pop(key)
        again = msgspec.json.decode(encode(msgspec.convert(plain, ev.AnyEvent)))
        assert again["kind"] == plain["kind"] and again.get("merges", False) is False
