"""What a delivered delta, its manifest and its signature can be wrong in: each is refused, and ``why`` tells it."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from consortium_in_facts import d
from delivering_site import TRAIN, House, assert_says, refusal, values
from safetensors.numpy import save

from consortium.canonical import encode, replace
from consortium.errors import Unavailable
from consortium.ids import AttemptId, Digest, Language, SiteName
from consortium.manifests import FileRef
from consortium.signing import ASSIGNMENT, CONTRIBUTION, seal
from coordinator.core.owed import Inspect, owed
from coordinator.core.transitions import JobState
from coordinator.workshop import do

FI, HU = Language("fi"), Language("hu")
HOUR = 3600.0


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
        (halve, 0.01, r"tensor 'head' is F16, the job asked for fp32"),
        (dict, 100.0, r"its norm .* exceeds 0.5 of the base's"),
    ],
)
def test_a_delta_that_does_not_fit(
    training: House, change: Callable[[dict[str, np.ndarray]], object], scale: float, reason: str
) -> None:
    contribution = training.contribution(training.job(TRAIN), training.delta(change, scale))
    assert_says(reason, refusal(training, TRAIN, training.seal(contribution)))


def test_a_delta_that_is_no_tensor_file(training: House) -> None:
    contribution = training.contribution(training.job(TRAIN), training.send(b"garbage" * 9))
    assert_says("no safetensors", refusal(training, TRAIN, training.seal(contribution)))


def test_a_flipped_byte_on_the_way(training: House) -> None:
    """What was uploaded is not what was signed: the signed digest was never uploaded."""
    signed = training.delta()
    sent = bytearray(training.store.read_bytes(signed.digest, 1 << 20))
    training.store.path(signed.digest).unlink()
    sent[-1] ^= 1
    training.send(bytes(sent))
    contribution = training.contribution(training.job(TRAIN), signed)
    assert_says(
        r"artifact delta \w+ was never uploaded", refusal(training, TRAIN, training.seal(contribution))
    )


def test_somebody_elses_work(training: House) -> None:
    """The digest of bytes that another site sent is no work of one's own."""
    theirs = training.send(save(values(7, 0.01), {"format": "pt"}), by="south")
    contribution = training.contribution(training.job(TRAIN), theirs)
    assert_says(r"never uploaded by north", refusal(training, TRAIN, training.seal(contribution)))


def test_a_flipped_byte_in_the_store(training: House) -> None:
    signed = training.delta()
    path = training.store.path(signed.digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    contribution = training.contribution(training.job(TRAIN), signed)
    assert_says("the bytes changed", refusal(training, TRAIN, training.seal(contribution)))


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
        ({"artifacts": {}}, r"artifacts are \[\], this job's result is \['delta'\]"),
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
    assert_says(reason, refusal(training, TRAIN, training.seal(contribution)))


def test_a_partial_delta_is_admitted_with_its_true_counts(training: House) -> None:
    """Whether it is merged is the campaign's to say, not the inspection's."""
    contribution = replace(
        training.contribution(training.job(TRAIN), training.delta()), steps=5, tokens={FI: 80}
    )
    training.report(TRAIN, training.seal(contribution))
    training.work()
    admitted = training.job(TRAIN).contribution
    assert admitted is not None
    assert (admitted.steps, admitted.planned_steps) == (5, 10)


def test_a_wrong_size(training: House) -> None:
    delta = training.delta()
    contribution = training.contribution(training.job(TRAIN), replace(delta, size=delta.size + 1))
    assert_says("bytes stored, the manifest says", refusal(training, TRAIN, training.seal(contribution)))


# --- signatures ----------------------------------------------------------------------------------------


def test_signed_by_another_site(training: House) -> None:
    contribution = training.contribution(training.job(TRAIN))
    reason = refusal(training, TRAIN, training.seal(contribution, by="south"))
    assert_says("not signed by site north: signed envelope: signed by", reason)


def test_another_kind_of_envelope(training: House) -> None:
    data = seal(encode(training.contribution(training.job(TRAIN))), ASSIGNMENT, training.keys["north"])
    assert_says("its type is", refusal(training, TRAIN, training.send(data).digest))


def test_a_payload_changed_after_signing(training: House) -> None:
    contribution = training.contribution(training.job(TRAIN))
    envelope = json.loads(seal(encode(contribution), CONTRIBUTION, training.keys["north"]))
    other = json.loads(seal(encode(replace(contribution, steps=9)), CONTRIBUTION, training.keys["north"]))
    envelope["payload"] = other["payload"]
    data = json.dumps(envelope).encode()
    assert_says("does not fit the bytes", refusal(training, TRAIN, training.send(data).digest))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not DSSE JSON"),
        (b"[" * 100_000, "not DSSE JSON"),
        (b" " * (1 << 20) + b"{}", "at most 1048576"),
    ],
)
def test_an_envelope_that_is_none(training: House, data: bytes, reason: str) -> None:
    assert_says(reason, refusal(training, TRAIN, training.send(data).digest))


def test_a_payload_that_is_no_manifest(training: House) -> None:
    data = seal(b'{"job": 7}', CONTRIBUTION, training.keys["north"])
    assert_says("contribution manifest: ", refusal(training, TRAIN, training.send(data).digest))


def test_an_envelope_that_was_never_uploaded(training: House) -> None:
    """The job must not hang on something that will never come."""
    assert_says(r"envelope \w+ was never uploaded", refusal(training, TRAIN, d("nothing")))


def test_an_expired_certificate(expiring: House) -> None:
    contribution = expiring.contribution(expiring.job(TRAIN))
    expiring.now += HOUR + 60
    reason = refusal(expiring, TRAIN, expiring.seal(contribution))
    assert_says("certificate of north that had expired 60 s before delivery", reason)


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
