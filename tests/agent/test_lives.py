"""Whether another life follows, and what a living one is asked for: by cause, by progress, by the site's state."""

import pytest

from consortium.canonical import replace
from consortium.ids import AttemptId
from consortium.jobs import Outcome, Phase
from site_agent.config import Consent
from site_agent.core.facts import (
    Act,
    AttemptFiles,
    Cause,
    Launch,
    Limits,
    Observation,
    Offer,
    Plan,
    Progress,
    Seen,
    Sighting,
    Usage,
)
from site_agent.core.lives import fruitless_lives
from site_agent.core.reconcile import reconcile

A1 = AttemptId("demo_r1-train-north.a1")
A2 = AttemptId("demo_r1-train-north.a2")
LIMITS = Limits(
    slots=2, lives_max=3, lives_total_max=6, stop_seconds=30.0, save_seconds=600.0, stall_seconds=3600.0
)
OVER = "allocation eurohpc-1 has ended"
NIGHT = "it is outside the site's windows"
BEGUN = AttemptFiles(attempt=A1, staged=True, lives=1, launches=(Launch(life=1),))
SAVED = replace(BEGUN, checkpoint=40, has_partial=True)


def lived(*steps: int, checkpoint: int, **changes) -> AttemptFiles:
    """An attempt whose lives began at these steps, and which is at ``checkpoint`` now."""
    launches = tuple(Launch(life=number, step=step) for number, step in enumerate(steps, 1))
    return replace(BEGUN, lives=len(steps), launches=launches, checkpoint=checkpoint, **changes)


def prepared(*read: int, text_bytes: int) -> AttemptFiles:
    """An attempt whose lives found so much text prepared, and which is so far now; none has trained."""
    launches = tuple(Launch(life=number, text_bytes=size) for number, size in enumerate(read, 1))
    return replace(BEGUN, lives=len(read), launches=launches, text_bytes=text_bytes)


def plan(*held: AttemptFiles, seen: Sighting | None = None, limits: Limits = LIMITS, **observed) -> Plan:
    """The coordinator has not been heard, so nothing is unwanted."""
    sightings = {files.attempt: seen for files in held} if seen else {}
    return reconcile(Observation(held=held, sightings=sightings, **observed), limits, Consent())


def only(made: Plan):
    [action] = made.actions
    assert action.reason
    return action


def gone(cause: Cause | None = None, detail: str = "") -> Sighting:
    return Sighting(seen=Seen.GONE, cause=cause, detail=detail)


RUNNING, UNKNOWN = Sighting(seen=Seen.RUNNING), Sighting(seen=Seen.UNKNOWN)
PENDING = Sighting(seen=Seen.PENDING, detail="Priority")


# ---- causes


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (Cause.TIMED_OUT, "life 1 reached its walltime"),
        (Cause.PREEMPTED, "life 1 was preempted"),
        (Cause.NODE_FAILED, "life 1 lost its node"),
        (Cause.STOPPED, "life 1 stopped with a training checkpoint"),
        (Cause.FINISHED, "life 1 ended without a result"),
        (None, "life 1 ended without a result"),
    ],
)
def test_what_is_not_the_jobs_fault_is_followed_by_another_life(cause, words):
    action = only(plan(BEGUN, seen=gone(cause)))
    assert (action.act, action.life) == (Act.LAUNCH, 2)
    assert action.reason == f"{words}; it goes on where it was"


def test_out_of_memory_ends_it_at_once_even_with_progress():
    action = only(plan(SAVED, seen=gone(Cause.OUT_OF_MEMORY, "oom_kill of task 3")))
    assert (action.act, action.outcome) == (Act.END, Outcome.FAILED)
    assert action.reason.startswith("life 1 ran out of memory (oom_kill of task 3)")


def test_what_a_person_cancelled_is_refused_and_what_the_agent_killed_is_not():
    action = only(plan(SAVED, seen=gone(Cause.CANCELLED, "CANCELLED by 1000")))
    assert (action.act, action.outcome) == (Act.END, Outcome.REFUSED)
    assert action.reason == "an operator cancelled it (CANCELLED by 1000)"
    hung = replace(SAVED, launches=(Launch(life=1, asked="no progress", meant="again"),))
    action = only(plan(hung, seen=gone(Cause.CANCELLED, "CANCELLED by 1000")))
    assert (action.act, action.life) == (Act.LAUNCH, 2)
    assert "no progress" in action.reason


def test_what_never_starts_is_taken_out_of_the_queue_and_refused_with_the_queues_reason():
    never = Sighting(seen=Seen.PENDING, cause=Cause.NEVER, detail="PartitionTimeLimit")
    action = only(plan(BEGUN, seen=never))
    assert (action.act, action.meant) == (Act.KILL, "refuse")
    assert "PartitionTimeLimit" in action.reason
    noted = replace(BEGUN, launches=(Launch(life=1, asked=action.reason, meant="refuse"),))
    assert only(plan(noted, seen=never)).act is Act.KILL  # the agent fell before it could cancel
    for cause in (Cause.CANCELLED, None):
        end = only(plan(noted, seen=gone(cause)))
        assert (end.act, end.outcome, end.reason) == (Act.END, Outcome.REFUSED, action.reason)
    assert only(plan(noted, seen=gone(Cause.TIMED_OUT))).act is Act.LAUNCH  # the queue thought better of it


def test_what_never_starts_again_is_delivered_as_far_as_it_came():
    """An allocation that ends in Slurm, not in the site's config: nothing of the site says that it closes."""
    noted = replace(SAVED, launches=(Launch(life=1, asked="the account has ended", meant="refuse"),))
    salvage = only(plan(noted, seen=gone(Cause.CANCELLED)))
    assert salvage.act is Act.SALVAGE
    assert salvage.reason == "the account has ended; a partial result is made from step 40"


def test_an_account_that_stays_used_up_costs_no_work_that_was_done():
    spent = Sighting(seen=Seen.PENDING, cause=Cause.SPENT, detail="AssocGrpGRESMinutes")
    kill = only(plan(SAVED, seen=spent))
    assert (kill.act, kill.meant) == (Act.KILL, "refuse")
    assert kill.reason == "the account at the batch system is used up: AssocGrpGRESMinutes"
    assert plan(BEGUN, seen=spent).actions == ()  # nothing is there to save: it waits


def test_a_launch_that_the_site_refuses_is_no_failure_of_the_job():
    words = "sbatch: Invalid account; correct the site's profile"
    for files in (AttemptFiles(attempt=A1, staged=True), BEGUN):
        end = only(plan(files, seen=gone(Cause.TIMED_OUT), refusals={A1: words}))
        assert (end.act, end.outcome, end.reason) == (Act.END, Outcome.REFUSED, words)
    salvage = only(plan(SAVED, seen=gone(Cause.TIMED_OUT), refusals={A1: words}))
    assert (salvage.act, salvage.reason) == (
        Act.SALVAGE,
        f"{words}; a partial result is made from step 40",
    )
    assert only(plan(replace(SAVED, has_result=True), seen=gone(), refusals={A1: words})).act is Act.UPLOAD
    end = only(plan(SAVED, seen=gone(), refusals={A1: words}, problems={A1: "the base is not here"}))
    assert (end.outcome, end.reason) == (Outcome.REFUSED, "the base is not here")


def test_unknown_is_never_finished():
    for state in ({}, {"waits": NIGHT}):
        assert plan(SAVED, seen=UNKNOWN, **state).actions == ()
    assert only(plan(SAVED, seen=UNKNOWN, closing=OVER)).act is Act.FINISH


# ---- progress


@pytest.mark.parametrize(
    ("files", "count"),
    [
        (lived(0, checkpoint=0), 1),
        (lived(0, checkpoint=10), 0),
        (lived(0, 10, 10, checkpoint=10), 2),
        (lived(0, 10, 10, checkpoint=20), 0),
        (lived(0, 0, 10, 20, 30, checkpoint=30), 1),
        (prepared(0, 900, 1800, text_bytes=2700), 0),  # no training checkpoint yet, but more and more text
        (prepared(0, 900, 1800, 1800, text_bytes=1800), 2),
        (replace(prepared(0, 900, 1800, text_bytes=1800), checkpoint=10), 0),  # the first steps after it
        (replace(BEGUN, lives=2, launches=()), 2),
        (replace(BEGUN, lives=2, launches=(), checkpoint=7), 2),
    ],
)
def test_lives_that_got_no_further_are_counted_back_from_the_newest(files, count):
    assert fruitless_lives(files) == count


def test_a_pause_counts_for_nothing():
    launches = (
        Launch(life=1),
        Launch(life=2, step=5, meant="pause", asked=NIGHT),
        Launch(life=3, step=5, meant="again", asked="hung"),
    )
    assert fruitless_lives(replace(BEGUN, lives=3, launches=launches, checkpoint=5)) == 1


def test_a_job_lives_as_often_as_it_gets_further_and_not_for_ever():
    onward = lived(0, 10, 20, 30, 40, checkpoint=50)
    assert only(plan(onward, seen=gone(Cause.TIMED_OUT))).life == 6
    assert only(plan(prepared(0, 9, 18, 27, text_bytes=36), seen=gone(Cause.TIMED_OUT))).life == 5
    stuck = lived(0, 10, 10, 10, checkpoint=10)
    end = only(plan(stuck, seen=gone(Cause.TIMED_OUT)))
    assert (end.act, end.outcome) == (Act.END, Outcome.FAILED)
    assert "life 4 reached its walltime, the last of 3 in a row" in end.reason
    end = only(plan(lived(0, 10, 20, 30, 40, 50, checkpoint=60), seen=gone(Cause.TIMED_OUT)))
    assert (end.act, end.outcome) == (Act.END, Outcome.FAILED)
    assert "the last of lives_total_max: 6" in end.reason


# ---- hanging


def test_a_life_that_hangs_is_asked_then_killed_then_started_again():
    quiet = replace(SAVED, quiet_seconds=3600.0, progress=Progress(step=44))
    stop = only(plan(quiet, seen=RUNNING))
    assert (stop.act, stop.meant) == (Act.STOP, "again")
    assert stop.reason == "life 1 wrote no progress for 60 minutes, at step 44"
    assert plan(replace(quiet, stopping_seconds=30.0), seen=RUNNING).actions == ()
    assert only(plan(replace(quiet, stopping_seconds=31.0), seen=RUNNING)).act is Act.KILL
    for seen in (UNKNOWN, PENDING):
        assert plan(quiet, seen=seen).actions == ()
    assert plan(replace(quiet, quiet_seconds=3599.0), seen=RUNNING).actions == ()
    assert plan(quiet, seen=RUNNING, limits=replace(LIMITS, stall_seconds=None)).actions == ()


# ---- waiting


def test_nothing_is_launched_while_the_site_waits_and_all_else_goes_on():
    staged = AttemptFiles(attempt=A1, staged=True)
    assert plan(staged, seen=None, waits=NIGHT).actions == ()
    assert plan(SAVED, seen=gone(Cause.TIMED_OUT), waits=NIGHT).actions == ()
    [report] = plan(SAVED, seen=gone(Cause.TIMED_OUT), waits=NIGHT).reports
    assert (report.phase, report.detail) == (Phase.QUEUED, NIGHT)
    for seen in (RUNNING, PENDING):
        assert plan(SAVED, seen=seen, waits=NIGHT).actions == ()
    assert only(plan(replace(SAVED, has_result=True), seen=gone(), waits=NIGHT)).act is Act.UPLOAD
    assert only(plan(BEGUN, seen=gone(Cause.OUT_OF_MEMORY), waits=NIGHT)).act is Act.END


def test_a_pause_of_what_runs_stops_it_with_time_to_save():
    paused = {"waits": "paused by the operator", "pause_running": True}
    stop = only(plan(SAVED, seen=RUNNING, **paused))
    assert (stop.act, stop.meant) == (Act.STOP, "pause")
    assert plan(replace(SAVED, stopping_seconds=600.0), seen=RUNNING, **paused).actions == ()
    assert only(plan(replace(SAVED, stopping_seconds=601.0), seen=RUNNING, **paused)).act is Act.KILL
    assert plan(replace(SAVED, stopping_seconds=601.0), seen=UNKNOWN, **paused).actions == ()
    kill = only(plan(SAVED, seen=PENDING, **paused))  # it would start in the pause
    assert (kill.act, kill.meant) == (Act.KILL, "pause")
    left = replace(SAVED, launches=(Launch(life=1, step=40, asked="paused", meant="pause"),))
    assert plan(left, seen=gone(Cause.STOPPED), **paused).actions == ()
    assert only(plan(left, seen=gone(Cause.CANCELLED))).act is Act.LAUNCH


# ---- closing


def test_when_the_allocation_is_over_everything_comes_to_an_end():
    finish = only(plan(SAVED, seen=RUNNING, closing=OVER))
    assert (finish.act, finish.reason) == (Act.FINISH, OVER)
    assert plan(replace(SAVED, finishing=True), seen=RUNNING, closing=OVER).actions == ()
    hung = replace(SAVED, finishing=True, quiet_seconds=4000.0)
    assert only(plan(hung, seen=RUNNING, closing=OVER)).act is Act.STOP
    assert only(plan(SAVED, seen=PENDING, closing=OVER)).act is Act.KILL
    salvage = only(plan(SAVED, seen=gone(Cause.TIMED_OUT), closing=OVER))
    assert (salvage.act, salvage.reason) == (
        Act.SALVAGE,
        f"{OVER}; a partial result is made from step 40",
    )
    for files in (BEGUN, replace(SAVED, has_partial=False), AttemptFiles(attempt=A1, staged=True)):
        end = only(plan(files, seen=gone(), closing=OVER))
        assert (end.act, end.outcome, end.reason) == (Act.END, Outcome.REFUSED, OVER)
    assert only(plan(AttemptFiles(attempt=A1), closing=OVER)).outcome is Outcome.REFUSED


def test_work_without_partial_results_is_stopped_and_then_killed_when_the_allocation_is_over():
    """An evaluation, a merge or a tokenizer reads no FINISH, and would spend on to its walltime."""
    merge = replace(BEGUN, can_finish=False)
    stop = only(plan(merge, seen=RUNNING, closing=OVER))
    assert (stop.act, stop.reason) == (Act.STOP, OVER)
    assert plan(replace(merge, stopping_seconds=600.0), seen=RUNNING, closing=OVER).actions == ()
    late = replace(merge, stopping_seconds=601.0)
    assert only(plan(late, seen=RUNNING, closing=OVER)).act is Act.KILL
    assert plan(late, seen=UNKNOWN, closing=OVER).actions == ()
    end = only(plan(late, seen=gone(Cause.STOPPED), closing=OVER))
    assert (end.act, end.outcome, end.reason) == (Act.END, Outcome.REFUSED, OVER)


def test_nothing_new_is_taken_when_the_allocation_is_over():
    made = reconcile(Observation(wanted=(Offer(attempt=A1, problem=""),), closing=OVER), LIMITS, Consent())
    assert made.actions == ()
    [report] = made.reports
    assert report.ended is not None
    assert (report.ended.outcome, report.ended.reason) == (Outcome.REFUSED, OVER)


def test_partial_results_are_made_one_after_the_other_and_a_failing_one_ends():
    both = (SAVED, replace(SAVED, attempt=A2))
    assert [action.attempt for action in plan(*both, seen=gone(), closing=OVER).actions] == [A1]
    end = only(plan(SAVED, seen=gone(), problems={A1: "the base is not here"}))
    assert end.outcome is Outcome.FAILED
    end = only(plan(SAVED, seen=gone(), closing=OVER, problems={A1: "the base is not here"}))
    assert (end.act, end.outcome) == (Act.END, Outcome.REFUSED)


# ---- reports


def test_a_report_says_what_was_used_whether_it_began_and_why_it_waits():
    usage = Usage(gpu_seconds=7200.0, seconds=1800.0, queued_seconds=60.0)
    [report] = plan(BEGUN, seen=PENDING).reports
    assert (report.detail, report.started, report.usage) == ("Priority", False, None)
    [report] = plan(replace(BEGUN, usage=usage), seen=PENDING).reports
    assert (report.started, report.usage) == (True, usage)
    [report] = plan(BEGUN, seen=RUNNING).reports
    assert report.started
