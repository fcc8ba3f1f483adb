"""What an attempt used, by accounting and by its own records, and when that is final."""

import pytest
from slurm_samples import END, PAST

from consortium.canonical import replace
from site_agent.core.facts import Usage
from site_agent.launchers.slurm.answer import Account
from site_agent.launchers.slurm.usage import books_of, usage_by_records, usage_of


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


# ---- is it final

FIRST = replace(PAST, state="REQUEUED", started=900.0, ended=950.0, elapsed=50.0)


def books(rows, begun=("7",), **account):
    return books_of(Account(**account), rows, begun)


def test_an_account_is_final_when_every_start_has_a_row_and_every_row_an_end():
    assert books([PAST]).is_final
    assert books([FIRST, PAST], begun=("7", "7")).is_final
    assert books([FIRST, replace(PAST, id="8")], begun=("7", "8")).is_final


@pytest.mark.parametrize(
    ("rows", "begun", "why"),
    [
        ([replace(PAST, state="RUNNING", ended=None)], ["7"], "sacct says RUNNING of 7"),
        ([replace(PAST, state="RUNNING", ended=0.5)], ["7"], "sacct says RUNNING of 7"),
        ([FIRST, replace(PAST, state="PENDING", started=None, ended=None)], ["7"], "sacct says PENDING of 7"),
        ([replace(PAST, state="COMPLETED", ended=None)], ["7"], "sacct says COMPLETED of 7"),
        ([FIRST], ["7", "7"], "sacct knows 1 of 2 starts of 7"),
        ([PAST], ["7", "8"], "sacct knows 0 of 1 starts of 8"),
        ([], ["7"], "sacct knows 0 of 1 starts of 7"),
    ],
)
def test_an_account_that_is_not_final_says_what_it_lacks(rows, begun, why):
    found = books(rows, begun)
    assert (found.is_final, found.why) == (False, why)


def test_accounting_that_is_down_is_waited_for_and_none_is_not():
    assert books([], problem="Connection refused").why == "accounting cannot be asked: Connection refused"
    assert not books([], problem="Connection refused").is_final
    assert books([], problem="disabled", is_off=True).is_final
    assert books([], begun=()).is_final  # what never began needs no row


# ---- where it does not become final

SECOND = replace(END, restart=1, began=1100.0, ended=1130.0)


def test_records_stand_in_for_the_starts_that_accounting_lacks():
    open_row = replace(PAST, state="RUNNING", started=1100.0, ended=None, elapsed=5000.0)
    usage = usage_by_records([PAST, open_row], [END, SECOND], 4, Usage(), 0.0)
    assert (usage.seconds, usage.gpu_seconds, usage.source) == (90.0, 360.0, "clock")
    assert usage.queued_seconds == 10.0


def test_a_start_that_left_no_record_shifts_no_other():
    """Restart 0 lost its node and wrote nothing; accounting knows it, and not restart 1, which did."""
    usage = usage_by_records([replace(PAST, state="NODE_FAIL")], [SECOND], 4, Usage(), 0.0)
    assert (usage.seconds, usage.gpu_seconds) == (90.0, 360.0)


def test_what_was_written_down_becomes_no_less():
    before = Usage(gpu_seconds=500.0, seconds=125.0, queued_seconds=3.0, source="sacct")
    assert usage_by_records([], [END], 4, before, 0.0) == before
    assert usage_by_records([], [END], 4, Usage(), 7.0) == Usage(
        gpu_seconds=240.0, seconds=60.0, queued_seconds=7.0, source="clock"
    )
