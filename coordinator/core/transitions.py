"""What can happen to a job, as a table.

    PLANNED ──lease──▶ LEASED ──deliver──▶ DELIVERED ──admit──▶ DONE
       ▲  ◀──release──   │  ▲                  │
       │  ──resume───────┘──┘ (late, same try) │
       └───────────────refuse──────────────────┘
    PLANNED ──give_up──▶ FAILED          PLANNED, LEASED, DELIVERED ──cancel──▶ CANCELLED

At most one attempt is live at a time. ``release`` covers every way an attempt can end without a result;
``resume`` gives an expired attempt its lease back if nobody has been given the job since.
"""

import enum

from consortium.errors import Broken


class JobState(enum.StrEnum):
    PLANNED = "planned"  #: waits for an able site with a free slot
    LEASED = "leased"  #: a site holds the right to its newest attempt
    DELIVERED = "delivered"  #: the result is here and waits for inspection
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})

JOB_TRANSITIONS = {
    (JobState.PLANNED, "lease"): JobState.LEASED,
    (JobState.PLANNED, "resume"): JobState.LEASED,
    (JobState.PLANNED, "give_up"): JobState.FAILED,
    (JobState.PLANNED, "cancel"): JobState.CANCELLED,
    (JobState.LEASED, "deliver"): JobState.DELIVERED,
    (JobState.LEASED, "release"): JobState.PLANNED,
    (JobState.LEASED, "cancel"): JobState.CANCELLED,
    (JobState.DELIVERED, "admit"): JobState.DONE,
    (JobState.DELIVERED, "refuse"): JobState.PLANNED,
    (JobState.DELIVERED, "cancel"): JobState.CANCELLED,
}


def step(job: str, state: JobState, verb: str) -> JobState:
    """The state after ``verb``. An edge that is not in the table is our own mistake."""
    try:
        return JOB_TRANSITIONS[state, verb]
    except KeyError:
        raise Broken(
            f"job {job} is {state.value} and cannot {verb}; the ledger contradicts the table"
        ) from None
