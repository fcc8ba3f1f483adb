"""What squeue, sacct and scontrol say, as recorded and as no one hopes for: nothing odd becomes an absence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slurm_samples import said

from site_agent.launchers.slurm.answer import (
    ACCOUNT_FIELDS,
    gpus_in,
    read_account,
    read_cancellation,
    read_job,
    read_queue,
)
from site_agent.launchers.slurm.words import State, state_of

#: As 22.05.8 said them on the cluster of tests/slurm.
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
#: The same commands as 24.11.5 answered them: energy is empty where 22.05 says 0, what was refused has no start.
QUEUE_24 = """\
5|FAILED|1795357445|1795357445||sb-r|BadConstraints
13|FAILED|1795357446|1795357447|node0|sb-term|RaisedSignal:15(Terminated)
4|PENDING|1795357445|N/A||sb-r|PartitionTimeLimit
11|PENDING|1795357446|N/A||sb-spent|AssocGrpCPUMinutesLimit
14|RUNNING|1795357446|1795357447|node0|sb-long|None
16|PENDING|1795357448|1795357451||intruder|Resources
"""
ACCOUNT_24 = """\
5|sb-r|FAILED|1:0|1795357445|None|1795357445|0||0|None assigned
11|sb-spent|PENDING|0:0|1795357446|Unknown|Unknown|0||0|None assigned
12|sb-gpu|FAILED|3:0|1795357446|1795357447|1795357451|4|billing=1,cpu=1,gres/gpu=2,mem=100M,node=1||node0
13|sb-term|FAILED|0:15|1795357446|1795357447|1795357448|1|billing=1,cpu=1,mem=100M,node=1||node0
15|sb-pre|PREEMPTED|0:0|1795357446|1795357447|1795357463|16|billing=8,cpu=8,gres/gpu=4,mem=100M,node=1||node1
15|sb-pre|RUNNING|0:0|1795357463|1795357472|Unknown|56|billing=8,cpu=8,gres/gpu=4,mem=100M,node=1||node1
"""
JOB_24 = (
    "JobId=14 JobName=sb-long UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901747 Nice=0 Account=site "
    "QOS=normal JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 "
    "RunTime=00:00:04 TimeLimit=00:01:00 TimeMin=N/A SubmitTime=1795357446 EligibleTime=1795357446 "
    "AccrueTime=1795357446 StartTime=1795357447 EndTime=1795357507 Deadline=N/A SuspendTime=None SecsPreSuspend=0 "
    "Scheduler=Main Partition=gpu AllocNode:Sid=login:28234 ReqNodeList=(null) ExcNodeList=(null) NodeList=node0 "
    "BatchHost=node0 NumNodes=1 NumCPUs=1 AllocTRES=cpu=1,mem=100M,node=1,billing=1,gres/gpu=1 Command=(null)\n"
)


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


def test_24_11_answers_in_the_same_form():
    queue = read_queue(said(QUEUE_24))
    assert queue.is_whole
    assert [state_of(row.state) for row in queue.rows] == [
        *(State.FINAL, State.FINAL, State.PENDING, State.PENDING, State.ACTIVE, State.PENDING)
    ]
    assert [row.starts for row in queue.rows][2:] == [None, None, 1795357447.0, 1795357451.0]
    rows = read_account(said(ACCOUNT_24)).rows
    assert [(row.id, row.exit_code, row.exit_signal, row.gpus, row.started) for row in rows] == [
        ("5", 1, 0, 0.0, None),
        ("11", 0, 0, 0.0, None),
        ("12", 3, 0, 2.0, 1795357447.0),
        ("13", 0, 15, 0.0, 1795357447.0),
        ("15", 0, 0, 4.0, 1795357447.0),
        ("15", 0, 0, 4.0, 1795357472.0),
    ]
    assert {row.joules for row in rows} == {None}
    job = read_job(said(JOB_24))
    assert job is not None
    assert (job.id, job.state, job.nodes, job.reason) == ("14", "RUNNING", "node0", "")
    for words in (
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "sacct: error: Sending PersistInit msg: Connection refused",
    ):
        assert read_queue(said(rc=1, err=words)).problem
        assert not read_account(said(rc=1, err=words)).is_off


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


def test_gpus_are_counted_once():
    assert gpus_in("billing=8,cpu=8,gres/gpu:a100=2,gres/gpu=2,mem=1G,node=1") == 2
    assert gpus_in("gres/gpu:a100=2,gres/gpu:h100=1") == 3
    assert gpus_in("cpu=8,gres/gpumem=80G") == 0
    assert gpus_in("") == 0
