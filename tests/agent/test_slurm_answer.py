"""What Slurm's commands say, as recorded and as no one hopes for: nothing odd becomes an end, an id or an absence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.canonical import replace
from site_agent.core.facts import Cause, Seen
from site_agent.launchers.base import Life
from site_agent.launchers.slurm.answer import (
    ACCOUNT_FIELDS,
    AccountRow,
    QueueRow,
    State,
    gpus_in,
    is_cancelled_by,
    is_held,
    is_spent,
    never_starts,
    read_account,
    read_cancellation,
    read_job,
    read_queue,
    read_submission,
    state_of,
    was_not_launched,
)
from site_agent.launchers.slurm.commands import Completed
from site_agent.launchers.slurm.verdict import (
    Evidence,
    LifeEnd,
    Patience,
    hangs,
    judge,
    own_account,
    own_row,
    settle,
    usage_of,
)

LIFE = Life(number=1, name="sb-1-1", host="slurm", native_id="7", submitted_at=1000.0)
ROW = QueueRow(id="7", state="RUNNING", name="sb-1-1", submitted=1000.0, starts=1010.0, nodes="node0")
PAST = AccountRow(
    id="7",
    name="sb-1-1",
    state="COMPLETED",
    exit_code=0,
    exit_signal=0,
    submitted=1000.0,
    started=1010.0,
    ended=1070.0,
    elapsed=60.0,
    gpus=4.0,
    joules=None,
)
END = LifeEnd(began=1010.0, ended=1070.0, id="7", life=1, rc=0, restart=0, why="exit")
PATIENCE = Patience()

#: As 22.05.8 said them on the cluster of tests/slurm; the 24.11 rows differ in states and in no form.
QUEUE = """\
18|FAILED|1795344138|1795344138||wrap|BadConstraints
19|PENDING|1795344138|N/A||wrap|PartitionTimeLimit
20|PENDING|1795344138|1795344999||sb-x-1|ReqNodeNotAvail, UnavailableNodes:node[0-1]|x
21|RUNNING|1795344138|1795344140|node[0-1]|sb-y-2|None
"""
ACCOUNT = """\
7|wrap|COMPLETED|0:0|1795343632|1795343633|1795343693|60|billing=2,cpu=2,gres/gpu=4,mem=16000M,node=2|0|node[0-1]
8|wrap|CANCELLED by 0|0:0|1795343632|None|1795343660|0||0|None assigned
9|wrap|REQUEUED|0:0|1795343632|1795343640|1795343660|20|cpu=1,gres/gpu:a100=1|5000|node0
9|wrap|RUNNING|0:0|1795343660|1795343670|Unknown|4|cpu=1,gres/gpu:a100=1||node1
"""
JOB = (
    "JobId=19 JobName=wrap UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901741 Nice=0 Account=site "
    "QOS=normal JobState=PENDING Reason=ReqNodeNotAvail, UnavailableNodes:node1 Dependency=(null) Requeue=1 Restarts=0 "
    "BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:00 TimeLimit=694-10:39:00 TimeMin=N/A SubmitTime=1795344138 "
    "EligibleTime=1795344138 StartTime=Unknown EndTime=Unknown NodeList= NumNodes=1 Command=(null)\n"
)


def said(out="", rc=0, err=""):
    return Completed(rc=rc, out=out, err=err)


# ---- sbatch


@pytest.mark.parametrize(
    ("completed", "field", "words"),
    [
        (said("59\n"), "id", "59"),
        (said("59;cluster\n"), "id", "59"),
        (said("Welcome to the machine\n59\n"), "id", "59"),
        (said(""), "unsure", "named no job"),
        (said("Submitted batch job\n"), "unsure", "named no job"),
        (
            said(rc=1, err="sbatch: error: Batch job submission failed: Invalid qos specification"),
            "refused",
            "qos",
        ),
        (
            said(
                rc=1, err="sbatch: error: Batch job submission failed: Invalid account or account/partition"
            ),
            "refused",
            "",
        ),
        (
            said(rc=1, err="error: QOSMaxWallDurationPerJobLimit\nBatch job submission failed: Job violates"),
            "refused",
            "",
        ),
        (
            said(rc=1, err="error: QOSMaxSubmitJobPerUserLimit\nBatch job submission failed: Job violates"),
            "later",
            "",
        ),
        *(
            (said(rc=1, err=f"sbatch: error: Batch job submission failed: {words}"), "refused", words)
            for words in (
                "Requested node configuration is not available",
                "Node count specification invalid",
                "Requested time limit is invalid (missing or exceeds some limit)",
                "Invalid feature specification",
                "Invalid generic resource (gres) specification",
                "User's group not permitted to use this partition",
            )
        ),
        (said(rc=1, err="sbatch: unrecognized option '--gpu-per-node=4'"), "refused", "--gpu-per-node"),
        *(
            (said(rc=1, err=f"sbatch: error: Batch job submission failed: {words}"), "later", words)
            for words in (
                "Required partition not available (inactive or drain)",
                "Requested partition configuration not available now",
                "Requested reservation is invalid",
            )
        ),
        (said(rc=1, err="sbatch: error: Batch job submission failed: Unspecified error"), "objects", ""),
        (said(rc=1, err="sbatch: error: lua: not before noon"), "objects", "not before noon"),
        (said(rc=1, err="Unable to contact slurm controller (connect failure)"), "later", "Unable"),
        (said(rc=1, err="Slurm temporarily unable to accept job, sleeping and retrying"), "later", ""),
        (said(rc=1, err="Socket timed out on send/recv operation"), "unsure", "timed out"),
        (said(rc=1, err="Zero Bytes were transmitted or received"), "unsure", ""),
        (said(rc=127, err="bash: sbatch: command not found"), "later", ""),
        (said(rc=255, err="ssh: connect to host"), "later", ""),
        (said(rc=-9), "later", ""),
        (said(rc=1), "later", "without a word"),
    ],
)
def test_what_sbatch_says_is_an_id_or_final_or_worth_another_try_or_in_doubt(completed, field, words):
    found = read_submission(completed)
    given = {
        name: getattr(found, name)
        for name in ("id", "refused", "later", "objects", "unsure")
        if getattr(found, name)
    }
    assert list(given) == [field]
    assert words in given[field]


@given(st.text(), st.text(), st.integers(-20, 255))
def test_sbatch_is_always_read_as_exactly_one_thing(out, err, rc):
    found = read_submission(said(out, rc, err))
    words = (found.id, found.refused, found.later, found.objects, found.unsure)
    assert sum(bool(word) for word in words) == 1
    assert not found.id or (rc == 0 and found.id.isdecimal())


# ---- squeue


def test_the_queue_as_it_is():
    queue = read_queue(said(QUEUE))
    assert queue.is_whole
    assert [row.reason for row in queue.rows] == [
        "BadConstraints",
        "PartitionTimeLimit",
        "ReqNodeNotAvail, UnavailableNodes:node[0-1]|x",
        "",
    ]
    assert [row.starts for row in queue.rows] == [1795344138.0, None, 1795344999.0, 1795344140.0]
    assert queue.rows[3].nodes == "node[0-1]"


@pytest.mark.parametrize(
    "completed",
    [
        said(QUEUE[:-5]),
        said(QUEUE + "garbage\n"),
        said("\x00\x01|||\n"),
        said("", err="slurm_load_jobs warning"),
        said("fork: retry: Resource temporarily unavailable"),
    ],
)
def test_absence_follows_only_from_a_whole_answer(completed):
    assert not read_queue(completed).is_whole


@pytest.mark.parametrize("rc", [1, 127, 255, -9])
def test_a_queue_that_failed_says_why_and_nothing_else(rc):
    queue = read_queue(said(QUEUE, rc, "Unable to contact slurm controller"))
    assert queue.problem == "Unable to contact slurm controller"
    assert (queue.rows, queue.is_whole) == ((), False)


def test_an_empty_queue_is_whole():
    assert read_queue(said("")).is_whole


@given(st.text(), st.text())
def test_no_text_makes_a_row_of_ours_final_that_does_not_say_so(out, err):
    for row in read_queue(said(out, 0, err)).rows:
        assert row.id.isdecimal()
        assert state_of(row.state) is not State.FINAL or row.state.split()[0].isupper()


@given(
    st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=["Cs"]), max_size=80),
    st.sampled_from(["RUNNING", "PENDING", "COMPLETED"]),
)
def test_a_reason_may_hold_anything(reason, state):
    row = read_queue(said(f"7|{state}|1000|1010|node0|sb-1-1|{reason}\n")).rows[0]
    assert (row.id, row.state, row.name, row.starts) == ("7", state, "sb-1-1", 1010.0)


# ---- sacct, scontrol, scancel


def test_accounting_as_it_is():
    rows = read_account(said(ACCOUNT)).rows
    assert [(row.id, row.state, row.gpus, row.elapsed) for row in rows] == [
        ("7", "COMPLETED", 4.0, 60.0),
        ("8", "CANCELLED by 0", 0.0, 0.0),
        ("9", "REQUEUED", 1.0, 20.0),
        ("9", "RUNNING", 1.0, 4.0),
    ]
    assert [row.joules for row in rows] == [None, None, 5000.0, None]
    assert rows[1].started is None


def test_accounting_that_is_off_is_told_from_accounting_that_is_down():
    assert read_account(said(rc=1, err="Slurm accounting storage is disabled")).is_off
    down = read_account(said(rc=1, err="sacct: error: Problem talking to the database: Connection refused"))
    assert down.problem
    assert not down.is_off


@given(st.lists(st.text(st.characters(blacklist_characters="\n"), max_size=12), max_size=14).map("|".join))
def test_a_line_that_is_not_a_row_of_accounting_is_left_out(line):
    for row in read_account(said(line + "\n")).rows:
        assert line.count("|") == len(ACCOUNT_FIELDS) - 1
        assert row.elapsed >= 0


def test_what_the_controller_still_knows():
    row = read_job(said(JOB))
    assert row is not None
    assert (row.id, row.state, row.submitted, row.starts) == ("19", "PENDING", 1795344138.0, None)
    assert row.reason == "ReqNodeNotAvail, UnavailableNodes:node1"
    assert read_job(said(rc=1, err="slurm_load_jobs error: Invalid job id specified")) is None
    for completed in (said(rc=1, err="Unable to contact slurm controller"), said("garbage")):
        with pytest.raises(ValueError):
            read_job(completed)


def test_cancelling_what_is_gone_is_done():
    assert read_cancellation(said()) == ""
    assert (
        read_cancellation(
            said(rc=1, err="scancel: error: Kill job error on job id 9: Invalid job id specified")
        )
        == ""
    )
    assert "Unable" in read_cancellation(said(rc=1, err="Unable to contact slurm controller"))


# ---- words


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("CANCELLED by 0", State.FINAL),
        ("CANCELLED+", State.FINAL),
        ("CANCELL+", State.FINAL),
        ("COMPLET+", State.UNKNOWN),  # COMPLETED or COMPLETING
        ("OUT_OF_ME+", State.FINAL),
        ("RUNNING", State.ACTIVE),
        ("COMPLETING", State.ACTIVE),
        ("REQUEUED", State.PENDING),
        ("SUSPENDED", State.PENDING),
        ("NODE_FAIL", State.FINAL),
        ("", State.UNKNOWN),
        ("+", State.UNKNOWN),
        ("HIBERNATING", State.UNKNOWN),
    ],
)
def test_states(word, state):
    assert state_of(word) is state


def test_who_cancelled():
    assert is_cancelled_by("CANCELLED by 1000") == "1000"
    assert is_cancelled_by("CANCELLED") == ""


@pytest.mark.parametrize(
    "reason",
    [
        *(
            "DependencyNeverSatisfied",
            "PartitionTimeLimit",
            "PartitionNodeLimit",
            "BadConstraints",
            "InvalidAccount",
        ),
        *(
            "InvalidQOS",
            "ReservationDeleted",
            "QOSMaxWallDurationPerJobLimit",
            "QOSMaxGRESPerJob",
        ),
        *("AssocMaxWallDurationPerJobLimit", "AssocMaxCpuMinutesPerJobLimit", "QOSMaxNodePerJobLimit"),
    ],
)
def test_reasons_that_time_does_not_mend(reason):
    assert never_starts(reason)


@pytest.mark.parametrize(
    "reason",
    [
        *(
            "Priority",
            "Resources",
            "ReqNodeNotAvail, UnavailableNodes:node[1-3]",
            "Reservation",
            "BeginTime",
            "None",
        ),
        *(
            "Dependency",
            "JobHeldUser",
            "PartitionDown",
            "QOSMaxJobsPerUserLimit",
            "AssocGrpGRES",
            "Licenses",
        ),
        *(
            "QOSGrpNodeLimit",
            "AssocMaxJobsLimit",
            "Nodes required for job are DOWN, DRAINED or reserved",
            "",
            "Prolog",
        ),
    ],
)
def test_reasons_that_time_may_mend(reason):
    assert not never_starts(reason)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("JobHeldAdmin", "held"),
        ("job requeued in held state", "held"),
        ("JobHeldUser", ""),
        ("launch failed requeued held", "not launched"),
        ("launch_failed_requeued_held", "not launched"),
        ("JobHoldMaxRequeue", "not launched"),
        ("AssocGrpGRESMinutes", "spent"),
        ("AssocGrpCPUMinutesLimit", "spent"),
        ("AssocGrpBillingMinutes", "spent"),
        ("QOSGrpGRESMinutes", "spent"),
        ("AssocGrpWallLimit", "spent"),
        ("AssocGrpCPURunMinutesLimit", ""),  # frees itself as others end
        ("QOSGrpGRESRunMinutes", ""),
        ("AssocGrpGRES", ""),
        ("AssocGrpNodeLimit", ""),
    ],
)
def test_reasons_that_need_patience_or_another_node(reason, kind):
    assert not never_starts(reason)
    found = {"held": is_held(reason), "not launched": was_not_launched(reason), "spent": is_spent(reason)}
    assert [name for name, holds in found.items() if holds] == ([kind] if kind else [])


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


def test_gpus_are_counted_once():
    assert gpus_in("billing=8,cpu=8,gres/gpu:a100=2,gres/gpu=2,mem=1G,node=1") == 2
    assert gpus_in("gres/gpu:a100=2,gres/gpu:h100=1") == 3
    assert gpus_in("cpu=8,gres/gpumem=80G") == 0
    assert gpus_in("") == 0


# ---- verdicts


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


def test_usage_counts_every_start_once_and_energy_only_if_all_is_known():
    second = replace(PAST, started=1100.0, elapsed=30.0, joules=50.0)
    usage = usage_of([PAST, PAST, second], gpus=4)
    assert usage is not None
    assert (usage.seconds, usage.gpu_seconds, usage.queued_seconds, usage.joules) == (90.0, 360.0, 10.0, None)
    known = usage_of([replace(PAST, joules=100.0), second], gpus=4)
    assert known is not None
    assert known.joules == 150.0
    assert usage_of([replace(PAST, started=None)], gpus=4) is None
    uncounted = usage_of([replace(PAST, gpus=0.0)], gpus=2)
    assert uncounted is not None
    assert uncounted.gpu_seconds == 120.0
