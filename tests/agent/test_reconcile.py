"""What a site does next: given what is wanted, held and seen, then exactly these actions and reports."""

import pytest

from consortium.canonical import replace
from consortium.ids import AttemptId, CampaignId, Digest, JobId, Language, SiteName
from consortium.jobs import Assignment, Merge, Optimizer, Outcome, Phase, Purpose, Train
from consortium.merging.recipe import Recipe
from site_agent.config import Consent
from site_agent.core.facts import (
    Act,
    AttemptFiles,
    Ended,
    Limits,
    Observation,
    Offer,
    Plan,
    Seen,
    Sighting,
    Usage,
)
from site_agent.core.reconcile import reconcile

A1 = AttemptId("demo_r1-train-north.a1")
A2 = AttemptId("demo_r1-train-north.a2")
B1 = AttemptId("demo_r1-gate-north.a1")
ALL = Consent()
LIMITS = Limits(slots=1, lives_max=3, stop_seconds=30.0)
RUNNING, GONE, PENDING, UNKNOWN = (
    Sighting(seen=seen) for seen in (Seen.RUNNING, Seen.GONE, Seen.PENDING, Seen.UNKNOWN)
)
FRESH = AttemptFiles(attempt=A1)
STAGED = replace(FRESH, staged=True)
BEGUN = replace(STAGED, lives=1, native_id="42:7")
DONE = replace(BEGUN, has_result=True)
SENT = replace(DONE, ended=Ended(outcome=Outcome.SUCCEEDED, contribution=Digest("c" * 64)))


def assignment(attempt: AttemptId = A1, steps: int = 100) -> Assignment:
    work = Train(
        base=Digest("b" * 64),
        languages=(Language("fi"),),
        public_languages=(),
        replay_share=0.0,
        steps=steps,
        batch_sequences=1,
        sequence_tokens=8,
        optimizer=Optimizer(learning_rate=0.1),
        seed=0,
    )
    return Assignment(
        job=JobId("demo_r1-train-north"),
        attempt=attempt,
        campaign=CampaignId("demo"),
        round=1,
        site=SiteName("north"),
        purpose=Purpose.ROUND,
        work=work,
        inputs=(),
        tokenizer=None,
    )


def offer(attempt: AttemptId = A1) -> Offer:
    return Offer(attempt=attempt, assignment=assignment(attempt))


def plan(
    *held: AttemptFiles,
    seen: Sighting | None = None,
    wanted: tuple[Offer, ...] | None = (offer(),),
    settled: frozenset[AttemptId] = frozenset(),
    problems: dict[AttemptId, str] | None = None,
    consent: Consent = ALL,
    limits: Limits = LIMITS,
) -> Plan:
    sightings = {files.attempt: seen for files in held} if seen else {}
    observed = Observation(
        wanted=wanted,
        answered=frozenset(files.attempt for files in held) if wanted is not None else frozenset(),
        settled=settled,
        held=held,
        sightings=sightings,
        problems=problems or {},
    )
    return reconcile(observed, limits, consent)


def acts(made: Plan) -> list[tuple[Act, AttemptId]]:
    return [(action.act, action.attempt) for action in made.actions]


# ---- the way of an attempt


@pytest.mark.parametrize(
    ("held", "seen", "act", "phase"),
    [
        (None, None, Act.STAGE, Phase.STAGING),
        (FRESH, None, Act.STAGE, Phase.STAGING),
        (STAGED, None, Act.LAUNCH, Phase.QUEUED),
        (BEGUN, PENDING, None, Phase.QUEUED),
        (BEGUN, RUNNING, None, Phase.RUNNING),
        (BEGUN, UNKNOWN, None, Phase.RUNNING),
        (BEGUN, None, None, Phase.RUNNING),
        (BEGUN, GONE, Act.LAUNCH, Phase.QUEUED),
        (DONE, GONE, Act.UPLOAD, Phase.UPLOADING),
        (DONE, RUNNING, Act.UPLOAD, Phase.UPLOADING),
        (SENT, GONE, None, Phase.ENDED),
        (SENT, RUNNING, Act.STOP, Phase.ENDED),
    ],
)
def test_a_wanted_attempt_goes_its_way(held, seen, act, phase):
    made = plan(*([held] if held else []), seen=seen)
    assert acts(made) == ([(act, A1)] if act else [])
    assert [(report.attempt, report.phase) for report in made.reports] == [(A1, phase)]
    assert all(action.reason for action in made.actions)


def test_not_hearing_the_coordinator_stops_nothing():
    assert acts(plan(STAGED, wanted=None)) == [(Act.LAUNCH, A1)]
    assert acts(plan(BEGUN, seen=RUNNING, wanted=None)) == []
    assert acts(plan(DONE, seen=GONE, wanted=None)) == [(Act.UPLOAD, A1)]


def test_a_lost_life_goes_on_in_the_same_directory_and_then_is_given_up():
    [again] = plan(replace(BEGUN, lives=2), seen=Sighting(seen=Seen.GONE, detail="killed by SIGKILL")).actions
    assert (again.act, again.life) == (Act.LAUNCH, 3)
    assert "killed by SIGKILL" in again.reason
    [end] = plan(replace(BEGUN, lives=3), seen=Sighting(seen=Seen.GONE, detail="exit code 1")).actions
    assert (end.act, end.outcome) == (Act.END, Outcome.FAILED)
    assert end.reason.startswith("life 3 ended without a result (exit code 1), the last of 3 in a row")


def test_the_trainers_own_word_that_it_failed_is_passed_on():
    [end] = plan(replace(BEGUN, failure="the loss was NaN three steps in a row"), seen=GONE).actions
    assert (end.act, end.outcome, end.reason) == (
        Act.END,
        Outcome.FAILED,
        "the loss was NaN three steps in a row",
    )


def test_what_cannot_be_staged_or_sent_ends_with_the_reason():
    for held in (FRESH, STAGED, DONE):
        [end] = plan(held, seen=GONE, problems={A1: "blob is corrupt"}).actions
        assert (end.act, end.outcome, end.reason) == (Act.END, Outcome.FAILED, "blob is corrupt")


def test_a_problem_does_not_end_what_still_lives():
    assert acts(plan(BEGUN, seen=UNKNOWN, problems={A1: "sbatch refused"})) == []


# ---- what is no longer wanted


@pytest.mark.parametrize(
    ("held", "seen", "act"),
    [
        (FRESH, None, Act.END),
        (BEGUN, GONE, Act.END),
        (DONE, GONE, Act.END),
        (BEGUN, RUNNING, Act.STOP),
        (BEGUN, UNKNOWN, Act.STOP),
        (BEGUN, PENDING, Act.KILL),
        (replace(BEGUN, stopping_seconds=5.0), RUNNING, Act.STOP),
        (replace(BEGUN, stopping_seconds=31.0), RUNNING, Act.KILL),
        (replace(BEGUN, stopping_seconds=31.0), GONE, Act.END),
    ],
)
def test_the_unwanted_is_asked_to_leave_then_killed_then_reported(held, seen, act):
    made = plan(held, seen=seen, wanted=())
    assert acts(made) == [(act, A1)]
    if act is Act.END:
        assert made.actions[0].outcome is Outcome.CANCELLED


def test_what_the_coordinator_had_not_been_told_of_is_not_unwanted():
    """Another agent of the site began it after this one last heard the coordinator."""
    observed = Observation(wanted=(), answered=frozenset({A2}), held=(BEGUN,), sightings={A1: RUNNING})
    assert acts(reconcile(observed, LIMITS, ALL)) == []


def test_the_settled_is_dropped_once_it_is_gone():
    for held in (FRESH, STAGED, BEGUN, DONE, SENT):
        made = plan(held, seen=GONE, wanted=(), settled=frozenset({A1}))
        assert acts(made) == [(Act.DROP, A1)]
        assert [report.attempt for report in made.reports] == [A1]  # told until it is away
    assert acts(plan(SENT, seen=RUNNING, wanted=(), settled=frozenset({A1}))) == [(Act.STOP, A1)]
    assert acts(plan(SENT, seen=UNKNOWN, wanted=(), settled=frozenset({A1}))) == [(Act.STOP, A1)]


def test_the_settled_is_dropped_only_when_all_that_it_used_has_been_told():
    """It was told and settled while its job was still leaving; the batch system's account came with its end."""
    held, final = replace(SENT, usage=Usage(seconds=60.0)), Usage(seconds=60.0)
    observed = Observation(wanted=(), answered=frozenset({A1}), settled=frozenset({A1}), held=(held,))
    observed = replace(observed, sightings={A1: GONE}, told={A1: None})
    made = reconcile(observed, LIMITS, ALL)
    assert (acts(made), made.reports[0].usage) == ([], final)
    assert acts(reconcile(replace(observed, told={A1: final}), LIMITS, ALL)) == [(Act.DROP, A1)]


def test_what_was_settled_is_not_begun_again():
    assert plan(settled=frozenset({A1})).actions == ()


def test_an_end_is_told_until_it_is_settled():
    [report] = plan(SENT, seen=GONE).reports
    assert (report.phase, report.ended) == (Phase.ENDED, SENT.ended)


# ---- slots


def test_no_more_lives_than_slots_and_begun_ones_first():
    other = replace(STAGED, attempt=A2)
    wanted = (offer(A1), offer(A2))
    lost = replace(BEGUN, attempt=A2)
    assert acts(plan(STAGED, other, wanted=wanted)) == [(Act.LAUNCH, A1)]
    assert acts(plan(STAGED, lost, seen=GONE, wanted=wanted)) == [(Act.LAUNCH, A2)]
    assert acts(plan(STAGED, lost, seen=UNKNOWN, wanted=wanted)) == []
    both = plan(STAGED, other, wanted=wanted, limits=replace(LIMITS, slots=2))
    assert acts(both) == [(Act.LAUNCH, A1), (Act.LAUNCH, A2)]


def test_an_end_that_lingers_holds_its_slot():
    lingering = replace(SENT, attempt=A2)
    observed = Observation(wanted=(offer(),), held=(lingering, STAGED), sightings={A2: RUNNING})
    assert acts(reconcile(observed, LIMITS, ALL)) == [(Act.STOP, A2)]


# ---- consent


@pytest.mark.parametrize(
    ("consent", "words"),
    [
        (
            Consent(campaigns=(CampaignId("other"),)),
            "campaign demo: its rule consent.campaigns allows only other",
        ),
        (Consent(campaigns=()), "consent.campaigns allows only no campaign"),
        (Consent(languages=(Language("et"),)), "work on fi: its rule consent.languages allows only et"),
        (Consent(purposes=(Purpose.GATE,)), "a round job: its rule consent.purposes allows only gate"),
        (Consent(steps_max=99), "100 steps: its rule consent.steps_max allows at most 99"),
    ],
)
def test_a_site_refuses_with_the_rule_that_says_no(consent, words):
    made = plan(consent=consent)
    assert made.actions == ()
    [report] = made.reports
    assert report.ended is not None
    assert report.ended.outcome is Outcome.REFUSED
    assert words in report.ended.reason
    [end] = plan(STAGED, consent=consent).actions  # the rules were changed while it waited
    assert (end.act, end.outcome) == (Act.END, Outcome.REFUSED)
    assert plan(BEGUN, seen=RUNNING, consent=consent).actions == ()  # what has begun goes on


def test_a_site_consents_within_its_rules():
    consent = Consent(
        campaigns=(CampaignId("demo"),), languages=(Language("fi"),), purposes=(Purpose.ROUND,), steps_max=100
    )
    assert acts(plan(consent=consent)) == [(Act.STAGE, A1)]


@pytest.mark.parametrize(
    ("purposes", "acts_"),
    [(None, []), ((), []), ((Purpose.ROUND,), []), ((Purpose.MERGE,), [(Act.STAGE, A1)])],
)
def test_other_sites_deltas_come_only_where_merge_is_named(purposes, acts_):
    work = Merge(
        base=Digest("b" * 64), outer_state={}, parts=(), recipe=Recipe(), languages=(Language("fi"),)
    )
    wanted = Offer(attempt=A1, assignment=replace(assignment(), purpose=Purpose.MERGE, work=work))
    consent = Consent(purposes=purposes)
    made = plan(wanted=(wanted,), consent=consent)
    assert acts(made) == acts_ and consent.merges == bool(acts_)
    if not acts_:
        [report] = made.reports
        assert (
            "a merge job: its rule consent.purposes allows it only where it names merge"
            in report.ended.reason
        )
    narrow = replace(consent, languages=(Language("et"),))
    assert acts(plan(wanted=(wanted,), consent=narrow)) == []


def test_what_is_no_good_assignment_is_refused():
    [report] = plan(wanted=(Offer(attempt=A1, problem="the signature does not fit"),)).reports
    assert report.ended == Ended(outcome=Outcome.REFUSED, reason="the signature does not fit")
