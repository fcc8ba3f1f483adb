"""What Slurm's words for states and reasons mean."""

import pytest

from site_agent.launchers.slurm.words import (
    State,
    is_cancelled_by,
    is_held,
    is_spent,
    never_starts,
    state_of,
    was_not_launched,
)


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
