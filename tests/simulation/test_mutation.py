"""The simulation sees a broken core: six of the mistakes that ``make mutation`` makes, by a seed that catches each."""

import pytest
from mutation import judged_apart


@pytest.mark.parametrize(
    ("mistake", "case", "said"),
    [
        ("driver: events are told and not written", 0, "invariant"),
        ("driver: a replay skips an event", 0, "invariant 2"),
        ("attempts are numbered anew", 0, "invariants 1, 3, 6"),
        ("fence: a stale attempt counts", 2, "AttemptEnded"),
        ("leases never lapse", 1, "invariant 3"),
        ("syncs do not renew", 0, "lapsed too early"),
    ],
)
def test_a_mistake_in_the_core_is_seen(mistake: str, case: int, said: str) -> None:
    assert said in judged_apart(mistake, case, case + 1, 280.0).violation
