"""The simulation sees a broken product: some of the mistakes that ``make mutation`` makes, each by one case."""

import json

import pytest
from broken import missing
from cases import cases
from mistakes import NOTHING, mistakes
from mutation import SEEN_BY, judged_apart


@pytest.mark.parametrize(
    ("mistake", "case", "said"),
    [
        ("driver: events are told and not written", "uneven, strict, faults", "invariants 1, 3, 6, 7"),
        ("fence: another site's attempt counts", "uneven, lenient, lies", "never said"),
        ("doubled lines count twice", "uneven, lenient, lies", "brings the coordinator to fall"),
        ("table: refused is done", "uneven, lenient, lies", "by the state"),
        ("syncs do not renew", "even, strict, calm", "lapsed too early"),
        ("verdict while judges work", "even, strict, whims", "GateJudged"),
        ("gate: worse is better", "even, strict, calm", "grew by"),
        ("merge: any waits for ever", "quick, any, gone", "the coordinator could merge"),
        ("nobody is woken when its attempt is gone", "down, patient, calm", "that its attempt is gone"),
        ("account: nothing is held back", "scarce, lenient, calm", "beyond what is left"),
        ("envelopes need no upload", "even, patient, lent", "sent no envelope"),
    ],
)
def test_a_mistake_is_seen(mistake: str, case: str, said: str) -> None:
    assert said in judged_apart(mistake, [case]).violation


def test_where_there_is_none_nothing_is_seen() -> None:
    tried = ["even, strict, calm", "even, strict, whims", "quick, any, gone"]
    assert judged_apart(NOTHING.name, tried).violation == ""


def test_every_mistake_can_still_be_made() -> None:
    assert [sentence for one in mistakes() if (sentence := missing(one))] == []


def test_what_is_known_of_who_sees_which_is_of_mistakes_and_cases_that_are_there() -> None:
    seen = json.loads(SEEN_BY.read_text())
    assert set(seen) <= {one.name for one in mistakes()}
    assert set(seen.values()) <= set(cases())
