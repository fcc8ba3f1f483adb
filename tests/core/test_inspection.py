"""What a delivered contribution can be wrong in: each is refused with a reason that ``why`` tells."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from consortium_in_facts import d
from delivering_site import GATE, TOKENIZER, TRAIN, House, values
from safetensors.numpy import save

from consortium.canonical import encode, replace
from consortium.errors import Unavailable
from consortium.ids import AttemptId, Digest, Language, SiteName
from consortium.manifests import Contribution, FileRef, LanguageScore, Scores
from consortium.signing import ASSIGNMENT, CONTRIBUTION, seal
from coordinator.core.plan import Inspect, owed
from coordinator.core.transitions import JobState
from coordinator.workshop import do

FI, HU = Language("fi"), Language("hu")
HOUR = 3600.0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    for site in ("north", "south"):
        house.enrol(site)
    yield house
    house.ledger.close()


@pytest.fixture
def training(house: House) -> House:
    """Round 1 is open and north holds its job."""
    house.submit()
    return house


@pytest.fixture
def expiring(house: House) -> House:
    """The same, but north's certificate is good for an hour only."""
    house.enrol("north", days=1 / 24)
    house.submit()
    return house


@pytest.fixture
def judging(training: House) -> House:
    """North holds the evaluation of a candidate and its base."""
    training.to_the_gate()
    return training


@pytest.fixture
def tokenizing(house: House) -> House:
    house.submit(trains_tokenizer=True)
    house.work()
    return house


def refusal(house: House, name: str, envelope: Digest) -> str:
    """Deliver; the worker refuses; the job waits for another try, and ``why`` says the reason returned."""
    house.report(name, envelope)
    attempt = house.job(name).attempt
    house.work()
    job = house.job(name)
    assert (job.state, job.failures, job.contribution) == (JobState.PLANNED, 1, None)
    assert f"{attempt} refused: {job.reason}" in house.why(name)
    return job.reason


def test_an_honest_delta_is_admitted(training: House) -> None:
    contribution = training.contribution(training.job(TRAIN))
    training.report(TRAIN, training.seal(contribution))
    training.work()
    job = training.job(TRAIN)
    assert (job.state, job.contribution) == (JobState.DONE, contribution)
    norm = float(np.sqrt(sum(np.sum(np.square(v, dtype=np.float64)) for v in values(1, 0.01).values())))
    admitted = [
        event for _, _, event in training.driver.events() if type(event).__name__ == "ContributionAdmitted"
    ]
    assert admitted[0].measures["norm"] == pytest.approx(norm)  # type: ignore[union-attr]


# --- deltas --------------------------------------------------------------------------------------------


def set_nan(tensors: dict[str, np.ndarray]) -> None:
    tensors["head"][3] = np.nan


def reshape(tensors: dict[str, np.ndarray]) -> None:
    tensors["embed"] = tensors["embed"].T.copy()


def drop(tensors: dict[str, np.ndarray]) -> None:
    del tensors["head"]


def halve(tensors: dict[str, np.ndarray]) -> None:
    tensors["head"] = tensors["head"].astype(np.float16)


@pytest.mark.parametrize(
    ("change", "scale", "reason"),
    [
        (set_nan, 0.01, r"tensor 'head' is nan at element 3"),
        (reshape, 0.01, r"tensor 'embed' has shape \[3, 7\], the base \[7, 3\]"),
        (drop, 0.01, r"tensor 'head' is missing"),
        (halve, 0.01, r"tensor 'head' is F16, the job asked for F32"),
        (dict, 100.0, r"its norm .* exceeds 0.5 of the base's"),
    ],
)
def test_a_delta_that_does_not_fit(
    training: House, change: Callable[[dict[str, np.ndarray]], object], scale: float, reason: str
) -> None:
    contribution = training.contribution(training.job(TRAIN), training.delta(change, scale))
    assert_matches(reason, refusal(training, TRAIN, training.seal(contribution)))


def test_a_delta_that_is_no_tensor_file(training: House) -> None:
    contribution = training.contribution(training.job(TRAIN), training.send(b"garbage" * 9))
    assert_matches("no safetensors", refusal(training, TRAIN, training.seal(contribution)))


def test_a_flipped_byte_on_the_way(training: House) -> None:
    """What was uploaded is not what was signed: the signed digest was never uploaded."""
    signed = training.delta()
    sent = bytearray(training.store.read_bytes(signed.digest, 1 << 20))
    training.store.path(signed.digest).unlink()
    sent[-1] ^= 1
    training.send(bytes(sent))
    contribution = training.contribution(training.job(TRAIN), signed)
    assert_matches(
        r"artifact delta \w+ was never uploaded", refusal(training, TRAIN, training.seal(contribution))
    )


def test_somebody_elses_work(training: House) -> None:
    """The digest of bytes that another site sent is no work of one's own."""
    theirs = training.send(save(values(7, 0.01), {"format": "pt"}), by="south")
    contribution = training.contribution(training.job(TRAIN), theirs)
    assert_matches(r"never uploaded by north", refusal(training, TRAIN, training.seal(contribution)))


def test_a_flipped_byte_in_the_store(training: House) -> None:
    signed = training.delta()
    path = training.store.path(signed.digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    contribution = training.contribution(training.job(TRAIN), signed)
    assert_matches("the bytes changed", refusal(training, TRAIN, training.seal(contribution)))


# --- manifests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"base": d("another base")},
            r"manifest's base is \w+, the job's is \w+; train from the base of the round",
        ),
        ({"base": None}, r"manifest's base is None"),
        ({"assignment": d("another order")}, r"manifest's assignment is"),
        ({"attempt": AttemptId(f"{TRAIN}.a2")}, r"manifest's attempt is"),
        ({"site": SiteName("south")}, r"manifest's site is south, the job's is north"),
        ({"artifacts": {}}, r"artifacts are \[\], this job's result is one 'delta'"),
        ({"artifacts": {"scores": FileRef(digest=d("x"), size=1)}}, r"artifacts are \['scores'\]"),
        ({"artifacts": {"delta": FileRef(digest=d("x"), size=1)}}, r"was never uploaded"),
        ({"artifacts": {"delta": FileRef(digest=Digest("../../etc"), size=1)}}, r"64 lower-case hex digits"),
        ({"steps": 11}, r"11 of 10 steps"),
        ({"steps": -1}, r"-1 of 10 steps"),
        ({"steps": 5, "planned_steps": 5}, r"planned_steps is 5, the job asked for 10"),
        ({"tokens": {FI: -1}}, r"counts cannot be so"),
        ({"tokens": {FI: 161}}, r"161 tokens in 10 steps of 2 sequences of 8 tokens cannot be"),
        ({"steps": 5}, r"160 tokens in 5 steps"),
        ({"tokens": {FI: 2**70}}, r"tokens cannot be"),
    ],
)
def test_a_manifest_that_does_not_answer_the_job(
    training: House, changes: dict[str, object], reason: str
) -> None:
    contribution = replace(training.contribution(training.job(TRAIN)), **changes)
    assert_matches(reason, refusal(training, TRAIN, training.seal(contribution)))


def test_a_wrong_size(training: House) -> None:
    delta = training.delta()
    contribution = training.contribution(training.job(TRAIN), replace(delta, size=delta.size + 1))
    assert_matches("bytes stored, the manifest says", refusal(training, TRAIN, training.seal(contribution)))


# --- signatures ----------------------------------------------------------------------------------------


def test_signed_by_another_site(training: House) -> None:
    contribution = training.contribution(training.job(TRAIN))
    reason = refusal(training, TRAIN, training.seal(contribution, by="south"))
    assert_matches("not signed by site north: signed envelope: signed by", reason)


def test_another_kind_of_envelope(training: House) -> None:
    data = seal(encode(training.contribution(training.job(TRAIN))), ASSIGNMENT, training.keys["north"])
    assert_matches("its type is", refusal(training, TRAIN, training.send(data).digest))


def test_a_payload_changed_after_signing(training: House) -> None:
    contribution = training.contribution(training.job(TRAIN))
    envelope = json.loads(seal(encode(contribution), CONTRIBUTION, training.keys["north"]))
    other = json.loads(seal(encode(replace(contribution, steps=9)), CONTRIBUTION, training.keys["north"]))
    envelope["payload"] = other["payload"]
    data = json.dumps(envelope).encode()
    assert_matches("does not fit the bytes", refusal(training, TRAIN, training.send(data).digest))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not DSSE JSON"),
        (b"[" * 100_000, "not DSSE JSON"),
        (b" " * (1 << 20) + b"{}", "at most 1048576"),
    ],
)
def test_an_envelope_that_is_none(training: House, data: bytes, reason: str) -> None:
    assert_matches(reason, refusal(training, TRAIN, training.send(data).digest))


def test_a_payload_that_is_no_manifest(training: House) -> None:
    data = seal(b'{"job": 7}', CONTRIBUTION, training.keys["north"])
    assert_matches("contribution manifest: ", refusal(training, TRAIN, training.send(data).digest))


def test_an_envelope_that_was_never_uploaded(training: House) -> None:
    """The job must not hang on something that will never come."""
    assert_matches(r"envelope \w+ was never uploaded", refusal(training, TRAIN, d("nothing")))


def test_an_expired_certificate(expiring: House) -> None:
    contribution = expiring.contribution(expiring.job(TRAIN))
    expiring.now += HOUR + 60
    reason = refusal(expiring, TRAIN, expiring.seal(contribution))
    assert_matches("certificate of north that had expired 60 s before delivery", reason)


def test_a_certificate_that_expires_after_delivery_was_good(expiring: House) -> None:
    """Delivered in time, inspected late: the worker's queue is not the site's fault."""
    expiring.report(TRAIN, expiring.seal(expiring.contribution(expiring.job(TRAIN))))
    expiring.now += HOUR + 60
    expiring.work()
    assert expiring.job(TRAIN).state is JobState.DONE


def test_a_younger_certificate_for_the_same_key(expiring: House) -> None:
    """Whichever of them comes first by fingerprint, one that was good at delivery is enough."""
    for _ in range(3):
        expiring.renew("north", days=90)
    expiring.now += HOUR + 60
    expiring.report(TRAIN, expiring.seal(expiring.contribution(expiring.job(TRAIN))))
    expiring.work()
    assert expiring.job(TRAIN).state is JobState.DONE


# --- the world and the round go on ---------------------------------------------------------------------


def test_after_a_refusal_the_job_is_done_again(training: House) -> None:
    refusal(training, TRAIN, d("nothing"))
    training.driver.execute(training.message("north"))
    assert training.job(TRAIN).attempt == f"{TRAIN}.a2"
    training.report(TRAIN, training.seal(training.contribution(training.job(TRAIN))))
    training.work()
    assert training.job(TRAIN).state is JobState.DONE
    told = training.why("demo/r1")
    assert f"{TRAIN}.a1 refused: " in told and f"{TRAIN}.a2 admitted: " in told


def test_a_base_that_cannot_be_read_is_not_the_sites_fault(training: House) -> None:
    base = training.job(TRAIN).inputs
    training.report(TRAIN, training.seal(training.contribution(training.job(TRAIN))))
    for digest in base:
        path = training.store.path(digest)
        path.chmod(0o644)
        path.write_bytes(b"rotten")
    what = next(w for w in owed(training.driver.state) if isinstance(w, Inspect))
    with pytest.raises(Unavailable, match="the base of demo_r1-train-north cannot be read"):
        do(what, training.driver.state, training.workshop)
    assert training.job(TRAIN).state is JobState.DELIVERED


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
    assert_matches(
        reason, refusal(judging, GATE, judging.seal(judging.contribution(judging.job(GATE), artifact)))
    )


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999", b"null", b'"50.0"'])
def test_scores_that_are_no_numbers(judging: House, number: bytes) -> None:
    honest = judging.store.read_bytes(judging.scores().digest, 1 << 20)
    artifact = judging.send(honest.replace(b"50.0", number, 1))
    reason = refusal(judging, GATE, judging.seal(judging.contribution(judging.job(GATE), artifact)))
    assert_matches("^scores: ", reason)


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
    assert_matches(reason, refusal(tokenizing, TOKENIZER, tokenizing.seal(contribution)))


def assert_matches(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, text), text
