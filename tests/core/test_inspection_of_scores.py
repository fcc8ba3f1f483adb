"""What delivered scores and tokenizers can be wrong in: each is refused with a reason that ``why`` tells."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from delivering_site import GATE, TOKENIZER, House, assert_says, refusal

from consortium.byte_level import tokenizer_of
from consortium.canonical import replace
from consortium.ids import Language, SiteName
from consortium.manifests import Contribution, LanguageScore, Scores
from coordinator.core.transitions import JobState

FI, HU = Language("fi"), Language("hu")
HOUR = 3600.0


# --- scores --------------------------------------------------------------------------------------------


def every(change: Callable[[LanguageScore], LanguageScore]) -> Callable[[Scores], Scores]:
    def changed(scores: Scores) -> Scores:
        subjects = {
            s: {x: change(score) for x, score in found.items()} for s, found in scores.subjects.items()
        }
        return replace(scores, subjects=subjects)

    return changed


def one_less(scores: Scores) -> Scores:
    return replace(scores, subjects=dict(list(scores.subjects.items())[:1]))


def one_more(scores: Scores) -> Scores:
    return replace(scores, subjects={**scores.subjects, "mine": next(iter(scores.subjects.values()))})


def in_hungarian(scores: Scores) -> Scores:
    return replace(scores, subjects={s: {HU: found[FI]} for s, found in scores.subjects.items()})


def test_honest_scores_are_admitted(judging: House) -> None:
    judging.report(GATE, judging.seal(judging.contribution(judging.job(GATE), judging.scores())))
    judging.work()
    known = judging.driver.state.campaigns[judging.job(GATE).campaign].scores
    assert judging.job(GATE).state is JobState.DONE and len(known) == 2
    for found in known.values():
        score = found[FI][SiteName("north")]
        assert (score.nats, score.bytes, score.documents) == (1500.0, 3000, 30)


def test_nothing_held_out_is_not_scored(judging: House) -> None:
    empty = every(lambda score: replace(score, nats=(), bytes=()))
    judging.report(GATE, judging.seal(judging.contribution(judging.job(GATE), judging.scores(empty))))
    judging.work()
    assert judging.job(GATE).state is JobState.DONE
    assert judging.driver.state.campaigns[judging.job(GATE).campaign].scores == {}
    judging.driver.view()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (one_less, r"scored \[.*\], asked for"),
        (one_more, r"scored \[.*'mine'.*\], asked for"),
        (in_hungarian, r"scored \['hu'\], asked for \['fi'\]"),
        (
            lambda scores: replace(scores, site=SiteName("south")),
            "scores are of site south, delivered by north",
        ),
        (every(lambda s: replace(s, nats=s.nats[:-1])), "every document needs its nats"),
        (every(lambda s: replace(s, bytes=(0, *s.bytes[1:]))), "at least one byte"),
        (every(lambda s: replace(s, nats=(-1.0, *s.nats[1:]))), r"a document of -1.0 nats"),
        (every(lambda s: replace(s, nats=(1e308,) * 30)), "more nats or bytes than"),
        (
            every(lambda s: replace(s, bytes=(10**400, *s.bytes[1:]))),
            "more nats or bytes than|Number out of range|range",
        ),
    ],
)
def test_scores_that_cannot_be(judging: House, change: Callable[[Scores], Scores], reason: str) -> None:
    artifact = judging.scores(change)
    assert_says(
        reason, refusal(judging, GATE, judging.seal(judging.contribution(judging.job(GATE), artifact)))
    )


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999", b"null", b'"50.0"'])
def test_scores_that_are_no_numbers(judging: House, number: bytes) -> None:
    honest = judging.store.read_bytes(judging.scores().digest, 1 << 20)
    artifact = judging.send(honest.replace(b"50.0", number, 1))
    reason = refusal(judging, GATE, judging.seal(judging.contribution(judging.job(GATE), artifact)))
    assert_says("^scores: ", reason)


# --- tokenizers ----------------------------------------------------------------------------------------


def bpe(size: int, change: Callable[[dict[str, Any]], object] = lambda document: None) -> bytes:
    """A tokenizer of so many entries, after ``change``."""
    document = tokenizer_of(["!" * (number + 2) for number in range(size - 258)], [["!", "!"]])
    document = json.loads(json.dumps(document))
    change(document)
    return json.dumps(document).encode()


def swallows(document: dict[str, Any]) -> None:
    document["added_tokens"].append({**document["added_tokens"][0], "id": 2, "content": "Ljubljana"})


def never_ends(document: dict[str, Any]) -> None:
    document["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}


def matches_for_years(document: dict[str, Any]) -> None:
    pattern = {"type": "Split", "pattern": {"Regex": "(a|a)*b"}, "behavior": "Isolated", "invert": False}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern]}


def drops(document: dict[str, Any]) -> None:
    document["model"]["dropout"] = 0.9


def loses_a_byte(document: dict[str, Any]) -> None:
    del document["model"]["vocab"]["\u0142"]
    document["model"]["vocab"] = {word: number for number, word in enumerate(document["model"]["vocab"])}


def counts_twice(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["!!"] = 5


def merges_marks(document: dict[str, Any]) -> None:
    document["model"]["merges"].append(["<|endoftext|>", "!"])


def merges_in_spaces(document: dict[str, Any]) -> None:
    document["model"]["merges"] = ["! ! !"]


def is_of_no_bytes(document: dict[str, Any]) -> None:
    words = document["model"]["vocab"]
    words["\u10d0"] = words.pop("!!!")


def is_another_kind(document: dict[str, Any]) -> None:
    document["model"]["type"] = "WordPiece"


def has_more(document: dict[str, Any]) -> None:
    document["pretokenizer_hook"] = "os.system"


def test_an_honest_tokenizer_is_chosen(tokenizing: House) -> None:
    artifact = tokenizing.send(bpe(300))
    tokenizing.report(
        TOKENIZER, tokenizing.seal(tokenizing.contribution(tokenizing.job(TOKENIZER), artifact))
    )
    tokenizing.work()
    assert tokenizing.driver.state.campaigns[tokenizing.job(TOKENIZER).campaign].tokenizer == artifact.digest


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a tokenizer"),
        (b"[]", "not a tokenizer"),
        (b"\xff\xfe", "not a tokenizer"),
        (b'{"model": {"type": "BPE", "vocab": 7}}', "it has no added_tokens"),
        (b"[" * 100_000, "not a tokenizer"),
        (bpe(301), "BPE of 301 entries, asked for 258 to 300"),
        (bpe(300, lambda it: it["model"].pop("vocab")), "not a tokenizer of a vocabulary and merges"),
        (bpe(300, is_another_kind), "not a tokenizer of a vocabulary and merges, but 'WordPiece'"),
        (bpe(300, swallows), "its 'added_tokens' is "),
        (bpe(300, never_ends), "its 'normalizer' is {'type': 'Replace', "),
        (bpe(300, matches_for_years), "its 'pre_tokenizer' is {'type': 'Sequence', "),
        (bpe(300, drops), "its model's 'dropout' is 0.9; only a plain BPE is taken"),
        (bpe(300, loses_a_byte), "1 of 256 bytes are not in its vocabulary, and would vanish from texts"),
        (bpe(300, counts_twice), "its vocabulary does not count from 0 on"),
        (bpe(300, merges_marks), r"its merge \['<.endoftext.>', '!'\] is not of its vocabulary"),
        (bpe(300, merges_in_spaces), "its merge '! ! !' is not of two entries"),
        (bpe(300, is_of_no_bytes), "is not of bytes"),
        (bpe(300, has_more), "its 'pretokenizer_hook' is 'os.system', a campaign's tokenizer has None"),
        (bpe(300, lambda it: it.pop("decoder")), "it has no decoder"),
    ],
)
def test_a_tokenizer_that_is_none(tokenizing: House, data: bytes, reason: str) -> None:
    artifact = tokenizing.send(data)
    contribution: Contribution = tokenizing.contribution(tokenizing.job(TOKENIZER), artifact)
    assert_says(reason, refusal(tokenizing, TOKENIZER, tokenizing.seal(contribution)))
