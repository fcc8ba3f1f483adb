"""The simulation sees a broken product: some of the mistakes that ``make mutation`` makes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from broken import missing
from cases import cases
from mistakes import NOTHING, mistakes
from mutation import HERE, SEEN_BY, judged_apart

#: Each is seen by the case that ``seen_by.json`` names, with words such as these.
SEEN = {
    "driver: events are told and not written": "invariants 1, 3, 6, 7",
    "fence: another site's attempt counts": "never said",
    "doubled lines count twice": "brings the coordinator to fall",
    "table: refused is done": "by the state",
    "syncs do not renew": "lapsed too early",
    "verdict while judges work": "GateJudged",
    "gate: worse is better": "grew by",
    "merge: any waits for ever": "the coordinator could merge",
    "nobody is woken when its attempt is gone": "that its attempt is gone",
    "account: nothing is held back": "beyond what is left",
    "envelopes need no upload": "sent no envelope",
    "agent: silence ends an attempt": "nobody has said that it is not wanted",
    "agent: more jobs than slots": "and there are 1 slots",
    "agent: a life is enough": "waits for its next life",
    "agent: the last of what was used is lost": "nobody was told that it used",
}


@pytest.mark.timeout(3600)  # nothing but a hang is meant
def test_mistakes_are_seen(tmp_path: Path) -> None:
    """By one process that imports the product, and forks."""
    kept = tmp_path / "verdicts.jsonl"
    command = [sys.executable, str(HERE / "mutation.py"), "--unchecked", "--jobs", "1", "--json", str(kept)]
    for name in SEEN:
        command += ["--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = {one["mistake"]: one["violation"] for one in map(json.loads, kept.read_text().splitlines())}
    assert said.keys() == SEEN.keys()
    assert {name: words for name, words in SEEN.items() if words not in said[name]} == {}, said


def test_where_there_is_none_nothing_is_seen() -> None:
    tried = ["even, strict, calm", "even, strict, whims", "quick, any, gone", "killed, strict, calm"]
    assert judged_apart(NOTHING.name, tried).violation == ""


def test_every_mistake_can_still_be_made() -> None:
    assert [sentence for one in mistakes() if (sentence := missing(one))] == []


def test_what_is_known_of_who_sees_which_is_of_mistakes_and_cases_that_are_there() -> None:
    seen = json.loads(SEEN_BY.read_text())
    assert set(seen) <= {one.name for one in mistakes()}
    assert set(seen.values()) <= set(cases())
