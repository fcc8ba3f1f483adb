"""What becomes of a life by what is said of it: no end that nobody saw, and none told before its account is final."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slurm_samples import END, LIFE, PAST, ROW

from consortium.canonical import replace
from site_agent.core.facts import Cause, Seen, Sighting
from site_agent.launchers.slurm.usage import Books
from site_agent.launchers.slurm.verdict import (
    Doubt,
    Evidence,
    Over,
    Patience,
    close,
    hangs,
    judge,
    own_account,
    own_row,
    settle,
)

PATIENCE = Patience()


def test_a_name_is_an_identity_with_its_id_or_its_time_and_an_id_alone_is_none():
    assert own_row([ROW], LIFE) == ROW
    assert own_row([replace(ROW, name="other")], LIFE) is None
    stale = replace(ROW, id="6", submitted=100.0)  # the same name, before this life was meant
    assert own_row([stale], LIFE) is None
    assert own_row([replace(ROW, submitted=100.0)], LIFE) is not None  # Slurm's clock is behind the agent's
    assert own_account([replace(PAST, submitted=100.0)], LIFE) is not None
    unnoted = replace(LIFE, native_id="")
    assert own_row([replace(ROW, submitted=100.0)], unnoted) is None
    later = replace(ROW, id="8", state="COMPLETED")
    assert own_row([later, ROW], LIFE) == ROW  # two were submitted: the living one counts
    assert own_row([later, ROW], LIFE, owner="8") == later


def test_the_newest_restart_is_the_one_that_counts():
    first = replace(PAST, state="REQUEUED", submitted=1000.0, started=1001.0)
    second = replace(PAST, state="RUNNING", submitted=1100.0, started=None)
    assert own_account([second, first], LIFE) == second


def judged(**evidence):
    return judge(Evidence(life=LIFE, queue_is_whole=True, **evidence))


def test_an_end_that_the_jobs_own_record_confirms_is_firm():
    assert judged(account=PAST, end=END).needs == "nothing"
    assert judged(account=PAST).needs == "answers"
    assert judged(account=PAST, end=replace(END, id="6")).needs == "answers"
    assert judged(account=PAST, end=replace(END, requeued=True)).needs == "answers"
    assert judged(end=END).sighting.cause is Cause.FINISHED  # nobody else knows it any more


def test_a_job_that_slurm_may_start_again_takes_longer():
    for state in ("PREEMPTED", "NODE_FAIL"):
        assert judged(account=replace(PAST, state=state)).needs == "requeue"
    # Seen on 22.05: a preempted script had time for its record, and Slurm started it again nine seconds later.
    terminated = replace(END, rc=143, why="term")
    assert judged(account=replace(PAST, state="PREEMPTED"), end=terminated).needs == "requeue"
    assert judged(end=terminated).needs == "requeue"


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "SUSPENDED", "COMPLETING"])
def test_accounting_alone_ends_nothing_that_lives(state):
    assert judged(account=replace(PAST, state=state)).sighting.seen is Seen.UNKNOWN


def test_an_exit_code_tells_stopping_from_failing():
    def cause(code, **more):
        return judged(
            account=replace(PAST, state="FAILED", exit_code=code), has_begun=True, **more
        ).sighting.cause

    assert cause(75) is Cause.STOPPED
    assert cause(1) is Cause.FINISHED
    assert cause(1, continues=True) is Cause.STOPPED  # torchrun has one exit code for all


def test_a_job_that_ended_before_its_script_began_is_the_sites_fault():
    for code, number in ((0, 53), (1, 0)):
        failed = replace(PAST, state="FAILED", exit_code=code, exit_signal=number)
        sighting = judged(account=failed).sighting
        assert sighting.cause is Cause.NODE_FAILED
        assert "quota" in sighting.detail
        assert judged(account=failed, has_begun=True).sighting.cause is Cause.FINISHED


def test_whose_cancellation_it_was():
    cancelled = replace(PAST, state="CANCELLED by 1000")
    assert judged(account=cancelled).sighting.detail == "cancelled by user 1000"
    assert judged(account=cancelled, hung="it hung").sighting.cause is Cause.NODE_FAILED


@given(
    st.lists(
        st.sampled_from(
            [
                Evidence(life=LIFE, queue_problem="down"),
                Evidence(life=LIFE, queue_is_whole=False),
                Evidence(life=LIFE, queue=ROW, queue_is_whole=True),
                Evidence(life=LIFE, queue=replace(ROW, state="PENDING"), queue_is_whole=True),
                Evidence(life=LIFE, queue=replace(ROW, state="MADE_UP"), queue_is_whole=True),
                Evidence(life=LIFE, queue_is_whole=True, account=replace(PAST, state="RUNNING")),
                Evidence(life=LIFE, queue_is_whole=True, account_problem="down"),
                Evidence(life=LIFE, queue_is_whole=True),
            ]
        ),
        max_size=12,
    )
)
def test_no_series_of_looks_within_ten_minutes_makes_a_job_gone_of_which_nobody_saw_an_end(looks):
    doubt = None
    for number, evidence in enumerate(looks):
        sighting, doubt = settle(judge(evidence), LIFE, doubt, 5000.0 + 50.0 * number, PATIENCE)
        assert sighting.seen is not Seen.GONE


@given(st.lists(st.booleans(), max_size=30))
def test_doubt_begins_anew_whenever_the_job_is_seen_again(seen):
    doubt = None
    silent = 0
    for number, is_there in enumerate(seen):
        evidence = Evidence(life=LIFE, queue_is_whole=True, queue=ROW if is_there else None)
        sighting, doubt = settle(judge(evidence), LIFE, doubt, 5000.0 + 100.0 * number, PATIENCE)
        silent = 0 if is_there else silent + 1
        assert (sighting.seen is Seen.GONE) == (silent > 6)  # ten minutes of silence


def test_a_clock_that_is_set_back_ends_nothing():
    evidence = judge(Evidence(life=LIFE, queue_is_whole=True))
    _, doubt = settle(evidence, LIFE, None, 9000.0, PATIENCE)
    _, doubt = settle(evidence, LIFE, doubt, 5000.0, PATIENCE)
    sighting, doubt = settle(evidence, LIFE, doubt, 5300.0, PATIENCE)
    assert sighting.seen is Seen.UNKNOWN
    sighting, _ = settle(evidence, LIFE, doubt, 5600.0, PATIENCE)  # and the wait begins there, not at 9000
    assert sighting.seen is Seen.GONE


def timed(looks, **evidence):
    """What is said of hanging at the last of these moments, by an agent whose clock is an hour ahead of Slurm's."""
    doubt, why = None, ""
    for at in looks:
        seen = Evidence(life=LIFE, queue_is_whole=True, **{"queue": ROW, **evidence})
        now = 1010.0 + 3600.0 + at
        _, doubt = settle(judge(seen), LIFE, doubt, now, PATIENCE)
        why = hangs(seen, doubt, now, PATIENCE)
    return why


def test_only_a_job_that_has_not_begun_hangs():
    assert timed([0.0]) == ""
    assert timed([0.0, 450.0, 899.0]) == ""
    assert "node0" in timed([0.0, 450.0, 901.0])
    assert timed([0.0, 901.0], has_begun=True) == ""
    assert timed([0.0, 901.0], queue=replace(ROW, state="PENDING")) == ""
    assert timed([0.0, 901.0], queue=replace(ROW, state="COMPLETING")) == ""


def test_a_controller_that_does_not_answer_meanwhile_does_not_wind_the_clock_back():
    _, doubt = settle(judge(Evidence(life=LIFE, queue=ROW)), LIFE, None, 5000.0, PATIENCE)
    down = judge(Evidence(life=LIFE, queue_problem="down"))
    sighting, kept = settle(down, LIFE, doubt, 5100.0, PATIENCE)
    assert (sighting.seen, kept) == (Seen.UNKNOWN, doubt)


def test_what_slurm_gave_up_to_launch_is_sent_elsewhere_at_once():
    for reason in ("launch failed requeued held", "JobHoldMaxRequeue"):
        assert reason in timed([0.0], queue=replace(ROW, state="PENDING", reason=reason))


@pytest.mark.parametrize(
    ("reason", "cause"), [("JobHeldAdmin", Cause.NEVER), ("AssocGrpGRESMinutes", Cause.SPENT)]
)
def test_a_held_job_and_a_used_up_account_are_given_hours(reason, cause):
    opinion = judged(queue=replace(ROW, state="PENDING", reason=reason))
    doubt = None
    for hours in (0.0, 1.0, 5.9):
        sighting, doubt = settle(opinion, LIFE, doubt, 5000.0 + 3600.0 * hours, PATIENCE)
        assert (sighting.seen, sighting.cause) == (Seen.PENDING, None)
    sighting, _ = settle(opinion, LIFE, doubt, 5000.0 + 3600.0 * 6.0, PATIENCE)
    assert (sighting.seen, sighting.cause, sighting.detail) == (Seen.PENDING, cause, reason)


# ---- telling it

GONE = Sighting(seen=Seen.GONE, cause=Cause.FINISHED, detail="exit code 0")
OPEN = Books(is_final=False, why="sacct says RUNNING of 7")
FINAL = Books(is_final=True, why="accounting has all of it")


def test_an_end_is_told_at_once_when_its_account_is_final_and_stands_with_the_reason():
    sighting, over = close(GONE, None, None, FINAL, 5000.0, PATIENCE)
    assert sighting == GONE
    assert over == Over(since=5000.0, sighting=GONE, account="accounting has all of it")


def test_an_end_whose_account_is_open_waits_two_minutes_and_says_what_for():
    over = None
    for seconds in (0.0, 60.0, 119.0):
        sighting, over = close(GONE, over, None, OPEN, 5000.0 + seconds, PATIENCE)
        assert (sighting.seen, over.account) == (Seen.UNKNOWN, "")
        assert (
            sighting.detail
            == "it is over (exit code 0), and what it used is not final: sacct says RUNNING of 7"
        )
    sighting, over = close(GONE, over, None, OPEN, 5120.0, PATIENCE)
    assert sighting == GONE
    assert over.account == "sacct says RUNNING of 7; after 120 s the job's own records count"


def test_what_was_lost_for_long_is_not_waited_for_again():
    doubt = Doubt(life=1, opinion="lost: node_failed", since=4000.0, answers=2)
    assert close(GONE, None, doubt, OPEN, 4600.0, PATIENCE)[0] == GONE


def test_silence_keeps_the_wait_and_life_ends_it():
    _, over = close(GONE, None, None, OPEN, 5000.0, PATIENCE)
    assert close(Sighting(seen=Seen.UNKNOWN), over, None, OPEN, 5050.0, PATIENCE)[1] == over
    for seen in (Seen.PENDING, Seen.RUNNING):
        assert close(Sighting(seen=seen), over, None, OPEN, 5050.0, PATIENCE) == (Sighting(seen=seen), None)


def test_a_clock_that_is_set_back_makes_the_wait_no_shorter():
    _, over = close(GONE, None, None, OPEN, 9000.0, PATIENCE)
    sighting, over = close(GONE, over, None, OPEN, 5000.0, PATIENCE)
    assert (sighting.seen, over.since) == (Seen.UNKNOWN, 5000.0)
