"""What delivered scores and tokenizers can be wrong in: each is refused with a reason that ``why`` tells."""

import json
from collections.abc import Callable

import pytest
from delivering_site import GATE, TOKENIZER, House, assert_says, refusal

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


def bpe(size: int, kind: str = "BPE") -> bytes:
    return json.dumps({"model": {"type": kind, "vocab": {str(i): i for i in range(size)}}}).encode()


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
        (b'{"model": {"type": "BPE", "vocab": 7}}', "not a tokenizer"),
        (b"[" * 100_000, "not a tokenizer"),
        (bpe(301), "BPE of 301 entries, asked for BPE of at most 300"),
        (bpe(255), "BPE of 255 entries"),
        (bpe(300, "WordPiece"), "WordPiece of 300 entries"),
    ],
)
def test_a_tokenizer_that_is_none(tokenizing: House, data: bytes, reason: str) -> None:
    artifact = tokenizing.send(data)
    contribution: Contribution = tokenizing.contribution(tokenizing.job(TOKENIZER), artifact)
    assert_says(reason, refusal(tokenizing, TOKENIZER, tokenizing.seal(contribution)))
