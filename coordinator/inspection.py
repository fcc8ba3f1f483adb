"""Is a delivered contribution what it says, by whom it says, and fit to be used: admission.

Signature, order and bytes are checked here; the tensors of a delta in ``consortium.admission``. Every refusal is a
sentence that ends in ``sprachbund why``.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from consortium.admission import inspect
from consortium.blobs import Blobs
from consortium.byte_level import misfit
from consortium.canonical import decode, digest_of_fact
from consortium.errors import BadInput, Corrupt, Unavailable
from consortium.flower.letters import ARRAYS, LETTER, LETTER_BYTES_MAX, check_parcel, read_letter
from consortium.identity import identity_of
from consortium.ids import Digest, Language, SiteName
from consortium.jobs import Evaluate, FlowerMessage, Merge, Tokenizer, Train
from consortium.manifests import Contribution, FileRef, Scores, VersionManifest
from consortium.merging.operands import read_row_counts
from consortium.signing import CONTRIBUTION, key_of_certificate, open_envelope
from consortium.tensors import Checkpoint
from coordinator.continuity import feedback, moments
from coordinator.core.commands import ReportInspection
from coordinator.core.events import ScoreSummary
from coordinator.core.gate import NATS_MAX
from coordinator.core.state import Job, Site, State
from coordinator.merge_inspection import MergeCheck, inspect_version
from policies.campaign import Admission

_ENVELOPE_BYTES_MAX = 1 << 20
#: JSON takes ten to thirty times its bytes when it is read, and what is delivered is read again after each crash: of
#: scores as many as a million documents have, of a tokenizer as much as its entries can need.
_SCORES_BYTES_MAX = 48 << 20
_TOKENIZER_BYTES_MAX = 64 << 20
_TOKENIZER_BYTES = 4 << 20
_TOKENIZER_ENTRY_BYTES = 256
_COUNTS_BYTES_MAX = 64 << 20
_COUNT_MAX = 1 << 53  #: larger numbers of tokens or bytes are a stranger's joke, and no float holds them


@dataclass(frozen=True, slots=True)
class Delivery:
    """One contribution and what it is measured against."""

    job: Job
    site: Site
    consortium: str
    limits: Admission
    base_dir: Callable[[], Path]  #: lays the job's base out when the delta needs it
    merge: MergeCheck | None = None  #: of a merge job
    usual_norm: float | None = None  #: relative norm of the deltas of earlier rounds, where it is known
    known_deltas: frozenset[Digest] = frozenset()  #: of earlier rounds


def inspect_delivery(delivery: Delivery, store: Blobs) -> ReportInspection:
    """Admit or refuse. Raises Unavailable only if the world is not ready; bad bytes are a refusal."""
    job = delivery.job
    assert job.attempt is not None and job.envelope is not None and job.site is not None
    measures: dict[str, float] = {}
    scores: dict[str, dict[Language, ScoreSummary]] = {}
    manifest: VersionManifest | None = None
    try:
        _was_sent("envelope", job.envelope, job.site, store)
        contribution = _signed_manifest(
            job, delivery.site, delivery.consortium, store.read_bytes(job.envelope, _ENVELOPE_BYTES_MAX)
        )
        _answers(contribution, job)
        _bytes_are_there(contribution, job, store)
        match job.work:
            case Train():
                reason = "signature, base, shapes and norms are as they should be"
                reason += feedback(contribution, job.work) + moments(contribution, job.work)
                measures = _delta(delivery, contribution, store)
                if job.work.token_counts:
                    _token_counts(job.work, contribution, store)
            case Evaluate():
                scores = _scores(job.work, contribution, store)
                reason = f"scores of {len(scores)} model(s) by {job.site}"
            case Tokenizer():
                measures = _tokenizer(job.work, contribution, store)
                reason = "a byte-level BPE of the size asked for"
            case Merge():
                assert delivery.merge is not None
                manifest = inspect_version(job.work, contribution, store, delivery.merge)
                reason = f"{delivery.merge.what}; {delivery.merge.how}"
            case FlowerMessage():
                reason = _reply(contribution, store, delivery.limits.bytes_max)
    except BadInput as refusal:
        return ReportInspection(job=job.id, attempt=job.attempt, contribution=None, reason=str(refusal))
    return ReportInspection(
        job=job.id,
        attempt=job.attempt,
        contribution=contribution,
        measures=measures,
        scores=scores,
        manifest=manifest,
        reason=reason,
    )


def was_signed(state: State, job: Job, store: Blobs) -> None:
    """Raise BadInput unless the site signed just what the ledger admitted; its artifacts are not looked at."""
    assert job.envelope is not None and job.site is not None and job.contribution is not None
    envelope = store.read_bytes(job.envelope, _ENVELOPE_BYTES_MAX)
    signed = _signed_manifest(job, state.sites[job.site], state.consortium, envelope)
    _answers(signed, job)
    if signed != job.contribution:
        raise Corrupt("the signed manifest is not the one that the ledger admitted")


def _signed_manifest(job: Job, site: Site, consortium: str, envelope: bytes) -> Contribution:
    """The payload, if a certificate of this very site signed it and had not expired when it was delivered."""
    refusals, expired = [], []
    for _, pem in sorted(site.certificates.items()):
        try:
            payload = open_envelope(envelope, CONTRIBUTION, key_of_certificate(pem.encode()))
        except Corrupt as refusal:
            refusals.append(str(refusal))
            continue
        signer = identity_of(pem.encode(), consortium)
        if job.delivered_at <= signer.not_after:
            return decode(payload, Contribution, "contribution manifest")
        expired.append(signer.not_after)  # another certificate may be for the same key, and younger
    if expired:
        raise BadInput(
            f"signed with a certificate of {site.name} that had expired {job.delivered_at - max(expired):.0f} s "
            "before delivery; the site must renew it or enrol again"
        )
    raise Corrupt(f"not signed by site {site.name}: {refusals[-1] if refusals else 'it has no certificate'}")


def _order(job: Job) -> str:
    """The digest of what was signed; this release might spell the same order otherwise."""
    assert job.attempt is not None and job.site is not None
    known = job.tries.get(job.attempt)
    return known.order if known and known.order else digest_of_fact(job.assignment(job.attempt, job.site))


def _answers(contribution: Contribution, job: Job) -> None:
    """The manifest speaks of this attempt, this order and this base, and no other."""
    assert job.attempt is not None and job.site is not None
    base = job.work.base if isinstance(job.work, Train | Merge) else None
    wanted = {
        "job": job.id,
        "attempt": job.attempt,
        "campaign": job.campaign,
        "site": job.site,
        "assignment": _order(job),
        "base": base,
    }
    for field, want in wanted.items():
        got = getattr(contribution, field)
        if got != want:
            way_out = "deliver what the job asked for"
            if field == "base":
                start = "train from" if isinstance(job.work, Train) else "merge onto"
                way_out = f"{start} the base of the round"
            raise BadInput(f"manifest's {field} is {got}, the job's is {want}; {way_out}")
    if isinstance(job.work, Merge):
        return  # its artifacts are the version's files, which its manifest names
    if isinstance(job.work, FlowerMessage):
        if contribution.residual_before not in (None, job.work.state):
            raise BadInput("the app went on from another Context.state than the job's; use that one, or none")
        return  # its artifacts are those that its letter names
    wanted_artifacts = {{Train: "delta", Evaluate: "scores", Tokenizer: "tokenizer"}[type(job.work)]}
    if isinstance(job.work, Train) and job.work.token_counts:
        wanted_artifacts.add("token_counts")
    if set(contribution.artifacts) != wanted_artifacts:
        raise BadInput(
            f"artifacts are {sorted(contribution.artifacts)}, this job's result is {sorted(wanted_artifacts)}"
        )
    if isinstance(job.work, Train):
        _counts(contribution, job.work)


def _counts(contribution: Contribution, work: Train) -> None:
    """Steps decide whether a delta is merged, tokens how much it weighs: neither may be invented."""
    steps, tokens = contribution.steps, sum(contribution.tokens.values())
    if contribution.planned_steps != work.steps:
        raise BadInput(f"planned_steps is {contribution.planned_steps}, the job asked for {work.steps}")
    if not 0 <= steps <= work.steps or min(contribution.tokens.values(), default=0) < 0:
        raise BadInput(f"{steps} of {work.steps} steps, tokens {contribution.tokens}: counts cannot be so")
    if tokens > steps * work.batch_sequences * work.sequence_tokens:
        raise BadInput(
            f"{tokens} tokens in {steps} steps of {work.batch_sequences} sequences of {work.sequence_tokens} "
            "tokens cannot be; count each token that was trained on once"
        )


def _bytes_are_there(contribution: Contribution, job: Job, store: Blobs) -> None:
    for name, ref in sorted(contribution.artifacts.items()):
        # A merge hands on its base's config and tokenizer as they are; nobody sends what both sides have.
        if not (isinstance(job.work, Merge) and ref.digest in job.inputs):
            _was_sent(f"artifact {name}", ref.digest, contribution.site, store)
        if store.verify(ref.digest).size != ref.size:
            raise BadInput(
                f"artifact {name}: {store.size(ref.digest)} bytes stored, the manifest says {ref.size}"
            )


def _was_sent(what: str, digest: Digest, site: SiteName, store: Blobs) -> None:
    """That the site itself sent these bytes: the digest of somebody else's work is no work."""
    if not store.delivered(digest, site):
        raise BadInput(f"{what} {digest} was never uploaded by {site}; upload it before reporting")


def _delta(delivery: Delivery, contribution: Contribution, store: Blobs) -> dict[str, float]:
    limits, ref, work = delivery.limits, contribution.artifacts["delta"], delivery.job.work
    assert isinstance(work, Train)
    if ref.digest in delivery.known_deltas:
        raise BadInput(
            f"delta {ref.digest} was merged in an earlier round already; train from the round's base"
        )
    try:
        opened = Checkpoint(delivery.base_dir())
    except BadInput as error:  # ours, not the site's
        raise Unavailable(f"the base of {delivery.job.id} cannot be read: {error}") from error
    with opened as base:
        found = inspect(
            base,
            store.path(ref.digest),
            ref,
            norm_max=limits.norm_max,
            tensor_norm_max=limits.tensor_norm_max,
            bytes_max=limits.bytes_max,
            encoding=work.delta_dtype,
            density=work.delta_density,
            row_norm_max=limits.row_norm_max,
            usual=delivery.usual_norm,
            growth_max=limits.norm_growth_max,
        )
    if not found.ok:
        raise BadInput(found.reason)
    return {"norm": found.norm, "base_norm": found.base_norm}


def _token_counts(work: Train, contribution: Contribution, store: Blobs) -> None:
    """They weigh rows of embeddings, so they are held to the steps; their length is the merge's to check."""
    ref = contribution.artifacts["token_counts"]
    if ref.size > _COUNTS_BYTES_MAX:
        raise BadInput(
            f"token_counts: {ref.size} bytes exceed {_COUNTS_BYTES_MAX}; no vocabulary is so large"
        )
    counts_V = read_row_counts(store.path(ref.digest))
    most = contribution.steps * work.batch_sequences * (work.sequence_tokens + 1)
    if math.fsum(counts_V) > most * 1.001:  # float32 rounds each
        raise BadInput(
            f"token_counts: {math.fsum(counts_V):.0f} tokens, {contribution.steps} steps show {most} at most"
        )


def _reply(contribution: Contribution, store: Blobs, bytes_max: int) -> str:
    """A letter that can be read, and the arrays that it names; what they mean is for the ServerApp to say."""
    ref = contribution.artifacts.get(LETTER)
    if ref is None:
        raise BadInput(f"artifacts are {sorted(contribution.artifacts)}, a reply has a {LETTER!r}")
    letter = read_letter(store.read_bytes(ref.digest, LETTER_BYTES_MAX), f"{LETTER} of {contribution.site}")
    named = {LETTER: ref, **{f"{ARRAYS}{parcel.digest}": parcel for parcel in letter.parcels}}
    if named != contribution.artifacts:
        raise BadInput(f"artifacts are {sorted(contribution.artifacts)}, the letter names {sorted(named)}")
    # a parcel that several records name is as often in memory
    size = ref.size + sum(record.arrays.size for record in letter.records if record.arrays)
    if size > bytes_max:
        raise BadInput(
            f"a reply of {size} bytes, this run takes {bytes_max} at most; send less, or fewer times the same"
        )
    for parcel in letter.parcels:  # one that cannot be read would end the ServerApp, each time it is started
        check_parcel(store.path(parcel.digest))
    return f"a reply of {len(letter.records)} record(s) by {contribution.site}"


def _scores(
    work: Evaluate, contribution: Contribution, store: Blobs
) -> dict[str, dict[Language, ScoreSummary]]:
    scores = load_scores(contribution.artifacts["scores"], store)
    if scores.site != contribution.site:
        raise BadInput(f"scores are of site {scores.site}, delivered by {contribution.site}")
    wanted = {s.name for s in work.subjects}
    if set(scores.subjects) != wanted:
        raise BadInput(f"scored {sorted(scores.subjects)}, asked for {sorted(wanted)}")
    summaries: dict[str, dict[Language, ScoreSummary]] = {}
    for subject, languages in sorted(scores.subjects.items()):
        if not set(languages) <= set(work.languages):
            raise BadInput(f"{subject}: scored {sorted(languages)}, asked for {sorted(work.languages)}")
        for language, score in sorted(languages.items()):
            if len(score.nats) != len(score.bytes) or min(score.bytes, default=1) < 1:
                raise BadInput(f"{subject}, {language}: every document needs its nats and at least one byte")
            if min(score.nats, default=0.0) < 0.0:
                raise BadInput(
                    f"{subject}, {language}: a document of {min(score.nats)} nats; none is negative"
                )
            if sum(score.nats) > NATS_MAX or sum(score.bytes) > _COUNT_MAX:
                raise BadInput(f"{subject}, {language}: more nats or bytes than all text in the world has")
            if not score.nats:
                continue  # nothing was held out: not scored
            summaries.setdefault(subject, {})[language] = ScoreSummary(
                nats=math.fsum(score.nats),
                bytes=sum(score.bytes),
                documents=len(score.nats),
                heldout=score.heldout,
            )
    return summaries


def load_scores(ref: FileRef, store: Blobs) -> Scores:
    return decode(store.read_bytes(ref.digest, _SCORES_BYTES_MAX), Scores, "scores")


def _tokenizer(work: Tokenizer, contribution: Contribution, store: Blobs) -> dict[str, float]:
    most = min(_TOKENIZER_BYTES_MAX, _TOKENIZER_BYTES + _TOKENIZER_ENTRY_BYTES * work.vocabulary_size)
    data = store.read_bytes(contribution.artifacts["tokenizer"].digest, most)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"tokenizer.json: not a tokenizer ({type(error).__name__}: {error})") from error
    if why := misfit(document, work.vocabulary_size):
        raise BadInput(f"tokenizer.json: {why}")
    return {"vocabulary_size": float(len(document["model"]["vocab"]))}
